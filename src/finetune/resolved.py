"""A run, worked out from params.yaml and its inputs on disk; and whether that can be, before anything is trained."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchvision.models import MobileNetV2

from finetune import model as models
from finetune.device import resolve_device
from finetune.errors import InputError, named
from finetune.params import Params, TrainingParams, on_device
from finetune.store import Split, Store, open_store
from finetune.strategies import adapts, build_model, build_plan, check_options, source_digest
from finetune.strategies.adjustments import adjusted
from finetune.strategies.plan import Plan, audit
from finetune.study import Layout, Run, fingerprint, run_key


@dataclass(frozen=True)
class Prepared:
    """A run, worked out: what it is called and all that its numbers depend on."""

    run: Run
    plan: str
    options: dict[str, Any]
    recipe: TrainingParams  # device resolved
    store: Store
    fraction: float  # of each class of train
    backbone: dict[str, str]  # source, digest
    backbone_path: Path
    fingerprint: str

    def train_split(self) -> Split:
        """The images to train on."""
        return self.store.split("train").part(self.fraction, self.store.meta["prepare"]["split_seed"])

    def model(self) -> MobileNetV2:
        """The network as the run's seed has it, before any weights are loaded."""
        return build_model(len(self.store.classes), self.run.seed, self.plan, self.options)

    def plan_of(self, model: MobileNetV2) -> Plan:
        """The plan, worked out for `model` and adjusted to the recipe; what excludes each other is an InputError."""
        where = f"params.yaml: strategies.{self.run.strategy}"
        return adjusted(model, build_plan(model, self.plan, self.options), self.recipe, where)

    @property
    def key(self) -> str:
        return run_key(self.fingerprint, self.run.seed)


def resolve(params: Params, layout: Layout, run: Run, device: str | None = None) -> Prepared:
    """Work out a run from params.yaml and its inputs on disk.

    Raises:
        InputError: an input is missing, an option is not the plan's, there is no such device, or no validation split
            to select by.
    """
    plan, options = params.plan_for(run.strategy), params.strategies[run.strategy].options
    check_options(run.strategy, plan, options)
    recipe = params.training_for(run.dataset, run.strategy)
    recipe = on_device(recipe, resolve_device(device or recipe.device))
    store = open_store(layout.store(run.dataset))
    if recipe.selection == "best" and not len(store.split("val")):
        raise InputError(
            f"params.yaml: training.selection is 'best' for {run.dataset}/{run.strategy}, but there is no validation "
            "split to choose by; set prepare.val_fraction above 0, or selection: last"
        )
    if not layout.backbone.is_file():
        raise InputError(f"{layout.backbone}: no such file; make it with `dvc repro -s backbone`")
    backbone = {"source": params.backbone.source, "digest": models.digest(layout.backbone)}
    if params.backbone.source == "torchvision":
        backbone["weights"] = params.backbone.weights
    fraction = params.datasets[run.dataset].fraction
    print_ = fingerprint(
        run,
        plan,
        options,
        recipe,
        store.digest,
        backbone["digest"],
        fraction,
        store.meta["prepare"]["split_seed"],
        source_digest(plan),
    )
    return Prepared(run, plan, options, recipe, store, fraction, backbone, layout.backbone, print_)


def check_strategies(params: Params) -> None:
    """Work out every strategy of the study under every data set's recipe, on shapes alone.

    Raises:
        InputError: an option is not the plan's, its parameter groups are not total, or plan and recipe exclude each
            other.
    """
    with torch.device("meta"):
        plain = models.build(2, 0)
    for strategy in params.study.strategies:
        name, options = params.plan_for(strategy), params.strategies[strategy].options
        check_options(strategy, name, options)
        model = plain
        with named(f"params.yaml: strategies.{strategy}"):  # several variants may be built on a plan
            if adapts(name):
                with torch.device("meta"):
                    model = build_model(2, 0, name, options)
            plan = build_plan(model, name, options)
        seen: list[TrainingParams] = []
        for dataset in params.study.datasets:
            recipe = params.training_for(dataset, strategy)
            if recipe not in seen:
                seen.append(recipe)
                where = f"params.yaml: strategies.{strategy} on {dataset}"
                audit(model, adjusted(model, plan, recipe, where), recipe.lr, recipe.weight_decay)
