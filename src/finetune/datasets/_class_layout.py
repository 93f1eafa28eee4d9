"""Which images in class folders are for what: the rules of `class_folders`, and what is no such layout."""

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from finetune.datasets._members import hidden, shown
from finetune.datasets.dataset import Split
from finetune.errors import InputError

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm")
_SPLITS: dict[frozenset[str], dict[str, Split]] = {
    frozenset({"train", "test"}): {"train": "train", "test": "test"},
    frozenset({"train", "val"}): {"train": "train", "val": "test"},
    frozenset({"train", "val", "test"}): {"train": "train", "val": "val", "test": "test"},
}
_SPLIT_FOLDERS = ("train", "val", "test")
RANK = 16  # bytes
_Parts = tuple[str, ...]


@dataclass
class Listing:
    """What lies where, without the files' names: those of a million images take hundreds of megabytes."""

    folders: set[str] = field(default_factory=set)
    images: dict[str, str] = field(default_factory=dict)  # folder that holds images -> the first one's path
    ranks: dict[str, bytearray] = field(default_factory=dict)  # the same folder -> `rank` of each image

    def __len__(self) -> int:
        return sum(map(len, self.ranks.values())) // RANK

    def see(self, name: str, seed: int) -> bool:
        """Take note of a path; whether it is an image's."""
        folder, _, file = name.rpartition("/")
        self.folders.add(folder)
        if not is_image(file):
            return False
        self.images.setdefault(folder, name)
        self.ranks.setdefault(folder, bytearray()).extend(rank(seed, folder, file))
        return True


@dataclass(frozen=True)
class Place:
    """What the images of a folder are."""

    split: Split
    label: int
    last: bytes = b""  # of a pool: the images whose rank is no higher are for test


def sorted_out(source: Path, listing: Listing, test_fraction: float) -> tuple[tuple[str, ...], dict[str, Place]]:
    """Class names in label order, and what the images of each folder are."""
    homes = _homes(source, listing.images)
    root = _root(homes)
    splits = _splits(source, homes, root)
    depth = _depth(source, homes, root)
    _refuse_empty(source, listing.folders, homes, root, depth)
    classes = _classes(source, homes, depth, {home[depth] for home in homes if not splits or home[root] == "train"})
    label_of = {name: label for label, name in enumerate(classes)}
    for home, name in homes.items():
        if home[depth] not in label_of:
            raise InputError(
                f"{source}: {name}: there is no class '{home[depth]}' in train/, expected the classes of "
                f"{home[root]}/ to be among those of train/; add it there, or remove this one"
            )
    places = {}
    for home in homes:
        folder, label = "/".join(home), label_of[home[depth]]
        last = b"" if splits else _last(listing.ranks[folder], test_fraction)
        places[folder] = Place(splits[home[root]] if splits else "train", label, last)
    return classes, places


def check_depth(source: Path, images: Mapping[str, str]) -> None:
    """Refuse images, of each folder one, that are outside the class folders or too deep, whatever else may come."""
    homes = _homes(source, images)
    _depth(source, homes, _root(homes))


def _homes(source: Path, images: Mapping[str, str]) -> dict[_Parts, str]:
    if "" in images:
        raise _loose(source, images[""])
    return {tuple(folder.split("/")): name for folder, name in images.items()}


def _depth(source: Path, homes: Mapping[_Parts, str], root: int) -> int:
    """How many folders stand around a class folder."""
    depth = root + (1 if _has_splits(homes, root) else 0)
    for home, name in homes.items():
        if len(home) <= depth:
            raise _loose(source, name)
        if len(home) > depth + 1:
            raise InputError(
                f"{source}: {name}: lies in a folder within the class folder {'/'.join(home[: depth + 1])}/, expected "
                "images directly in it; move them up, or make that folder a class of its own"
            )
    return depth


def _classes(source: Path, homes: Collection[_Parts], depth: int, names: set[str]) -> tuple[str, ...]:
    """The names in label order."""
    for home in homes:
        if shown(home[depth]) != home[depth]:
            raise InputError(
                f"{source}: {shown('/'.join(home[: depth + 1]))}/: this class folder's name is not UTF-8, expected one "
                "that can be written everywhere; rename the folder (in an archive: unpack it, rename, pack again)"
            )
    if len(names) < 2:
        raise InputError(
            f"{source}: found the one class folder {min(names)}/, expected two or more (besides train/, val/, test/)"
        )
    return tuple(sorted(names))


def _root(homes: Collection[_Parts]) -> int:
    """How many leading folders all images share that are neither a class nor a split."""
    some, depth = next(iter(homes)), 0
    while (
        all(len(home) > depth + 1 and home[depth] == some[depth] for home in homes)
        and some[depth] not in _SPLIT_FOLDERS
    ):
        depth += 1
    return depth


def _has_splits(homes: Collection[_Parts], root: int) -> bool:
    """Not so one pool, in which "train" may well be a class (of vehicles)."""
    return any(home[root] in _SPLIT_FOLDERS and len(home) > root + 1 for home in homes)


def _splits(source: Path, homes: Collection[_Parts], root: int) -> dict[str, Split] | None:
    """Split folder -> split; None for one pool."""
    if not _has_splits(homes, root):
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
                f"{source}: {folder}/: found no image in it, expected some ({' '.join(IMAGES)}); add them, or remove "
                "the folder"
            )


def _loose(source: Path, name: str) -> InputError:
    return InputError(
        f"{source}: {name}: an image outside the class folders, expected <class>/ around it; move it or remove it"
    )


def rank(seed: int, folder: str, file: str) -> bytes:
    """An image's place in the lottery of a pool; in one folder no two have the same."""
    told = f"{seed}/{folder.rpartition('/')[2]}/{file}"
    return hashlib.sha256(told.encode(errors="surrogateescape")).digest()[:RANK]


def each_rank(ranks: bytearray) -> Iterator[bytes]:
    return (bytes(ranks[i : i + RANK]) for i in range(0, len(ranks), RANK))


def _last(ranks: bytearray, fraction: float) -> bytes:
    """The rank of the last test image of a pool's class; empty where it has none."""
    count = len(ranks) // RANK
    test = min(max(1, round(fraction * count)), count - 1)
    return sorted(each_rank(ranks))[test - 1] if test else b""


def is_image(file: str) -> bool:
    return file.lower().endswith(IMAGES) and not hidden(file)
