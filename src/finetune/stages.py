"""What the stages train and evaluate do: open their inputs, call who knows, write their outputs whole."""

import platform
import shutil
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import save_file
from torchvision.models import MobileNetV2

from finetune import abandoned, accounting, interruption, runs
from finetune import model as models
from finetune.batches import MEAN, STD
from finetune.clock import Clock
from finetune.device import Feed, configure, move_to_device, resolve_device
from finetune.errors import InputError
from finetune.evaluation import Predictions, predict
from finetune.params import Params, TrainingParams
from finetune.progress import progress
from finetune.store import Split, Store, open_store
from finetune.strategies import build_model, build_plan, check_options
from finetune.strategies.adjustments import adjusted
from finetune.strategies.plan import Plan, audit
from finetune.study import Layout, Run, fingerprint, run_key, work_area
from finetune.training import Listener, Progress, epochs_of, fit, group_names


@dataclass(frozen=True)
class Prepared:
    """A run, worked out: what it is called and all that its numbers depend on."""

    run: Run
    plan: str
    options: dict[str, Any]
    recipe: TrainingParams  # device resolved
    store: Store
    fraction: float  # of each class of train
    backbone: dict[str, str]  # source, digest
    backbone_path: Path
    fingerprint: str

    def train_split(self) -> Split:
        """The images to train on."""
        return self.store.split("train").part(self.fraction, self.store.meta["prepare"]["split_seed"])

    def model(self) -> MobileNetV2:
        """The network as the run's seed has it, before any weights are loaded."""
        return build_model(len(self.store.classes), self.run.seed, self.plan, self.options)

    def plan_of(self, model: MobileNetV2) -> Plan:
        """The plan, worked out for `model` and adjusted to the recipe; what excludes each other is an InputError."""
        where = f"params.yaml: strategies.{self.run.strategy}"
        return adjusted(model, build_plan(model, self.plan, self.options), self.recipe, where)

    @property
    def key(self) -> str:
        return run_key(self.fingerprint, self.run.seed)


def resolve(params: Params, layout: Layout, run: Run, device: str | None = None) -> Prepared:
    """Work out a run from params.yaml and its inputs on disk.

    Raises:
        InputError: an input is missing, an option is not the plan's, or there is no such device.
    """
    plan, options = params.plan_for(run.strategy), params.strategies[run.strategy].options
    check_options(run.strategy, plan, options)
    recipe = params.training_for(run.dataset, run.strategy)
    recipe = recipe.model_copy(update={"device": resolve_device(device or recipe.device)})
    store = open_store(layout.store(run.dataset))
    if not layout.backbone.is_file():
        raise InputError(f"{layout.backbone}: no such file; make it with `dvc repro -s backbone`")
    backbone = {"source": params.backbone.source, "digest": models.digest(layout.backbone)}
    if params.backbone.source == "torchvision":
        backbone["weights"] = params.backbone.weights
    fraction = params.datasets[run.dataset].fraction
    print_ = fingerprint(run, plan, options, recipe, store.digest, backbone["digest"], fraction)
    return Prepared(run, plan, options, recipe, store, fraction, backbone, layout.backbone, print_)


def check_strategies(params: Params) -> None:
    """Work out every strategy of the study under every data set's recipe, on shapes alone.

    Raises:
        InputError: an option is not the plan's, its parameter groups are not total, or plan and recipe exclude each
            other.
    """
    for strategy in params.study.strategies:
        plan, options = params.plan_for(strategy), params.strategies[strategy].options
        check_options(strategy, plan, options)
        with torch.device("meta"):
            model = build_model(2, 0, plan, options)
        for dataset in params.study.datasets:
            recipe = params.training_for(dataset, strategy)
            where = f"params.yaml: strategies.{strategy} on {dataset}"
            audit(
                model, adjusted(model, build_plan(model, plan, options), recipe, where), recipe.lr, recipe.weight_decay
            )


def train(
    prepared: Prepared,
    layout: Layout,
    listeners: tuple[Listener, ...] = (),
    module: MobileNetV2 | None = None,
    began: float | None = None,
    keep: bool = False,
) -> Path:
    """Train one run and move its folder into place; reads the splits train and val only.

    Goes on from the work area of an interrupted attempt, and adopts a run found finished there.

    Raises:
        Interrupted: the process is to end; the next call goes on from there.

    Args:
        module: a network of an earlier run of this process, on its device, to be overwritten and trained: what was
            compiled for it serves again.
        began: when the command began, of time.monotonic(), so that its start-up is counted whole; None for now.
        keep: keep the work area until `forget`, so that a process that ends before it is done with the run, and
            would write elsewhere next time, adopts it then.
    """
    clock = Clock(began)
    place = layout.run(prepared.run)
    record = run_record(prepared)  # raises before anything is trained if the store's meta.json lacks something
    with runs.locked(work_area(prepared.key)) as work:
        for listener in listeners:
            listener.started(record)
        finished = work / "finished"
        if not finished.is_dir():
            _train_aside(prepared, record, work, listeners, module, clock)
        interruption.check()  # while it can be adopted: DVC deletes from its place what no stage has ended with
        with interruption.finishing():
            if keep:
                shutil.rmtree(work / "copy", ignore_errors=True)
                runs.move_into_place(shutil.copytree(finished, work / "copy"), place)
            else:
                runs.move_into_place(finished, place)
                shutil.rmtree(work)
    return place


