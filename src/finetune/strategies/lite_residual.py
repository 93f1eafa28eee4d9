"""TinyTL's lite residual modules: a small trained branch beside every inverted residual of a frozen network.

Cai et al. 2020, arXiv 2007.11622. A block's layers F become

    F(x) + up(norm(project(relu(norm(conv(pool(x)))))))

where pool averages 2 x 2, conv is a convolution in groups with the block's stride and as many channels as x, project is
1 x 1, and up is bilinear to F(x)'s size. The last norm's weight starts at zero, so that step 0 is the frozen network
exactly. With `bias`, BatchNorm's biases of the frozen network are trained, too (the paper's "lite residual + bias"),
and the last norms' are not, as they would do the same.

A branch cannot be merged into the frozen layers: it sees other pixels, and has a ReLU and norms that depend on the
image. It stays in the network that is served.

Other than in the paper, the branches start at random (its authors pretrained theirs on ImageNet with the network), the
frozen network keeps its BatchNorm, in evaluation mode (theirs has group normalisation), weights are not quantised, the
kernel is as large on small maps as elsewhere, and an odd row or column is pooled, not dropped.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import interpolate, relu
from torchvision.models import MobileNetV2
from torchvision.models.mobilenetv2 import InvertedResidual

from finetune.errors import InputError
from finetune.lean_backward import average_pool
from finetune.strategies.plan import Group, Phase, Plan, batchnorm_layers, feature_blocks, tensors_of

PAPER = "Cai et al. 2020, arXiv 2007.11622"

_CHANNELS_PER_NORM_GROUP = 8  # as the paper's; every block's channels are a multiple


class Lite(nn.Module):
    """What is learnt to be added to a block: N x inputs x H x W -> N x outputs x h x w, zero at first."""

    def __init__(self, inputs: int, outputs: int, stride: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, inputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.GroupNorm(inputs // _CHANNELS_PER_NORM_GROUP, inputs)
        self.project = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.last_norm = nn.GroupNorm(outputs // _CHANNELS_PER_NORM_GROUP, outputs)
        for conv in (self.conv, self.project):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out")
        nn.init.zeros_(self.last_norm.weight)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        x = relu(self.norm(self.conv(average_pool(x))), inplace=True)
        return interpolate(self.last_norm(self.project(x)), size, mode="bilinear", align_corners=False)


class _WithLite(nn.Sequential):
    """A block's own layers, and `lite` as the last child beside them."""

    def forward(self, input: Tensor) -> Tensor:
        *layers, lite = self
        out = input
        for layer in layers:
            out = layer(out)
        return out + lite(input, out.shape[-2:]).to(out.dtype)  # autocast may have it in another


def adapt(model: MobileNetV2, *, bias: bool = False, kernel: int = 5, groups: int = 2) -> None:
    """Put a lite residual module beside the layers of every inverted residual, as `features.i.conv.lite`.

    Raises:
        InputError: as `plan`.
    """
    _check(kernel, groups)
    for block in model.features:
        if isinstance(block, InvertedResidual):
            inputs = next(m.in_channels for m in block.conv.modules() if isinstance(m, nn.Conv2d))
            block.conv.add_module("lite", Lite(inputs, block.out_channels, block.stride, kernel, groups))
            block.conv.__class__ = _WithLite


def plan(model: MobileNetV2, *, bias: bool = False, kernel: int = 5, groups: int = 2) -> Plan:
    """Head and lite residual modules at lr, biases without weight decay, everything else frozen.

    Args:
        bias: whether BatchNorm's biases of the frozen network are trained, too.
        kernel: side of the branches' first convolution; odd.
        groups: of that convolution; a divisor of 8.

    Raises:
        InputError: the kernel is even or below 1, or groups is not 1, 2, 4 or 8.
    """
    _check(kernel, groups)
    lite = tuple(name for name in tensors_of(model, feature_blocks()) if ".lite." in name)
    biases = tuple(f"{layer}.bias" for layer in batchnorm_layers(model)) if bias else ()
    if bias:
        lite = tuple(name for name in lite if not name.endswith("last_norm.bias"))
    moving = {*lite, *biases}
    frozen = tuple(name for name in tensors_of(model, feature_blocks()) if name not in moving)
    chosen = [Group("head", tensors_of(model, ["classifier"])), Group("lite", lite, batchnorm="eval")]
    if bias:
        chosen.append(Group("bias", biases, decay=False, batchnorm="affine_only"))
    # BatchNorm's weights are under the policy of its biases, and frozen.
    chosen.append(Group("frozen", frozen, frozen=True, batchnorm="affine_only" if bias else "eval"))
    return Plan("pretrained", (Phase(tuple(chosen)),))


def _check(kernel: int, groups: int) -> None:
    if kernel < 1 or kernel % 2 == 0:
        raise InputError(f"lite_residual: kernel: found {kernel}, expected an odd number, such as 3 or 5")
    if groups not in (1, 2, 4, 8):
        raise InputError(f"lite_residual: groups: found {groups}, expected 1, 2, 4 or 8")
