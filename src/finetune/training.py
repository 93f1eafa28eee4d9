"""`fit`: the only training loop. It knows no strategy's name and no tracker; it calls back with events."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchvision.models import MobileNetV2

from finetune import checkpoint
from finetune.batches import Batches
from finetune.device import autocast
from finetune.errors import InputError
from finetune.evaluation import predict
from finetune.params import TrainingParams
from finetune.schedule import multiplier
from finetune.strategies.plan import Group, Phase, Plan, batchnorm_layers, trainable

Row = dict[str, float | int | None]  # one epoch, keyed as the columns of curves.csv


@dataclass(frozen=True)
class Listener:
    """What `fit` tells as it goes. Listeners change nothing."""

    resumed: Callable[[list[Row]], None] = lambda rows: None  # the epochs already done
    step: Callable[[int, int, int], None] = lambda epoch, step, steps: None  # counted from 1
    epoch: Callable[[Row], None] = lambda row: None


@dataclass
class Progress:
    """Where a run stands after a whole number of epochs."""

    epoch: int = 0  # epochs done
    rows: list[Row] = field(default_factory=list)
    kept: int = 0  # the epoch whose weights are kept, from 1
    kept_state: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0  # of training and validation, over all attempts
    train_seconds: float = 0.0  # of the training steps alone


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
    seconds_between_saves: float = 10.0,
) -> Progress:
    """Train `model` by `plan`, from the checkpoint in `work` if there is one.

    Everything random depends on (seed, epoch, image or step) alone, so a resumed run gives what an uninterrupted one
    would have given.

    Returns:
        All epochs' rows and the kept weights: of the best epoch by validation accuracy (ties: lower loss, then
        earlier), or of the last.

    Raises:
        InputError: the loss is not finite; names run, epoch and step.
    """
    progress, saved_optimizer = _resume(model, work, fingerprint, listeners)
    last_save = time.monotonic()
    for phase, first, end in epochs_of(plan, recipe.epochs):
        if progress.epoch >= end:
            continue
        optimizer = make_optimizer(model, phase, recipe)
        if saved_optimizer is not None and progress.epoch > first:
            optimizer.load_state_dict(saved_optimizer)
        for epoch in range(progress.epoch, end):
            began = time.monotonic()
            row = {"epoch": epoch + 1} | train_epoch(
                model, phase, optimizer, recipe, train, seed, epoch, name, listeners
            )
            progress.train_seconds += time.monotonic() - began
            seen = predict(model, val, recipe.precision) if val is not None else None
            row |= {"val/loss": seen.loss if seen else None, "val/acc": seen.acc if seen else None}
            if seen is not None and not math.isfinite(seen.loss):
                raise InputError(f"{name}: the validation loss is not finite at epoch {epoch + 1}; lower training.lr")
            row |= dict.fromkeys((f"lr/{group}" for group in group_names(plan)), 0.0)
            row |= {f"lr/{group['name']}": group["lr"] for group in optimizer.param_groups}
            progress.rows.append(row)
            progress.epoch = epoch + 1
            if recipe.selection == "last" or progress.kept == 0 or _better(row, progress.rows[progress.kept - 1]):
                progress.kept = epoch + 1
                progress.kept_state = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
            progress.seconds += time.monotonic() - began
            if time.monotonic() - last_save >= seconds_between_saves and epoch + 1 < recipe.epochs:
                content = {"progress": vars(progress), "model": model.state_dict(), "optimizer": optimizer.state_dict()}
                checkpoint.save(work, fingerprint, content)
                last_save = time.monotonic()
            for listener in listeners:
                listener.epoch(row)
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
) -> Row:
    """One pass over the training split; the loss and accuracy of the batches as they were trained on."""
    torch.manual_seed(_epoch_seed(seed, epoch))  # dropout
    set_modes(model, phase)
    losses: list[Tensor] = []
    correct: list[Tensor] = []
    images_seen, steps = 0, train.training_steps()
    for step, (images, labels) in enumerate(train.training(recipe.augmentation, seed, epoch)):
        set_rates(optimizer, recipe.lr * multiplier(recipe.schedule, epoch, step, steps, recipe.epochs))
        with autocast(train.device, recipe.precision):
            logits = model(images) if len(labels) == train.batch_size else model.forward(images)
            loss = cross_entropy(logits, labels)
        if phase.penalty is not None:
            loss = loss + phase.penalty(model)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach() * len(labels))
        correct.append((logits.detach().argmax(1) == labels).sum())
        images_seen += len(labels)
        # On a GPU reading the loss waits for the device, so look only now and then.
        if train.device.type == "cpu" or step % 50 == 49 or step == steps - 1:
            _check_finite(losses, name, epoch)
        for listener in listeners:
            listener.step(epoch + 1, step + 1, steps)
    return {"train/loss": _total(losses) / images_seen, "train/acc": _total(correct) / images_seen}


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


def _resume(
    model: MobileNetV2, work: Path, fingerprint: str, listeners: tuple[Listener, ...]
) -> tuple[Progress, dict[str, Any] | None]:
    saved = checkpoint.load(work, fingerprint)
    if saved is None:
        return Progress(), None
    model.load_state_dict(saved["model"])
    progress = Progress(**saved["progress"])
    for listener in listeners:
        listener.resumed(copy.deepcopy(progress.rows))
    return progress, saved["optimizer"]


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


def _better(row: Row, best: Row) -> bool:
    return (row["val/acc"], -row["val/loss"]) > (best["val/acc"], -best["val/loss"])  # type: ignore[operator]
