"""The study's runs, each with its evaluation: read back, and checked to belong together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune import runs
from finetune.errors import InputError
from finetune.study import Layout, Run


@dataclass(frozen=True)
class Record:
    """One run of the study with its evaluation."""

    run: Run
    folder: runs.RunFolder
    test: Mapping[str, Any]
    labels: np.ndarray  # int, one per test image, official order
    correct: np.ndarray  # bool, the same


def read(listed: Sequence[Run], layout: Layout) -> list[Record]:
    """Read them all.

    Raises:
        InputError: a run or an evaluation is missing, or the evaluation is of another run or of too few images.
    """
    _require_all(listed, layout)
    return [_read(run, layout) for run in listed]


def require_one_test_split(records: Sequence[Record]) -> None:
    """Raise InputError unless all were evaluated on the same images."""
    first = records[0]
    for record in records[1:]:
        if not np.array_equal(record.labels, first.labels):
            raise InputError(
                f"evaluations of {record.run.name} and {first.run.name} saw different test images; make both again "
                "with `dvc repro`"
            )


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


def _read(run: Run, layout: Layout) -> Record:
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
    return Record(run, folder, metrics["test"], pairs[:, 0], pairs[:, 0] == pairs[:, 1])
