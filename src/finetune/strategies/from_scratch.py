"""Training from scratch: random weights, one learning rate; what the pretrained weights are worth is the difference."""

from torchvision.models import MobileNetV2

from finetune.model import BLOCKS
from finetune.strategies.plan import Group, Phase, Plan, tensors_of


def plan(model: MobileNetV2) -> Plan:
    """The same recipe as `same_lr`, from torchvision's random initialisation."""
    return Plan("random", (Phase((Group("all", tensors_of(model, BLOCKS)),)),))
