"""Whole pieces of work: a study through DVC, tracked and registered; and one run outside DVC, for `mlflow run`."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

from finetune import datasets, runs
from finetune.errors import InputError
from finetune.params import Params
from finetune.study import Layout, Run, anchor

Say = Callable[[str], None]
Trainer = Callable[[Params, Layout, Run], Path]


def run_study(params: Params, layout: Layout, say: Say = print) -> None:
    """Pull what archives are missing, `dvc repro`, track, register; then the table and where to look.

    Raises:
        InputError: a step failed; the steps before it are done and need not be repeated.
    """
    # Each training makes a run of its own, also when this process is in a run of `mlflow run`.
    os.environ.pop("MLFLOW_RUN_ID", None)
    for dataset in params.study.datasets:
        pull_archives(layout, dataset)
    before = _lock_state(layout.root)
    if code := _dvc("repro", cwd=layout.root):
        raise InputError(
            f"dvc repro ended with exit code {code}; mend what it names above, then repeat: finished runs stay"
        )
    from finetune import comparison, registry, tracking

    unchanged = _lock_state(layout.root) == before
    say("every stage is up to date\n" if unchanged else "")
    compared = comparison.read(layout.comparison)
    tracking.track(params, layout, say)
    if any(entry["winner"] for entry in compared["datasets"].values()):
        registry.register(compared, layout, params, say)
    else:
        say("nothing to register: without a validation split there is no winner")
    say(f"\n{comparison.table(compared)}\n")
    say(f"report:  {layout.report / 'report.md'} (and report.html)")
    say("runs:    make ui")
    say(f"predict: finetune predict {params.study.datasets[0]} IMAGE …")


def run_alone(params: Params, run: Run, trainer: Trainer) -> tuple[Layout, Path]:
    """Train one run outside DVC, pulling and preparing what is missing, under `.finetune/runs/<run id>/`.

    Args:
        trainer: trains `run` with the inputs of a layout and returns the run's folder.

    Returns:
        The run's own layout, and its folder.
    """
    from finetune import stages

    root = anchor()
    pull_archives(Layout(root), run.dataset)
    own = root / ".finetune" / "runs" / (os.environ.get("MLFLOW_RUN_ID") or uuid.uuid4().hex)
    layout = Layout(own, _inputs(params, root, run.dataset))
    place = trainer(params, layout, run)
    stages.evaluate(layout, run)
    return layout, place


def pull_archives(layout: Layout, dataset: str) -> None:
    """`dvc pull data/<dataset>` if an archive of it is missing.

    Raises:
        InputError: it could not be pulled.
    """
    folder = layout.archives(dataset)
    if all((folder / name).is_file() for name in datasets.load(dataset).archives):
        return
    if code := _dvc("pull", str(folder.relative_to(layout.root)), cwd=layout.root):
        raise InputError(
            f"{folder}: its archives are missing and `dvc pull data/{dataset}` ended with exit code {code}; see above, "
            "or bring the archives there by hand"
        )


def _inputs(params: Params, root: Path, dataset: str) -> Path:
    """Store and backbone for runs outside DVC, shared by all that need the same. DVC's own store is used if it fits."""
    from finetune.model import prepare_backbone
    from finetune.prepare import check_archives, prepare
    from finetune.store import FORMAT

    declared, settings = datasets.load(dataset), params.prepare_for(dataset)
    md5 = check_archives(declared, params.study.edition, root / "data" / dataset)
    wanted = {"edition": params.study.edition, "archives_md5": md5, "prepare": settings.model_dump(mode="json")}
    key = json.dumps([FORMAT, wanted, params.backbone.model_dump()], sort_keys=True)
    layout = Layout(root / ".finetune" / "inputs" / hashlib.sha256(key.encode()).hexdigest()[:16])
    place = layout.store(dataset)
    if not (place / "meta.json").is_file():
        ours = Layout(root).store(dataset)
        place.parent.mkdir(parents=True, exist_ok=True)
        if (ours / "meta.json").is_file() and wanted.items() <= runs.read_json(ours / "meta.json").items():
            place.unlink(missing_ok=True)  # a link to a store that is gone
            place.symlink_to(ours, target_is_directory=True)
        else:
            prepare(declared, params.study.edition, settings, root / "data" / dataset, place)
    sample = root / "samples" / "backbone.safetensors"
    prepare_backbone(params.backbone.source, params.backbone.weights, sample, layout.backbone)
    return layout.root


def _dvc(*words: str, cwd: Path) -> int:
    """Run DVC as a program of its own; its output is the user's. Returns its exit code."""
    if shutil.which("dvc", path=str(Path(sys.executable).parent)) is None and shutil.which("dvc") is None:
        raise InputError("dvc is not installed here; `make setup` installs it")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # the stages' `python` is this one
    sys.stdout.flush()
    command = [sys.executable, "-m", "dvc", *words]
    return subprocess.run(command, cwd=cwd, env={**os.environ, "PATH": path}, check=False).returncode


def _lock_state(root: Path) -> bytes:
    lock = root / "dvc.lock"
    return lock.read_bytes() if lock.is_file() else b""
