"""Biases alone, and the head (BitFit): every other weight stays as it was pretrained.

Ben Zaken, Ravfogel and Goldberg 2022, arXiv 2106.10199, for Transformers; Cai et al. 2020, arXiv 2007.11622, for
mobile networks. MobileNetV2's convolutions have no bias, so its biases are BatchNorm's (beta) and the head's.

    y = gamma * (x - running mean) / sqrt(running variance + eps) + beta, with beta alone trained

The layers use their running statistics: with a batch's own, a bias would move the statistics of the layers above, and
its gradient would need activations that a bias by itself does not.
"""

from torchvision.models import MobileNetV2

from finetune.strategies.plan import Group, Phase, Plan, batchnorm_layers, feature_blocks, tensors_of

PAPER = "Ben Zaken et al. 2022, arXiv 2106.10199"


def plan(model: MobileNetV2) -> Plan:
    """Head at lr; BatchNorm's biases at lr, without weight decay, which would pull them to zero, not to their start."""
    biases = tuple(f"{layer}.bias" for layer in batchnorm_layers(model))
    rest = tuple(name for name in tensors_of(model, feature_blocks()) if name not in set(biases))
    groups = (
        Group("head", tensors_of(model, ["classifier"])),
        Group("bias", biases, decay=False, batchnorm="affine_only"),
        # BatchNorm's weights stand under the policy of its biases, and are frozen.
        Group("frozen", rest, frozen=True, batchnorm="affine_only"),
    )
    return Plan("pretrained", (Phase(groups),))
