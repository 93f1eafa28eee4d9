"""Params -> the ordered runs (data set, strategy, seed): ids, paths, fingerprints."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from finetune import datasets
from finetune.errors import InputError, suggest
from finetune.params import DatasetParams, Params, TrainingParams

# Raised by hand whenever the code changes what a run computes, so that no checkpoint outlives its code; a test asks for
# it where that code changes (tests/numerics.json).
NUMERICS_VERSION = 7
NATIVE_NUMERICS_VERSION = 2  # likewise of what only `cpu_kernels: native` computes


CELL = ("dataset", "strategy", "seed")  # what names a run


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


def dataset_of(params: Params, name: str) -> datasets.Dataset:
    """The declaration of data set `name`: its own file's, or as its entry in params.yaml says.

    Raises:
        InputError: there is none of that name.
    """
    own = params.datasets.get(name)
    if own is None or own.reader is None:
        return datasets.load(name)
    from finetune.datasets import class_folders  # with libraries that a node which only trains may lack

    return class_folders.dataset(name, own.title, own.archive, own.test_fraction, own.test_seed)


def check_readers(names: Iterable[str], entries: Mapping[str, DatasetParams] = MappingProxyType({})) -> None:
    """Raise InputError unless each data set has one reader: a file, or that of its entry in params.yaml."""
    for name in names:
        if name in entries and entries[name].reader:
            if name in datasets.names():
                raise InputError(
                    f"params.yaml: datasets.{name}.reader: {name} has a reader of its own, by which its published "
                    "numbers stand; choose another name for your data, or remove the key"
                )
        elif name not in datasets.names():
            raise InputError(
                f"data set '{name}' of params.yaml has no reader src/finetune/datasets/{name}.py; "
                f"{suggest(name, datasets.names())}; for images of your own in class folders add reader: class_folders"
            )


def check_run(params: Params, dataset: str, strategy: str) -> None:
    """Raise InputError unless both names have an entry in params.yaml, and the data set a reader."""
    if dataset not in params.datasets:
        raise InputError(
            f"data set '{dataset}' has no entry under datasets in params.yaml; {suggest(dataset, params.datasets)}"
        )
    if strategy not in params.strategies:
        raise InputError(
            f"strategy '{strategy}' has no entry under strategies in params.yaml; "
            f"{suggest(strategy, params.strategies)}"
        )
    check_readers([dataset], params.datasets)


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
    """The repository's root: as DVC says it, else the nearest folder upwards that DVC is in, else the current one."""
    if told := os.environ.get("DVC_ROOT"):
        return Path(told).resolve()
    here = Path.cwd()
    return next((p for p in (here, *here.parents) if (p / "dvc.yaml").is_file() or (p / ".dvc").is_dir()), here)


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
    fraction: float,
    split_seed: int,
    plan_source: str,
) -> str:
    """16 hex digits that change whenever the run's numbers may: 64 bits of a SHA-256.

    `training.device` must already be resolved to cpu or cuda.

    Args:
        split_seed: by which a fraction of the training images is chosen.
        plan_source: digest of the plan's file, which may be one of the user's own.
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
        "fraction": fraction if fraction == 1 else [fraction, split_seed],
        "source": plan_source,
        "numerics": NUMERICS_VERSION,
    }
    if training.takes_native_kernels:
        slice_["native_numerics"] = NATIVE_NUMERICS_VERSION
    return hashlib.sha256(json.dumps(slice_, sort_keys=True).encode()).hexdigest()[:16]


def run_key(fingerprint: str, seed: int) -> str:
    """The name by which a run is found again in MLflow and in the work area."""
    return f"{fingerprint}-{seed}"
