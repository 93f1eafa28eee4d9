"""Whether archives are those of an edition: md5s and counts; and what a store was made of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.datasets import Dataset, Edition
from finetune.datasets.archives import md5
from finetune.errors import InputError, suggest
from finetune.params import PrepareParams

ANY = "any"  # the edition of archives that nobody has described: taken as they are


def source_meta(dataset: Dataset, edition: str, md5: Mapping[str, str], settings: PrepareParams) -> dict[str, Any]:
    """What a store is made of, as its meta.json records it."""
    meta: dict[str, Any] = {
        "edition": edition if dataset.editions else ANY,
        "archives_md5": dict(md5),
        "prepare": settings.model_dump(mode="json"),
    }
    if dataset.options:
        meta["options"] = dict(dataset.options)
    return meta


def check_present(dataset: Dataset, folder: Path) -> None:
    """Raise InputError if an archive of the data set is not in `folder`."""
    for name in dataset.archives:
        path = folder / name
        if not path.is_file():
            raise InputError(
                f"{path}: no such file; pull it with `dvc pull data/{dataset.name}`, or bring it with "
                f"`finetune fetch {dataset.name}`"
            )


def check_archives(dataset: Dataset, edition: str, folder: Path) -> dict[str, str]:
    """The md5 of each archive in `folder`, 32 hex digits.

    Raises:
        InputError: an archive is missing or is not the edition's.
    """
    edition_of(dataset, edition)
    if dataset.digest and not dataset.archives:
        return dataset.digest(folder)
    check_present(dataset, folder)
    found = {}
    for name in dataset.archives:
        found[name] = md5(folder / name)
        check_md5s(dataset, edition, folder, found)
    return found


def check_md5s(dataset: Dataset, edition: str, folder: Path, found: Mapping[str, str]) -> None:
    """Raise InputError if one of the md5s `found` of archives in `folder` is not the edition's."""
    expected = edition_of(dataset, edition)
    for name, digest in found.items():
        if expected and digest != expected.md5[name]:
            of = next((known for known, one in dataset.editions.items() if one.md5.get(name) == digest), None)
            raise InputError(
                f"{folder / name}: found md5 {digest}{f' (the {of} edition)' if of else ''}, expected "
                f"{expected.md5[name]} of the {edition} edition; bring that file (`finetune fetch {dataset.name}` has "
                f"the official one), or set study.edition in params.yaml to {of or f'{ANY}, which takes it as it is'}"
            )


def edition_of(dataset: Dataset, edition: str) -> Edition | None:
    if edition == ANY or not dataset.editions:
        return None
    if edition not in dataset.editions:
        raise InputError(
            f"params.yaml: study.edition: {dataset.name} has no edition '{edition}'; "
            f"{suggest(edition, [*dataset.editions, ANY])}"
        )
    return dataset.editions[edition]


def check_counts(dataset: Dataset, edition: str, found: dict[str, int]) -> None:
    expected = edition_of(dataset, edition)
    if not found["train"] or not found["test"]:
        raise InputError(
            f"{dataset.name}: found {found['train']} training and {found['test']} test images; expected some of both"
        )
    if expected and found != {"train": expected.train, "test": expected.test}:
        raise InputError(
            f"{dataset.name}: found {found['train']} training and {found['test']} test images, expected "
            f"{expected.train} and {expected.test} of the {edition} edition; bring whole archives"
        )
