"""The data sets: one declarative file each, found by name; and a reader of class folders for data of one's own."""

import importlib
import pkgutil

from finetune.datasets.dataset import SPLITS, Contents, Dataset, Edition, Example, Late
from finetune.errors import InputError, suggest

__all__ = ["SPLITS", "Contents", "Dataset", "Edition", "Example", "Late", "load", "names"]

_MACHINERY = {"dataset", "archives", "class_folders"}


def names() -> list[str]:
    """Every data set that has a file here; one that begins with an underscore is shared code."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in modules if name not in _MACHINERY and not name.startswith("_"))


def load(name: str) -> Dataset:
    """The declaration of data set `name`.

    Raises:
        InputError: there is none of that name.
    """
    if name not in names():
        raise InputError(f"data set '{name}' has no reader in finetune.datasets; {suggest(name, names())}")
    return importlib.import_module(f"finetune.datasets.{name}").DATASET
