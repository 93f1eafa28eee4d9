"""Separate learning rates by depth: the head at lr, the blocks below it slower, the deep ones (near the image) slowest.

As meant by the seed report: head 1, the last five blocks 0.6, deeper 0.4, the same weight decay everywhere.
What its code did (`separate_lr_as_published`) is a variant: it compared ids of modules with ids of parameters, so
the 0.6 group stayed empty and the whole backbone ran at 0.4; and it dropped weight decay.
"""

from torchvision.models import MobileNetV2

from finetune.errors import InputError
from finetune.strategies.plan import Group, Phase, Plan, feature_blocks, tensors_of


def plan(
    model: MobileNetV2,
    *,
    last_blocks: int = 5,
    last_scale: float = 0.6,
    deep_scale: float = 0.4,
    decay: bool = True,
) -> Plan:
    """Three tiers: head, last, deep.

    Args:
        last_blocks: how many of the 19 blocks below the head are in tier `last`; 0 leaves the tier out.
        last_scale: learning rate of tier `last`, times lr.
        deep_scale: learning rate of the blocks beneath, times lr.
        decay: whether weight decay applies (to every tier alike).

    Raises:
        InputError: last_blocks is not in 0 … 18, or a scale is not above 0.
    """
    blocks = feature_blocks()
    if not 0 <= last_blocks < len(blocks):
        raise InputError(f"separate_lr: last_blocks: found {last_blocks}, expected 0 to {len(blocks) - 1}")
    for name, scale in (("last_scale", last_scale), ("deep_scale", deep_scale)):
        if not scale > 0:
            raise InputError(f"separate_lr: {name}: found {scale}, expected a number above 0")
    split = len(blocks) - last_blocks
    tiers = [
        Group("head", tensors_of(model, ["classifier"]), decay=decay),
        Group("last", tensors_of(model, blocks[split:]), last_scale, decay),
        Group("deep", tensors_of(model, blocks[:split]), deep_scale, decay),
    ]
    if last_blocks == 0:
        del tiers[1]
    return Plan("pretrained", (Phase(tuple(tiers)),))
