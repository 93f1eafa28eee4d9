"""One finished run -> MLflow: sends exactly what the server lacks of it."""

import csv
import hashlib
import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import data_facts, data_file, runs, study
from finetune.errors import InputError
from finetune.experiment import Experiment, data_md5, epoch_metrics
from finetune.study import Layout, Run
from finetune.tracking_store import attached_run_id

if TYPE_CHECKING:
    from mlflow import entities


@dataclass(frozen=True)
class Finished:
    """A finished run of the study with its evaluation."""

    name: str
    folder: runs.RunFolder
    test: Mapping[str, float]
    predictions: Path
    sheets: Mapping[str, Path]  # artifact -> file: those of the images that it was trained on


def read_finished(layout: Layout, run: Run) -> Finished:
    folder = runs.read(layout.run(run))
    evaluation = layout.evaluation(run)
    metrics = runs.read_json(evaluation / runs.METRICS)
    if metrics["run_key"] != folder.run["run_key"]:
        raise InputError(
            f"{evaluation / runs.METRICS}: is of run {metrics['run_key']}, but {folder.path} holds "
            f"{folder.run['run_key']}; evaluate it again with `dvc repro`"
        )
    predictions = evaluation / runs.PREDICTIONS
    if not predictions.is_file():
        raise InputError(f"{predictions}: no such file; make it with `dvc repro`")
    return Finished(run.name, folder, metrics["test"], predictions, _sheets(layout, folder.run))


def _sheets(layout: Layout, run: Mapping[str, Any]) -> dict[str, Path]:
    """What was drawn of the very store and recipe of `run` (the content of run.json)."""
    known = data_facts.read(layout.root, run["dataset"])
    if known is None or known["digest"] != run["store_digest"]:
        return {}
    names = [data_facts.SHEET]
    if known.get("seen") == data_facts.seen_by(run["training"]) and known["fraction"] == run["fraction"]:
        names.append(data_facts.AUGMENTED)
    files = {f"data/{name}": data_facts.folder(layout.root, run["dataset"]) / name for name in names}
    return {artifact: file for artifact, file in files.items() if file.is_file()}


def send(experiment: Experiment, source: Finished, there: "entities.Run | None") -> tuple[str, Counter[str]]:
    """Send what the run `there` lacks, into a new run if there is none; returns the run's id and what was sent."""
    client, folder, sent = experiment.client, source.folder, Counter[str]()
    lacking = folder.curves
    if there is not None:
        lacking, contradicted = _lacking_epochs(experiment, there, folder.curves)
        if contradicted and not attached_run_id():
            # Trained again with other numbers (not every GPU repeats itself): another run, or its chart would lie.
            there, lacking = None, folder.curves
    if there is None:
        there = experiment.create(folder.run, _milliseconds(folder.provenance["started"]))
        sent["runs"] = 1
    run_id = there.info.run_id
    sent["fields"] = experiment.complete(there, folder.run, _provenance_tags(folder, there.data.tags))
    _log_metrics(experiment, run_id, [m for row in lacking for m in epoch_metrics(row)])
    sent["epochs"] = len(lacking)
    sent["metrics"] = _send_results(experiment, there, source)
    if not (there.inputs and there.inputs.dataset_inputs):
        client.log_inputs(run_id, [_dataset_input(folder.run)])
        sent["inputs"] = 1
    sent["artifacts"] = _send_artifacts(experiment, run_id, source)
    if experiment.model_id(there) is None:
        from finetune import serving  # PyTorch is needed only now

        serving.log_model(client, client.get_run(run_id), folder.path, experiment.tags(folder.run))
        sent["models"] = 1
    if there.info.status != "FINISHED" and not attached_run_id():
        client.set_terminated(run_id, "FINISHED", _milliseconds(folder.provenance["finished"]))
        sent["ended"] = 1 - sent["runs"]
    return run_id, +sent


def _lacking_epochs(
    experiment: Experiment, there: "entities.Run", curves: Sequence[Mapping[str, float]]
) -> tuple[list[dict[str, float]], bool]:
    """The values that the server lacks, as rows of curves.csv; and whether it has others in their place."""
    had: dict[tuple[int, str], float] = {}
    for key in (k for k in curves[0] if k != "epoch" and k in there.data.metrics):
        had |= {(m.step, key): m.value for m in experiment.client.get_metric_history(there.info.run_id, key)}
    rows, contradicted = [], False
    for row in curves:
        values = {k: v for k, v in row.items() if k != "epoch" and not math.isnan(v)}
        known = {k: had[int(row["epoch"]), k] for k in values if (int(row["epoch"]), k) in had}
        contradicted |= any(not math.isclose(values[k], v, rel_tol=1e-6) for k, v in known.items())
        if len(known) < len(values):
            rows.append({"epoch": row["epoch"], **{k: v for k, v in values.items() if k not in known}})
    return rows, contradicted


