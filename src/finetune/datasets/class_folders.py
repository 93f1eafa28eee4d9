"""Images of one's own: class folders in a .tar, .tar.gz or .zip, or as they are, with or without a split.

Names are the folders', sorted, as torchvision's ImageFolder has them. A single leading folder is skipped. What is
no image by its name (LICENSE, labels.csv) is passed over, hidden files too. Which images are for what:

- train/ and test/: as they say.
- train/ and val/, ImageNet's usual layout: val/ is the test split, as everybody reports ImageNet; validation is carved
  out of train/ by `prepare.val_fraction`, as for every data set.
- train/, val/ and test/: as they say; nothing is carved.
- one pool of class folders: `test_fraction` of each class is the test split. An image's place follows from
  `test_seed` and its name alone, so that it is the same however the pool is packed, and adding images moves few.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from finetune.counting import counted
from finetune.datasets._members import ARCHIVES, hidden, members
from finetune.datasets.archives import md5
from finetune.datasets.dataset import Contents, Dataset, Example, Split
from finetune.errors import InputError

_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm")
_SPLITS: dict[frozenset[str], dict[str, Split]] = {
    frozenset({"train", "test"}): {"train": "train", "test": "test"},
    frozenset({"train", "val"}): {"train": "train", "val": "test"},
    frozenset({"train", "val", "test"}): {"train": "train", "val": "val", "test": "test"},
}
_SPLIT_FOLDERS = ("train", "val", "test")
_Parts = tuple[str, ...]


def dataset(name: str, title: str = "", archive: str = "", test_fraction: float = 0.2, test_seed: int = 0) -> Dataset:
    """A data set whose images lie in class folders in data/<name>/.

    Args:
        archive: the file to read, where there are several; empty for the only one, or the folder itself.
        test_fraction: of each class of a pool, at least one image but never all; in (0, 1).
    """

    def read(folder: Path) -> Contents:
        source = _source(folder, archive)
        images, folders = _listing(source)
        classes, listed = _sorted_out(source, images, folders, test_fraction, test_seed)
        return Contents(classes, _examples(source, listed), len(listed))

    return Dataset(
        name=name,
        title=title or name,
        classes=None,
        archives=(archive,) if archive else (),
        editions={},
        read=read,
        digest=lambda folder: _digest(_source(folder, archive)),
        options={"reader": "class_folders", "test_fraction": test_fraction, "test_seed": test_seed},
    )


def _source(folder: Path, archive: str) -> Path:
    """The archive in `folder`, or `folder` itself."""
    if archive:
        return folder / archive
    try:
        entries = sorted(path for path in folder.iterdir() if not hidden(path.name))
    except (FileNotFoundError, NotADirectoryError):
        entries = []
    archives = [path for path in entries if path.name.lower().endswith(ARCHIVES)]
    folders = [path for path in entries if path.is_dir()]
    if not archives and not folders:
        raise InputError(
            f"{folder}: found neither a {' or '.join(ARCHIVES)} nor folders of images; bring it there, or pull it with "
            f"`dvc pull data/{folder.name}`"
        )
    if len(archives) > 1 or (archives and folders):
        found = ", ".join(path.name for path in archives + folders[:1])
        raise InputError(
            f"{folder}: found {found}, expected one archive or class folders alone; name the archive in params.yaml "
            f"(datasets.{folder.name}.archive), or move the rest away"
        )
    return archives[0] if archives else folder


def _listing(source: Path) -> tuple[list[str], set[str]]:
    """The images, in the order in which they come, and all folders."""
    images: dict[str, None] = {}
    folders: set[str] = set()
    for name, _ in members(source):
        folder, _, file = name.rpartition("/")
        folders.add(folder)
        if file.lower().endswith(_IMAGES):
            if name in images:
                raise InputError(f"{source}: {name}: this member comes twice, expected once; pack the images again")
            images[name] = None
    if not images:
        raise InputError(f"{source}: found no image, expected class folders of {' '.join(_IMAGES)}; bring images")
    return list(images), folders - {""}


def _sorted_out(
    source: Path, images: Collection[str], folders: Collection[str], test_fraction: float, test_seed: int
) -> tuple[tuple[str, ...], dict[str, tuple[Split, int]]]:
    """Class names in label order, and each image's split and label."""
    example = {name.rpartition("/")[0]: name for name in images}  # one for each folder that holds images
    if "" in example:
        raise _loose(source, example[""])
    homes = {tuple(folder.split("/")): name for folder, name in example.items()}
    root = _root(homes)
    splits = _splits(source, homes, root)
    depth = root + (1 if splits else 0)  # at which a class folder's name stands
    for home, name in homes.items():
        if len(home) <= depth:
            raise _loose(source, name)
        if len(home) > depth + 1:
            raise InputError(
                f"{source}: {name}: lies in a folder within the class folder {'/'.join(home[: depth + 1])}/, expected "
                "images directly in it; move them up, or make that folder a class of its own"
            )
    _refuse_empty(source, folders, homes, root, depth)
    classes = tuple(sorted({home[depth] for home in homes if not splits or home[root] == "train"}))
    label_of = {name: label for label, name in enumerate(classes)}
    for home, name in homes.items():
        if home[depth] not in label_of:
            raise InputError(
                f"{source}: {name}: there is no class '{home[depth]}' in train/, expected the classes of "
                f"{home[root]}/ to be among those of train/; add it there, or remove this one"
            )
    if len(classes) < 2:
        raise InputError(
            f"{source}: found the one class folder {classes[0]}/, expected two or more (besides train/, val/, test/)"
        )
    own: dict[_Parts, tuple[Split, int]] = {
        home: (splits[home[root]] if splits else "train", label_of[home[depth]]) for home in homes
    }
    listed = {name: own[tuple(name.split("/")[:-1])] for name in images}
    if not splits:
        for name in _chosen(images, test_fraction, test_seed):
            listed[name] = "test", listed[name][1]
    return classes, listed


