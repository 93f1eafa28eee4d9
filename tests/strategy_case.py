"""A variant of a strategy, trained on a few images of the toy as a run trains it; what happens on the way is noted."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torchvision.models import MobileNetV2

from finetune.batches import Batches
from finetune.checkpoint import Pace
from finetune.device import memory_format, move_to_device
from finetune.interruption import Interrupted
from finetune.model import load_backbone
from finetune.params import TrainingParams, parse
from finetune.resolved import Prepared, resolve
from finetune.store import Split, open_store
from finetune.strategies.plan import Phase, Plan, audit
from finetune.study import Layout, Run
from finetune.training import Listener, Progress, epochs_of, fit

SEED = 1
NEVER, ALWAYS = Pace(seconds=1000), Pace(seconds=0, share=1)
CATALOGUE: dict[str, dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parents[1] / "studies" / "catalogue.yaml").read_text()
)["strategies"]


def content_of(
    tiny: Mapping[str, Any], name: str, variant: Mapping[str, Any], epochs: int, **training: Any
) -> dict[str, Any]:
    """A params.yaml of one variant, whose own recipe goes over `training`, for so many epochs at most."""
    own = dict(variant.get("training", {}))
    own["epochs"] = min(own.get("epochs", epochs), epochs)
    return {
        **tiny,
        "study": {**tiny["study"], "strategies": [name], "baseline": name, "seeds": [SEED]},
        "training": {**tiny["training"], "batch_size": 6, "lr": 1e-2, **training},
        "strategies": {name: {**variant, "training": own}},
    }


@dataclass
class Case:
    """A variant and its trainings, each in an area of its own."""

    name: str
    content: dict[str, Any]  # of params.yaml
    root: Path
    inputs: Path
    copies: bool = False  # networks are copies of one, which is faster than to build each
    images: int = 12
    snapshots: list[dict[str, Tensor]] = field(default_factory=list)  # at the beginning and after each epoch
    rates: list[dict[str, tuple[str, float]]] = field(default_factory=list)  # per step: tensor -> group, learning rate

    def prepared(self, layout: Layout) -> Prepared:
        return resolve(parse(self.content), layout, Run("toy", self.name, SEED))

    @cached_property
    def resolved(self) -> Prepared:
        return self.prepared(Layout(self.root, self.inputs))

    @property
    def recipe(self) -> TrainingParams:
        return self.resolved.recipe

    def network(self) -> tuple[MobileNetV2, Plan]:
        """As `stages.train` has them when training begins."""
        return (deepcopy(self._first[0]), self.plan) if self.copies else self._made()

    def _made(self) -> tuple[MobileNetV2, Plan]:
        model = self.resolved.model()
        plan = self.resolved.plan_of(model)
        if plan.initialisation == "pretrained":
            load_backbone(model, Layout(self.inputs).backbone)
        if plan.begin is not None:
            plan.begin(model)
        move_to_device(model, self.recipe)
        return model, plan

    @cached_property
    def _first(self) -> tuple[MobileNetV2, Plan]:
        return self._made()

    @property
    def plan(self) -> Plan:
        return self._first[1]

    @cached_property
    def audit(self) -> list[dict[str, Any]]:
        """Without weight decay."""
        return audit(*self._first, self.recipe.lr, 0.0)

    def batches(self, split: str, images: int) -> Batches:
        whole = open_store(Layout(self.inputs).store("toy")).split(split)
        part = Split(whole.pixels, whole.index[:images], whole.labels[:images])
        return Batches(part, 32, self.recipe.batch_size, torch.device("cpu"), memory_format(self.recipe), 1.0)

    def run(self, area: str, *listeners: Listener, pace: Pace = NEVER) -> Progress:
        return self._fit(*self.network(), area, listeners, pace)

    @cached_property
    def whole(self) -> Progress:
        """The run from beginning to end, with what happened on the way noted."""
        model, plan = self.network()
        names = {id(parameter): name for name, parameter in model.named_parameters()}

        def step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            if not isinstance(optimizer, torch.optim.LBFGS):  # that one is an exact solve's own
                own = [(group, parameter) for group in optimizer.param_groups for parameter in group["params"]]
                self.rates.append({names[id(parameter)]: (group["name"], group["lr"]) for group, parameter in own})

        self.snapshots.append(copied(model))
        hook = register_optimizer_step_pre_hook(step)
        try:
            listener = Listener(epoch=lambda row: self.snapshots.append(copied(model)))
            return self._fit(model, plan, "whole", (listener,), NEVER)
        finally:
            hook.remove()

    def stopped_and_resumed(self, epoch: int, step: int) -> Progress:
        """Told to end after a step, both counted from 1, and begun again."""
        area = f"stopped {epoch} {step}"
        try:
            self.run(area, Listener(step=interrupted_at(epoch, step)))
        except Interrupted:
            return self.run(area)
        raise AssertionError("it came to its end")

    def phases(self) -> list[tuple[int, Phase, dict[str, Tensor], dict[str, Tensor]]]:
        """Each phase's number, itself, and the network's tensors when it begins and when it ends."""
        assert self.whole
        bounds = epochs_of(self.plan, self.recipe.epochs)
        return [(i, phase, self.snapshots[a], self.snapshots[b]) for i, (phase, a, b) in enumerate(bounds)]

    def _fit(self, model: MobileNetV2, plan: Plan, area: str, listeners: tuple[Listener, ...], pace: Pace) -> Progress:
        torch.set_num_threads(1)
        (self.root / area).mkdir(exist_ok=True)
        common: dict[str, Any] = {"name": "toy", "work": self.root / area, "fingerprint": "f", "pace": pace}
        train, val = self.batches("train", self.images), self.batches("val", 6)
        return fit(model, plan, self.recipe, train, val, SEED, listeners=listeners, **common)


def copied(model: MobileNetV2) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(first: Progress, second: Progress) -> bool:
    states = first.kept_state, second.kept_state
    return first.rows == second.rows and all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def interrupted_at(epoch: int, step: int) -> Callable[[int, int, int], None]:
    def told(*now: int) -> None:
        if now[:2] == (epoch, step):
            raise Interrupted(15)

    return told


def moved_though_frozen(case: Case) -> list[str]:
    """What the audit calls frozen in a phase, and is not, to the bit, what it was when the phase began."""
    found = []
    for number, _, before, after in case.phases():
        frozen = [row["tensor"] for row in case.audit if row["phase"] == number and row["frozen"]]
        found += [name for name in frozen if not torch.equal(before[name], after[name])]
    return found


def still_though_trained(case: Case) -> list[str]:
    """The groups of a phase that the audit calls trained, and none of whose parameters moved in it."""
    found = []
    for number, phase, before, after in case.phases():
        for group in phase.groups:
            own = (number, group.name, "parameter", False)
            moving = [r["tensor"] for r in case.audit if (r["phase"], r["group"], r["kind"], r["frozen"]) == own]
            if moving and all(torch.equal(before[name], after[name]) for name in moving):
                found.append(group.name)
    return found
