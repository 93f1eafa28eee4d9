"""What is told of plans and variants before anything is trained; sizes are MobileNetV2 1.0's, worked out by hand."""

import importlib
import re
from collections.abc import Callable
from typing import Any

import pytest

from finetune import catalogue, strategies
from finetune.errors import InputError
from finetune.params import parse
from finetune.strategies.plan import Group, Phase, Plan

BACKBONE = 2_223_872  # parameters below the head


def _params(strategies: dict[str, Any], **training: Any) -> Any:
    content = {"study": {"name": "tiny", "datasets": ["cifar10"], "strategies": ["same_lr"], "seeds": [0]}}
    content["study"]["baseline"] = "same_lr"
    sections = {"training": {"epochs": 4} | training, "datasets": {"cifar10": {}, "cub200": {}}}
    return parse(content | sections | {"strategies": {"same_lr": {}} | strategies})


def test_every_plan_is_told_in_order_of_their_names() -> None:
    assert [one.name for one in catalogue.plans(10)] == strategies.names()


def test_a_plan_as_it_comes_has_its_defaults_and_its_line() -> None:
    one = next(one for one in catalogue.plans(10) if one.name == "separate_lr")
    assert one.options.items() >= {"last_blocks": 5, "last_scale": 0.6, "deep_scale": 0.4, "decay": True}.items()
    assert one.line.startswith("Separate learning rates by depth: ") and one.line.endswith("slowest.")
    assert (one.plan, one.initialisation) == ("separate_lr", "pretrained")
    assert one.paper == "Howard and Ruder 2018, arXiv 1801.06146"


def test_a_plans_paper_is_its_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.strategies.same_lr.PAPER", "Doe 2020, arXiv 2000.00000", raising=False)
    assert catalogue.described(_params({}), "same_lr", "cifar10", 10).paper == "Doe 2020, arXiv 2000.00000"


def test_the_head_is_of_the_classes_that_are_asked_for() -> None:
    one = catalogue.described(_params({}), "same_lr", "cifar10", 7)
    assert sum(row["numel"] for row in one.audit if row["kind"] == "parameter") == BACKBONE + 7 * 1281


def test_a_variant_has_its_own_options_over_the_defaults() -> None:
    params = _params({"slow": {"plan": "separate_lr", "deep_scale": 0.1}})
    one = catalogue.described(params, "slow", "cifar10", 10)
    assert (one.plan, one.options["deep_scale"], one.options["last_scale"]) == ("separate_lr", 0.1, 0.6)
    assert {row["lr"] for row in one.audit if row["group"] == "deep" and row["kind"] == "parameter"} == {1e-4}


def test_a_plan_that_params_lack_is_told_as_it_comes() -> None:
    one = catalogue.described(_params({}), "separate_lr", "cifar10", 10)
    assert (one.plan, one.options["last_blocks"], one.recipe.epochs) == ("separate_lr", 5, 4)


def test_the_recipe_is_the_data_sets() -> None:
    params = _params({})
    params.datasets["cub200"].training["lr"] = 0.5
    assert catalogue.described(params, "same_lr", "cub200", 10).recipe.lr == 0.5


def test_variants_are_told_in_the_order_of_params() -> None:
    params = _params({"b": {"plan": "same_lr"}, "a": {"plan": "from_scratch"}})
    assert [one.name for one in catalogue.variants(params, "cifar10", 10)] == ["same_lr", "b", "a"]


def test_what_the_recipe_changes_of_a_plan_is_told() -> None:
    one = catalogue.described(_params({}, freeze_epochs=1), "same_lr", "cifar10", 10)
    assert one.phases == [
        {"epochs": [1, 1], "groups": ["head_first", "waiting"], "adds": []},
        {"epochs": [2, 4], "groups": ["all"], "adds": []},
    ]