def _root(homes: Collection[_Parts]) -> int:
    """How many leading folders all images share that are neither a class nor a split."""
    some, depth = next(iter(homes)), 0
    while (
        all(len(home) > depth + 1 and home[depth] == some[depth] for home in homes)
        and some[depth] not in _SPLIT_FOLDERS
    ):
        depth += 1
    return depth


def _splits(source: Path, homes: Collection[_Parts], root: int) -> dict[str, Split] | None:
    """Split folder -> split; None for one pool, in which "train" may well be a class (of vehicles)."""
    if not any(home[root] in _SPLIT_FOLDERS and len(home) > root + 1 for home in homes):
        return None
    tops = frozenset(home[root] for home in homes)
    if tops not in _SPLITS:
        raise InputError(
            f"{source}: found images in {', '.join(f'{top}/' for top in sorted(tops)[:5])}, expected train/ with test/ "
            "or val/ or both, or one pool of class folders; rename or move them"
        )
    return _SPLITS[tops]


def _refuse_empty(source: Path, folders: Collection[str], homes: Collection[_Parts], root: int, depth: int) -> None:
    leading = next(iter(homes))[:root]
    tops = {home[root] for home in homes}
    for folder in sorted(folders):
        parts = tuple(folder.split("/"))
        if parts[:root] != leading or len(parts) <= root:
            continue
        in_split = depth == root or parts[root] in tops
        if (in_split and len(parts) > depth and parts[: depth + 1] not in homes) or (
            not in_split and parts[root] in _SPLIT_FOLDERS
        ):
            raise InputError(
                f"{source}: {folder}/: found no image in it, expected some ({' '.join(_IMAGES)}); add them, or remove "
                "the folder"
            )


def _loose(source: Path, name: str) -> InputError:
    return InputError(
        f"{source}: {name}: an image outside the class folders, expected <class>/ around it; move it or remove it"
    )


def _chosen(images: Collection[str], fraction: float, seed: int) -> Iterator[str]:
    """The test images of a pool: of each class those whose names, hashed with the seed, come first."""
    of_class: dict[str, list[tuple[bytes, str]]] = {}
    for name in images:
        home, file = name.split("/")[-2:]
        rank = hashlib.sha256(f"{seed}/{home}/{file}".encode(errors="surrogateescape")).digest()[:8]
        of_class.setdefault(home, []).append((rank, name))
    for ranked in of_class.values():
        count = min(max(1, round(fraction * len(ranked))), len(ranked) - 1)
        yield from (name for _, name in sorted(ranked)[:count])


def _examples(source: Path, listed: Mapping[str, tuple[Split, int]]) -> Iterator[Example]:
    for name, data in members(source, listed.__contains__):
        if data is not None:
            split, label = listed[name]
            yield Example(split, label, data, f"{source.name}: {name}")


def _digest(source: Path) -> dict[str, str]:
    """The md5 of the archive; of a folder, under ".", as DVC hashes one that holds just the images."""
    if not source.is_dir():
        return {source.name: md5(source)}
    images = sorted(_listing(source)[0])
    listed, done = [], 0
    with counted(f"md5 of {source.name}", sum((source / name).stat().st_size for name in images), "B") as advance:
        for name in images:
            listed.append({"md5": md5(source / name), "relpath": name})
            advance(done := done + (source / name).stat().st_size)
    return {".": hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest()}
