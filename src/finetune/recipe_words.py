"""A recipe in words, as reports say it."""

from collections.abc import Mapping
from typing import Any

from finetune.params_file import flat
from finetune.recipe import OptimizerParams, ScheduleParams, TrainingParams


def optimizer(chosen: OptimizerParams) -> str:
    """Its name, with what is not at its default."""
    if chosen.name == "sgd":
        momentum = f" with {'Nesterov ' if chosen.nesterov else ''}momentum {chosen.momentum:g}"
        return "SGD" + (momentum if chosen.momentum else "")
    name = {"adam": "Adam", "adamw": "AdamW"}[chosen.name]
    betas = ", ".join(f"{beta:g}" for beta in chosen.betas)
    return name if chosen.betas == OptimizerParams().betas else f"{name} (betas {betas})"


def schedule(chosen: ScheduleParams) -> str:
    """Its name, how fast the rate falls, and its warm-up."""
    words: str = chosen.name
    if chosen.name == "exponential":
        words += f", {chosen.gamma:g} an epoch"
    elif chosen.name == "step":
        words += f", {chosen.gamma:g} every {epochs(chosen.every)}"
    return words + (f", with {epochs(chosen.warmup_epochs)} of warm-up" if chosen.warmup_epochs else "")


def extras(recipe: TrainingParams, solved: bool = False) -> list[str]:
    """What is on of the options that are off by default, each in words.

    Args:
        solved: whether the head is solved at once, without steps.
    """
    told = {
        f"label smoothing {recipe.label_smoothing:g}": recipe.label_smoothing,
        f"mixup {recipe.mixup:g}": recipe.mixup,
        f"cutmix {recipe.cutmix:g}": recipe.cutmix,
        f"averaged weights (EMA {recipe.ema:g})": recipe.ema,
        f"steps of {recipe.accumulation} batches": recipe.accumulation > 1 and not solved,
        f"BatchNorm {recipe.bn}": recipe.bn,
        f"the head alone for {epochs(recipe.freeze_epochs)}": recipe.freeze_epochs,
        "frozen layers that keep little": recipe.lean_backward,
        "activation checkpointing": recipe.activation_checkpointing,
    }
    return [words for words, on in told.items() if on]


def own_settings(options: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    """A variant's options and what it overrides of the recipe, as `key: value, …` with dotted keys; "" for none."""
    return ", ".join(f"{key}: {value}" for key, value in (*options.items(), *flat(training, "training.")))


def solver() -> str:
    """What finds the head at once, in the place of an optimizer."""
    return "L-BFGS"


def epochs(n: float) -> str:
    """How many, in words."""
    return f"{n:g} epoch{'' if n == 1 else 's'}"
