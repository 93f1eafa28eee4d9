"""BatchNorm's weights and biases, on running statistics, and the head; convolutions stay as they were pretrained.

Frankle, Schwab and Morcos 2021, arXiv 2003.00152 (there with random convolutions and batch statistics); "norm + last"
of Cai et al. 2020, arXiv 2007.11622.

    y = gamma * (x - running mean) / sqrt(running variance + eps) + beta, with gamma and beta trained
"""

from torchvision.models import MobileNetV2

from finetune.strategies.plan import Group, Phase, Plan, batchnorm_layers, feature_blocks, tensors_of

PAPER = "Frankle et al. 2021, arXiv 2003.00152"


def plan(model: MobileNetV2) -> Plan:
    """Head at lr; BatchNorm's weights and biases at lr, without weight decay."""
    norm = tuple(f"{layer}.{part}" for layer in batchnorm_layers(model) for part in ("weight", "bias"))
    rest = tuple(name for name in tensors_of(model, feature_blocks()) if name not in set(norm))
    groups = (
        Group("head", tensors_of(model, ["classifier"])),
        Group("norm", norm, decay=False, batchnorm="affine_only"),
        Group("frozen", rest, frozen=True, batchnorm="eval"),
    )
    return Plan(
        "pretrained",
        (Phase(groups),),
        not_under={"train": "would make this strategy norm_and_bias; take plan: norm_and_bias"},
    )
