"""What a data set's file declares."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

Split = Literal["train", "val", "test"]  # val: where the data set has a validation split of its own
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Example:
    """One labelled image of an official split."""

    split: Split | None  # None where the archive tells it, and the label, only after its images
    label: int  # 0 … classes - 1; -1 where it is not told yet
    image: bytes | np.ndarray  # an encoded file, or pixels: uint8, height x width x 3, RGB
    member: str  # where it was read: "archive.tgz: path/inside", for messages


@dataclass(frozen=True)
class Late:
    """What only the end of the examples tells."""

    classes: tuple[str, ...]  # in label order
    splits: np.ndarray | None = None  # uint8, examples in their order: places in SPLITS; None: they told it themselves
    labels: np.ndarray | None = None  # int64, the same


class Reading(Protocol):
    """Archives while and after they are read."""

    def md5(self) -> dict[str, str]:
        """The md5 of each archive by its name, 32 hex digits, of the bytes that were read and those that are left."""

    def share(self) -> float:
        """How much of all bytes has been read so far, 0 to 1."""


@dataclass(frozen=True)
class Contents:
    """What lies in a data set's archives: class names in label order, and the examples as a stream."""

    classes: tuple[str, ...]  # empty where `late` tells them
    examples: Iterator[Example]
    images: int | None = None  # how many examples come, where the metadata say so before they do
    late: Callable[[], Late] | None = None  # to be called once, when all examples have come; raises as `Dataset.read`
    placed: bool = True  # whether examples come with split and label
    reading: Reading | None = None  # None: who wants the archives' md5 has to read them himself


@dataclass(frozen=True)
class Edition:
    """One published form of the archives, and what must be found in it."""

    md5: Mapping[str, str]  # archive name -> md5 of the file, 32 hex digits
    train: int  # images
    test: int  # images


@dataclass(frozen=True)
class Dataset:
    """A data set: its archives, its editions, and how to read them.

    `read(folder)` streams the archives in `folder`, each once where its layout allows that, and never unpacks them to
    disk. It raises InputError, naming archive and member, for a truncated archive, a missing member, a label out of
    range, or a member whose path leaves its folder.
    """

    name: str
    title: str  # as papers write it
    classes: int | None  # None: as many as are found
    archives: tuple[str, ...]  # file names in data/<name>/; none where `digest` says what lies there
    editions: Mapping[str, Edition]  # none: nobody has described the archives, they are taken as they are
    read: Callable[[Path], Contents]
    homepage: str = ""
    # Archive name -> links to the official edition, in the order in which they are tried; none where all are dead.
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    digest: Callable[[Path], dict[str, str]] | None = None  # folder -> md5 of each archive found, by its name
    options: Mapping[str, Any] = field(default_factory=dict)  # what else decides what `read` gives; goes into the store