@pytest.mark.parametrize("what", ["penalty", "scales", "solve"])
def test_what_a_phase_adds_is_named(what: str) -> None:
    def anything(*_: Any) -> Any: ...

    given: dict[str, Callable[..., Any]] = {what: anything}
    phase = Phase((Group("all", ("a",)),), **given)  # type: ignore[arg-type]
    assert catalogue.phases(Plan("pretrained", (phase,)), 3) == [{"epochs": [1, 3], "groups": ["all"], "adds": [what]}]


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        InputError, match=r"'sam_lr' is neither a variant in params.yaml nor a plan; did you mean 'same"
    ):
        catalogue.described(_params({}), "sam_lr", "cifar10", 10)


def test_an_option_that_the_plan_lacks_is_refused() -> None:
    with pytest.raises(InputError, match=r"strategies\.slow: plan same_lr has no option 'decay'"):
        catalogue.described(_params({"slow": {"plan": "same_lr", "decay": False}}), "slow", "cifar10", 10)


def test_what_a_plan_refuses_of_its_options_names_the_variant() -> None:
    params = _params({"near": {"plan": "l2_sp"}, "away": {"plan": "l2_sp", "alpha": -1.0}})
    assert catalogue.described(params, "near", "cifar10", 10).plan == "l2_sp"
    with pytest.raises(InputError, match=r"^params\.yaml: strategies\.away: l2_sp: alpha: found -1"):
        catalogue.described(params, "away", "cifar10", 10)


def test_a_recipe_that_does_not_go_together_is_refused() -> None:
    params = _params({"late": {"plan": "same_lr", "training": {"freeze_epochs": 3}}})
    params.datasets["cub200"].training["epochs"] = 2
    with pytest.raises(InputError, match=r"training\[?.*cub200.*freeze_epochs is 3 but epochs is 2"):
        catalogue.described(params, "late", "cub200", 10)


@pytest.mark.parametrize("plan", strategies.names())
def test_every_plan_names_its_paper_and_has_a_formula(plan: str) -> None:
    module = importlib.import_module(f"finetune.strategies.{plan}")
    told, venue = module.__doc__ or "", module.PAPER.rpartition(" ")[2]
    assert re.fullmatch(r"[A-Z].* \d{4}, (arXiv \d{4}\.\d{5}|arXiv \d{4}\.\d{4}|NeurIPS)", module.PAPER)
    assert venue in " ".join(told.split())
    assert re.search(r"^    \S", told, re.MULTILINE)


def test_the_options_leave_out_what_the_plan_refuses_beside_those_given() -> None:
    params = _params(
        {
            "auto": {"plan": "surgical", "auto": True},
            "tiers": {"plan": "separate_lr", "tiers": [[5, 0.5]]},
            "some": {"plan": "separate_lr", "deep_scale": 0.1},
        }
    )
    told = {name: catalogue.described(params, name, "cifar10", 10).options for name in ("auto", "tiers", "some")}
    assert told["auto"] == {"auto": True, "batches": 4}
    assert told["tiers"] == {"decay": True, "tiers": [[5, 0.5]]}
    assert told["some"] == {"last_blocks": 5, "last_scale": 0.6, "deep_scale": 0.1, "decay": True}


@pytest.mark.parametrize(
    ("entry", "rates"),
    [
        ({"plan": "surgical", "auto": True}, {"head": 1e-3, "features.0": "measured", "features.18": "measured"}),
        (
            {"plan": "last_layer", "solver": "lbfgs", "training": {"epochs": 1, "augmentation": {"name": "none"}}},
            {"head": "solved", "backbone": 0.0},
        ),
    ],
)
def test_a_rate_that_is_not_known_beforehand_is_a_word(entry: dict[str, Any], rates: dict[str, Any]) -> None:
    rows = catalogue.described(_params({"one": entry}), "one", "cifar10", 10).audit
    found = {row["group"]: row["lr"] for row in rows if row["kind"] == "parameter"}
    assert {group: found[group] for group in rates} == rates