def forget(prepared: Prepared) -> None:
    """Clear the work area of a run that was trained with `keep`."""
    with runs.locked(work_area(prepared.key)) as work:
        shutil.rmtree(work)


def _train_aside(
    prepared: Prepared,
    record: dict[str, Any],
    work: Path,
    listeners: tuple[Listener, ...],
    module: MobileNetV2 | None,
    clock: Clock,
) -> None:
    recipe, store, run = prepared.recipe, prepared.store, prepared.run
    configure(recipe)
    accounting.forget_peak_memory(recipe.device)
    model = prepared.model()
    plan = prepared.plan_of(model)
    rows = audit(model, plan, recipe.lr, recipe.weight_decay)  # raises before anything is trained
    folder = work / "unfinished"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    runs.write_json(folder / runs.RUN, record)
    for line in abandoned.lines(work):
        print(line, flush=True)
    runs.write_csv(folder / runs.AUDIT, rows)
    if plan.initialisation == "pretrained":
        models.load_backbone(model, prepared.backbone_path)
    if plan.begin is not None:
        plan.begin(model)
    if module is None:
        move_to_device(model, recipe)
    else:
        module.load_state_dict(model.state_dict())
        model = module
    feed = Feed(recipe)
    train_batches, val_batches = feed.batches(prepared.train_split()), feed.batches(store.split("val"))
    images = len(train_batches.split)
    fixed = accounting.worked_out(prepared.model, plan.phases, recipe, images)
    provenance = _provenance(recipe)
    shown = progress(run.name, recipe.epochs, images)
    result = fit(
        model,
        plan,
        recipe,
        train_batches,
        val_batches if len(val_batches.split) else None,
        run.seed,
        name=run.name,
        work=work,
        fingerprint=prepared.fingerprint,
        listeners=(shown, *listeners),
        clock=clock,
    )
    with interruption.held(last=True):
        with clock.phase("saving"):
            runs.write_csv(folder / runs.CURVES, result.rows)
            runs.write_json(folder / runs.METRICS, _metrics(result))
            kept = {name: tensor.contiguous() for name, tensor in result.kept_state.items()}
            save_file(kept, folder / runs.MODEL, {"run_key": prepared.key})
        runs.write_json(folder / runs.COST, accounting.cost(model, rows, result, recipe, images, fixed))
        runs.write_json(folder / runs.PROVENANCE, provenance | {"finished": _now()})
        runs.flush(folder)
        folder.rename(work / "finished")


def evaluate(layout: Layout, run: Run, device: str | None = None) -> Path:
    """Predict the test split with a run's kept weights: the only reader of test. Writes the evaluation folder."""
    record = runs.read_json(layout.run(run) / runs.RUN)
    recipe = TrainingParams.model_validate(record["training"])
    recipe = recipe.model_copy(update={"device": resolve_device(device or recipe.device)})
    configure(recipe)
    store = open_store(layout.store(run.dataset))
    if store.digest != record["store_digest"]:
        raise InputError(
            f"{store.path}: is not the store that {run.name} was trained on; train it again with "
            f"`dvc repro train@{run.dataset}-{run.strategy}-{run.seed}`"
        )
    model = build_model(len(store.classes), run.seed, record["plan"], record["options"])
    models.load_weights(model, layout.run(run) / runs.MODEL)
    move_to_device(model, recipe)
    seen = predict(model, Feed(recipe).batches(store.split("test")), recipe.precision)
    place = layout.evaluation(run)
    runs.write_csv(place / runs.PREDICTIONS, _prediction_rows(seen))
    test = {"loss": seen.loss, "acc": seen.acc, "acc5": seen.acc5, "images": len(seen.labels)}
    runs.write_json(place / runs.METRICS, {"run_key": record["run_key"], "test": test})
    return place


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
        "phases": [
            {"epochs": [first + 1, end], "groups": [group.name for group in phase.groups]}
            for phase, first, end in epochs_of(plan, recipe.epochs)
        ],
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


def _metrics(result: Progress) -> dict[str, Any]:
    kept = result.rows[result.kept - 1]
    metrics: dict[str, Any] = {"epoch": result.kept, "train": {"loss": kept["train/loss"], "acc": kept["train/acc"]}}
    if kept["val/acc"] is not None:
        metrics["val"] = {"loss": kept["val/loss"], "acc": kept["val/acc"]}
    return metrics


def _provenance(recipe: TrainingParams) -> dict[str, Any]:
    device = torch.cuda.get_device_name() if recipe.device == "cuda" else platform.processor() or platform.machine()
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "started": _now(),
        "machine": f"{platform.system()} {platform.machine()}",
        "device": device,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def _git(*words: str) -> str | None:
    """What git says, None outside a repository or without git."""
    try:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _prediction_rows(seen: Predictions) -> list[dict[str, Any]]:
    columns = zip(seen.labels.tolist(), seen.predictions.tolist(), seen.confidence.tolist(), strict=True)
    return [
        {"index": i, "label": label, "prediction": prediction, "confidence": f"{confidence:.6f}"}
        for i, (label, prediction, confidence) in enumerate(columns)
    ]
