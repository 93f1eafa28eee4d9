"""Run and evaluation folders -> tables with seed spread, paired differences, costs, published numbers beside ours."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune import datasets, published, runs, study
from finetune.clock import PHASES
from finetune.errors import InputError
from finetune.params import Params
from finetune.spread import accuracy, difference, per_image, spread
from finetune.study import Layout, Run
from finetune.tables import flat, table

__all__ = ["compare", "read", "require_study", "row_of", "table", "write"]

# What `write` puts into its folder.
COMPARISON, TABLE, METRICS, CURVES = "comparison.json", "comparison.csv", "metrics.json", "curves.csv"
CURVE_METRICS = ("train/loss", "train/acc", "val/loss", "val/acc")


@dataclass(frozen=True)
class _Record:
    """One run of the study with its evaluation."""

    run: Run
    folder: runs.RunFolder
    test: Mapping[str, Any]
    labels: np.ndarray  # int, one per test image, official order
    correct: np.ndarray  # bool, the same


def compare(params: Params, layout: Layout) -> dict[str, Any]:
    """Compare every run that the study lists. Accuracies are fractions in [0, 1], costs are in the units they name.

    Returns a JSON-able mapping:
        study: name, edition, baseline, datasets, strategies, seeds
        datasets: per data set its title, number of classes, images per split, store_digest (None where runs trained on
            different stores, or do not tell), published numbers and the winner:
            strategy by mean validation top-1 over seeds (ties to fewer trainable parameters, then fewer seconds), then
            the seed of the best validation top-1; None without a validation split
        rows: per data set and strategy val and test (`accuracy`), to_baseline (`difference` of val and of test, paired
            by seed, and `per_image`; None for the baseline itself) and cost; of that what a run's cost.json of an
            earlier version lacks is None
        runs: per run its run_key, kept epoch, metrics and costs
        curves: per run and epoch the loss (nats) and accuracy of train and validation

    Raises:
        InputError: a run or evaluation of the study is missing, or does not belong to the others.
    """
    listed = study.runs(params)
    _require_all(listed, layout)
    records = [_read(run, layout) for run in listed]
    sets, rows = {}, []
    for dataset in params.study.datasets:
        of_set = [record for record in records if record.run.dataset == dataset]
        groups = {s: [r for r in of_set if r.run.strategy == s] for s in params.study.strategies}
        _require_one_test_split(of_set)
        set_rows = [_row(params, group, groups[params.study.baseline]) for group in groups.values()]
        rows += set_rows
        sets[dataset] = _dataset(params, dataset, of_set) | {"winner": _winner(set_rows, of_set)}
    return {
        "study": params.study.model_dump(mode="json"),
        "datasets": sets,
        "rows": rows,
        "runs": [_run(record) for record in records],
        "curves": [_curve_row(record.run, epoch) for record in records for epoch in record.folder.curves],
    }


def write(comparison: Mapping[str, Any], folder: Path) -> None:
    """Write comparison.json, the flat comparison.csv, metrics.json for `dvc metrics` and curves.csv for `dvc plots`."""
    runs.write_json(folder / COMPARISON, {k: v for k, v in comparison.items() if k != "curves"})
    runs.write_csv(folder / TABLE, [flat(row) for row in comparison["rows"]])
    runs.write_csv(folder / CURVES, comparison["curves"])
    metrics: dict[str, dict[str, Any]] = {}
    for row in comparison["rows"]:
        means = {split: row[split]["mean"] for split in ("val", "test") if row[split]}
        metrics.setdefault(row["dataset"], {})[row["strategy"]] = means
    runs.write_json(folder / METRICS, metrics)


def read(folder: Path) -> dict[str, Any]:
    """What `compare` returned, from where `write` put it.

    Raises:
        InputError: a file is missing or damaged.
    """
    comparison = runs.read_json(folder / COMPARISON)
    comparison["curves"] = [
        {"dataset": row["dataset"], "strategy": row["strategy"]}
        | {k: int(row[k]) for k in ("seed", "epoch")}
        | {k: float(row[k]) if row[k] else None for k in CURVE_METRICS}
        for row in runs.read_csv(folder / CURVES)
    ]
    return comparison


def require_study(comparison: Mapping[str, Any], params: Params) -> None:
    """Raise InputError unless the comparison is of the study's very data sets, strategies, seeds and baseline."""
    study_now = params.study.model_dump(mode="json")
    for key in ("datasets", "strategies", "seeds", "baseline"):
        if (compared := comparison["study"][key]) != study_now[key]:
            raise InputError(
                f"{COMPARISON}: compares {key} {_listed(compared)}, but the study has {_listed(study_now[key])}; put "
                "the study's lists into params.yaml and make the comparison again with `dvc repro`"
            )


def row_of(comparison: Mapping[str, Any], dataset: str, strategy: str) -> Mapping[str, Any]:
    """The row of one data set and strategy of the study."""
    return next(row for row in comparison["rows"] if (row["dataset"], row["strategy"]) == (dataset, strategy))


def _require_all(listed: Sequence[Run], layout: Layout) -> None:
    missing = []
    for run in listed:
        files = [layout.run(run) / name for name in runs.FILES]
        files += [layout.evaluation(run) / name for name in (runs.METRICS, runs.PREDICTIONS)]
        missing += [path for path in files if not path.is_file()][:1]
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(listed)} runs that the study lists are missing or not evaluated (the first: "
            f"no {missing[0].relative_to(layout.root)}); make them with `dvc repro`"
        )