def _send_results(experiment: Experiment, there: "entities.Run", source: Finished) -> int:
    from mlflow.entities import Metric

    metrics, cost = source.folder.metrics, dict(source.folder.cost)
    results: dict[str, float] = {f"test/{key}": source.test[key] for key in ("loss", "acc", "acc5")}
    results["best/epoch"] = metrics["epoch"]
    if "val" in metrics:
        results["best/val/acc"] = metrics["val"]["acc"]
    results["cost/peak_memory_mb"] = cost.pop("peak_memory_bytes") / 1e6
    if cost.get("activation_bytes") is not None:  # runs of older versions have none
        results["cost/activation_mb"] = cost.pop("activation_bytes") / 1e6
    results |= {f"cost/{key}": value for key, value in cost.items()}
    now, had = int(time.time() * 1000), there.data.metrics
    lacking = [
        Metric(key, float(value), now, 0)
        for key, value in results.items()
        if key not in had or not math.isclose(had[key], value, rel_tol=1e-9)
    ]
    _log_metrics(experiment, there.info.run_id, lacking)
    return len(lacking)


def _log_metrics(experiment: Experiment, run_id: str, metrics: "Sequence[entities.Metric]") -> None:
    for start in range(0, len(metrics), 1000):  # the most that MLflow takes at once
        experiment.client.log_batch(run_id, metrics=metrics[start : start + 1000])


def _provenance_tags(folder: runs.RunFolder, had: Mapping[str, str]) -> dict[str, str]:
    provenance = folder.provenance
    tags = {f"provenance.{key}": str(provenance[key]) for key in ("git_dirty", "machine", "device", "python", "torch")}
    source = {"mlflow.source.type": "LOCAL", "mlflow.source.name": "finetune"}
    if provenance["git_commit"]:
        source["mlflow.source.git.commit"] = provenance["git_commit"]
    return tags | {key: value for key, value in source.items() if key not in had}  # `mlflow run` sets its own


def _dataset_input(run: Mapping[str, Any]) -> "entities.DatasetInput":
    from mlflow.entities import Dataset, DatasetInput, InputTag

    md5 = data_md5(run)
    # MLflow takes 36 characters at most; so one digest over the archives', where there are several.
    digest = md5 if len(run["data_md5"]) == 1 else hashlib.md5(md5.encode(), usedforsecurity=False).hexdigest()
    archives = Dataset(run["dataset"], digest, "local", json.dumps({"uri": f"data/{run['dataset']}"}))
    tags = {"mlflow.data.context": "training", "archive.md5": md5, "edition": run["edition"]}
    if folder := data_file.folder_md5(study.anchor(), run["dataset"], run["data_md5"]):
        tags["dvc.md5"] = folder
    return DatasetInput(archives, [InputTag(k, v) for k, v in tags.items()])


def _send_artifacts(experiment: Experiment, run_id: str, source: Finished) -> int:
    def copied(file: Path) -> Callable[[Path], object]:
        return lambda path: path.write_bytes(file.read_bytes())

    made: dict[str, Callable[[Path], object]] = {
        runs.RUN: copied(source.folder.path / runs.RUN),
        runs.AUDIT: copied(source.folder.path / runs.AUDIT),
        "curves.png": lambda path: _draw_curves(source, path),
        "confusion_matrix.png": lambda path: _draw_confusion(source, path),
    }
    made |= {artifact: copied(file) for artifact, file in source.sheets.items()}
    there = {
        artifact.path
        for folder in {name.rpartition("/")[0] for name in made}
        for artifact in experiment.client.list_artifacts(run_id, folder or None)
    }
    lacking = [name for name in made if name not in there]
    with tempfile.TemporaryDirectory() as temporary:
        for name in lacking:
            path = Path(temporary) / name
            path.parent.mkdir(exist_ok=True)
            made[name](path)
            experiment.client.log_artifact(run_id, str(path), name.rpartition("/")[0] or None)
    return len(lacking)


def _draw_curves(source: Finished, path: Path) -> None:
    from finetune import figures

    figures.run_curves(source.folder.curves, source.name, path)


def _draw_confusion(source: Finished, path: Path) -> None:
    import numpy as np

    from finetune import figures

    with source.predictions.open(newline="") as file:
        rows = [(int(row["label"]), int(row["prediction"])) for row in csv.DictReader(file)]
    labels, predictions = np.array(rows).T
    figures.confusion_matrix(labels, predictions, source.folder.run["classes"], path)


def _milliseconds(iso: str) -> int:
    return int(datetime.fromisoformat(iso).timestamp() * 1000)
