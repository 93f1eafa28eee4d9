"""Full fine-tuning with one learning rate: every parameter starts from the pretrained weights and moves at lr.

How far that takes ImageNet's networks on other data: Kornblith et al. 2019, arXiv 1805.08974.

    w <- w - lr * step(gradient of the loss + weight_decay * w), for every w, from w_pretrained; the head's from random

where step is the recipe's optimizer (AdamW decays beside it).
"""

from torchvision.models import MobileNetV2

from finetune.model import BLOCKS
from finetune.strategies.plan import Group, Phase, Plan, tensors_of

PAPER = "Kornblith et al. 2019, arXiv 1805.08974"


def plan(model: MobileNetV2) -> Plan:
    """The seed report's "same lr": one group of all parameters, with weight decay."""
    return Plan("pretrained", (Phase((Group("all", tensors_of(model, BLOCKS)),)),))
