"""What a run's folder says about it, beside curves, weights and costs: run.json, metrics.json, provenance.json."""

import platform
import subprocess
from datetime import UTC, datetime
from typing import Any

import torch
import torchvision

from finetune import catalogue, cpu_kernels
from finetune.batches import MEAN, STD
from finetune.recipe import TrainingParams
from finetune.resolved import Prepared
from finetune.training import Progress, group_names


def run_record(prepared: Prepared) -> dict[str, Any]:
    """The content of run.json: what the run is, and all that its numbers depend on."""
    run, recipe, meta = prepared.run, prepared.recipe, prepared.store.meta
    with torch.device("meta"):
        plan = prepared.plan_of(prepared.model())
    return {
        "run_key": prepared.key,
        "fingerprint": prepared.fingerprint,
        "dataset": run.dataset,
        "strategy": run.strategy,
        "seed": run.seed,
        "plan": prepared.plan,
        "options": prepared.options,
        "training": recipe.model_dump(mode="json"),
        "prepare": meta["prepare"],
        "edition": meta["edition"],
        "data_md5": meta["archives_md5"],
        "store_digest": prepared.store.digest,
        "backbone": prepared.backbone,
        "classes": meta["classes"],
        "groups": group_names(plan),
        "phases": catalogue.phases(plan, recipe.epochs),
        "preprocessing": {
            "short_side": meta["prepare"]["short_side"],
            "image_size": recipe.image_size,
            "crop_pct": recipe.crop_pct,
            "mean": list(MEAN),
            "std": list(STD),
        },
        "fraction": prepared.fraction,
        "images": {"train": len(prepared.train_split()), "val": meta["counts"]["val"]},
    }


def metrics(result: Progress) -> dict[str, Any]:
    """The content of metrics.json: of the epoch whose weights are kept."""
    kept = result.rows[result.kept - 1]
    found: dict[str, Any] = {"epoch": result.kept, "train": {"loss": kept["train/loss"], "acc": kept["train/acc"]}}
    if kept["val/acc"] is not None:
        found["val"] = {"loss": kept["val/loss"], "acc": kept["val/acc"]}
    return found


def provenance(recipe: TrainingParams) -> dict[str, Any]:
    """The content of provenance.json, but for when the run finished."""
    device = torch.cuda.get_device_name() if recipe.device == "cuda" else platform.processor() or platform.machine()
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "started": now(),
        "machine": f"{platform.system()} {platform.machine()}",
        "device": device,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        **({"compiler": cpu_kernels.load().compiler} if recipe.takes_native_kernels else {}),
    }


def _git(*words: str) -> str | None:
    """What git says, None outside a repository or without git."""
    try:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
