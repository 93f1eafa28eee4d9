"""Archives -> store: checks the edition, decodes on all cores, carves validation out of train."""

import hashlib
import os
import shutil
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from finetune.datasets import Dataset, Edition, Example
from finetune.errors import InputError, suggest
from finetune.images import decode, shrink
from finetune.params import PrepareParams
from finetune.runs import move_into_place
from finetune.store import Store, Writer, open_store

_ANY = "any"  # the edition of archives that nobody has described: taken as they are


def prepare(dataset: Dataset, edition: str, settings: PrepareParams, archives: Path, place: Path) -> Store:
    """Make the store of a data set at `place`; it appears only when whole.

    Raises:
        InputError: archives are missing, are not the edition's, or are broken; `place` is then as it was.
    """
    md5 = check_archives(dataset, edition, archives)
    aside = place.with_name(f".{place.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    writer = None
    try:
        writer = Writer(aside)
        contents = dataset.read(archives)
        own_validation: list[bool] = []  # per image that is not for test
        for example, image in _decoded(contents.examples, settings.short_side, dataset.name):
            writer.add(example.split, example.label, image)
            if example.split != "test":
                own_validation.append(example.split == "val")
        _check_counts(dataset, edition, writer)
        if any(own_validation):
            validation = np.array(own_validation)
        else:
            validation = stratified(writer.labels(), settings.val_fraction, settings.split_seed)
        source = source_meta(dataset, edition, md5, settings)
        meta = {"dataset": dataset.name, "edition": source["edition"], "classes": list(contents.classes)}
        writer.finish(validation, meta | source)
        move_into_place(aside, place)
    except OSError as error:
        raise InputError(
            f"{place}: could not be written ({error.strerror}); make room or choose another disk"
        ) from None
    finally:
        if writer is not None:
            writer.close()
        shutil.rmtree(aside, ignore_errors=True)
    return open_store(place)


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
        with path.open("rb") as file:
            found[name] = hashlib.file_digest(file, "md5").hexdigest()
        if expected and found[name] != expected.md5[name]:
            raise InputError(
                f"{path}: found md5 {found[name]}, expected {expected.md5[name]} of the {edition} edition; bring that "
                f"file, or set study.edition in params.yaml to the edition that this one is of "
                f"({', '.join([*dataset.editions, _ANY])})"
            )
    return found


def stratified(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Choose about `fraction` of each class, at least one image when fraction > 0 and the class has two.

    Args:
        labels: int64, images.

    Returns:
        bool, images: the chosen ones. The same (labels, fraction, seed) gives the same choice.
    """
    chosen = np.zeros(len(labels), bool)
    if fraction == 0:
        return chosen
    generator = np.random.default_rng(seed)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        chosen[members[:count]] = True
    return chosen


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


def _decoded(examples: Iterator[Example], short_side: int, name: str) -> Iterator[tuple[Example, np.ndarray]]:
    """Decode and shrink in a pool of threads (Pillow lets go of the interpreter lock), in order, few at a time."""

    def pixels(example: Example) -> np.ndarray:
        image = example.image if isinstance(example.image, np.ndarray) else decode(example.image, example.member)
        return shrink(image, short_side)

    cores = os.cpu_count() or 1
    began = time.monotonic()
    with ThreadPoolExecutor(cores) as pool, tqdm(desc=f"prepare {name}", unit=" images", disable=None) as bar:
        waiting: deque[tuple[Example, Future[np.ndarray]]] = deque()
        source = iter(examples)
        for example in islice(source, 8 * cores):
            waiting.append((example, pool.submit(pixels, example)))
        while waiting:
            example, future = waiting.popleft()
            yield example, future.result()
            bar.update()
            for following in islice(source, 1):
                waiting.append((following, pool.submit(pixels, following)))
    seconds = time.monotonic() - began
    if bar.disable:
        print(f"prepare {name}: read in {seconds:.1f} s", flush=True)
