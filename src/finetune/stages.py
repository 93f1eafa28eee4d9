"""What the stages train and evaluate do: open their inputs, call who knows, write their outputs whole."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors.torch import save
from torchvision.models import MobileNetV2

from finetune import abandoned, accounting, checkpoint, interruption, kept_runs, machine_limits, records, runs
from finetune import model as models
from finetune.clock import Clock
from finetune.device import Feed, configure, move_to_device, resolve_device
from finetune.errors import InputError
from finetune.evaluation import Predictions, predict
from finetune.params import TrainingParams
from finetune.params_file import sentence
from finetune.progress import progress
from finetune.resolved import Prepared
from finetune.store import open_store
from finetune.strategies import build_model, check_options
from finetune.strategies.plan import Plan, audit
from finetune.study import Layout, Run, work_area
from finetune.training import Listener, fit
from finetune.work_lock import locked


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
        keep: keep the finished run in its work area, too, until `kept_runs.forget`: the next call adopts it, should
            this one's result be lost. Runs outside DVC are written elsewhere each time.
    """
    clock = Clock(began)
    place = layout.run(prepared.run)
    record = records.run_record(prepared)  # raises before anything is trained if the store's meta.json lacks something
    with locked(work_area(prepared.key)) as work:
        for listener in listeners:
            listener.started(record)
        finished = work / kept_runs.FINISHED
        kept_runs.claim(work)
        if finished.is_dir():
            print(f"{prepared.run.name}: was trained to its end before; that is put in its place", flush=True)
        else:
            _train_aside(prepared, record, work, listeners, module, clock)
        interruption.check()  # while it can be adopted: DVC deletes from its place what no stage has ended with
        with interruption.finishing():
            if keep:
                copy = work / "copy"
                shutil.rmtree(copy, ignore_errors=True)
                runs.copy_folder(finished, copy)
                runs.flush(copy)
                runs.move_into_place(copy, place)
                (work / checkpoint.FILE).unlink(missing_ok=True)
                kept_runs.forget_others(work, record)
            else:
                runs.move_into_place(finished, place)
                shutil.rmtree(work)
    return place


def _train_aside(
    prepared: Prepared,
    record: dict[str, Any],
    work: Path,
    listeners: tuple[Listener, ...],
    module: MobileNetV2 | None,
    clock: Clock,
) -> None:
    recipe, run = prepared.recipe, prepared.run
    configure(recipe)
    accounting.forget_peak_memory(recipe.device)
    model = prepared.model()
    plan = prepared.plan_of(model)
    rows = audit(model, plan, recipe.lr, recipe.weight_decay)  # raises before anything is trained
    folder = work / "unfinished"
    shutil.rmtree(folder, ignore_errors=True)
    runs.write_json(folder / runs.RUN, record)
    runs.write_csv(folder / runs.AUDIT, rows)
    if not (work / checkpoint.FILE).is_file():
        for line in abandoned.lines(work):
            print(line, flush=True)
    model = _ready(model, plan, prepared, module)
    feed = Feed(recipe)
    train_batches, val_batches = feed.batches(prepared.train_split()), feed.batches(prepared.store.split("val"))
    images = len(train_batches.split)
    fixed = accounting.worked_out(prepared.model, plan.phases, recipe, images)
    provenance = records.provenance(recipe)
    with machine_limits.said(run.name, recipe), progress(run.name, recipe.epochs, images) as shown:
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
            runs.write_json(folder / runs.METRICS, records.metrics(result))
            kept = {name: tensor.contiguous() for name, tensor in result.kept_state.items()}
            runs.write_bytes(folder / runs.MODEL, save(kept, {"run_key": prepared.key}))
        runs.write_json(folder / runs.COST, accounting.cost(model, rows, result, recipe, images, fixed))
        runs.write_json(folder / runs.PROVENANCE, provenance | {"finished": records.now()})
        runs.flush(folder)
        folder.rename(work / kept_runs.FINISHED)


def _ready(model: MobileNetV2, plan: Plan, prepared: Prepared, module: MobileNetV2 | None) -> MobileNetV2:
    """`model` with the weights that training starts from, on its device; `module`, where that is to be it."""
    if plan.initialisation == "pretrained":
        models.load_backbone(model, prepared.backbone_path)
    if plan.begin is not None:
        plan.begin(model)
    if module is None:
        move_to_device(model, prepared.recipe)
        return model
    module.load_state_dict(model.state_dict())
    return module


def evaluate(layout: Layout, run: Run, device: str | None = None) -> Path:
    """Predict the test split with a run's kept weights: the only reader of test. Writes the evaluation folder.

    Args:
        device: cpu, cuda or auto; None for the one that the run was trained on.

    Returns:
        The evaluation folder.

    Raises:
        InputError: the run or its store is missing, damaged or of another version, or it was trained on another store.
    """
    record = runs.read_json(layout.run(run) / runs.RUN)
    recipe = _recipe_of(run, record, layout.run(run) / runs.RUN)
    here = {"device": resolve_device(device or recipe.device), "cpu_kernels": "torch"}  # ours are for training
    recipe = recipe.model_copy(update=here)
    configure(recipe)
    store = open_store(layout.store(run.dataset))
    if store.digest != record["store_digest"]:
        raise InputError(
            f"{store.path}: is not the store that {run.name} was trained on; train it again with "
            f"`dvc repro train@{run.dataset}-{run.strategy}-{run.seed}`"
        )
    model = build_model(len(store.classes), run.seed, record["plan"], record["options"])
    weights = layout.run(run) / runs.MODEL
    try:
        models.load_weights(model, weights)
    except InputError as error:
        raise InputError(f"{error}, or {runs.make_again(weights)}") from None
    move_to_device(model, recipe)
    seen = predict(model, Feed(recipe).batches(store.split("test")), recipe.precision)
    place = layout.evaluation(run)
    runs.write_csv(place / runs.PREDICTIONS, _prediction_rows(seen))
    test = {"loss": seen.loss, "acc": seen.acc, "acc5": seen.acc5, "images": len(seen.labels)}
    runs.write_json(place / runs.METRICS, {"run_key": record["run_key"], "test": test})
    return place


def _recipe_of(run: Run, record: Mapping[str, Any], file: Path) -> TrainingParams:
    """A run's recipe, if this version knows it and the run's plan."""
    training, plan, options = record["training"], record["plan"], record["options"]
    if not (isinstance(plan, str) and isinstance(options, dict)):
        raise runs.damaged(file, f"found plan {plan!r} with options {options!r}")
    try:
        recipe = TrainingParams.model_validate(training)
        check_options(run.strategy, plan, options)
    except ValidationError as error:
        wrong = sentence("", ("training",), error, TrainingParams)
    except InputError as error:
        wrong = str(error)
    else:
        return recipe
    raise runs.damaged(file, wrong.removeprefix("params.yaml").removeprefix(": ").partition("; ")[0])


def _prediction_rows(seen: Predictions) -> list[dict[str, Any]]:
    columns = zip(seen.labels.tolist(), seen.predictions.tolist(), seen.confidence.tolist(), strict=True)
    return [
        {"index": i, "label": label, "prediction": prediction, "confidence": f"{confidence:.6f}"}
        for i, (label, prediction, confidence) in enumerate(columns)
    ]
