"""Full fine-tuning with one learning rate: every parameter starts from the pretrained weights and moves at lr."""

from torchvision.models import MobileNetV2

from finetune.model import BLOCKS
from finetune.strategies.plan import Group, Phase, Plan, tensors_of

PAPER = ""


def plan(model: MobileNetV2) -> Plan:
    """The seed report's "same lr": Adam over all parameters, weight decay on all."""
    return Plan("pretrained", (Phase((Group("all", tensors_of(model, BLOCKS)),)),))
