"""Tiers of any number, and what they exclude; the three tiers are in test_strategies."""

from typing import Any

import pytest
from torchvision.models import MobileNetV2

from finetune.errors import InputError
from finetune.model import build
from finetune.strategies import build_plan, check_options
from finetune.strategies.plan import audit


@pytest.fixture(scope="module")
def model() -> MobileNetV2:
    return build(10, 0)


def rates(model: MobileNetV2, **options: Any) -> list[tuple[Any, ...]]:
    rows = audit(model, build_plan(model, "separate_lr", options), 1e-3, 1e-4)
    return [tuple(row[key] for key in ("tensor", "lr", "weight_decay", "frozen", "batchnorm")) for row in rows]


def test_the_three_tiers_may_be_written_as_tiers(model: MobileNetV2) -> None:
    assert rates(model, tiers=[[5, 0.6], [14, 0.4]]) == rates(model)
    assert rates(model, tiers=[[5, 0.6], [14, 0.4]], decay=False) == rates(model, decay=False)
    assert rates(model, tiers=[[5, 0.6], [14, 0.5]]) != rates(model)


def test_a_tier_at_zero_is_as_frozen_as_what_is_left_out(model: MobileNetV2) -> None:
    assert rates(model, tiers=[[5, 1], [14, 0]]) == rates(model, tiers=[[5, 1]])
    below = [row for row in rates(model, tiers=[[5, 1]]) if row[0].startswith("features.13.")]
    assert {row[1:] for row in below} == {(0.0, 0.0, True, "eval")}


@pytest.mark.parametrize(("other", "value"), [("last_blocks", 5), ("last_scale", 0.6), ("deep_scale", 0.1)])
def test_tiers_stand_alone_even_beside_a_default(model: MobileNetV2, other: str, value: Any) -> None:
    # 5 and 0.6 are what the options are without being given: given, they would be read by nobody.
    with pytest.raises(InputError, match=f"separate_lr: tiers: found {other} beside it, expected one of them"):
        build_plan(model, "separate_lr", {"tiers": [[2, 0.5]], other: value})


@pytest.mark.parametrize("tier", [[True, 0.5], [2, float("inf")], [2, float("nan")], [2.0, 0.5], [2], "2", [2, -0.1]])
def test_what_is_no_tier_is_refused(model: MobileNetV2, tier: Any) -> None:
    with pytest.raises(InputError, match=r"separate_lr: tiers: found .*, expected \[number of blocks, scale\]"):
        build_plan(model, "separate_lr", {"tiers": [tier]})


def test_options_are_checked_through_the_guard() -> None:
    check_options("mine", "separate_lr", {"tiers": [[2, 0.5]], "decay": False})
    with pytest.raises(InputError, match=r"strategies\.mine\.tiers: found 2 \(int\), expected list"):
        check_options("mine", "separate_lr", {"tiers": 2})
