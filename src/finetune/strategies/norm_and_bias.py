"""BatchNorm as a whole (weights, biases and statistics) and the head: all norms and all biases of the network.

MobileNetV2's convolutions have no biases: all there are, are BatchNorm's and the head's, which `norm_only` trains, too.
So the parameters are the same in both. What differs: here the layers normalise by each batch's statistics and their
running ones follow the new data (Li et al. 2017, arXiv 1603.04779), there the pretrained statistics stay.

    y = gamma * (x - batch mean) / sqrt(batch variance + eps) + beta, with gamma and beta trained

Statistics of a batch bind its images together, so each layer needs its input again in the backward pass, as gamma does;
what the frozen convolutions took in is not needed, and `lean_backward` lets go of it. Of 64 images of 96 px in float32
that leaves 323.8 MB, where full fine-tuning keeps 633.0 and `norm_only` 323.6; without it, 628.8 MB.
"""

from torchvision.models import MobileNetV2

from finetune.strategies.plan import Group, Phase, Plan, batchnorm_layers, feature_blocks, tensors_of

PAPER = "Li et al. 2017, arXiv 1603.04779"


def plan(model: MobileNetV2) -> Plan:
    """Head at lr; BatchNorm's weights and biases at lr, without weight decay, under batch statistics."""
    norm = tuple(f"{layer}.{part}" for layer in batchnorm_layers(model) for part in ("weight", "bias"))
    rest = tuple(name for name in tensors_of(model, feature_blocks()) if name not in set(norm))
    groups = (
        Group("head", tensors_of(model, ["classifier"])),
        Group("norm", norm, decay=False, batchnorm="train"),
        Group("frozen", rest, frozen=True, batchnorm="eval"),
    )
    return Plan(
        "pretrained",
        (Phase(groups),),
        not_under={
            "affine_only": "would leave nothing of this strategy but norm_only; take plan: norm_only",
            "eval": "would leave nothing of this strategy but last_layer; take plan: last_layer",
        },
    )
