"""The last blocks and the head: everything beneath is frozen, its BatchNorm layers use their running statistics.

How far features transfer by depth: Yosinski et al. 2014, arXiv 1411.1792.

    rate of block k below the head (k = 1 … 19) = lr if k <= blocks, else 0

With three blocks it is the "last 3" of the original report's later revisions. The BatchNorm layers of the blocks that
are trained use and update batch statistics.
"""

from torchvision.models import MobileNetV2

from finetune.errors import InputError
from finetune.strategies.plan import Group, Phase, Plan, feature_blocks, tensors_of

PAPER = "Yosinski et al. 2014, arXiv 1411.1792"


def plan(model: MobileNetV2, *, blocks: int = 3) -> Plan:
    """Head and the last `blocks` of the 19 blocks below it at lr, with weight decay.

    Raises:
        InputError: blocks is not in 1 … 18.
    """
    below = feature_blocks()
    if not 1 <= blocks < len(below):
        raise InputError(
            f"last_blocks: blocks: found {blocks}, expected 1 to {len(below) - 1}; for the head alone take last_layer, "
            "for all same_lr"
        )
    split = len(below) - blocks
    groups = (
        Group("head", tensors_of(model, ["classifier"])),
        Group("last", tensors_of(model, below[split:])),
        Group("frozen", tensors_of(model, below[:split]), frozen=True, batchnorm="eval"),
    )
    return Plan("pretrained", (Phase(groups),))
