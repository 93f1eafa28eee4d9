"""Images whose splits and labels stand in tables: in the same archive, before or after them, or in another."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path

import numpy as np

from finetune.datasets._source import Archives, Source
from finetune.datasets.archives import all_of, files, is_image, once, stream_members
from finetune.datasets.dataset import SPLITS, Contents, Example, Late, Split
from finetune.errors import InputError

_Row = tuple[str, Split, int]  # member, split, label from 0
Told = tuple[tuple[str, ...], Iterable[_Row], str]  # class names, rows, and where they come from, for messages


def labelled_images(source: Source, rows: Iterable[_Row], where: str) -> tuple[int, Iterator[Example]]:
    """How many images `rows` list as (member, split, label from 0), and the images in the archive's order.

    `where` names the metadata that the rows come from, for messages.

    Raises:
        InputError: a member is listed twice (at once); as `stream_members` (while streaming).
    """
    listed = _listed(rows, where)
    return len(listed), _labelled(stream_members(source, listed), listed, source.path)


def images_with_tables(
    archives: Archives, name: str, tables: Collection[str], told: Callable[[Mapping[str, bytes]], Told]
) -> Contents:
    """The images of an archive that also holds the small members `tables`, of which `told` makes (class names, rows,
    source) as `labelled_images` has them. It is read once: where the tables come after images, splits and labels are
    `late`.

    Raises:
        InputError: as `told`, `labelled_images` and `read_members`; what concerns tables that come late, in `late`.
    """
    source, found = archives[name], dict[str, bytes]()
    members = files(source, lambda name: name in tables or is_image(name))
    first: list[tuple[str, bytes]] = []
    for member, data in members:
        if member not in tables:
            first = [(member, data)]
            break
        found[member] = data
    if len(found) < len(tables) and first:
        return _late_images(archives, name, tables, told, found, chain(first, members))
    classes, rows, where = told(all_of(found, tables, source.path))
    listed = _listed(rows, where)
    images = (member for member in chain(first, members) if member[0] not in tables)
    examples = _labelled(once(images, listed, source.path), listed, source.path)
    return Contents(classes, examples, len(listed), reading=archives)


def check_label(label: int, classes: int, where: str) -> int:
    """`label`, counted from 0, unless there are too few `classes` for it: then InputError naming `where`."""
    if not 0 <= label < classes:
        raise InputError(f"{where}: labelled class {label + 1} of {classes}, counting from 1; get the archive again")
    return label


def _late_images(
    archives: Archives,
    name: str,
    tables: Collection[str],
    told: Callable[[Mapping[str, bytes]], Told],
    found: dict[str, bytes],
    members: Iterator[tuple[str, bytes]],
) -> Contents:
    path, seen = archives[name].path, list[str]()

    def examples() -> Iterator[Example]:
        for member, data in members:
            if member in tables:
                found[member] = data
            else:
                seen.append(member)
                yield Example(None, -1, data, f"{path.name}: {member}")

    def late() -> Late:
        classes, rows, where = told(all_of(found, tables, path))
        listed = _listed(rows, where)
        for _ in once(((member, b"") for member in seen), listed, path):
            pass
        splits = np.array([SPLITS.index(listed[member][0]) for member in seen], np.uint8)
        return Late(classes, splits, np.array([listed[member][1] for member in seen], np.int64))

    return Contents((), examples(), late=late, placed=False, reading=archives)


def _listed(rows: Iterable[_Row], where: str) -> dict[str, tuple[Split, int]]:
    listed: dict[str, tuple[Split, int]] = {}
    for member, split, label in rows:
        if member in listed:
            raise InputError(f"{where}: lists {member} twice, expected once; get the archive again")
        listed[member] = split, label
    return listed


def _labelled(
    members: Iterator[tuple[str, bytes]], listed: Mapping[str, tuple[Split, int]], archive: Path
) -> Iterator[Example]:
    for member, data in members:
        split, label = listed[member]
        yield Example(split, label, data, f"{archive.name}: {member}")
