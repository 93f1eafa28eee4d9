"""`fit`: the only training loop. It knows no strategy's name and no tracker; it calls back with events."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchvision.models import MobileNetV2

from finetune import checkpoint
from finetune.batches import Batches
from finetune.checkpoint import Pace, Saver
from finetune.clock import Clock
from finetune.device import autocast
from finetune.errors import InputError
from finetune.evaluation import predict
from finetune.interruption import Interrupted, held
from finetune.params import TrainingParams
from finetune.schedule import multiplier
from finetune.state import Part, Progress, Row, State
from finetune.strategies.plan import Group, Phase, Plan, batchnorm_layers, trainable


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

    Returns:
        All epochs' rows and the kept weights: of the best epoch by validation accuracy (ties: lower loss, then
        earlier), or of the last.

    Raises:
        InputError: the loss is not finite; names run, epoch and step.
        Interrupted: the process is to end; what was trained is saved.
    """
    saved = checkpoint.load(work, fingerprint)
    state = State(model, train.device, saved)
    progress = state.progress
    for listener in listeners if saved else ():
        listener.resumed(copy.deepcopy(progress.rows), state.at[1])
    clock = (clock or Clock()).go_on(progress.phase_seconds)
    saver = Saver(work, fingerprint, state, pace or Pace(), partial(clock.phase, "saving"))
    stepwise = (*listeners, Listener(step=lambda *_: saver.when_due()))
    try:
        for phase, first, end in epochs_of(plan, recipe.epochs):
            if progress.epoch >= end:
                continue
            optimizer = state.begin_phase(make_optimizer(model, phase, recipe), first)
            for epoch in range(progress.epoch, end):
                with clock.phase("compute"):
                    row = {"epoch": epoch + 1} | train_epoch(
                        model, phase, optimizer, recipe, train, seed, epoch, name, stepwise, clock, state.part
                    )
                with clock.phase("evaluation"):
                    seen = predict(model, val, recipe.precision) if val is not None else None
                row |= {"val/loss": seen.loss if seen else None, "val/acc": seen.acc if seen else None}
                if seen is not None and not math.isfinite(seen.loss):
                    raise InputError(
                        f"{name}: the validation loss is not finite at epoch {epoch + 1}; lower training.lr"
                    )
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
    model: MobileNetV2,
    phase: Phase,
    optimizer: torch.optim.Optimizer,
    recipe: TrainingParams,
    train: Batches,
    seed: int,
    epoch: int,
    name: str,
    listeners: tuple[Listener, ...],
    clock: Clock | None = None,
    part: Part | None = None,
) -> Row:
    """One pass over the training split; the loss and accuracy of the batches as they were trained on.

    Goes on after the steps of `part`, and adds its own to it.
    """
    part, steps = part or Part(), train.training_steps()
    done = len(part.losses)
    if done:
        part.restore_generators(train.device)
    else:
        torch.manual_seed(_epoch_seed(seed, epoch))  # dropout
    set_modes(model, phase)
    batches = train.training(recipe.augmentation, seed, epoch) if done < steps else iter(())
    for step, (images, labels) in enumerate(islice((clock or Clock()).waits("data", batches), done, None), done):
        with held():
            set_rates(optimizer, recipe.lr * multiplier(recipe.schedule, epoch, step, steps, recipe.epochs))
            with autocast(train.device, recipe.precision):
                logits = model(images) if len(labels) == train.batch_size else model.forward(images)
                loss = cross_entropy(logits, labels)
            if phase.penalty is not None:
                loss = loss + phase.penalty(model)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            part.losses.append(loss.detach() * len(labels))
            part.correct.append((logits.detach().argmax(1) == labels).sum())
            part.images += len(labels)
        # On a GPU reading the loss waits for the device, so look only now and then.
        if train.device.type == "cpu" or step % 50 == 49 or step == steps - 1:
            _check_finite(part.losses, name, epoch)
        for listener in listeners:
            listener.step(epoch + 1, step + 1, steps)
    return {"train/loss": _total(part.losses) / part.images, "train/acc": _total(part.correct) / part.images}


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


def make_optimizer(model: MobileNetV2, phase: Phase, recipe: TrainingParams) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980) with one parameter group per group of the phase that moves."""
    parameters = dict(model.named_parameters())
    moving = trainable(model, phase.groups)
    groups: list[dict[str, Any]] = []
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    for group in phase.groups:
        members = [parameters[name].requires_grad_(True) for name in moving[group.name]]
        if members:
            groups.append({"params": members, "weight_decay": recipe.weight_decay * group.decay, **_labels(group)})
    return torch.optim.Adam(groups, lr=recipe.lr, fused=True if recipe.device == "cuda" else None)


def set_rates(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group its learning rate of this step: `lr` times the group's scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def set_modes(model: MobileNetV2, phase: Phase) -> None:
    """Training mode, but for the BatchNorm layers whose policy is to use their running statistics."""
    model.train()
    policy = {name: group.batchnorm for group in phase.groups for name in group.tensors}
    for name, layer in batchnorm_layers(model).items():
        layer.train(policy[f"{name}.weight"] == "train")


def _labels(group: Group) -> dict[str, Any]:
    return {"name": group.name, "lr_scale": group.lr_scale}


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
