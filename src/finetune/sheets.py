"""Store -> pictures of its images, to be looked at before training: a sample of each class, and what training sees."""

from pathlib import Path
from typing import Any

import numpy as np

from finetune import data_facts, runs
from finetune.params import Params, TrainingParams
from finetune.params_file import merge
from finetune.store import Split, Store
from finetune.tiles import GAP, Tiles

_SEED = 0
_CLASSES, _PER_CLASS = 10, (5, 9)  # rows, evenly spaced among all; columns, as many as the classes fill
_WIDTH, _TILE = 900, 112  # pixels: of a row of images; of one, at most
_AUGMENTED_IMAGES, _EPOCHS, _VIEW = 6, 6, 128  # images, epochs, pixels at most
_TITLE = 48  # characters
_WORDS = {"train": "training", "val": "validation", "test": "test"}


def write(
    store: Store, title: str, folder: Path, recipe: TrainingParams | None = None, fraction: float = 1.0
) -> dict[str, Any]:
    """Write the facts and the sheet of a store into `folder`, and with a recipe the augmented sheet; each file whole.

    An augmented sheet that is there stays, unless the facts have changed.

    Args:
        fraction: of each class of train, that trainings take.

    Returns:
        The facts; with a recipe, `seen` has what of it decides the augmented sheet.
    """
    known = data_facts.facts(store, title, fraction)
    folder.mkdir(parents=True, exist_ok=True)
    facts, augmented = folder / data_facts.FACTS, folder / data_facts.AUGMENTED
    if recipe is not None:
        known["seen"] = data_facts.seen_by(recipe.model_dump(mode="json"))
        augmented_sheet(store, title, recipe, augmented, fraction)
    elif facts.is_file() and augmented.is_file():
        before = runs.read_json(facts)
        if before.items() >= known.items() and "seen" in before:
            known["seen"] = before["seen"]
        else:
            augmented.unlink()
    sample_sheet(store, title, folder / data_facts.SHEET)
    runs.write_json(facts, known)
    return known


def sample_sheet(store: Store, title: str, path: Path) -> None:
    """Draw training images as stored, a row per class: every class up to ten, then ten evenly spaced."""
    split = store.split("train")
    classes = len(store.classes)
    shown = np.unique(np.linspace(0, classes - 1, min(classes, _CLASSES)).round().astype(int))
    columns = int(np.clip(np.bincount(split.labels, minlength=classes)[shown].max(), *_PER_CLASS))
    sheet = Tiles(len(shown), columns, min(_TILE, _WIDTH // columns - GAP))
    for row, label in enumerate(shown):
        members = np.flatnonzero(split.labels == label)
        chosen = np.sort(np.random.default_rng((_SEED, int(label))).permutation(members)[:columns])
        sheet.label(row, store.classes[label], f"{len(members):,} images")
        for column, i in enumerate(chosen):
            sheet.tile(row, column, split.image(int(i)))
    counts = store.meta["counts"]
    which = f"{len(shown)} of {classes} classes" if len(shown) < classes else f"all {classes} classes"
    images = ", ".join(f"{counts[split]:,} {word}" for split, word in _WORDS.items())
    side = store.meta["prepare"]["short_side"]
    sheet.caption(
        f"{_short(title)}: training images of {which}",
        f"edition {store.meta['edition']}: {images} images; shown as stored, short side {side} px at most",
    )
    sheet.save(path)


def augmented_sheet(store: Store, title: str, recipe: TrainingParams, path: Path, fraction: float = 1.0) -> None:
    """Draw what the network sees of some training images: their views in the first epochs of seed 0, as the training
    makes them on the CPU, and the view of evaluation."""
    split = data_facts.train_part(store, fraction)
    images = _one_per_class(split)
    seen = training_views(split, images, recipe)
    side = recipe.image_size * (_VIEW // recipe.image_size) or _VIEW
    headings = ["as stored", *(f"epoch {n + 1}" for n in range(_EPOCHS)), "evaluation"]
    sheet = Tiles(len(images), len(headings), side, headings)
    for row, i in enumerate(images):
        stored = split.image(int(i))
        sheet.label(row, store.classes[split.labels[i]], f"stored {stored.shape[1]} × {stored.shape[0]} px")
        for column, image in enumerate([stored, *seen[:, row]]):
            sheet.tile(row, column, image)
    how = recipe.augmentation
    words = {
        "random_resized_crop": f"random_resized_crop, {how.scale[0]:.0%} to {how.scale[1]:.0%} of the area",
        "pad_crop": f"pad_crop, {how.padding} px",
        "none": "no augmentation",
    }[how.name] + (", flipped half the time" if how.flip and how.name != "none" else "")
    size = f"{recipe.image_size} × {recipe.image_size} px"
    sheet.caption(
        f"{_short(title)}: what the network sees, {size}",
        f"training views of seed {_SEED}: {words}; evaluation: centre crop, {recipe.crop_pct:g} of the short side",
    )
    sheet.save(path)


def training_views(split: Split, images: np.ndarray, recipe: TrainingParams) -> np.ndarray:
    """What the network sees of some images, by index: in the first epochs of seed 0, then in evaluation.

    Returns:
        uint8, (epochs + 1) x images x size x size x 3: pixels before normalisation.
    """
    import torch

    from finetune.batches import MEAN, STD, Batches

    cpu = torch.device("cpu")
    batches = Batches(split, recipe.image_size, len(images), cpu, torch.contiguous_format, recipe.crop_pct)
    seen = [batches.seen(images, recipe.augmentation, _SEED, epoch) for epoch in range(_EPOCHS)]
    pixels = torch.stack([*seen, batches.seen(images)]).permute(0, 1, 3, 4, 2) * torch.tensor(STD) + torch.tensor(MEAN)
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8).numpy()


def recipe_of(params: Params, dataset: str) -> TrainingParams:
    """A data set's recipe, before any strategy's own settings."""
    return TrainingParams.model_validate(merge(params.training.model_dump(), params.datasets[dataset].training))


def _one_per_class(split: Split) -> np.ndarray:
    """Indices of training images, of classes evenly spaced; of fewer classes than images, some twice."""
    order = np.random.default_rng(_SEED).permutation(len(split))
    by_class = order[np.argsort(split.labels[order], kind="stable")]
    n = min(_AUGMENTED_IMAGES, len(split))
    return by_class[((np.arange(n) + 0.5) * len(split) / n).astype(int)]


def _short(title: str) -> str:
    return title if len(title) <= _TITLE else f"{title[: _TITLE - 1]}…"
