"""Archives -> store: checks the edition, decodes on all cores, carves validation out of train."""

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from finetune import duplicates
from finetune.allocator import keep_small_freed_memory
from finetune.archive_check import check_archives, check_counts, edition_of, source_meta
from finetune.counting import counted, size
from finetune.datasets import Dataset
from finetune.decoding import decoded_images
from finetune.errors import InputError
from finetune.params import PrepareParams
from finetune.runs import move_into_place
from finetune.store import Store, open_store
from finetune.store_writer import Writer

_PROBE = 64  # images whose stored size tells the whole store's

_PATIENCE = 5.0  # seconds


def prepare(dataset: Dataset, edition: str, settings: PrepareParams, archives: Path, place: Path) -> Store:
    """Make the store of a data set at `place`; it appears only when whole. Memory does not grow with the data set,
    but for some hundred bytes per image.

    Raises:
        InputError: archives are missing, are not the edition's, or are broken, or the disk is too small; `place` is
            then as it was.
    """
    keep_small_freed_memory()
    try:
        with _alone(place) as waited:
            checked = _beside(lambda: check_archives(dataset, edition, archives))
            if waited and (made := _made_meanwhile(place, source_meta(dataset, edition, checked.result(), settings))):
                return made
            _write(dataset, edition, settings, archives, place, checked)
    except OSError as error:
        raise InputError(
            f"{error.filename or place}: could not be read or written ({error.strerror}) while {place} was made; make "
            "room, choose another disk, or mend its permissions"
        ) from None
    return open_store(place)


def _write(
    dataset: Dataset,
    edition: str,
    settings: PrepareParams,
    archives: Path,
    place: Path,
    checked: Future[dict[str, str]],
) -> None:
    aside = place.with_name(f".{place.name}.aside")
    shutil.rmtree(aside, ignore_errors=True)  # of an attempt that was killed
    writer = None
    try:
        writer = Writer(aside)
        contents = dataset.read(archives)
        expected = edition_of(dataset, edition)
        total = expected.train + expected.test if expected else contents.images
        own_validation: list[bool] = []  # per image that is not for test
        with counted(f"prepare {dataset.name}", total, "images") as advance:
            for done, (example, image) in enumerate(decoded_images(contents, settings.short_side), 1):
                writer.add(example.split, example.label, image.pixels, example.member, *image.facts)
                if example.split != "test":
                    own_validation.append(example.split == "val")
                if total and done >= _PROBE and done.bit_count() == 1:  # 64, 128, 256, …
                    _check_room(place, total * writer.size() // done - writer.size(), total)
                advance(done)
                if checked.done():
                    checked.result()
        source = source_meta(dataset, edition, checked.result(), settings)
        check_counts(dataset, edition, writer.counts())
        validation, left_out = _validation(dataset, settings, writer, np.array(own_validation))
        meta = {"dataset": dataset.name, "edition": source["edition"], "classes": list(contents.classes)}
        meta["duplicates"] = _duplicates(writer, validation, left_out)
        writer.finish(validation, {**meta, **source}, left_out)
        move_into_place(aside, place)
    except InputError:
        with suppress(TimeoutError):
            checked.result(_PATIENCE)  # that it is another edition explains whatever else is wrong with it
        raise
    finally:
        if writer is not None:
            writer.close()
        shutil.rmtree(aside, ignore_errors=True)


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


def _validation(
    dataset: Dataset, settings: PrepareParams, writer: Writer, own: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which images of the official training split are for validation, and which for nothing: bool, images."""
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


@contextmanager
def _alone(place: Path) -> Iterator[bool]:
    """Hold the lock of the store at `place`, waiting for it; gives whether another process had it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place.with_name(f".{place.name}.lock"))
    waited = False
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waited = True
        print(f"{place}: another process is preparing it; waits for that", flush=True)
        lock.acquire()
    try:
        yield waited
    finally:
        lock.release()


def _made_meanwhile(place: Path, source: Mapping[str, Any]) -> Store | None:
    try:
        store = open_store(place)
    except InputError:
        return None
    return store if source.items() <= store.meta.items() else None


def _beside(work: Callable[[], dict[str, str]]) -> "Future[dict[str, str]]":
    """Do `work` in a thread that nobody waits for when the process is to end."""
    future: Future[dict[str, str]] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # whoever asks for the result gets it
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
