"""The plans: one file each, found by name; a variant in params.yaml is a plan with options."""

import hashlib
import importlib
import importlib.util
import inspect
import math
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_type_hints

from finetune.errors import InputError, suggest

if TYPE_CHECKING:
    from torchvision.models import MobileNetV2

    from finetune.strategies.plan import Plan

_MACHINERY = {"adjustments", "plan"}


def names() -> list[str]:
    """Every plan that has a file here."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _MACHINERY)


def check_name(plan: str, variant: str) -> None:
    """Raise InputError unless there is a plan of that name."""
    if plan not in names():
        raise InputError(f"params.yaml: strategies.{variant}: there is no plan '{plan}'; {suggest(plan, names())}")


def source_digest(plan: str) -> str:
    """SHA-256 of the plan's file, 64 hex digits; nothing is imported."""
    return hashlib.sha256((Path(__path__[0]) / f"{plan}.py").read_bytes()).hexdigest()


def check_options(variant: str, plan: str, options: Mapping[str, Any]) -> None:
    """Check a variant's options against the signature of its plan.

    Raises:
        InputError: an option that the plan does not have, or a value of another type.
    """
    check_name(plan, variant)
    function = _module(plan).plan
    known = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    types = get_type_hints(function)
    for name, value in options.items():
        if name not in {p.name for p in known}:
            listed = suggest(name, [p.name for p in known]) if known else "it has none"
            raise InputError(f"params.yaml: strategies.{variant}: plan {plan} has no option '{name}'; {listed}")
        if not _fits(value, types[name]):
            kind = "a finite number" if isinstance(value, float) and types[name] is float else types[name]
            raise InputError(
                f"params.yaml: strategies.{variant}.{name}: found {value!r} ({type(value).__name__}), "
                f"expected {getattr(kind, '__name__', kind)}"
            )


def adapts(plan: str) -> bool:
    """Whether a plan adds to the network."""
    return hasattr(_module(plan), "adapt")


def build_model(classes: int, seed: int, plan: str, options: Mapping[str, Any]) -> "MobileNetV2":
    """The network that a plan trains: `model.build`'s, with what the plan adds to it, seeded alike."""
    import torch

    from finetune.model import build

    model = build(classes, seed)
    if adapt := getattr(_module(plan), "adapt", None):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapt(model, **options)
    return model


def build_plan(model: "MobileNetV2", plan: str, options: Mapping[str, Any]) -> "Plan":
    """Work the plan out for `model`, of `build_model`."""
    return _module(plan).plan(model, **options)


def _module(plan: str) -> ModuleType:
    return importlib.import_module(f"finetune.strategies.{plan}")


def _fits(value: Any, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind) if isinstance(kind, type) else True
