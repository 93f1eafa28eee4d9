"""LP-FT: a linear probe first, then full fine-tuning from its head.

Kumar et al. 2022, arXiv 2202.10054: a head that is random when fine-tuning begins distorts the pretrained features; one
that was trained on them before does so less.

    epochs 1 … e p: rate of head = lr, below 0;    then: rate of everything = lr * tune_scale

with e epochs and p = probe_share. The probe is `last_layer`'s phase, the rest `same_lr`'s at `tune_scale`
times lr (the paper chooses the two rates apart, the second far lower). The
schedule goes on over both; the optimizer does not: the second phase begins with a fresh one, Adam with no moments and
its bias correction from step 1, for the head, too.
"""

from torchvision.models import MobileNetV2

from finetune.errors import InputError
from finetune.model import BLOCKS
from finetune.strategies.plan import Group, Phase, Plan, feature_blocks, tensors_of

PAPER = "Kumar et al. 2022, arXiv 2202.10054"


def plan(model: MobileNetV2, *, probe_share: float = 0.3, tune_scale: float = 1.0) -> Plan:
    """Two phases: the head on a frozen backbone, then everything.

    Args:
        probe_share: of the epochs, for the probe.
        tune_scale: learning rate of the second phase, times lr.

    Raises:
        InputError: probe_share is not in (0, 1), or tune_scale not above 0.
    """
    if not 0 < probe_share < 1:
        raise InputError(f"lp_ft: probe_share: found {probe_share}, expected a number between 0 and 1")
    if not tune_scale > 0:
        raise InputError(f"lp_ft: tune_scale: found {tune_scale}, expected a number above 0")
    probe = (
        Group("head", tensors_of(model, ["classifier"])),
        Group("backbone", tensors_of(model, feature_blocks()), frozen=True, batchnorm="eval"),
    )
    tune = (Group("all", tensors_of(model, BLOCKS), tune_scale),)
    return Plan("pretrained", (Phase(probe, probe_share), Phase(tune, 1 - probe_share)))
