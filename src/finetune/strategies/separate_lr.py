"""Separate learning rates by depth: the head at lr, the blocks below it slower, the deep ones (near the image) slowest.

"Discriminative fine-tuning" of Howard and Ruder 2018, arXiv 1801.06146, who give each layer a rate of its own.

    rate of a block = lr * scale of its tier: head 1 > last > deep

As meant by the seed report: head 1, the last five blocks 0.6, deeper 0.4, the same weight decay everywhere.
What its code did (`separate_lr_as_published`) is a variant: it compared ids of modules with ids of parameters, so
the 0.6 group stayed empty and the whole backbone ran at 0.4; and it dropped weight decay.

`tiers` has any others: pairs of how many blocks and at what scale, from below the head downwards. Blocks that the tiers
leave over, or whose scale is 0, are frozen, with BatchNorm on running statistics.
"""

from collections.abc import Callable
from functools import wraps
from math import inf
from typing import Any

from torchvision.models import MobileNetV2

from finetune.errors import InputError
from finetune.strategies.plan import Group, Phase, Plan, feature_blocks, tensors_of

PAPER = "Howard and Ruder 2018, arXiv 1801.06146"


def _tiers_alone(worked_out: Callable[..., Plan]) -> Callable[..., Plan]:
    """Refuses `tiers` beside the options that they stand for, also where those are given as they are by default."""

    @wraps(worked_out)
    def checked(model: MobileNetV2, **options: Any) -> Plan:
        others = [name for name in ("last_blocks", "last_scale", "deep_scale") if name in options]
        if "tiers" in options and others:
            raise InputError(
                f"separate_lr: tiers: found {others[0]} beside it, expected one of them, as both say which blocks are "
                "at which rate; leave one out"
            )
        return worked_out(model, **options)

    return checked


@_tiers_alone
def plan(
    model: MobileNetV2,
    *,
    last_blocks: int = 5,
    last_scale: float = 0.6,
    deep_scale: float = 0.4,
    decay: bool = True,
    tiers: list = [],  # noqa: B006
) -> Plan:
    """Three tiers: head, last, deep; or the head and `tiers`.

    Args:
        last_blocks: how many of the 19 blocks below the head are in tier `last`; 0 leaves the tier out.
        last_scale: learning rate of tier `last`, times lr.
        deep_scale: learning rate of the blocks beneath, times lr.
        decay: whether weight decay applies (to every tier alike).
        tiers: such as [[5, 0.6], [14, 0.4]], instead of the three options above.

    Raises:
        InputError: last_blocks is not in 0 … 18, a scale is not above 0, tiers are not such pairs of 19 blocks at
            most, or stand beside one of the three.
    """
    if tiers:
        return _tiered(model, tiers, decay)
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


def _tiered(model: MobileNetV2, tiers: list, decay: bool) -> Plan:
    blocks = list(reversed(feature_blocks()))  # from below the head downwards
    groups, frozen, done = [Group("head", tensors_of(model, ["classifier"]), decay=decay)], [], 0
    for number, tier in enumerate(tiers, 1):
        match tier:
            case [int(count), int(scale) | float(scale)] if count >= 1 and 0 <= scale < inf and count is not True:
                chosen = blocks[done : done + count]
                done += count
                if scale == 0:
                    frozen += chosen
                else:
                    groups.append(Group(f"tier_{number}", tensors_of(model, chosen), scale, decay))
            case _:
                raise InputError(f"separate_lr: tiers: found {tier!r}, expected [number of blocks, scale]")
    if done > len(blocks):
        raise InputError(f"separate_lr: tiers: found {done} blocks in all, expected {len(blocks)} at most")
    if rest := frozen + blocks[done:]:
        groups.append(Group("frozen", tensors_of(model, rest), frozen=True, batchnorm="eval"))
    return Plan("pretrained", (Phase(tuple(groups)),))
