"""Whole pieces of work: a study through DVC, tracked and registered; and one run outside DVC, for `mlflow run`."""

import hashlib
import importlib.util
import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from finetune import (
    agreement,
    aside,
    data_file,
    datasets,
    dvc_process,
    kernel_library,
    lock_file,
    sample_remote,
    side_by_side,
)
from finetune.errors import InputError
from finetune.params import Params, on_device
from finetune.study import Layout, Run, anchor, dataset_of, runs

Say = Callable[[str], None]


def run_study(params: Params, layout: Layout, say: Say = print) -> None:
    """Pull what archives are missing, `dvc repro`, track, register; then the table and where to look.

    Raises:
        InputError: a strategy does not go with its recipe, a step failed, or another of these is at work here; the
            steps before it are done and need not be repeated.
    """
    agreement.check(params, layout.root)  # before hours are spent on those cells that can be trained
    # Each training makes a run of its own, also when this process is in a run of `mlflow run`.
    os.environ.pop("MLFLOW_RUN_ID", None)
    sample_remote.check(layout.root, layout.root / data_file.NAME)
    with dvc_process.alone(layout.root, say):
        lock_file.mend(layout.root, say)
        dvc_process.say_if_locked(layout.root, say)
        # Not only the study's: `dvc repro` wants all that data.dvc lists.
        pull_archives(layout, {*data_file.outs(layout.root), *(f"data/{name}" for name in params.study.datasets)})
        before = _lock_state(layout.root)
        code = _reproduce(params, layout, say)
    sample_remote.check(layout.root, layout.root / data_file.NAME)  # `dvc repro` wrote the hashes of what lies there
    if code:
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


def _reproduce(params: Params, layout: Layout, say: Say) -> int:
    """Run what is out of date; returns DVC's exit code. However that ends, dvc.lock can be read afterwards."""
    code = -1
    try:
        _head_start(params, layout, say)
        code = _dvc("repro", cwd=layout.root)
    finally:
        if code:
            with suppress(OSError, InputError):  # whoever listened may be gone; what ended it is told
                lock_file.mend(layout.root, say)
    return code


def _head_start(params: Params, layout: Layout, say: Say) -> None:
    """Train what is out of date side by side, where the runs are for a CPU and leave cores to each other."""
    recipes = [params.training_for(run.dataset, run.strategy) for run in runs(params)]
    at_once = side_by_side.jobs(max(recipe.threads for recipe in recipes))
    if at_once < 2 or any(recipe.device == "cuda" for recipe in recipes):
        return
    command, environment = _dvc_command()
    cells = side_by_side.out_of_date(layout.root, command, environment)
    if len(cells) < 2:
        return
    from finetune.device import resolve_device  # PyTorch is needed only now

    if all(resolve_device(recipe.device) == "cpu" for recipe in recipes):
        side_by_side.train(cells, at_once, layout.root, command, environment, say)
        lock_file.mend(layout.root, say)


def run_alone(params: Params, run: Run, device: str | None = None, began: float | None = None) -> tuple[Layout, Path]:
    """Train, evaluate and track one run outside DVC, pulling and preparing what is missing.

    It is written under `.finetune/runs/<run id>/`; what an interrupted one has trained is gone on with, also by a run
    of another id. In MLflow it never takes the place of the study's own run, and whatever fails there is said once and
    left to `finetune track`.

    Raises:
        InputError: the strategy does not go with its recipe, or the recipe not with this machine, said before anything
            is pulled; or an input is missing.

    Args:
        device: auto, cpu or cuda; None for what params.yaml says.
        began: when the command began, of time.monotonic(); None for now. Start-up is all from there to the first batch,
            so pulling and preparing are in it, where this run is the one that has to do them.

    Returns:
        The run's own layout, and its folder.
    """
    from finetune import interruption, kept_runs, resolved, stages, tracking
    from finetune.device import resolve_device
    from finetune.live import Live
    from finetune.training import Listener

    began = time.monotonic() if began is None else began
    root = anchor()
    agreement.check_run(params, root, run.dataset, run.strategy)
    recipe = params.training_for(run.dataset, run.strategy)
    if on_device(recipe, resolve_device(device or recipe.device)).takes_native_kernels:
        kernel_library.built()
    pull_archives(Layout(root), [f"data/{run.dataset}"])
    own = root / ".finetune" / "runs" / (os.environ.get("MLFLOW_RUN_ID") or uuid.uuid4().hex)
    layout = Layout(own, _inputs(params, root, run.dataset))
    prepared = resolved.resolve(params, layout, run, device)
    with Live(params, side=True) as live:
        listener = Listener(started=live.started, resumed=live.resumed, epoch=live.epoch)
        place = stages.train(prepared, layout, (listener,), began=began, keep=True)
        interruption.check()  # before the run is called whole, which nothing takes back
        live.finished()
        interruption.check()
    stages.evaluate(layout, run)
    tracking.note_side_run(params, layout, run, live.run_id)  # first, or a signal between the two loses it for `track`
    kept_runs.forget(prepared.key)
    live.completed(lambda: tracking.track_run(params, layout, run))
    return layout, place


