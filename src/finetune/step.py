"""One step of a training: forward and backward passes, then the optimizer's update."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models import MobileNetV2

from finetune.averaging import Averaged
from finetune.device import autocast
from finetune.mixing import correct, loss_of, mixed
from finetune.optimizers import set_rates
from finetune.recipe import TrainingParams
from finetune.schedule import multiplier
from finetune.strategies.plan import Penalty, Phase, batchnorm_layers


@dataclass(frozen=True)
class Step:
    """One step of a phase: forward and backward over its batches, then the optimizer's."""

    model: MobileNetV2
    phase: Phase
    optimizer: torch.optim.Optimizer
    recipe: TrainingParams
    network: nn.Module | None = None  # what takes the batches, where that is not the whole model
    penalty: Penalty | None = None
    averaged: Averaged | None = None

    def __call__(
        self, batches: Sequence[tuple[Tensor, Tensor]], seed: int, epoch: int, step: int, steps: int
    ) -> tuple[Tensor, Tensor, int]:
        """Take step `step` of `steps` in the epoch, both from 0.

        Returns:
            On the device, without dimensions: the sum of the images' losses (nats; a penalty counts once per image) and
            how many are told right, a mixed image by its labels' shares; and how many images there are.
        """
        recipe, network, losses, right = self.recipe, self.network or self.model, [], []
        images_in_all = sum(len(labels) for _, labels in batches)
        set_rates(self.optimizer, recipe.lr * multiplier(recipe.schedule, epoch, step, steps, recipe.epochs))
        self.optimizer.zero_grad(set_to_none=True)
        for number, (images, labels) in enumerate(batches, step * recipe.accumulation):
            seen, targets = mixed(images, labels, recipe, seed, epoch, number)
            with autocast(labels.device, recipe.precision):
                # A compiled network is compiled for whole batches.
                logits = network(seen) if len(labels) == recipe.batch_size else network.forward(seen)
                loss = loss_of(logits, targets, recipe.label_smoothing)
            if self.penalty is not None:
                loss = loss + self.penalty(seen)
            (loss if len(batches) == 1 else loss * (len(labels) / images_in_all)).backward()
            losses.append(loss.detach() * len(labels))
            right.append(correct(logits, targets))
        self.optimizer.step()
        if self.averaged is not None:
            self.averaged.update(epoch * steps + step + 1)
        return sum(losses[1:], losses[0]), sum(right[1:], right[0]), images_in_all


def set_modes(model: MobileNetV2, phase: Phase) -> None:
    """Training mode, but for the BatchNorm layers whose policy is to use their running statistics."""
    model.train()
    policy = {name: group.batchnorm for group in phase.groups for name in group.tensors}
    for name, layer in batchnorm_layers(model).items():
        layer.train(policy[f"{name}.weight"] == "train")
