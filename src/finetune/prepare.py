"""Archives -> store: checks the edition, decodes on all cores, carves validation out of train."""

import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from finetune import duplicates
from finetune.allocator import keep_freed_memory
from finetune.counting import counted
from finetune.datasets import Contents, Dataset, Edition, Example
from finetune.datasets.archives import md5
from finetune.errors import InputError, suggest
from finetune.images import decode, shrink
from finetune.params import PrepareParams
from finetune.runs import move_into_place
from finetune.store import Store, open_store
from finetune.store_writer import Writer, content_hash

_ANY = "any"  # the edition of archives that nobody has described: taken as they are
_PROBE = 64  # images whose stored size tells the whole store's
_GROUP, _GROUP_BYTES = 4, 1 << 20  # images, encoded bytes: what a thread takes at a time

Decoded = tuple[Example, np.ndarray, bytes]  # with the hash of its pixels


def prepare(dataset: Dataset, edition: str, settings: PrepareParams, archives: Path, place: Path) -> Store:
    """Make the store of a data set at `place`; it appears only when whole. Memory does not grow with the data set,
    but for some hundred bytes per image.

    Raises:
        InputError: archives are missing, are not the edition's, or are broken, or the disk is too small; `place` is
            then as it was.
    """
    keep_freed_memory()
    try:
        with _alone(place) as waited, ThreadPoolExecutor(1) as beside:
            checked = beside.submit(check_archives, dataset, edition, archives)
            if waited and (made := _made_meanwhile(place, source_meta(dataset, edition, checked.result(), settings))):
                return made
            _write(dataset, edition, settings, archives, place, checked)
    except OSError as error:
        raise InputError(
            f"{place}: could not be written ({error.strerror}); make room or choose another disk"
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
        expected = _edition(dataset, edition)
        total = expected.train + expected.test if expected else contents.images
        own_validation: list[bool] = []  # per image that is not for test
        with counted(f"prepare {dataset.name}", total, "images") as advance:
            for done, (example, image, content) in enumerate(_decoded(contents, settings.short_side), 1):
                writer.add(example.split, example.label, image, example.member, content)
                if example.split != "test":
                    own_validation.append(example.split == "val")
                if done == _PROBE and total:
                    _check_room(place, total * writer.size() // done - writer.size(), total)
                advance(done)
                if checked.done():
                    checked.result()
        source = source_meta(dataset, edition, checked.result(), settings)
        _check_counts(dataset, edition, writer)
        validation, left_out = _validation(dataset, settings, writer, np.array(own_validation))
        meta = {"dataset": dataset.name, "edition": source["edition"], "classes": list(contents.classes)}
        meta["duplicates"] = _duplicates(writer, validation, left_out)
        writer.finish(validation, {**meta, **source}, left_out)
        move_into_place(aside, place)
    except InputError:
        checked.result()  # that it is another edition explains whatever else is wrong with it
        raise
    finally:
        if writer is not None:
            writer.close()
        shutil.rmtree(aside, ignore_errors=True)


def source_meta(dataset: Dataset, edition: str, md5: dict[str, str], settings: PrepareParams) -> dict[str, Any]:
    """What a store is made of, as its meta.json records it."""
    meta: dict[str, Any] = {
        "edition": edition if dataset.editions else _ANY,
        "archives_md5": md5,
        "prepare": settings.model_dump(mode="json"),
    }
    if dataset.options:
        meta["options"] = dict(dataset.options)
    return meta


def check_archives(dataset: Dataset, edition: str, folder: Path) -> dict[str, str]:
    """The md5 of each archive in `folder`, 32 hex digits.

    Raises:
        InputError: an archive is missing or is not the edition's.
    """
    expected = _edition(dataset, edition)
    if dataset.digest and not dataset.archives:
        return dataset.digest(folder)
    found = {}
    for name in dataset.archives:
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path}: no such file; pull it with `dvc pull data/{dataset.name}`, or bring it there")
        found[name] = md5(path)
        if expected and found[name] != expected.md5[name]:
            raise InputError(
                f"{path}: found md5 {found[name]}, expected {expected.md5[name]} of the {edition} edition; bring that "
                f"file, or set study.edition in params.yaml to the edition that this one is of "
                f"({', '.join([*dataset.editions, _ANY])})"
            )
    return found


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


def _edition(dataset: Dataset, edition: str) -> Edition | None:
    if edition == _ANY or not dataset.editions:
        return None
    if edition not in dataset.editions:
        raise InputError(
            f"params.yaml: study.edition: {dataset.name} has no edition '{edition}'; "
            f"{suggest(edition, [*dataset.editions, _ANY])}"
        )
    return dataset.editions[edition]


def _check_counts(dataset: Dataset, edition: str, writer: Writer) -> None:
    found, expected = writer.counts(), _edition(dataset, edition)
    if not found["train"] or not found["test"]:
        raise InputError(
            f"{dataset.name}: found {found['train']} training and {found['test']} test images; expected some of both"
        )
    if expected and found != {"train": expected.train, "test": expected.test}:
        raise InputError(
            f"{dataset.name}: found {found['train']} training and {found['test']} test images, expected "
            f"{expected.train} and {expected.test} of the {edition} edition; bring whole archives"
        )


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
            f"{place}: the store of {images:,} images will take about {needed / 1e9:.1f} GB more, and its disk has "
            f"{free / 1e9:.1f} GB left; make room, or lower prepare.short_side"
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


def _decoded(contents: Contents, short_side: int) -> Iterator[Decoded]:
    """Decode, shrink and hash in a pool of threads, in order, few images at a time.

    The decoder, the resizing and the hash let go of the interpreter lock.
    """

    def work(group: list[Example]) -> list[Decoded]:
        done = []
        for example in group:
            image = example.image if isinstance(example.image, np.ndarray) else decode(example.image, example.member)
            image = np.ascontiguousarray(shrink(image, short_side))
            done.append((Example(example.split, example.label, b"", example.member), image, content_hash(image)))
        return done

    threads = min(32, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        groups = _grouped(contents.examples)
        waiting: deque[Future[list[Decoded]]] = deque(pool.submit(work, g) for g in islice(groups, 4 * threads))
        while waiting:
            yield from waiting.popleft().result()
            waiting.extend(pool.submit(work, group) for group in islice(groups, 1))


def _grouped(examples: Iterable[Example]) -> Iterator[list[Example]]:
    group: list[Example] = []
    for example in examples:
        group.append(example)
        if len(group) == _GROUP or sum(len(e.image) for e in group) > _GROUP_BYTES:
            yield group
            group = []
    if group:
        yield group
