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

from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from finetune.counting import counted
from finetune.datasets._class_layout import (
    IMAGES,
    RANK,
    Listing,
    Place,
    check_depth,
    each_rank,
    is_image,
    rank,
    sorted_out,
)
from finetune.datasets._folder_hash import FolderHash
from finetune.datasets._members import ARCHIVES, hidden, members, packed, shown
from finetune.datasets._source import Archives
from finetune.datasets.archives import md5
from finetune.datasets.dataset import SPLITS, Contents, Dataset, Example, Late
from finetune.errors import InputError

_FOUND = 5  # entries that a message lists


def dataset(name: str, title: str = "", archive: str = "", test_fraction: float = 0.2, test_seed: int = 0) -> Dataset:
    """A data set whose images lie in class folders in data/<name>/.

    Args:
        archive: the file to read, where there are several; empty for the only one, or the folder itself.
        test_fraction: of each class of a pool, at least one image but never all; in (0, 1).
    """

    def read(folder: Path) -> Contents:
        source = _source(folder, archive)
        if packed(source):
            return _unlisted(source, test_fraction, test_seed)
        listing = _listing(source, test_seed)  # a wrong layout is told before any image is read
        classes, places = sorted_out(source, listing, test_fraction)
        reading = FolderHash(source, len(listing)) if source.is_dir() else Archives(source.parent, (source.name,))
        return Contents(classes, _examples(source, places, test_seed, reading), len(listing), reading=reading)

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
        some = [shown(path.name) for path in entries[:_FOUND]] + ["…"] * (len(entries) > _FOUND)
        found = f"found {', '.join(some)}" if some else "found nothing" if folder.is_dir() else "no such folder"
        raise InputError(
            f"{folder}: {found}, expected a {', '.join(ARCHIVES[:-1])} or {ARCHIVES[-1]}, or folders of images; "
            f"{'pack it again as one of these' if some else 'bring one'}, or pull it with `dvc pull data/{folder.name}`"
        )
    if len(archives) > 1 or (archives and folders):
        found = ", ".join(path.name for path in archives + folders[:1])
        raise InputError(
            f"{folder}: found {found}, expected one archive or class folders alone; name the archive in params.yaml "
            f"(datasets.{folder.name}.archive), or move the rest away"
        )
    return archives[0] if archives else folder


def _listing(source: Path, seed: int = 0) -> Listing:
    listing = Listing()
    for name, _ in members(source):
        listing.see(name, seed)
    return _checked(source, listing)


def _checked(source: Path, listing: Listing) -> Listing:
    if not listing.images:
        raise InputError(f"{source}: found no image, expected class folders of {' '.join(IMAGES)}; bring images")
    for folder, ranks in listing.ranks.items():
        if len(set(each_rank(ranks))) * RANK < len(ranks):
            raise InputError(
                f"{source}: {_twice(source, folder)}: this member comes twice, expected once; pack the images again"
            )
    listing.folders.discard("")
    return listing


def _twice(source: Path, folder: str) -> str:
    seen: set[str] = set()
    for name, _ in members(source):
        if name in seen:
            return name
        if name.rpartition("/")[0] == folder and not name.endswith("/"):
            seen.add(name)
    return folder


def _examples(
    source: Path, places: Mapping[str, Place], seed: int, reading: "Archives | FolderHash"
) -> Iterator[Example]:
    def wanted(name: str) -> bool:
        return name.rpartition("/")[0] in places and is_image(name)

    where = f"{'/'.join(source.parts[-2:])}/" if source.is_dir() else f"{source.name}: "
    through = reading[source.name] if isinstance(reading, Archives) else None
    for name, data in members(source, wanted, through):
        if data is not None:
            folder, _, file = name.rpartition("/")
            if isinstance(reading, FolderHash):
                reading.take(folder, data)
            place = places[folder]
            test = place.last and rank(seed, folder, file) <= place.last
            yield Example("test" if test else place.split, place.label, data, where + name)


def _unlisted(source: Path, test_fraction: float, seed: int) -> Contents:
    """Contents of a .tar.gz, which is decompressed once: its last member may be in a new class, or in a first split."""
    archives, listing = Archives(source.parent, (source.name,)), Listing()
    numbers, folders = dict[str, int](), array("i")  # number of each folder, and that of each image

    def examples() -> Iterator[Example]:
        for name, data in members(source, is_image, archives[source.name]):
            if listing.see(name, seed):
                folder = name.rpartition("/")[0]
                if folder not in numbers:  # and all are as deep as the first
                    check_depth(source, dict([next(iter(listing.images.items())), (folder, name)]))
                folders.append(numbers.setdefault(folder, len(numbers)))
                assert data is not None
                yield Example(None, -1, data, f"{source.name}: {name}")

    def late() -> Late:
        classes, places = sorted_out(source, _checked(source, listing), test_fraction)
        splits, labels = np.empty(len(folders), np.uint8), np.empty(len(folders), np.int64)
        order = np.argsort(np.array(folders), kind="stable")  # folder by folder
        for folder in numbers:
            place, ranks = places[folder], listing.ranks[folder]
            images, order = order[: len(ranks) // RANK], order[len(ranks) // RANK :]
            labels[images], splits[images] = place.label, SPLITS.index(place.split)
            if place.last:
                splits[images[[of_one <= place.last for of_one in each_rank(ranks)]]] = SPLITS.index("test")
        return Late(classes, splits, labels)

    return Contents((), examples(), late=late, placed=False, reading=archives)


def _digest(source: Path) -> dict[str, str]:
    """The md5 of the archive; of a folder, under ".", as DVC hashes one that holds just the images."""
    if not source.is_dir():
        return {source.name: md5(source)}
    listing = _listing(source)
    whole = FolderHash(source, len(listing))
    with counted(f"md5 of {source.name}", len(listing), "images") as advance:
        for name, data in members(source, is_image):
            if data is not None:
                whole.take(name.rpartition("/")[0], data)
                advance(whole.images)
    return whole.md5()
