"""What a data set's file declares."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

Split = Literal["train", "val", "test"]  # val: where the data set has a validation split of its own


@dataclass(frozen=True)
class Example:
    """One labelled image of an official split."""

    split: Split
    label: int  # 0 … classes - 1
    image: bytes | np.ndarray  # an encoded file, or pixels: uint8, height x width x 3, RGB
    member: str  # where it was read: "archive.tgz: path/inside", for messages


@dataclass(frozen=True)
class Contents:
    """What lies in a data set's archives: class names in label order, and the examples as a stream."""

    classes: tuple[str, ...]
    examples: Iterator[Example]
    images: int | None = None  # how many examples come, where the metadata say so before they do


@dataclass(frozen=True)
class Edition:
    """One published form of the archives, and what must be found in it."""

    md5: Mapping[str, str]  # archive name -> md5 of the file, 32 hex digits
    train: int  # images
    test: int  # images


@dataclass(frozen=True)
class Dataset:
    """A data set: its archives, its editions, and how to read them.

    `read(folder)` streams the archives in `folder` and never unpacks them to disk. It raises InputError, naming
    archive and member, for a truncated archive, a missing member, a label out of range, or a member whose path
    leaves its folder.
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
