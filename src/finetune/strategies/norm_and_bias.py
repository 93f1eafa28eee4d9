"""BatchNorm as a whole (weights, biases and statistics) and the head: all norms and all biases of the network.

MobileNetV2's convolutions have no biases: all there are, are BatchNorm's and the head's, which `norm_only` trains, too.
So the parameters are the same in both. What differs: here the layers normalise by each batch's statistics and their
running ones follow the new data (Li et al. 2017, arXiv 1603.04779), there the pretrained statistics stay. Statistics of
a batch bind its images together, so the backward pass keeps every activation, as full fine-tuning does.
"""

from torchvision.models import MobileNetV2

from finetune.strategies.norm_only import norms
from finetune.strategies.plan import Plan

PAPER = "Li et al. 2017, arXiv 1603.04779"


def plan(model: MobileNetV2) -> Plan:
    """Head at lr; BatchNorm's weights and biases at lr, without weight decay, under batch statistics."""
    return norms(model, "train")
