"""Params -> the ordered runs (data set, strategy, seed): ids, paths, fingerprints."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import InputError, suggest
from finetune.params import Params, TrainingParams

# Raised by hand whenever the code changes what a run computes, so that no checkpoint outlives its code.
NUMERICS_VERSION = 2


@dataclass(frozen=True, order=True)
class Run:
    """One training of the study."""

    dataset: str
    strategy: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.dataset}/{self.strategy}/{self.seed}"


def runs(params: Params) -> tuple[Run, ...]:
    """Every run of the study, in the order of params.yaml."""
    study = params.study
    return tuple(Run(d, s, k) for d in study.datasets for s in study.strategies for k in study.seeds)


def check_run(params: Params, dataset: str, strategy: str) -> None:
    """Raise InputError unless both names have an entry in params.yaml."""
    if dataset not in params.datasets:
        raise InputError(
            f"data set '{dataset}' has no entry under datasets in params.yaml; {suggest(dataset, params.datasets)}"
        )
    if strategy not in params.strategies:
        raise InputError(
            f"strategy '{strategy}' has no entry under strategies in params.yaml; "
            f"{suggest(strategy, params.strategies)}"
        )


@dataclass(frozen=True)
class Layout:
    """Where things lie. DVC's stages use the repository's root; a run outside DVC has roots of its own."""

    root: Path  # of what is made: runs, evaluations, comparison, report
    inputs: Path | None = None  # of what trainings start from: stores and backbone; None: `root`

    @property
    def backbone(self) -> Path:
        return (self.inputs or self.root) / "models" / "backbone.safetensors"

    @property
    def comparison(self) -> Path:
        return self.root / "comparison"

    @property
    def report(self) -> Path:
        return self.root / "report"

    def archives(self, dataset: str) -> Path:
        return self.root / "data" / dataset

    def store(self, dataset: str) -> Path:
        return (self.inputs or self.root) / "prepared" / dataset

    def run(self, run: Run) -> Path:
        return self.root / "runs" / run.dataset / run.strategy / str(run.seed)

    def evaluation(self, run: Run) -> Path:
        return self.root / "evaluations" / run.dataset / run.strategy / str(run.seed)


def anchor() -> Path:
    """The repository's root: DVC's, also inside its experiment folders, else the current folder."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def work_area(run_key: str) -> Path:
    """Where a run's checkpoints and half-done files live; never an output of DVC's."""
    return anchor() / ".finetune" / "work" / run_key


def fingerprint(
    run: Run,
    plan: str,
    options: Mapping[str, Any],
    training: TrainingParams,
    store_digest: str,
    backbone_digest: str,
) -> str:
    """16 hex digits that change whenever the run's numbers may: 64 bits of a SHA-256.

    `training.device` must already be resolved to cpu or cuda.
    """
    assert training.device != "auto"
    slice_ = {
        "dataset": run.dataset,
        "strategy": run.strategy,
        "plan": plan,
        "options": dict(options),
        "training": training.model_dump(mode="json"),
        "store": store_digest,
        "backbone": backbone_digest,
        "numerics": NUMERICS_VERSION,
    }
    return hashlib.sha256(json.dumps(slice_, sort_keys=True).encode()).hexdigest()[:16]


def run_key(fingerprint: str, seed: int) -> str:
    """The name by which a run is found again in MLflow and in the work area."""
    return f"{fingerprint}-{seed}"
