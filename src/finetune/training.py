"""`fit`: the only training loop. It knows no strategy's name and no tracker; it calls back with events."""

import copy
import math
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models import MobileNetV2

from finetune import checkpoint
from finetune.batches import Batches
from finetune.checkpoint import Pace, Saver
from finetune.clock import Clock
from finetune.device import autocast
from finetune.errors import InputError
from finetune.evaluation import predict
from finetune.feature_cache import Cached, Trained, solved, trained
from finetune.interruption import Interrupted, held
from finetune.optimizers import make_optimizer, set_rates, set_scales
from finetune.recipe import TrainingParams
from finetune.state import Part, Progress, Row, State
from finetune.step import Step, set_modes
from finetune.strategies.plan import Phase, Plan

__all__ = ["Listener", "Progress", "Row", "epochs_of", "fit", "group_names", "train_epoch"]


@dataclass(frozen=True)
class Listener:
    """What `fit`, and the stage around it, tell as they go. Listeners change nothing."""

    started: Callable[[dict[str, Any]], None] = lambda record: None  # run.json; nobody else trains this run now
    resumed: Callable[[list[Row], int], None] = lambda rows, steps: None  # epochs already done, steps of the next
    step: Callable[[int, int, int], None] = lambda epoch, step, steps: None  # counted from 1
    epoch: Callable[[Row], None] = lambda row: None
    interrupted: Callable[[Interrupted, int, int], None] = lambda why, epochs, steps: None  # how far it is saved


def fit(
    model: MobileNetV2,
    plan: Plan,
    recipe: TrainingParams,
    train: Batches,
    val: Batches | None,
    seed: int,
    *,
    name: str,
    work: Path,
    fingerprint: str,
    listeners: tuple[Listener, ...] = (),
    pace: Pace | None = None,
    clock: Clock | None = None,
) -> Progress:
    """Train `model` by `plan`, from the checkpoint in `work` if there is one.

    Everything random depends on (seed, epoch, image or step) alone, so a resumed run gives what an uninterrupted one
    would have given.

    Args:
        model: on its device, in the recipe's memory format.
        val: None where there is no validation split; the recipe then selects the last epoch.
        name: of the run, in messages.
        work: the folder of its checkpoint.
        fingerprint: of all that the numbers depend on; a checkpoint of another one is not gone on with.
        pace: how often to save.
        clock: counts the seconds of each phase, also those before.

    Returns:
        All epochs' rows and the kept weights: of the best epoch by validation accuracy (ties: lower loss, then
        earlier), or of the last.

    Raises:
        InputError: the loss is not finite; names run, epoch and step.
        Interrupted: the process is to end; what was trained is saved.
    """
    with ExitStack() as entered:
        # Before a checkpoint is loaded: a penalty may pull towards where the training started from.
        penalties = [entered.enter_context(phase.penalty(model)) if phase.penalty else None for phase in plan.phases]
        state = State(model, train.device, checkpoint.load(work, fingerprint, train.device.type), recipe.ema)
        progress = state.progress
        for listener in listeners if state.resumed else ():
            listener.resumed(copy.deepcopy(progress.rows), state.at[1])
        clock = (clock or Clock()).go_on(progress.phase_seconds)
        saver = Saver(work, fingerprint, state, pace or Pace(), partial(clock.phase, "saving"), train.device.type)
        stepwise = (*listeners, Listener(step=lambda *_: saver.when_due()))
        try:
            for (phase, first, end), penalty in zip(epochs_of(plan, recipe.epochs), penalties, strict=True):
                if progress.epoch >= end:
                    continue
                with clock.phase("data"):
                    scene = trained(model, phase, recipe, train, val)
                optimizer = state.begin_phase(make_optimizer(model, phase, recipe), first)
                for epoch in range(progress.epoch, end):
                    with clock.phase("compute"):
                        step = Step(model, phase, optimizer, recipe, scene.network, penalty, state.averaged)
                        row: Row = {"epoch": epoch + 1}
                        row |= train_epoch(step, scene.train, seed, epoch, name, stepwise, clock, state.part)
                    with clock.phase("evaluation"):
                        row |= _validated(state, scene, recipe, name)
                    row |= dict.fromkeys((f"lr/{group}" for group in group_names(plan)), 0.0)
                    row |= {f"lr/{group['name']}": group["lr"] for group in optimizer.param_groups}
                    with held():
                        state.end_epoch(row, recipe.selection)
                    if epoch + 1 < recipe.epochs:
                        saver.when_due()
                    for listener in listeners:
                        listener.epoch(row)
        except Interrupted as why:
            try:
                if not why.torn:
                    saver.at_last()
            finally:
                for listener in listeners:
                    listener.interrupted(why, *saver.at)
            raise
    return progress


