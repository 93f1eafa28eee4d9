"""Convolutions in other forms on a GPU, with the weights and names as they were.

A pointwise convolution of a channels_last tensor is a matrix product of its rows. One by one, all of MobileNetV2's took
4.2 ms by cuBLAS and 5.1 by cuDNN, forward and backward, in bf16 at batch 256 and 224 px on an H200. The first
convolution has three channels, too few for the tensor cores; it is given five of zeros beside them. What either gains
in a whole step is not clear (docs/performance.md).
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from torchvision.models import MobileNetV2

_CHANNELS = 8  # values of 16 bits that a GPU reads at once


def use_fast_forms(model: MobileNetV2, channels_last: bool) -> None:
    """Have the pointwise convolutions of `model` computed as products where it is `channels_last`, and its first one
    with padded channels."""
    for module in model.modules():
        if type(module) is nn.Conv2d and channels_last and _pointwise(module):
            # channels_last gives sides of 1 strides of their own, which no gradient of a product has
            module.weight.data = module.weight.data.flatten(1)[:, :, None, None]
            module.__class__ = PointwiseConv2d
        elif type(module) is nn.Conv2d and module.in_channels < _CHANNELS and module.groups == 1:
            module.__class__ = PaddedConv2d


def _pointwise(layer: nn.Conv2d) -> bool:
    return (layer.kernel_size, layer.stride, layer.groups) == ((1, 1), (1, 1), 1) and not any(layer.padding)


class PointwiseConv2d(nn.Conv2d):
    """A pointwise convolution that is a matrix product on a GPU."""

    def forward(self, input: Tensor) -> Tensor:
        return self.product(input) if input.is_cuda else super().forward(input)

    def product(self, input: Tensor) -> Tensor:
        return linear(input.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class PaddedConv2d(nn.Conv2d):
    """A convolution of few channels that on a GPU, in half precision, has channels of zeros beside them."""

    def forward(self, input: Tensor) -> Tensor:
        half = input.is_cuda and torch.is_autocast_enabled("cuda")
        return self.padded(input) if half else super().forward(input)

    def padded(self, input: Tensor) -> Tensor:
        missing = (0, 0, 0, 0, 0, _CHANNELS - self.in_channels)
        return self._conv_forward(pad(input, missing), pad(self.weight, missing), self.bias)