def _read(run: Run, layout: Layout) -> _Record:
    folder = runs.read(layout.run(run))
    where = layout.evaluation(run)
    metrics = runs.read_json(where / runs.METRICS)
    if metrics["run_key"] != folder.run["run_key"]:
        raise InputError(
            f"{where / runs.METRICS}: evaluates run {metrics['run_key']}, but the run folder holds "
            f"{folder.run['run_key']}; evaluate it again with `dvc repro`"
        )
    rows = runs.read_csv(where / runs.PREDICTIONS)
    pairs = np.array([(int(row["label"]), int(row["prediction"])) for row in rows]).reshape(-1, 2)
    if len(pairs) != metrics["test"]["images"]:
        raise InputError(
            f"{where / runs.PREDICTIONS}: found {len(pairs)} predictions, expected {metrics['test']['images']} as "
            f"{runs.METRICS} says; evaluate the run again with `dvc repro -f`"
        )
    return _Record(run, folder, metrics["test"], pairs[:, 0], pairs[:, 0] == pairs[:, 1])


def _require_one_test_split(records: Sequence[_Record]) -> None:
    first = records[0]
    for record in records[1:]:
        if not np.array_equal(record.labels, first.labels):
            raise InputError(
                f"evaluations of {record.run.name} and {first.run.name} saw different test images; make both again "
                "with `dvc repro`"
            )


def _row(params: Params, group: Sequence[_Record], baseline: Sequence[_Record]) -> dict[str, Any]:
    dataset, strategy = group[0].run.dataset, group[0].run.strategy
    figures = {split: _accuracy(group, split) for split in ("val", "test")}
    to_baseline = None
    if strategy != params.study.baseline:
        to_baseline = {split: difference(figures[split], _accuracy(baseline, split)) for split in figures}
        to_baseline["per_image"] = per_image(*(np.stack([r.correct for r in side]) for side in (group, baseline)))
    return {
        "dataset": dataset,
        "strategy": strategy,
        "plan": params.plan_for(strategy),
        "seeds": [r.run.seed for r in group],
        **figures,
        "to_baseline": to_baseline,
        "cost": _cost(group),
    }


def _accuracy(group: Sequence[_Record], split: str) -> dict[str, Any] | None:
    if split == "test":
        return accuracy([r.test["acc"] for r in group], group[0].test["images"])
    if any("val" not in r.folder.metrics for r in group):
        return None
    return accuracy([r.folder.metrics["val"]["acc"] for r in group], group[0].folder.run["images"]["val"])


def _cost(group: Sequence[_Record]) -> dict[str, Any]:
    costs = [record.folder.cost for record in group]

    def over_seeds(key: str, unit: float = 1.0) -> dict[str, Any]:
        return spread([cost[key] / unit for cost in costs])

    newer = all("flops_per_image" in cost for cost in costs)  # than when costs were not yet counted by phase
    return {
        "seconds": over_seeds("seconds"),
        **{f"{phase}_seconds": over_seeds(f"{phase}_seconds") if newer else None for phase in PHASES},
        "images_per_second": over_seeds("images_per_second"),
        "peak_memory_mb": over_seeds("peak_memory_bytes", 1e6),
        "activation_mb": costs[0]["activation_bytes"] / 1e6 if newer else None,
        "flops_per_image": costs[0]["flops_per_image"] if newer else None,
        "trainable_parameters": costs[0]["trainable_parameters"],
        "total_parameters": costs[0]["total_parameters"],
    }


def _dataset(params: Params, name: str, records: Sequence[_Record]) -> dict[str, Any]:
    record, original = records[0], published.ORIGINAL.get(name)
    stores = {one.folder.run.get("store_digest") for one in records}
    return {
        "title": params.datasets[name].title or (datasets.load(name).title if name in datasets.names() else name),
        "classes": len(record.folder.run["classes"]),
        "images": {**record.folder.run["images"], "test": record.test["images"]},
        "store_digest": stores.pop() if len(stores) == 1 else None,
        "original_report": dataclasses.asdict(original) if original else None,
        "published": [dataclasses.asdict(result) for result in published.RESULTS.get(name, ())],
    }


def _winner(rows: Sequence[Mapping[str, Any]], records: Sequence[_Record]) -> dict[str, Any] | None:
    if any(row["val"] is None for row in rows):
        return None

    def rank(row: Mapping[str, Any]) -> tuple[float, ...]:
        # Rounded, so that the same images right in another order of summing is a tie.
        cost = row["cost"]
        return -round(row["val"]["mean"], 9), cost["trainable_parameters"], cost["seconds"]["mean"]

    strategy = min(rows, key=rank)["strategy"]
    own = [record for record in records if record.run.strategy == strategy]
    best = max(own, key=lambda record: record.folder.metrics["val"]["acc"])
    return {
        "strategy": strategy,
        "seed": best.run.seed,
        "run_key": best.folder.run["run_key"],
        "val": best.folder.metrics["val"]["acc"],
        "test": best.test["acc"],
    }


def _run(record: _Record) -> dict[str, Any]:
    metrics = record.folder.metrics
    return {
        "run_key": record.folder.run["run_key"],
        **dataclasses.asdict(record.run),
        "epoch": metrics["epoch"],
        "train": metrics["train"],
        "val": metrics.get("val"),
        "test": dict(record.test),
        "cost": record.folder.cost,
    }


def _curve_row(run: Run, epoch: Mapping[str, float]) -> dict[str, Any]:
    values = {key: None if math.isnan(epoch[key]) else epoch[key] for key in CURVE_METRICS}
    return {**dataclasses.asdict(run), "epoch": int(epoch["epoch"]), **values}


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
