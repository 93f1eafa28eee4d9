"""DELTA without its attention: feature maps are kept near those of the network that the run started from.

Li et al. 2019, arXiv 1901.09229. In the place of weight decay, the loss of a batch gains

    alpha / 2 * (over layers: (map - start_map)^2, summed over channels, averaged over positions and images)
    + beta / 2 * (||w_head||^2 + ||b_head||^2)

where start_map is what the network as it was at the start makes of the same images in evaluation mode.

Left out: the attention, by which a channel counts as much as the loss of labelled training images grows when the
channel is left out, under a head that was trained beforehand. A penalty here sees images and no labels, and would have
to find the same weights again where a run goes on from a checkpoint. So all channels count alike, which is what the
authors' code (lixingjian/DELTA, att_fea_map) does with weights of 1 / channels.

Changed: the maps are the outputs of whole blocks, the last of each size of map, where the authors take the last
convolution of each of ResNet's four stages, before its BatchNorm.

How alpha counts: the paper's formula has no normalisation, nor has the authors' code without attention (fea_map); with
it, positions are averaged over, as here, and images added up, which are averaged over here. So their alpha of 0.01 at
batches of 64 images is 0.64 in these units. That is for ResNet, SGD and 224 px: here 0.01 already outweighed the loss
of small images under Adam, and lost to 0.001, which is the default.

As in their code, the trained maps are made with batch statistics and the start's with running ones, so the distance is
above 0 from the first step on, and stays so; with `bn: affine_only` or `eval` it begins at 0.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torchvision.models import MobileNetV2

from finetune.errors import InputError
from finetune.model import BLOCKS
from finetune.strategies.plan import Group, Penalty, Phase, Plan, feature_blocks, tensors_of

PAPER = "Li et al. 2019, arXiv 1901.09229"
# The last blocks whose maps have 1/4, 1/8, 1/16 and 1/32 of the image's side.
LAYERS = ["features.3", "features.6", "features.13", "features.18"]


def plan(model: MobileNetV2, *, alpha: float = 1e-3, beta: float = 0.01, layers: list = LAYERS) -> Plan:
    """Every parameter at lr; the run's weight decay applies to none.

    Args:
        alpha: what the distance of the feature maps counts in the loss; a 640th of the authors' at batches of 64.
        beta: how hard the head's weight and bias are pulled to zero.
        layers: the blocks below the head whose outputs are compared.

    Raises:
        InputError: alpha or beta is below 0, or layers are not some blocks, each once.
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not value >= 0:
            raise InputError(f"delta: {name}: found {value}, expected 0 or a number above")
    blocks = feature_blocks()
    if not layers or any(layers.count(layer) > 1 or layer not in blocks for layer in layers):
        raise InputError(f"delta: layers: found {layers}, expected some of {blocks[0]} to {blocks[-1]}, each once")
    group = Group("all", tensors_of(model, BLOCKS), decay=False)
    penalty = partial(_distance, alpha=alpha, beta=beta, layers=tuple(layers))
    return Plan("pretrained", (Phase((group,), penalty=penalty),))


@contextmanager
def _distance(model: MobileNetV2, alpha: float, beta: float, layers: tuple[str, ...]) -> Iterator[Penalty]:
    deepest = max(feature_blocks().index(layer) for layer in layers)
    start = _copy(model.features[: deepest + 1]).eval()
    head = [model.get_parameter(name) for name in tensors_of(model, ["classifier"])]
    seen: dict[str, Tensor] = {}

    def keep(block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, *, layer: str) -> None:
        if block.training:
            seen[layer] = output

    def penalty(images: Tensor) -> Tensor:
        maps = {layer: seen.pop(layer) for layer in layers}
        low = next(iter(maps.values())).dtype != images.dtype  # under autocast, the start computes as the network did
        with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16, enabled=low):
            there = {layer: output for layer, output in _outputs(start, images) if layer in layers}
        distance = [maps[layer].shape[1] * mse_loss(maps[layer].float(), there[layer].float()) for layer in layers]
        return alpha / 2 * torch.stack(distance).sum() + beta / 2 * sum(w.square().sum() for w in head)

    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(model.get_submodule(layer).register_forward_hook(partial(keep, layer=layer)))
        yield penalty


def _copy(blocks: nn.Sequential) -> nn.Sequential:
    """The blocks with weights of their own, which want no gradients; also where tensors have no values."""
    own: dict[int, Tensor] = {id(p): nn.Parameter(p.detach().clone(), False) for p in blocks.parameters()}
    own |= {id(buffer): buffer.clone() for buffer in blocks.buffers()}
    return deepcopy(blocks, own)


def _outputs(blocks: nn.Sequential, images: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What each of `features`' blocks makes of what the one before made."""
    for name, block in blocks.named_children():
        images = block(images)
        yield f"features.{name}", images
