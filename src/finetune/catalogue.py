"""What a plan, or a variant of params.yaml, trains: worked out from shapes alone, before anything is trained."""

import importlib
import inspect
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torchvision.models import MobileNetV2

from finetune import strategies
from finetune.errors import InputError, named, suggest
from finetune.params import Params, StrategyParams
from finetune.params_file import sentence
from finetune.recipe import TrainingParams
from finetune.strategies.adjustments import adjusted
from finetune.strategies.plan import Plan, audit
from finetune.training import epochs_of


@dataclass(frozen=True)
class Strategy:
    """A strategy, worked out for one recipe and number of classes."""

    name: str
    plan: str
    options: Mapping[str, Any]  # of the plan, with those defaults that hold beside what was given
    line: str  # what the plan is
    paper: str  # authors, year, arXiv number; "" if there is none
    initialisation: str
    recipe: TrainingParams
    audit: list[dict[str, Any]]
    phases: list[dict[str, Any]]  # of `phases`


def phases(plan: Plan, epochs: int) -> list[dict[str, Any]]:
    """Of each phase its first and last of the `epochs`, from 1, its `groups`, and which of penalty, scales and solve it
    `adds`."""
    return [
        {
            "epochs": [first + 1, end],
            "groups": [group.name for group in phase.groups],
            "adds": [what for what in ("penalty", "scales", "solve") if getattr(phase, what) is not None],
        }
        for phase, first, end in epochs_of(plan, epochs)
    ]


def plans(classes: int) -> list[Strategy]:
    """Every plan as it comes, by name, with the recipe as it comes."""
    return [_worked_out(name, name, {}, TrainingParams(), classes) for name in strategies.names()]


def variants(params: Params, dataset: str, classes: int) -> list[Strategy]:
    """Every variant of params.yaml, in its order, with the recipe that it has for `dataset`."""
    return [described(params, name, dataset, classes) for name in params.strategies]


def described(params: Params, name: str, dataset: str, classes: int) -> Strategy:
    """The variant `name` of params.yaml, or else the plan of that name as it comes, as it would train on `dataset`.

    Raises:
        InputError: there is neither; or the variant's options or its recipe do not go with its plan.
    """
    if name not in params.strategies:
        if name not in strategies.names():
            known = {*params.strategies, *strategies.names()}
            raise InputError(
                f"strategy '{name}' is neither a variant in params.yaml nor a plan; {suggest(name, known)}; another "
                "study's variants are known with --params studies/STUDY.yaml"
            )
        params = params.model_copy(update={"strategies": {**params.strategies, name: StrategyParams()}})
    try:
        recipe = params.training_for(dataset, name)
    except ValidationError as error:  # each override is right by itself
        raise InputError(sentence("params.yaml", ("training", f"<{dataset}, {name}>"), error, TrainingParams)) from None
    return _worked_out(name, params.plan_for(name), params.strategies[name].options, recipe, classes)


def _worked_out(name: str, plan: str, options: Mapping[str, Any], recipe: TrainingParams, classes: int) -> Strategy:
    strategies.check_options(name, plan, options)
    where = f"params.yaml: strategies.{name}"
    with torch.device("meta"):
        with named(where):
            model = strategies.build_model(classes, 0, plan, options)
            worked_out = strategies.build_plan(model, plan, options)
        worked_out = adjusted(model, worked_out, recipe, where)
        rows = audit(model, worked_out, recipe.lr, recipe.weight_decay)
        all_options = _with_defaults(model, plan, options)
    module = importlib.import_module(f"finetune.strategies.{plan}")
    return Strategy(
        name=name,
        plan=plan,
        options=all_options,
        line=(module.__doc__ or "").partition("\n")[0],
        paper=getattr(module, "PAPER", ""),
        initialisation=worked_out.initialisation,
        recipe=recipe,
        audit=rows,
        phases=phases(worked_out, recipe.epochs),
    )


def _with_defaults(model: MobileNetV2, plan: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options and, in their order, the defaults of the others, but for those that the plan refuses beside them."""
    function = importlib.import_module(f"finetune.strategies.{plan}").plan
    found = {}
    for key, option in inspect.signature(function).parameters.items():
        if option.kind is option.KEYWORD_ONLY:
            if key not in options:
                try:
                    function(model, **options, **{key: deepcopy(option.default)})  # a copy: as if it were given
                except InputError:
                    continue
            found[key] = options.get(key, option.default)
    return found
