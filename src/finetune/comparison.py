"""Run and evaluation folders -> tables with seed spread, paired differences, costs, published numbers beside ours."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune import audits, datasets, evaluated_runs, published, runs, study
from finetune.comparison_cost import cost_of, relative_to
from finetune.errors import InputError
from finetune.evaluated_runs import Record, require_one_test_split
from finetune.params import Params
from finetune.spread import accuracy, difference, per_image
from finetune.study import Layout, Run
from finetune.tables import flat, table

__all__ = ["compare", "read", "require_study", "row_of", "table", "write"]

# What `write` puts into its folder.
COMPARISON, TABLE, METRICS = "comparison.json", "comparison.csv", "metrics.json"
CURVES, AUDITS = "curves.csv", "audits.csv"
CURVE_METRICS = ("train/loss", "train/acc", "val/loss", "val/acc")


def compare(params: Params, layout: Layout) -> dict[str, Any]:
    """Compare every run that the study lists. Accuracies are fractions in [0, 1], costs are in the units they name.

    Returns a JSON-able mapping:
        study: name, edition, baseline, datasets, strategies, seeds
        datasets: per data set its title, number of classes, images per split, store_digest (None where runs trained on
            different stores, or do not tell), published numbers and the winner:
            strategy by mean validation top-1 over seeds (ties to fewer trainable parameters, then fewer seconds), then
            the seed of the best validation top-1; None without a validation split
        rows: per data set and strategy val and test (`accuracy`), to_baseline (`difference` of val and of test, paired
            by seed, and `per_image`; None for the baseline itself) and cost (`cost_of` and, in `relative`,
            `relative_to` the baseline's)
        runs: per run its run_key, kept epoch, metrics and costs
        curves: per run and epoch the loss (nats) and accuracy of train and validation
        audits: what each strategy trains, `audits.by_block` of its run of the first data set and seed

    Raises:
        InputError: a run or evaluation of the study is missing, or does not belong to the others.
    """
    records = evaluated_runs.read(study.runs(params), layout)
    sets, rows = {}, []
    for dataset in params.study.datasets:
        of_set = [record for record in records if record.run.dataset == dataset]
        groups = {s: [r for r in of_set if r.run.strategy == s] for s in params.study.strategies}
        require_one_test_split(of_set)
        set_rows = [_row(params, group, groups[params.study.baseline]) for group in groups.values()]
        rows += set_rows
        sets[dataset] = _dataset(params, dataset, of_set) | {"winner": _winner(set_rows, of_set)}
    return {
        "study": params.study.model_dump(mode="json"),
        "datasets": sets,
        "rows": rows,
        "runs": [_run(record) for record in records],
        "curves": [_curve_row(record.run, epoch) for record in records for epoch in record.folder.curves],
        "audits": [row for record in records if _is_first(record.run, params) for row in _audit_rows(record)],
    }


def write(comparison: Mapping[str, Any], folder: Path) -> None:
    """Write comparison.json, the flat comparison.csv, metrics.json for `dvc metrics`, curves.csv for `dvc plots`, and
    audits.csv for the report's pictures of the strategies."""
    runs.write_json(folder / COMPARISON, {k: v for k, v in comparison.items() if k not in ("curves", "audits")})
    runs.write_csv(folder / TABLE, [flat(row) for row in comparison["rows"]])
    runs.write_csv(folder / CURVES, comparison["curves"])
    runs.write_csv(folder / AUDITS, comparison["audits"])
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
    comparison["audits"] = [
        {"strategy": row["strategy"], **audits.typed(row)} for row in runs.read_csv(folder / AUDITS)
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


def _row(params: Params, group: Sequence[Record], baseline: Sequence[Record]) -> dict[str, Any]:
    dataset, strategy = group[0].run.dataset, group[0].run.strategy
    figures = {split: _accuracy(group, split) for split in ("val", "test")}
    to_baseline, cost = None, cost_of([r.folder.cost for r in group])
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
        "cost": cost | {"relative": relative_to(cost_of([r.folder.cost for r in baseline]), cost)},
    }


def _accuracy(group: Sequence[Record], split: str) -> dict[str, Any] | None:
    if split == "test":
        return accuracy([r.test["acc"] for r in group], group[0].test["images"])
    if any("val" not in r.folder.metrics for r in group):
        return None
    return accuracy([r.folder.metrics["val"]["acc"] for r in group], group[0].folder.run["images"]["val"])


def _dataset(params: Params, name: str, records: Sequence[Record]) -> dict[str, Any]:
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


def _winner(rows: Sequence[Mapping[str, Any]], records: Sequence[Record]) -> dict[str, Any] | None:
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


def _run(record: Record) -> dict[str, Any]:
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


def _is_first(run: Run, params: Params) -> bool:
    return (run.dataset, run.seed) == (params.study.datasets[0], params.study.seeds[0])


def _audit_rows(record: Record) -> list[dict[str, Any]]:
    run, audit = record.folder.run, record.folder.audit
    rows = audits.by_block(audit, run["training"]["lr"], audits.phases_of(run, audit))
    return [{"strategy": record.run.strategy, **row} for row in rows]


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
