"""Run and evaluation folders written by hand, in the form that training and evaluation leave them."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from finetune import params, runs
from finetune.params import Params
from finetune.study import Layout, Run

PLANS: dict[str, dict[str, Any]] = {
    "separate_lr_as_published": {"plan": "separate_lr", "last_scale": 0.4, "decay": False}
}

_TENSORS = (("features.0.0.weight", 864), ("features.0.1.weight", 32), ("features.0.1.bias", 32))
AUDIT: list[dict[str, Any]] = [  # of a network of a stem and a head, all of which is trained
    {"phase": 0, "tensor": tensor, "kind": "parameter", "numel": numel, "block": block, "group": "all"}
    | {"lr": 1e-3, "weight_decay": 1e-4, "frozen": False, "batchnorm": "train"}
    for block, tensors in (("features.0", _TENSORS), ("classifier", (("classifier.1.weight", 3840),)))
    for tensor, numel in tensors
]
AUDIT.append(AUDIT[1] | {"tensor": "features.0.1.running_mean", "kind": "buffer", "lr": 0.0, "weight_decay": 0.0})


def make_params(
    strategies: tuple[str, ...] = ("same_lr", "separate_lr"),
    seeds: tuple[int, ...] = (0, 1),
    datasets: tuple[str, ...] = ("toy",),
    edition: str = "sample",
    recipes: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    **sections: Any,
) -> Params:
    """A study's parameters; the first strategy is the baseline, `recipes` are strategies' own training settings."""
    return params.parse(
        {
            "study": {
                "name": "synthetic",
                "edition": edition,
                "datasets": datasets,
                "strategies": strategies,
                "seeds": seeds,
                "baseline": strategies[0],
            },
            "datasets": {name: {} for name in datasets},
            "strategies": {name: PLANS.get(name, {}) | {"training": recipes.get(name, {})} for name in strategies},
        }
        | sections
    )


def write_run(
    root: Path,
    run: Run,
    right: str,
    val: float | None = 0.5,
    *,
    seconds: float = 10.0,
    trainable: int = 2_000_000,
    key: str = "",
    first_label: int = 0,
) -> None:
    """One finished and evaluated run of two epochs.

    Args:
        right: per test image 1 if the run predicts its label, else 0; labels alternate from `first_label`.
        val: validation top-1 of the kept epoch; None for no validation split.
    """
    layout = Layout(root)
    folder, evaluation = layout.run(run), layout.evaluation(run)
    key = key or f"key-of-{run.name.replace('/', '-')}"
    images = {"train": 40, "val": 20} if val is not None else {"train": 40}
    training = {"lr": 1e-3, "epochs": 2}
    record = {"run_key": key, "classes": ["a", "b", "c"], "images": images, "training": training}
    runs.write_json(folder / runs.RUN, record)
    runs.write_csv(folder / runs.AUDIT, AUDIT)
    epochs = [
        {
            "epoch": epoch,
            "train/loss": 2.0 / epoch,
            "train/acc": 0.25 * epoch,
            "val/loss": None if val is None else 1.5 / epoch,
            "val/acc": None if val is None else val * epoch / 2,
            "lr/all": 1e-3,
        }
        for epoch in (1, 2)
    ]
    runs.write_csv(folder / runs.CURVES, epochs)
    metrics = {"epoch": 2, "train": {"loss": 1.0, "acc": 0.5}}
    runs.write_json(folder / runs.METRICS, metrics | ({} if val is None else {"val": {"loss": 0.75, "acc": val}}))
    runs.write_text(folder / runs.MODEL, "")
    runs.write_json(folder / runs.PROVENANCE, {"machine": "synthetic"})
    cost = {"seconds": seconds, "seconds_per_epoch": seconds / 2, "images_per_second": 80.0 / seconds}
    cost |= {"start_seconds": 4.0, "data_seconds": 0.1 * seconds, "compute_seconds": 0.7 * seconds}
    cost |= {"evaluation_seconds": 0.2 * seconds, "saving_seconds": 0.25}
    worked_out = {"activation_bytes": 120_000_000, "flops_per_image": 600_000_000}
    parameters = {"trainable_parameters": trainable, "total_parameters": 2_500_000}
    runs.write_json(folder / runs.COST, cost | {"peak_memory_bytes": 300_000_000} | worked_out | parameters)

    labels = [(i + first_label) % 2 for i in range(len(right))]
    predictions = [
        {"index": i, "label": label, "prediction": label if hit == "1" else 2, "confidence": 0.9}
        for i, (label, hit) in enumerate(zip(labels, right, strict=True))
    ]
    runs.write_csv(evaluation / runs.PREDICTIONS, predictions)
    accuracy = right.count("1") / len(right)
    test = {"loss": 1.0, "acc": accuracy, "acc5": 1.0, "images": len(right)}
    runs.write_json(evaluation / runs.METRICS, {"run_key": key, "test": test})


def older(root: Path, run: Run) -> None:
    """Leave in the run's cost.json only what was recorded before costs were counted by phase."""
    path = Layout(root).run(run) / runs.COST
    known = ("seconds", "seconds_per_epoch", "images_per_second", "peak_memory_bytes")
    content = runs.read_json(path)
    runs.write_json(path, {key: content[key] for key in (*known, "trainable_parameters", "total_parameters")})


def write_toy_study(root: Path) -> Params:
    """Two strategies, two seeds, ten test images. By hand:

    test  same_lr 0.5 0.6; separate_lr 0.6 0.8        val  same_lr 0.40 0.50; separate_lr 0.60 0.55
    """
    write_run(root, Run("toy", "same_lr", 0), "1111100000", 0.40, seconds=10)
    write_run(root, Run("toy", "same_lr", 1), "1111110000", 0.50, seconds=14)
    write_run(root, Run("toy", "separate_lr", 0), "1111001100", 0.60, seconds=11)
    write_run(root, Run("toy", "separate_lr", 1), "1111111100", 0.55, seconds=11)
    return make_params()
