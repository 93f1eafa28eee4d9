"""SpotTune: for every image and block, a policy network chooses the block as it was pretrained, or as it is tuned.

Guo et al. 2019, arXiv 1811.08737. The layers of an inverted residual, F tuned and F* frozen, become

    r F(x) + (1 - r) F*(x),    r = 1 if l + g > l* + g*, else 0

where l and l* are the policy's logits for the image and the block, and g and g* Gumbel noise, which is drawn anew for
every image and block while training, and left out in evaluation, so that an image always takes the same way. Backward,
r is taken for what it rounds, the first of softmax((l + g, l* + g*) / tau). F* has its BatchNorm in evaluation mode.
The first and the last convolution are tuned, as the first is in the authors' code; they are no residual blocks.

Both copies of a block are computed for all images, so the operations of the blocks double, in evaluation and where the
network is served, too. So do their parameters, in memory and on disk, and what is kept for the backward pass, unless
frozen layers keep less.

Other than the authors', the policy network is small and starts at random: three convolutions with group normalisation,
25,906 parameters, in the place of a ResNet; frozen BatchNorm keeps its statistics, which in their code follow the data;
evaluation has no noise, which their code draws there, too.
"""

from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import MobileNetV2
from torchvision.models.mobilenetv2 import InvertedResidual

from finetune.errors import InputError
from finetune.strategies.plan import Group, Phase, Plan, feature_blocks, tensors_of

PAPER = "Guo et al. 2019, arXiv 1811.08737"

_FROZEN, _TUNED = 0, 1  # places in the policy's pairs of logits


class Routes:
    """Which way the images of the last batch took; no module, as both `features` and its blocks hold it."""

    def __init__(self, policy: nn.Module, tau: float) -> None:
        self.policy, self.tau = policy, tau
        self.tuned: Tensor | None = None  # images x blocks: 1 where the tuned copy is taken, 0 where the frozen

    def __deepcopy__(self, memo: dict[int, Any]) -> "Routes":
        return Routes(deepcopy(self.policy, memo), self.tau)

    def decide(self, images: Tensor, training: bool) -> None:
        """Always in float32, as a network is served: rounded otherwise, an image near the border would take another way
        where it is used than where it was trained and tested. (With `tf32` a GPU's products are TF32's all the same.)
        """
        # Where only shapes are worked out, there is no autocast.
        with nullcontext() if images.is_meta else torch.autocast(images.device.type, enabled=False):
            logits = self.policy(images.float()).view(len(images), -1, 2)
        self.tuned = sampled(logits, self.tau) if training else (logits[..., _TUNED] > logits[..., _FROZEN]).float()


def sampled(logits: Tensor, tau: float) -> Tensor:
    """0 or 1, drawn by the logits; backward, their softmax at temperature `tau` under the same noise.

    Args:
        logits: images x blocks x 2, of the frozen and of the tuned copy.

    Source:
        Jang et al. 2017, arXiv 1611.01144.
    """
    noise = -torch.empty_like(logits).exponential_().log()
    soft = ((logits + noise) / tau).softmax(-1)[..., _TUNED]
    return (soft > 0.5).to(soft.dtype) + (soft - soft.detach())  # added last: exactly 0 or 1


class _RoutedFeatures(nn.Sequential):
    routes: Routes

    def forward(self, input: Tensor) -> Tensor:
        self.routes.decide(input, self.training)
        return super().forward(input)


class _RoutedLayers(nn.Sequential):
    """A block's own layers, which are tuned, and `frozen` as the last child beside them."""

    routes: Routes
    number: int  # of the block among those that are routed

    def forward(self, input: Tensor) -> Tensor:
        *layers, frozen = self
        tuned = input
        for layer in layers:
            tuned = layer(tuned)
        assert self.routes.tuned is not None
        route = self.routes.tuned[:, self.number, None, None, None].to(tuned.dtype)
        return route * tuned + (1 - route) * frozen(input)


def adapt(model: MobileNetV2, *, tau: float = 5.0, policy_scale: float = 0.1) -> None:
    """Add `policy`, and to the layers of every inverted residual a copy, as `features.i.conv.frozen`.

    Raises:
        InputError: as `plan`.
    """
    _check(tau, policy_scale)
    blocks = [block for block in model.features if isinstance(block, InvertedResidual)]
    model.policy = _policy(2 * len(blocks))
    routes = Routes(model.policy, tau)
    for number, block in enumerate(blocks):
        block.conv.add_module("frozen", _like(block))
        block.conv.__class__ = _RoutedLayers
        block.conv.routes, block.conv.number = routes, number
    model.features.__class__ = _RoutedFeatures
    model.features.routes = routes


def plan(model: MobileNetV2, *, tau: float = 5.0, policy_scale: float = 0.1) -> Plan:
    """The network's own tensors at lr, the policy at its own rate, the copies frozen.

    Args:
        tau: temperature of the softmax that gradients go through.
        policy_scale: learning rate of the policy network, times lr.

    Raises:
        InputError: one of them is not above 0.
    """
    _check(tau, policy_scale)
    below = tensors_of(model, feature_blocks())
    frozen = tuple(name for name in below if ".conv.frozen." in name)
    groups = (
        Group("head", tensors_of(model, ["classifier"])),
        Group("tuned", tuple(name for name in below if ".conv.frozen." not in name)),
        Group("policy", tensors_of(model, ["policy"]), policy_scale),
        Group("frozen", frozen, frozen=True, batchnorm="eval"),
    )
    return Plan("pretrained", (Phase(groups),), begin)


def begin(model: MobileNetV2) -> None:
    """Have the frozen copies hold what the blocks hold."""
    for block in model.features:
        if isinstance(block, InvertedResidual):
            *layers, frozen = block.conv
            for layer, copy in zip(layers, frozen, strict=True):
                copy.load_state_dict(layer.state_dict())


def _like(block: InvertedResidual) -> nn.Sequential:
    """Layers as the block's, with weights of their own: tensors without values cannot be copied."""
    convolutions = [module for module in block.conv.modules() if isinstance(module, nn.Conv2d)]
    inputs, width = convolutions[0].in_channels, convolutions[-1].in_channels
    return InvertedResidual(inputs, block.out_channels, block.stride, width // inputs).conv


def _policy(logits: int) -> nn.Sequential:
    """N x 3 x H x W -> N x logits."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
        conv = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out")
        layers += [conv, nn.GroupNorm(outputs // 8, outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, logits))


def _check(tau: float, policy_scale: float) -> None:
    for name, value in (("tau", tau), ("policy_scale", policy_scale)):
        if not value > 0:
            raise InputError(f"spottune: {name}: found {value}, expected a number above 0")
