"""Learning rates that decay geometrically with depth: the head at lr, each block below at `decay` times the one above.

Howard and Ruder 2018, arXiv 1801.06146 ("discriminative fine-tuning", decay 1 / 2.6); Clark et al. 2020, arXiv
2003.10555, whose form (0.65 to 0.9 a layer) BEiT, MAE and timm took over.

    rate of block k below the head (k = 1 … 19) = lr * decay ** k
"""

from torchvision.models import MobileNetV2

from finetune.errors import InputError
from finetune.model import BLOCKS
from finetune.strategies.plan import Group, Phase, Plan, tensors_of

PAPER = "Clark et al. 2020, arXiv 2003.10555"


def plan(model: MobileNetV2, *, decay: float = 0.75) -> Plan:
    """One group per block, all with weight decay.

    Args:
        decay: a block's rate over that of the block above it.

    Raises:
        InputError: decay is not in (0, 1].
    """
    if not 0 < decay <= 1:
        raise InputError(f"layer_decay: decay: found {decay}, expected a number above 0, and 1 at most")
    groups = tuple(Group(block, tensors_of(model, [block]), decay**k) for k, block in enumerate(reversed(BLOCKS)))
    return Plan("pretrained", (Phase(groups),))
