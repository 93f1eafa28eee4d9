"""Archives -> store: checks the edition, decodes on all cores, carves validation out of train."""

import gc
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from finetune import duplicates, kept
from finetune.allocator import keep_small_freed_memory
from finetune.archive_check import check_archives, check_counts, check_md5s, check_present, edition_of, source_meta
from finetune.aside import alone, aside, clear_abandoned
from finetune.counting import counted, size
from finetune.datasets import Contents, Dataset, Example
from finetune.decoding import decoded_images
from finetune.errors import InputError
from finetune.params import PrepareParams
from finetune.runs import move_into_place
from finetune.store import Store, open_store
from finetune.store_writer import Writer

_PROBE = 64  # images whose stored size tells the whole store's
_PROBED = 0.1  # of the archives' bytes: what tells it where nobody says how many images come, and sizes may be mixed
_BESIDE = 100  # bytes an image takes besides its pixels: label, index, hash, name


def prepare(dataset: Dataset, edition: str, settings: PrepareParams, archives: Path, place: Path) -> Store:
    """Make the store of a data set at `place`, unless just that lies there; it appears only when whole. Memory does
    not grow with the data set, but for some hundred bytes per image.

    Raises:
        InputError: archives are missing, are not the edition's, or are broken, or the disk is too small; `place` is
            then as it was.
    """
    keep_small_freed_memory()
    try:
        clear_abandoned(place.parent)
        with alone(place), _collecting_little():
            if made := kept.find(dataset, edition, settings, archives, place):
                print(f"{place}: kept, as archives, settings and code are those it was made with", flush=True)
                return made
            _write(dataset, edition, settings, archives, place)
            made = open_store(place)
            kept.note(dataset, archives, made)
            return made
    except OSError as error:
        raise InputError(
            f"{error.filename or place}: could not be read or written ({error.strerror}) while {place} was made; make "
            "room, choose another disk, or mend its permissions"
        ) from None


def _write(dataset: Dataset, edition: str, settings: PrepareParams, archives: Path, place: Path) -> None:
    expected = edition_of(dataset, edition)
    check_present(dataset, archives)
    shutil.rmtree(aside(place), ignore_errors=True)  # of another process that was killed while this one waited
    of_edition = expected.train + expected.test if expected else None
    contents, writer = None, None
    try:
        contents = dataset.read(archives)
        checked_md5 = partial(_checked_md5, dataset, edition, archives, contents)
        if of_edition and contents.images not in (None, of_edition):
            checked_md5()
        writer = Writer(aside(place), together=not contents.placed)
        _take(dataset.name, contents, settings, writer, place, of_edition or contents.images, checked_md5)
        classes = contents.classes
        if contents.late:
            late = contents.late()
            classes = late.classes
            if late.splits is not None and late.labels is not None:
                writer.place(late.splits, late.labels)
        source = source_meta(dataset, edition, checked_md5(), settings)
        check_counts(dataset, edition, writer.counts())
        validation, left_out = _validation(dataset, settings, writer)
        meta = {"dataset": dataset.name, "edition": source["edition"], "classes": list(classes)}
        meta["duplicates"] = _duplicates(writer, validation, left_out)
        writer.finish(validation, {**meta, **source}, left_out)
        move_into_place(aside(place), place)
    except InputError:
        if expected:  # that it is another edition explains whatever else is wrong with it
            _checked_md5(dataset, edition, archives, contents)
        raise
    finally:
        try:
            if writer is not None:
                writer.close()  # on a full disk it fails
        finally:
            shutil.rmtree(aside(place), ignore_errors=True)


def _checked_md5(dataset: Dataset, edition: str, archives: Path, contents: Contents | None) -> dict[str, str]:
    """The md5 of each archive.

    Raises:
        InputError: one is not the edition's.
    """
    if contents is None or contents.reading is None:
        return check_archives(dataset, edition, archives)
    found = contents.reading.md5()
    check_md5s(dataset, edition, archives, found)
    return found


