"""Archives -> store: checks the edition, decodes on all cores, carves validation out of train."""

import gc
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from finetune import duplicates, kept
from finetune.allocator import keep_small_freed_memory
from finetune.archive_check import ANY, check_archives, check_counts, check_md5s, check_present, edition_of, source_meta
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
        with alone(place) as waited, _collecting_little():
            if made := kept.find(dataset, edition, settings, archives, place):
                print(f"{place}: kept, as archives, settings and code are those it was made with", flush=True)
                return made
            if waited and (made := _made_meanwhile(dataset, edition, settings, archives, place)):
                return made
            _write(dataset, edition, settings, archives, place)
            made = open_store(place)
            kept.note(dataset, made)
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
    contents, writer = None, None
    try:
        contents = dataset.read(archives)
        writer = Writer(aside(place), together=not contents.placed)
        images = expected.train + expected.test if expected else contents.images
        _take(dataset.name, contents, settings, writer, place, images)
        classes = contents.classes
        if contents.late:
            late = contents.late()
            classes = late.classes
            if late.splits is not None and late.labels is not None:
                writer.place(late.splits, late.labels)
        md5 = contents.reading.md5() if contents.reading else check_archives(dataset, edition, archives)
        check_md5s(dataset, edition, archives, md5)
        source = source_meta(dataset, edition, md5, settings)
        check_counts(dataset, edition, writer.counts())
        validation, left_out = _validation(dataset, settings, writer)
        meta = {"dataset": dataset.name, "edition": source["edition"], "classes": list(classes)}
        meta["duplicates"] = _duplicates(writer, validation, left_out)
        writer.finish(validation, {**meta, **source}, left_out)
        move_into_place(aside(place), place)
    except InputError:
        if expected:  # that it is another edition explains whatever else is wrong with it
            reading = contents.reading if contents else None
            check_md5s(dataset, edition, archives, reading.md5() if reading else check_archives(dataset, ANY, archives))
        raise
    finally:
        if writer is not None:
            writer.close()
        shutil.rmtree(aside(place), ignore_errors=True)


def _take(
    name: str, contents: Contents, settings: PrepareParams, writer: Writer, place: Path, images: int | None
) -> None:
    """Read, decode and write every image.

    Args:
        images: how many will come; None: nobody knows, so that it is worked out from the bytes that have been read.
    """
    read, total = 0, images

    def examples() -> Iterator[Example]:
        nonlocal read, total
        for read, example in enumerate(contents.examples, 1):
            if images is None and contents.reading and read % _PROBE == 0:
                total = round(read / max(contents.reading.share(), 1e-9))
            yield example

    with counted(f"prepare {name}", images, "images") as advance:
        for done, (example, image) in enumerate(decoded_images(examples(), settings.short_side), 1):
            writer.add(example.split, example.label, image.pixels, example.member, *image.facts)
            if total and done >= _PROBE and done.bit_count() == 1:  # 64, 128, 256, …
                _check_room(place, total * writer.size() // done - writer.size(), total)
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


def _check_room(place: Path, needed: int, images: int) -> None:
    free = shutil.disk_usage(place.parent).free
    if needed > free:
        raise InputError(
            f"{place}: the store of {images:,} images will take about {size(needed)} more, and its disk has "
            f"{size(free)} left; make room, or lower prepare.short_side"
        )


def _made_meanwhile(
    dataset: Dataset, edition: str, settings: PrepareParams, archives: Path, place: Path
) -> Store | None:
    try:
        store = open_store(place)
    except InputError:
        return None
    source = source_meta(dataset, edition, check_archives(dataset, edition, archives), settings)
    return store if source.items() <= store.meta.items() else None


@contextmanager
def _collecting_little() -> Iterator[None]:
    """Spare the garbage collector what has been imported: a look at all of torch takes as long as a hundred images."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
