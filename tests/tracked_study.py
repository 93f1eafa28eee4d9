"""A tiny study as training and evaluation leave it, with real weights: what is tracked, registered and served."""

import atexit
import base64
import functools
import io
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from finetune import model, params, runs, study
from finetune.params import Params
from finetune.study import Layout, Run
from finetune.tracking_store import connect

CLASSES = ["ant", "bee", "cat"]


def make_params(
    strategies: tuple[str, ...] = ("same_lr", "from_scratch"),
    seeds: tuple[int, ...] = (0,),
    name: str = "tiny",
) -> Params:
    return params.parse(
        {
            "study": {
                "name": name,
                "edition": "sample",
                "datasets": ["toy"],
                "strategies": strategies,
                "seeds": seeds,
                "baseline": strategies[0],
            },
            "training": {"image_size": 32, "epochs": 3, "lr": 0.002, "device": "cpu"},
            "prepare": {"short_side": 48},
            "datasets": {"toy": {}},
            "strategies": {strategy: {} for strategy in strategies},
        }
    )


def run_record(params: Params, run: Run, key: str = "") -> dict[str, Any]:
    """The content of run.json."""
    training, prepare = params.training_for(run.dataset, run.strategy), params.prepare_for(run.dataset)
    return {
        "run_key": key or f"key-{run.strategy}-{run.seed}",
        "fingerprint": "0123456789abcdef",
        "dataset": run.dataset,
        "strategy": run.strategy,
        "seed": run.seed,
        "plan": run.strategy,
        "options": {"last_scale": 0.6},
        "training": training.model_dump(mode="json"),
        "prepare": prepare.model_dump(mode="json"),
        "edition": "sample",
        "data_md5": {"toy.tar.gz": "c58f30108f718f92721af3b95e74349a"},
        "store_digest": "5d",
        "backbone": {"source": "sample", "digest": "bb"},
        "fraction": 1.0,
        "classes": CLASSES,
        "groups": ["all"],
        "preprocessing": {
            "short_side": 48,
            "image_size": 32,
            "crop_pct": 0.875,
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
        "images": {"train": 30, "val": 6},
    }


def epochs(val: bool = True, shift: float = 0.0) -> list[dict[str, float | None]]:
    """Three rows of curves.csv."""
    return [
        {
            "epoch": epoch,
            "train/loss": 1.0 / epoch + shift,
            "train/acc": 0.2 * epoch,
            "val/loss": 1.5 / epoch if val else None,
            "val/acc": 0.1 * epoch if val else None,
            "lr/all": 0.002,
        }
        for epoch in (1, 2, 3)
    ]


def write_run(root: Path, params: Params, run: Run, key: str = "", shift: float = 0.0, val: bool = True) -> None:
    """One finished and evaluated run of three epochs with seeded random weights."""
    folder, evaluation = Layout(root).run(run), Layout(root).evaluation(run)
    record = run_record(params, run, key)
    runs.write_json(folder / runs.RUN, record)
    runs.write_csv(folder / runs.AUDIT, [{"phase": 0, "tensor": "classifier.1.weight", "group": "all"}])
    runs.write_csv(folder / runs.CURVES, epochs(val, shift))
    metrics = {"epoch": 3, "train": {"loss": 0.25, "acc": 0.6}}
    runs.write_json(folder / runs.METRICS, metrics | ({"val": {"loss": 0.5, "acc": 0.3}} if val else {}))
    save_file(model.build(len(CLASSES), run.seed).state_dict(), folder / runs.MODEL, {"run_key": record["run_key"]})
    runs.write_json(
        folder / runs.COST,
        {
            "seconds": 6.0,
            "seconds_per_epoch": 2.0,
            "start_seconds": 1.5,
            "data_seconds": 0.5,
            "compute_seconds": 4.5,
            "evaluation_seconds": 1.0,
            "saving_seconds": 0.25,
            "images_per_second": 15.0,
            "peak_memory_bytes": 300_000_000,
            "activation_bytes": 120_000_000,
            "flops_per_image": 12_000_000,
            "trainable_parameters": 2_000_000,
            "total_parameters": 2_227_715,
        },
    )
    runs.write_json(
        folder / runs.PROVENANCE,
        {
            "git_commit": "a" * 40,
            "git_dirty": False,
            "started": "2026-01-02T03:04:05+00:00",
            "finished": "2026-01-02T03:04:11+00:00",
            "machine": "Linux x86_64",
            "device": "x86_64",
            "python": "3.11.7",
            "torch": "2.14.1",
            "torchvision": "0.29.1",
        },
    )
    rows = [
        {"index": i, "label": i % 3, "prediction": guess, "confidence": "0.500000"}
        for i, guess in enumerate((0, 1, 2, 0, 0, 0))
    ]
    runs.write_csv(evaluation / runs.PREDICTIONS, rows)
    test = {"loss": 1.25, "acc": 4 / 6, "acc5": 1.0, "images": 6}
    runs.write_json(evaluation / runs.METRICS, {"run_key": record["run_key"], "test": test})


def write_study(root: Path, params: Params) -> Layout:
    """Every run of the study."""
    for run in study.runs(params):
        write_run(root, params, run)
    return Layout(root)


def image_file(seed: int = 0, size: tuple[int, int] = (60, 50), kind: str = "PNG") -> bytes:
    """An encoded image of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def as_text(file: bytes) -> str:
    return base64.b64encode(file).decode()


def move_home(monkeypatch: pytest.MonkeyPatch, root: Path) -> Path:
    """Make `root` the repository, with an empty tracking store in it and none of the user's MLflow settings."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_")] + ["DVC_STAGE"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_ROOT", str(root))
    shutil.copy(_empty_database(), root / "mlflow.db")
    return root


@functools.cache
def _empty_database() -> Path:
    """Made once: it takes MLflow seconds."""
    root = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, root)
    connect(root)
    return root / "mlflow.db"
