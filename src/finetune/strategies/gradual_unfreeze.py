"""Gradual unfreezing: the head first, then more and more blocks from the top, until everything is trained.

Howard and Ruder 2018, arXiv 1801.06146, who unfreeze one layer an epoch; here `stages` phases, as equal as whole
epochs allow, the last of which trains everything.

    blocks trained in phase s of S (s = 0 … S - 1) = the head and the last round(19 s / (S - 1)) below it, at lr

What is still frozen uses its running statistics. Each phase begins with a fresh optimizer; the schedule runs on over
all of them.
"""

from torchvision.models import MobileNetV2

from finetune.errors import InputError
from finetune.strategies.plan import Group, Phase, Plan, feature_blocks, tensors_of

PAPER = "Howard and Ruder 2018, arXiv 1801.06146"


def plan(model: MobileNetV2, *, stages: int = 4) -> Plan:
    """`stages` phases: the head alone, then the head and an equal part of the blocks more each time.

    Args:
        stages: 2 (head, then all) to 20 (a block more each time); the run needs as many epochs.

    Raises:
        InputError: stages is not in 2 … 20.
    """
    blocks = feature_blocks()
    if not 2 <= stages <= len(blocks) + 1:
        raise InputError(f"gradual_unfreeze: stages: found {stages}, expected 2 to {len(blocks) + 1}")
    phases = []
    for stage in range(stages):
        split = len(blocks) - round(len(blocks) * stage / (stages - 1))  # blocks below are frozen
        groups = [Group("head", tensors_of(model, ["classifier"]))]
        if blocks[split:]:
            groups.append(Group("unfrozen", tensors_of(model, blocks[split:])))
        if blocks[:split]:
            groups.append(Group("frozen", tensors_of(model, blocks[:split]), frozen=True, batchnorm="eval"))
        phases.append(Phase(tuple(groups), 1 / stages))
    return Plan("pretrained", tuple(phases))