def _take(
    name: str,
    contents: Contents,
    settings: PrepareParams,
    writer: Writer,
    place: Path,
    images: int | None,
    too_many: Callable[[], object],
) -> None:
    """Read, decode and write every image.

    Args:
        images: how many are to come; None: nobody knows, so that it is guessed from the bytes that have been read.
        too_many: is called when more have come.
    """
    total, shares = images, dict[int, float]()  # of all bytes, when that many images were read

    def examples() -> Iterator[Example]:
        nonlocal total
        for read, example in enumerate(contents.examples, 1):
            if images is None and contents.reading and read % _PROBE == 0:
                share = max(contents.reading.share(), 1e-9)
                total = round(read / share)
                if _is_probed(read):
                    shares[read] = share
            yield example

    with counted(f"prepare {name}", images, "images") as advance:
        for done, (example, image) in enumerate(decoded_images(examples(), settings.short_side), 1):
            writer.add(example.split, example.label, image.pixels, example.member, *image.facts)
            if images is not None and done == images + 1:
                too_many()
            if _is_probed(done):
                share = min(1.0, done / images) if images else shares.get(done, 0.0)
                if images or share >= _PROBED:
                    _check_room(place, writer.size(), done, share)
            advance(done, total and max(done, total))


def stratified(labels: np.ndarray, fraction: float, seed: int, first: np.ndarray | None = None) -> np.ndarray:
    """Choose about `fraction` of each class, at least one image when fraction > 0 and the class has two.

    Args:
        labels: int64, images.
        first: int64, images: the first image of the same content (`duplicates.first_of_kind`); all that have one in
            common are chosen or not chosen together, as images of the first one's class. None: no two are the same.

    Returns:
        bool, images: the chosen ones. The same arguments give the same choice.
    """
    chosen = np.zeros(len(labels), bool)
    first = np.arange(len(labels)) if first is None else first
    if fraction == 0:
        return chosen
    generator = np.random.default_rng(seed)
    kinds = np.flatnonzero(first == np.arange(len(labels)))
    for label in np.unique(labels[kinds]):
        members = generator.permutation(kinds[labels[kinds] == label])
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        chosen[members[:count]] = True
    return chosen[first]


def _validation(dataset: Dataset, settings: PrepareParams, writer: Writer) -> tuple[np.ndarray, np.ndarray]:
    """Which images of the official training split are for validation, and which for nothing: bool, images."""
    own = writer.own_validation()
    first = duplicates.first_of_kind(writer.hashes("trainval"))
    if not own.any():
        chosen = stratified(writer.labels(), settings.val_fraction, settings.split_seed, first)
        if settings.val_fraction and not chosen.any():
            raise InputError(
                f"{dataset.name}: prepare.val_fraction is {settings.val_fraction:g}, but no class has two different "
                "training images; bring more images, or set val_fraction: 0 and training.selection: last"
            )
        return chosen, np.zeros(len(chosen), bool)
    left_out = duplicates.in_train_too(first, own)
    if (own & ~left_out).any():
        return own & ~left_out, left_out
    raise InputError(
        f"{dataset.name}: every image of val/ is in train/ too, so nothing is left to validate on; bring other images, "
        "or remove val/ so that prepare.val_fraction of train/ is taken"
    )


def _duplicates(writer: Writer, validation: np.ndarray, left_out: np.ndarray) -> Mapping[str, Any]:
    first = duplicates.first_of_kind(np.concatenate([writer.hashes(name) for name in ("trainval", "test")]))
    of_train = np.where(left_out, "", np.where(validation, "val", "train"))
    splits = np.concatenate([of_train, np.full(len(first) - len(of_train), "test")])
    labels = np.concatenate([writer.labels(name) for name in ("trainval", "test")])

    def member(image: int) -> str:
        return writer.member("trainval", image) if image < len(own) else writer.member("test", image - len(own))

    own = of_train
    return duplicates.summary(first, splits, labels, member)


def _is_probed(images: int) -> bool:
    """Whether the room is looked at after so many: 64, 128, 256, …"""
    return images >= _PROBE and images.bit_count() == 1


def _check_room(place: Path, written: int, images: int, share: float) -> None:
    """Refuse a disk that cannot hold the rest.

    Args:
        written: bytes of pixels so far, of so many images.
        share: how much of all these are, in (0, 1].
    """
    needed = round((written + _BESIDE * images) / share) - written
    free = shutil.disk_usage(place.parent).free
    if needed > free:
        raise InputError(
            f"{place}: the store of {round(images / share):,} images will take about {size(needed)} more, and its disk "
            f"has {size(free)} left; make room, or lower prepare.short_side"
        )


@contextmanager
def _collecting_little() -> Iterator[None]:
    """Spare the garbage collector what has been imported: a look at all of torch takes as long as a hundred images."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