def pull_archives(layout: Layout, folders: Iterable[str]) -> None:
    """`dvc pull` those of these folders, `data/<data set>`, that lack an archive.

    Raises:
        InputError: they could not be pulled.
    """
    lacking = sorted(folder for folder in folders if _lacks_archives(layout.root / folder))
    if lacking and (code := _dvc("pull", *lacking, cwd=layout.root)):
        names = " ".join(lacking)
        raise InputError(
            f"{names}: archives are missing and `dvc pull {names}` ended with exit code {code}; see above, bring the "
            f"archives there by hand, or delete from {data_file.NAME} the outs of data sets that you do not use"
        )


def _lacks_archives(folder: Path) -> bool:
    if folder.is_file():  # an out of data.dvc may be one
        return False
    known = datasets.load(folder.name).archives if folder.name in datasets.names() else ()
    return not folder.exists() or not any(folder.iterdir()) or not all((folder / name).is_file() for name in known)


def _inputs(params: Params, root: Path, dataset: str) -> Path:
    """Store and backbone for runs outside DVC, shared by all that need the same. DVC's own store is used if it fits."""
    from finetune import kept
    from finetune.model import prepare_backbone
    from finetune.prepare import check_archives, prepare, source_meta
    from finetune.store import FORMAT

    declared, settings, archives = dataset_of(params, dataset), params.prepare_for(dataset), root / "data" / dataset
    md5 = check_archives(declared, params.study.edition, archives)
    wanted = source_meta(declared, params.study.edition, md5, settings)
    key = json.dumps([FORMAT, wanted, params.backbone.model_dump()], sort_keys=True)
    layout = Layout(root / ".finetune" / "inputs" / hashlib.sha256(key.encode()).hexdigest()[:16])
    place, ours = layout.store(dataset), Layout(root).store(dataset)

    def fits(store: Path) -> bool:
        return kept.find(declared, params.study.edition, settings, archives, store.resolve(), md5) is not None

    place.parent.mkdir(parents=True, exist_ok=True)
    with aside.alone(layout.root):
        if not fits(place):
            if place.is_symlink():  # to a store of DVC's that is gone, or was made anew with other settings
                place.unlink()
            if not place.exists() and fits(ours):
                place.symlink_to(ours, target_is_directory=True)
            else:
                prepare(declared, params.study.edition, settings, archives, place)
        sample = root / "samples" / "backbone.safetensors"
        prepare_backbone(params.backbone.source, params.backbone.weights, sample, layout.backbone)
    return layout.root


def _dvc(*words: str, cwd: Path) -> int:
    """Run DVC as a program of its own; its output is the user's. Returns its exit code."""
    command, environment = _dvc_command()
    sys.stdout.flush()
    return dvc_process.run([*command, *words], cwd, environment).returncode


def _dvc_command() -> tuple[list[str], dict[str, str]]:
    if importlib.util.find_spec("dvc") is None:
        raise InputError("dvc is not installed here; `make setup` installs it")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # the stages' `python` is this one
    # Trainings side by side take turns at DVC's lock; without the word it gives up after 3 s, also after a training.
    return [sys.executable, "-m", "dvc", "--wait-for-lock"], {**os.environ, "PATH": path}


def _lock_state(root: Path) -> bytes:
    lock = root / "dvc.lock"
    return lock.read_bytes() if lock.is_file() else b""