def train_epoch(
    step: Step,
    train: Batches | Cached,
    seed: int,
    epoch: int,
    name: str,
    listeners: tuple[Listener, ...] = (),
    clock: Clock | None = None,
    part: Part | None = None,
) -> Row:
    """One pass over the training split; the mean loss (nats) and accuracy (in [0, 1]) of the batches as trained on.

    Args:
        epoch: from 0.
        name: of the run, in messages.
        part: the epoch's steps so far, after which it goes on; its own are added.

    Raises:
        InputError: the loss is not finite.
    """
    model, phase, recipe = step.model, step.phase, step.recipe
    if phase.solve is not None:
        set_rates(step.optimizer, 0.0)
        return solved(model, phase.solve, recipe, train)
    part, steps = part or Part(), math.ceil(train.training_steps() / recipe.accumulation)
    done = len(part.losses)
    if done:
        part.restore_generators(train.device)
    else:
        if phase.scales is not None:
            first_batches = train.training(recipe.augmentation, seed, epoch)
            at_precision = partial(autocast, train.device, recipe.precision)
            set_scales(step.optimizer, phase.scales(model.eval(), first_batches, at_precision))
        torch.manual_seed(_epoch_seed(seed, epoch))  # dropout
    set_modes(model, phase)
    batches = (clock or Clock()).waits(
        "data", train.training(recipe.augmentation, seed, epoch, first=done * recipe.accumulation)
    )
    for number in range(done, steps):
        several = tuple(islice(batches, recipe.accumulation))
        with held():
            loss, right, images = step(several, seed, epoch, number, steps)
            part.losses.append(loss)
            part.correct.append(right)
            part.images += images
        # On a GPU reading the loss waits for the device, so look only now and then.
        if train.device.type == "cpu" or number % 50 == 49 or number == steps - 1:
            _check_finite(part.losses, name, epoch)
        for listener in listeners:
            listener.step(epoch + 1, number + 1, steps)
    return {"train/loss": _total(part.losses) / part.images, "train/acc": _total(part.correct) / part.images}


def _validated(state: State, scene: Trained, recipe: TrainingParams, name: str) -> Row:
    """Loss and accuracy of the validation split, by the averaged weights where there are any."""
    if scene.val is None:
        return {"val/loss": None, "val/acc": None}
    with state.averaged.in_place() if state.averaged else nullcontext():
        seen = predict(scene.network, scene.val, recipe.precision)
    if not math.isfinite(seen.loss):
        raise InputError(
            f"{name}: the validation loss is not finite at epoch {state.progress.epoch + 1}; lower training.lr"
        )
    return {"val/loss": seen.loss, "val/acc": seen.acc}


def epochs_of(plan: Plan, epochs: int) -> list[tuple[Phase, int, int]]:
    """Each phase with its first epoch and the one after its last, from 0; shares are rounded to whole epochs."""
    bounds, done = [0], 0.0
    for phase in plan.phases:
        done += phase.share
        bounds.append(round(done * epochs))
    return [(phase, bounds[i], bounds[i + 1]) for i, phase in enumerate(plan.phases)]


def group_names(plan: Plan) -> list[str]:
    """The names of all groups of all phases, each once, in order."""
    return list(dict.fromkeys(group.name for phase in plan.phases for group in phase.groups))


def _epoch_seed(seed: int, epoch: int) -> int:
    return (seed * 1_000_003 + epoch) % 2**63


def _check_finite(losses: list[Tensor], name: str, epoch: int) -> None:
    if not math.isfinite(float(losses[-1])):
        first = next(i for i, loss in enumerate(losses) if not math.isfinite(float(loss)))
        raise InputError(
            f"{name}: the loss is not finite at epoch {epoch + 1}, step {first + 1}; "
            "lower training.lr or look at the data"
        )


def _total(values: list[Tensor]) -> float:
    return float(torch.stack(values).double().sum())
