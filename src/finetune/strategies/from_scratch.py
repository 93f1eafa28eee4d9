"""Training from scratch: random weights, one learning rate; what the pretrained weights are worth is the difference.

    w <- w - lr * step(gradient of the loss + weight_decay * w), for every w, from random

The original report trained it by Adam under exponential decay, and later found SGD with a cosine better; both are the
recipe's to say, as is a long budget, which it needs: some 17 times the steps of fine-tuning (Kornblith et al. 2019,
arXiv 1805.08974).
"""

from torchvision.models import MobileNetV2

from finetune.model import BLOCKS
from finetune.strategies.plan import Group, Phase, Plan, tensors_of

PAPER = "Kornblith et al. 2019, arXiv 1805.08974"


def plan(model: MobileNetV2) -> Plan:
    """The same recipe as `same_lr`, from torchvision's random initialisation."""
    return Plan("random", (Phase((Group("all", tensors_of(model, BLOCKS)),)),))
