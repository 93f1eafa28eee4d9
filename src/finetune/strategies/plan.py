"""What a strategy is: an initialisation and phases of parameter groups, and the audit that nothing is left out."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn
from torchvision.models import MobileNetV2

from finetune.errors import InputError, nearest
from finetune.model import BLOCKS, block_of, is_batchnorm

BatchNormPolicy = Literal["train", "eval", "affine_only"]


@dataclass(frozen=True)
class Group:
    """Parameters that are trained alike.

    `batchnorm` says what the BatchNorm layers of these parameters do: `train` uses and updates batch statistics;
    `eval` uses the running ones and leaves weight and bias as they are; `affine_only` uses the running ones and
    trains weight and bias.
    """

    name: str
    tensors: tuple[str, ...]  # names of parameters
    lr_scale: float = 1.0  # times the run's learning rate
    decay: bool = True  # whether the run's weight decay applies
    frozen: bool = False
    batchnorm: BatchNormPolicy = "train"
    measured: bool = False  # lr_scale is what the phase's `scales` gives each epoch, and here the most it can be


Penalty = Callable[[Tensor], Tensor]  # the batch's images, as the network has just seen them -> a scalar
Autocast = Callable[[], AbstractContextManager[Any]]  # at the recipe's precision
Solution = tuple[Tensor, Tensor]  # the head's weight, classes x features, and bias, classes


@dataclass(frozen=True)
class Phase:
    """A stretch of the schedule with fixed groups.

    `penalty` is entered with the network as the run starts from it, also where the run goes on from a checkpoint, and
    gives what is added to the loss of each batch: it may keep the start's weights, and hooks that see activations.
    `scales` measures the groups' learning-rate scales anew when an epoch begins, from the network in evaluation mode,
    the epoch's batches, and the context for its forward passes; it may keep what one batch's loss keeps for the
    backward pass of what is trained. `solve` finds the head at once, from features (images x features), labels and
    weight decay.
    """

    groups: tuple[Group, ...]
    share: float = 1.0  # of the run's epochs; the shares of a plan add up to 1
    penalty: Callable[[MobileNetV2], AbstractContextManager[Penalty]] | None = None
    scales: Callable[[MobileNetV2, Iterator[tuple[Tensor, Tensor]], Autocast], Mapping[str, float]] | None = None
    solve: Callable[[Tensor, Tensor, float], Solution] | None = None


@dataclass(frozen=True)
class Plan:
    """A strategy, worked out for one model.

    A plan that adds to the network has a function `adapt(model, **options)` in its file, which is called right after
    the network is built, for training and for use alike; `begin` then readies what was added, once the network holds
    the weights that the run starts from. `not_under` says why a BatchNorm policy that the recipe may ask for would
    make the plan another one, and what to do instead.
    """

    initialisation: Literal["pretrained", "random"]
    phases: tuple[Phase, ...]
    begin: Callable[[MobileNetV2], None] | None = None
    not_under: Mapping[BatchNormPolicy, str] = field(default_factory=dict)


def tensors_of(model: MobileNetV2, blocks: Iterable[str]) -> tuple[str, ...]:
    """The names of all parameters in `blocks`, in the model's order."""
    wanted = set(blocks)
    return tuple(name for name, _ in model.named_parameters() if block_of(name) in wanted)


def feature_blocks() -> tuple[str, ...]:
    """The blocks below the head, from the image upwards."""
    return BLOCKS[:-1]


