"""Every variant of the catalogue with the recipe's options: trained and resumed, or refused for a known reason.

Two bundles hold almost all options; with each policy of BatchNorm alone comes one of the schedules that are left.
"""

import math
from pathlib import Path
from typing import Any

import pytest

from finetune import kernel_library
from finetune.errors import InputError
from finetune.params import parse
from finetune.resolved import check_strategies
from finetune.training import epochs_of
from strategy_case import CATALOGUE, Case, content_of, moved_though_frozen, same, still_though_trained

_AFTER_WARMING_UP = {"warmup_epochs": 0.5}
BUNDLES: dict[str, dict[str, Any]] = {
    "recomputed": {
        "activation_checkpointing": True,
        "accumulation": 2,
        "label_smoothing": 0.1,
        "mixup": 0.4,
        "optimizer": {"name": "sgd", "nesterov": True},
        "schedule": {"name": "cosine", **_AFTER_WARMING_UP},
    },
    "head_first": {
        "freeze_epochs": 1,
        "cpu_kernels": "native" if kernel_library.available() else "torch",
        "cutmix": 1.0,
        "ema": 0.9,
        "optimizer": {"name": "adamw"},
        "schedule": {"name": "exponential", **_AFTER_WARMING_UP},
    },
}
POLICIES: dict[str, dict[str, Any]] = {
    "bn_train": {"bn": "train", "schedule": {"name": "step", "every": 1, **_AFTER_WARMING_UP}},
    "bn_eval": {"bn": "eval", "schedule": {"name": "constant", **_AFTER_WARMING_UP}},
    "bn_affine_only": {"bn": "affine_only", "schedule": {"name": "step", "every": 1, **_AFTER_WARMING_UP}},
}
OPTIONS = BUNDLES | POLICIES
EPOCHS = {"gradual_unfreeze": 3, "lp_ft": 2, "lp_ft_slow": 2}  # one a phase; else 1

_NOTHING_LEFT = "nothing to train"
REFUSED: dict[tuple[str, str], str] = {
    ("last_layer_exact", "recomputed"): "solves the head at once",
    ("last_layer_exact", "head_first"): "freeze_epochs is 1 but epochs is 1",
    ("bias_only", "bn_eval"): _NOTHING_LEFT,
    ("norm_only", "bn_eval"): _NOTHING_LEFT,
    ("norm_only", "bn_train"): "take plan: norm_and_bias",
    ("norm_and_bias", "bn_eval"): "take plan: last_layer",
    ("norm_and_bias", "bn_affine_only"): "nothing of this strategy but norm_only",
    ("lite_residual_bias", "bn_eval"): _NOTHING_LEFT,
    **{
        (variant, options): "this strategy trains none"
        for variant in ("last_layer", "last_layer_exact", "lite_residual")
        for options in ("bn_train", "bn_affine_only")
    },
    **{
        (variant, options): "starts from random weights"
        for variant in ("from_scratch", "from_scratch_sgd")
        for options in ("head_first", "bn_eval", "bn_affine_only")
    },
}
TRAINED = [(variant, options) for variant in CATALOGUE for options in OPTIONS if (variant, options) not in REFUSED]


def content(tiny: dict[str, Any], variant: str, options: str) -> dict[str, Any]:
    recipe = {"batch_size": 3, **OPTIONS[options]}
    epochs = EPOCHS.get(variant, 1) + recipe.get("freeze_epochs", 0)
    return content_of(tiny, variant, CATALOGUE[variant], epochs, **recipe)


@pytest.mark.parametrize(("variant", "options"), REFUSED)
def test_it_is_refused_for_the_reason(variant: str, options: str, tiny_content: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=REFUSED[variant, options]):
        check_strategies(parse(content(tiny_content, variant, options)))


@pytest.mark.parametrize(("variant", "options"), TRAINED)
def test_it_is_trained_and_a_bundle_resumed(
    variant: str, options: str, toy_inputs: Path, tiny_content: dict[str, Any], tmp_path: Path
) -> None:
    images = 3 * OPTIONS[options].get("accumulation", 1) * (2 if options in BUNDLES else 1)  # for as many steps
    case = Case(variant, content(tiny_content, variant, options), tmp_path, toy_inputs, copies=True, images=images)
    assert all(math.isfinite(row["train/loss"]) for row in case.whole.rows)  # type: ignore[arg-type]
    assert moved_though_frozen(case) == []
    assert still_though_trained(case) == []
    if options in BUNDLES:
        _, first, _ = epochs_of(case.plan, case.recipe.epochs)[-1]
        assert same(case.stopped_and_resumed(first + 1, 1), case.whole)


def test_the_bundles_and_policies_hold_every_schedule() -> None:
    schedules = {options["schedule"]["name"] for options in OPTIONS.values()}
    assert schedules == {"exponential", "cosine", "step", "constant"}


def test_of_several_faults_the_first_is_told_in_every_process(tiny_content: dict[str, Any]) -> None:
    faults = {"ema": 0.9, "label_smoothing": 0.1, "cutmix": 1.0, "mixup": 0.4}
    content = content_of(tiny_content, "last_layer_exact", CATALOGUE["last_layer_exact"], 1, **faults)
    with pytest.raises(InputError, match=r"mixup: 0\.4: this strategy solves the head at once"):
        check_strategies(parse(content))
