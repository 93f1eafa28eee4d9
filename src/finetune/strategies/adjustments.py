"""What the recipe may change about any plan (BatchNorm, a first phase of the head alone), and what it may not."""

from collections.abc import Iterator
from dataclasses import replace

from torchvision.models import MobileNetV2

from finetune.errors import InputError
from finetune.recipe import TrainingParams
from finetune.strategies.plan import (
    BatchNormPolicy,
    Group,
    Phase,
    Plan,
    batchnorm_layers,
    check_coverage,
    tensors_of,
    trainable,
)


def adjusted(model: MobileNetV2, plan: Plan, recipe: TrainingParams, where: str = "training") -> Plan:
    """The plan as the recipe's `bn` and `freeze_epochs` have it.

    Args:
        where: what to call the recipe in a message.

    Raises:
        InputError: the plan and the recipe exclude each other; says why.
    """
    if recipe.bn is not None:
        plan = _with_batchnorm(model, plan, recipe, where)
    if recipe.freeze_epochs:
        plan = _head_first(model, plan, recipe, where)
    _check(model, plan, recipe, where)
    return plan


def _with_batchnorm(model: MobileNetV2, plan: Plan, recipe: TrainingParams, where: str) -> Plan:
    """Every group that is trained under the recipe's BatchNorm policy."""
    assert recipe.bn is not None
    if plan.initialisation == "random" and recipe.bn != "train":
        raise InputError(
            f"{where}: bn: {recipe.bn} uses the pretrained running statistics, and this strategy starts from random "
            "weights, which have none; use bn: train"
        )
    if recipe.bn in plan.not_under:
        raise InputError(f"{where}: bn: {recipe.bn} {plan.not_under[recipe.bn]}")
    if recipe.bn != "eval" and not _trains_batchnorm(model, plan):
        raise InputError(
            f"{where}: bn: {recipe.bn} is for BatchNorm layers of what is trained, and this strategy trains none, so "
            "it would change nothing; leave bn out, or say bn: eval, which is what they are"
        )
    phases = []
    for phase in plan.phases:
        halves = _halves(model, phase)
        groups = tuple(part for group in phase.groups for part in _under(recipe.bn, group, halves))
        before, after = trainable(model, phase.groups), trainable(model, groups)
        if idle := [name for name in before if before[name] and not after[name]]:
            raise InputError(
                f"{where}: bn: {recipe.bn} leaves the strategy's group '{idle[0]}' nothing to train, as it holds "
                "BatchNorm weights and biases alone; use bn: affine_only"
            )
        phases.append(replace(phase, groups=groups))
    return replace(plan, phases=tuple(phases))


def _under(policy: BatchNormPolicy, group: Group, halves: set[str]) -> Iterator[Group]:
    """A group that is trained, under the policy; of a frozen one those tensors that are `halves`, as a group beside."""
    if not group.frozen:
        yield replace(group, batchnorm=policy)
        return
    beside = tuple(name for name in group.tensors if name in halves)
    if others := tuple(name for name in group.tensors if name not in halves):
        yield replace(group, tensors=others)
    if beside:
        yield replace(group, name=f"{group.name}_beside", tensors=beside, batchnorm=policy)


def _halves(model: MobileNetV2, phase: Phase) -> set[str]:
    """The frozen weights or biases of BatchNorm layers whose other half is trained: a layer has one policy."""
    owner = {name: group for group in phase.groups for name in group.tensors}
    pairs = ((f"{layer}.weight", f"{layer}.bias") for layer in batchnorm_layers(model))
    return {name for pair in pairs if len({owner[n].frozen for n in pair}) > 1 for name in pair if owner[name].frozen}


def _trains_batchnorm(model: MobileNetV2, plan: Plan) -> bool:
    """Whether any phase has a BatchNorm layer's weight or bias in a group that is not frozen."""
    layers = batchnorm_layers(model)
    groups = (group for phase in plan.phases for group in phase.groups if not group.frozen)
    return any(name.rpartition(".")[0] in layers for group in groups for name in group.tensors)


def _head_first(model: MobileNetV2, plan: Plan, recipe: TrainingParams, where: str) -> Plan:
    """A first phase that trains the head as the plan's first phase does, and nothing else."""
    if plan.initialisation == "random":
        raise InputError(
            f"{where}: freeze_epochs: {recipe.freeze_epochs} would train a head on random features, as this strategy "
            "starts from random weights; use freeze_epochs: 0"
        )
    owner = check_coverage(model, plan.phases[0].groups)
    head = tensors_of(model, ["classifier"])
    others = tuple(name for name in owner if name not in head)
    first = owner[head[0]]
    groups = (
        # What a penalty pulls in the place of weight decay has weight decay as long as there is no penalty.
        Group("head_first", head, first.lr_scale, first.decay or plan.phases[0].penalty is not None),
        Group("waiting", others, frozen=True, batchnorm="eval"),
    )
    share = recipe.freeze_epochs / recipe.epochs
    later = tuple(replace(phase, share=phase.share * (1 - share)) for phase in plan.phases)
    return replace(plan, phases=(Phase(groups, share), *later))


def _check(model: MobileNetV2, plan: Plan, recipe: TrainingParams, where: str) -> None:
    done = 0.0
    for number, phase in enumerate(plan.phases, 1):
        if round((done + phase.share) * recipe.epochs) <= round(done * recipe.epochs):
            first = f", the first of which freeze_epochs: {recipe.freeze_epochs} adds" if recipe.freeze_epochs else ""
            fewer = "the strategy fewer phases" + (", or set freeze_epochs to 0" if recipe.freeze_epochs else "")
            raise InputError(
                f"{where}: epochs: {recipe.epochs} leaves none for phase {number} of the strategy's "
                f"{len(plan.phases)}{first}; give the run more epochs, or {fewer}"
            )
        done += phase.share
    if recipe.compile != "none" and any(phase.penalty is not None for phase in plan.phases):
        raise InputError(
            f"{where}: compile: {recipe.compile}: this strategy has a penalty, which may look at what the network "
            "computes inside, and a compiled one does not show that; use compile: none"
        )
    if any(phase.solve is not None for phase in plan.phases):
        found = {"epochs": recipe.epochs, "augmentation": recipe.augmentation.name, "mixup": recipe.mixup}
        found |= {"cutmix": recipe.cutmix, "label_smoothing": recipe.label_smoothing, "ema": recipe.ema}
        for key, wanted in ({"epochs": 1, "augmentation": "none"} | dict.fromkeys(list(found)[2:], 0)).items():
            if found[key] != wanted:
                raise InputError(
                    f"{where}: {key}: {found[key]}: this strategy solves the head at once, on the images as they are; "
                    f"give its training {key} {wanted}"
                )
        if not recipe.weight_decay > 0:
            raise InputError(
                f"{where}: weight_decay: {recipe.weight_decay:g}: this strategy solves the head exactly, and without "
                "weight decay the weights of classes that can be told apart grow without end; give its training one "
                "above 0"
            )