def audit(model: MobileNetV2, plan: Plan, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """One row per phase and tensor: its group, learning rate, decay, whether it is frozen, what BatchNorm does.

    Where there is no rate to tell beforehand, `lr` is a word: "measured" each epoch, or the head is "solved".

    Raises:
        InputError: coverage is not total: a parameter in no group or in two, a group that is empty or at no
            learning rate, a phase that trains nothing, a BatchNorm layer under two policies, or shares that do not add
            up to 1.
    """
    if abs(sum(phase.share for phase in plan.phases) - 1) > 1e-9:
        raise InputError(f"plan: the phases' shares are {[p.share for p in plan.phases]}, expected to add up to 1")
    rows = []
    for number, phase in enumerate(plan.phases):
        owner = check_coverage(model, phase.groups)
        moving = {name for names in trainable(model, phase.groups).values() for name in names}
        for name, parameter in model.named_parameters():
            row = _row(number, name, parameter, owner[name])
            told = {"kind": "parameter", "frozen": name not in moving}
            if name in moving:
                told |= {"lr": _rate(phase, owner[name], lr), "weight_decay": weight_decay * owner[name].decay}
            rows.append(row | told)
        for name, buffer in model.named_buffers():
            group = owner[f"{name.rpartition('.')[0]}.weight"]
            rows.append(_row(number, name, buffer, group) | {"frozen": group.batchnorm != "train"})
    return rows


def check_coverage(model: MobileNetV2, groups: Sequence[Group]) -> dict[str, Group]:
    """Which group each parameter is in; see `audit` for what is refused."""
    parameters = dict(model.named_parameters())
    owner: dict[str, Group] = {}
    names = [group.name for group in groups]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"plan: two groups are called '{twice[0]}'; give each a name of its own")
    for group in groups:
        if not group.frozen and not group.lr_scale > 0:
            raise InputError(
                f"plan: group '{group.name}' has lr_scale {group.lr_scale}, expected above 0; freeze it if it shall "
                "not be trained"
            )
        if not group.tensors:
            raise InputError(f"plan: group '{group.name}' is empty; give it parameters, or leave the group out")
        for name in group.tensors:
            if name not in parameters:
                raise InputError(
                    f"plan: group '{group.name}' names {name!r}, which is no parameter of the model; "
                    f"{nearest(name, parameters)}"
                )
            if name in owner:
                raise InputError(f"plan: {name} is in the groups '{owner[name].name}' and '{group.name}'; keep one")
            owner[name] = group
    if missing := [name for name in parameters if name not in owner]:
        raise InputError(
            f"plan: {len(missing)} of {len(parameters)} parameters are in no group, the first is {missing[0]}; "
            "put each in one, frozen if it shall not be trained"
        )
    for layer in batchnorm_layers(model):
        pair = [owner[f"{layer}.weight"], owner[f"{layer}.bias"]]
        policies = sorted({group.batchnorm for group in pair})
        if len(policies) > 1:
            raise InputError(f"plan: BatchNorm layer {layer} is under two policies, {policies}; keep one")
        if policies == ["train"] and all(group.frozen for group in pair):
            raise InputError(
                f"plan: BatchNorm layer {layer} is in the frozen group '{pair[0].name}' but would update its running "
                "statistics; set the group's batchnorm to eval"
            )
    if not any(trainable(model, groups).values()):
        raise InputError("plan: a phase trains nothing; leave the phase out, or unfreeze a group")
    return owner


def batchnorm_layers(model: MobileNetV2) -> dict[str, nn.Module]:
    """The BatchNorm layers by name, found by type."""
    return {name: module for name, module in model.named_modules() if is_batchnorm(module)}


def trainable(model: MobileNetV2, groups: Sequence[Group]) -> dict[str, list[str]]:
    """Group name -> its parameters that move: not frozen, and no weight or bias of a BatchNorm under `eval`."""
    fixed = {f"{layer}.{part}" for layer in batchnorm_layers(model) for part in ("weight", "bias")}
    return {
        group.name: [n for n in group.tensors if not group.frozen and not (n in fixed and group.batchnorm == "eval")]
        for group in groups
    }


def _rate(phase: Phase, group: Group, lr: float) -> float | str:
    if phase.solve is not None:
        return "solved"
    return "measured" if phase.scales is not None and group.measured else lr * group.lr_scale


def _row(phase: int, name: str, tensor: Tensor, group: Group) -> dict[str, Any]:
    return {
        "phase": phase,
        "tensor": name,
        "kind": "buffer",
        "numel": tensor.numel(),
        "block": block_of(name),
        "group": group.name,
        "lr": 0.0,
        "weight_decay": 0.0,
        "frozen": True,
        "batchnorm": group.batchnorm,
    }
