"""A phase's groups -> a torch optimizer, whose groups carry scales that the schedule's rate is multiplied by."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from finetune.recipe import TrainingParams
from finetune.strategies.plan import Phase, trainable


def make_optimizer(model: nn.Module, phase: Phase, recipe: TrainingParams) -> torch.optim.Optimizer:
    """The recipe's optimizer over what moves in `phase`, one parameter group per group of the phase that has any; the
    rest of the model is told to want no gradients.

    Adam (Kingma and Ba 2015, arXiv 1412.6980), AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), or SGD with
    momentum, Nesterov's where the recipe says so (Sutskever et al. 2013), as torch.optim has them. `fused`: one kernel
    makes a tensor's whole update, which on a CPU PyTorch does only if told to.
    """
    parameters = dict(model.named_parameters())
    moving = trainable(model, phase.groups)
    groups: list[dict[str, Any]] = []
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    for group in phase.groups:
        members = [parameters[name].requires_grad_(True) for name in moving[group.name]]
        if members:
            own = {"name": group.name, "lr_scale": group.lr_scale, "weight_decay": recipe.weight_decay * group.decay}
            groups.append({"params": members, **own})
    chosen = recipe.optimizer
    common: dict[str, Any] = {"lr": recipe.lr, "fused": True}
    match chosen.name:
        case "adam":
            return torch.optim.Adam(groups, betas=chosen.betas, **common)
        case "adamw":
            return torch.optim.AdamW(groups, betas=chosen.betas, **common)
        case "sgd":
            return torch.optim.SGD(groups, momentum=chosen.momentum, nesterov=chosen.nesterov, **common)


def set_rates(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group its learning rate of this step: `lr` times the group's scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def set_scales(optimizer: torch.optim.Optimizer, scales: Mapping[str, float]) -> None:
    """Give the parameter groups that `scales` names these scales, which a checkpoint keeps."""
    for group in optimizer.param_groups:
        group["lr_scale"] = scales.get(group["name"], group["lr_scale"])
