"""The contract of every plan, the four strategies of the study by hand, and what the audit refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import MobileNetV2

from finetune import params, strategies
from finetune.errors import InputError
from finetune.model import BLOCKS, block_of, build
from finetune.strategies import build_plan, check_options
from finetune.strategies.plan import Group, Phase, Plan, audit, feature_blocks, tensors_of, trainable

LR, DECAY = 1e-3, 1e-4
Variant = tuple[str, dict[str, Any]]  # plan, options
STUDY: dict[str, Variant] = {  # the seed report's four
    "same_lr": ("same_lr", {}),
    "separate_lr": ("separate_lr", {}),
    "separate_lr_as_published": ("separate_lr", {"last_blocks": 0, "deep_scale": 0.4, "decay": False}),
    "from_scratch": ("from_scratch", {}),
}
_OWN = params.load(Path(__file__).parents[1] / "params.yaml")
# Whatever there is keeps the contract: each plan as it comes, and each variant in params.yaml. What adds modules to the
# network needs one of its own: test_strategy_contract.py has it.
VARIANTS: dict[str, Variant] = {
    name: (name, {}) for name in strategies.names() if not hasattr(strategies._module(name), "adapt")
} | STUDY
VARIANTS |= {name: (_OWN.plan_for(name), variant.options) for name, variant in _OWN.strategies.items()}
LAST_FIVE = ("features.14", "features.15", "features.16", "features.17", "features.18")


@pytest.fixture(scope="module")
def model() -> MobileNetV2:
    return build(10, seed=0)


@pytest.fixture(params=VARIANTS)
def plan(request: pytest.FixtureRequest, model: MobileNetV2) -> Plan:
    name, options = VARIANTS[request.param]
    return build_plan(model, name, options)


def audited(model: MobileNetV2, plan: Plan) -> list[dict[str, Any]]:
    return audit(model, plan, LR, DECAY)


def of_groups(*groups: Group) -> Plan:
    return Plan("pretrained", (Phase(groups),))


def per_block(model: MobileNetV2, variant: str, column: str) -> dict[str, set[Any]]:
    """Block -> what its parameters have in `column` of the audit."""
    name, options = STUDY[variant]
    found: dict[str, set[Any]] = {block: set() for block in BLOCKS}
    for row in audited(model, build_plan(model, name, options)):
        if row["kind"] == "parameter":
            found[row["block"]].add(row[column])
    return found


# The contract of every plan


def test_every_parameter_is_in_exactly_one_group(plan: Plan, model: MobileNetV2) -> None:
    for phase in plan.phases:
        listed = [name for group in phase.groups for name in group.tensors]
        assert sorted(listed) == sorted(name for name, _ in model.named_parameters())


def test_no_group_is_empty(plan: Plan) -> None:
    assert all(group.tensors for phase in plan.phases for group in phase.groups)


def test_every_parameter_and_buffer_has_one_row_per_phase_in_the_audit(plan: Plan, model: MobileNetV2) -> None:
    rows = [(row["phase"], row["kind"], row["tensor"]) for row in audited(model, plan)]
    expected = [("parameter", name) for name, _ in model.named_parameters()]
    expected += [("buffer", name) for name, _ in model.named_buffers()]
    assert sorted(rows) == sorted((phase, *tensor) for phase in range(len(plan.phases)) for tensor in expected)


def test_the_audit_has_the_columns_of_the_run_folder(plan: Plan, model: MobileNetV2) -> None:
    columns = ["phase", "tensor", "kind", "numel", "block", "group", "lr", "weight_decay", "frozen", "batchnorm"]
    assert all(list(row) == columns for row in audited(model, plan))


def test_what_is_not_frozen_has_a_learning_rate(plan: Plan, model: MobileNetV2) -> None:
    for row in audited(model, plan):
        if row["kind"] == "parameter":
            assert (row["lr"] > 0) == (not row["frozen"])


def test_the_shares_of_the_phases_add_up_to_one(plan: Plan) -> None:
    assert sum(phase.share for phase in plan.phases) == pytest.approx(1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_plan_needs_no_weights_to_be_worked_out(model: MobileNetV2, variant: str) -> None:
    with torch.device("meta"):
        shape_only = build(10, seed=0)
    here, there = build_plan(model, *VARIANTS[variant]), build_plan(shape_only, *VARIANTS[variant])
    assert [phase.groups for phase in there.phases] == [phase.groups for phase in here.phases]


def test_sizes_in_the_audit_add_up_to_the_network(plan: Plan, model: MobileNetV2) -> None:
    sizes = [row["numel"] for row in audited(model, plan) if row["kind"] == "parameter" and row["phase"] == 0]
    # MobileNetV2 1.0 has 2,223,872 parameters below the head; the head 1280 x 10 + 10.
    assert sum(sizes) == 2_223_872 + 12_810


# The study's four strategies


@pytest.mark.parametrize("variant", ["same_lr", "from_scratch"])
def test_one_rate_and_decay_for_everything(model: MobileNetV2, variant: str) -> None:
    assert per_block(model, variant, "lr") == {block: {LR} for block in BLOCKS}
    assert per_block(model, variant, "weight_decay") == {block: {DECAY} for block in BLOCKS}


def test_separate_rates_are_1_06_and_04_with_the_same_decay(model: MobileNetV2) -> None:
    expected = {block: {0.4 * LR} for block in BLOCKS} | {block: {0.6 * LR} for block in LAST_FIVE}
    assert per_block(model, "separate_lr", "lr") == expected | {"classifier": {LR}}
    assert per_block(model, "separate_lr", "weight_decay") == {block: {DECAY} for block in BLOCKS}


def test_as_published_the_backbone_runs_at_04_and_nothing_decays(model: MobileNetV2) -> None:
    expected = {block: {0.4 * LR} for block in BLOCKS} | {"classifier": {LR}}
    assert per_block(model, "separate_lr_as_published", "lr") == expected
    assert per_block(model, "separate_lr_as_published", "weight_decay") == {block: {0.0} for block in BLOCKS}


def test_the_last_five_blocks_hold_756_per_mille_of_the_backbone(model: MobileNetV2) -> None:
    (phase,) = build_plan(model, "separate_lr", {}).phases
    parameters = dict(model.named_parameters())
    size = {group.name: sum(parameters[name].numel() for name in group.tensors) for group in phase.groups}
    assert set(size) == {"head", "last", "deep"}
    assert size["last"] == sum(p.numel() for p in model.features[-5:].parameters())
    assert size["last"] / (size["last"] + size["deep"]) == pytest.approx(0.756, abs=5e-4)


@pytest.mark.parametrize("variant", STUDY)
def test_only_from_scratch_starts_from_random_weights(model: MobileNetV2, variant: str) -> None:
    name, options = STUDY[variant]
    expected = "random" if variant == "from_scratch" else "pretrained"
    assert build_plan(model, name, options).initialisation == expected


@pytest.mark.parametrize("variant", STUDY)
def test_all_four_train_every_parameter_and_update_every_statistic(model: MobileNetV2, variant: str) -> None:
    name, options = STUDY[variant]
    for row in audited(model, build_plan(model, name, options)):
        assert row["frozen"] is False
        assert row["batchnorm"] == "train"


def test_without_last_blocks_the_tier_is_left_out(model: MobileNetV2) -> None:
    (phase,) = build_plan(model, "separate_lr", {"last_blocks": 0}).phases
    assert [group.name for group in phase.groups] == ["head", "deep"]


def test_as_published_may_also_be_written_with_a_last_tier_at_04(model: MobileNetV2) -> None:
    one, other = (
        audited(model, build_plan(model, "separate_lr", options))
        for options in (STUDY["separate_lr_as_published"][1], {"last_scale": 0.4, "decay": False})
    )
    assert [(row["tensor"], row["lr"], row["weight_decay"]) for row in one] == [
        (row["tensor"], row["lr"], row["weight_decay"]) for row in other
    ]


def test_other_tiers_may_be_asked_for(model: MobileNetV2) -> None:
    options = {"last_blocks": 1, "last_scale": 0.5, "deep_scale": 0.1}
    (phase,) = build_plan(model, "separate_lr", options).phases
    head, last, deep = phase.groups
    assert {block_of(name) for name in last.tensors} == {"features.18"}
    assert (head.lr_scale, last.lr_scale, deep.lr_scale) == (1.0, 0.5, 0.1)


@pytest.mark.parametrize(
    "options", [{"last_blocks": -1}, {"last_blocks": 19}, {"last_scale": 0.0}, {"deep_scale": -1.0}]
)
def test_tiers_that_cannot_be_are_refused_naming_the_option(model: MobileNetV2, options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(InputError, match=f"separate_lr: {name}: found {value}"):
        build_plan(model, "separate_lr", options)


# The seed report's own code


def seed_groups(model: MobileNetV2) -> Plan:
    """The groups of the seed report's "different lr", line by line as it was published; only the ids become names."""
    classifier_map = list(map(id, model.classifier.parameters()))
    low_map = list(map(id, model.features[-5:]))
    classifier_params = filter(lambda p: id(p) in classifier_map, model.parameters())
    low_params = filter(lambda p: id(p) in low_map, model.parameters())
    deep_params = filter(lambda p: id(p) not in low_map + classifier_map, model.parameters())

    name_of = {id(parameter): name for name, parameter in model.named_parameters()}

    def names(parameters: Any) -> tuple[str, ...]:
        return tuple(name_of[id(parameter)] for parameter in parameters)

    return of_groups(
        Group("classifier", names(classifier_params), 1.0, decay=False),
        Group("low", names(low_params), 0.6, decay=False),
        Group("deep", names(deep_params), 0.4, decay=False),
    )


def test_the_seeds_empty_group_is_caught(model: MobileNetV2) -> None:
    with pytest.raises(InputError, match="group 'low' is empty"):
        audited(model, seed_groups(model))


def test_without_its_empty_group_the_seeds_code_is_the_variant_as_published(model: MobileNetV2) -> None:
    (phase,) = seed_groups(model).phases
    theirs = audited(model, of_groups(*(group for group in phase.groups if group.tensors)))
    name, options = STUDY["separate_lr_as_published"]
    ours = audited(model, build_plan(model, name, options))
    for key in ("tensor", "lr", "weight_decay", "frozen"):
        assert [row[key] for row in theirs] == [row[key] for row in ours]


# What the audit refuses

Groups = Callable[[MobileNetV2], Plan]


def head(model: MobileNetV2, **options: Any) -> Group:
    return Group("head", tensors_of(model, ["classifier"]), **options)


def body(model: MobileNetV2, **options: Any) -> Group:
    return Group("body", tensors_of(model, feature_blocks()), **options)


def test_a_parameter_in_no_group_is_refused_naming_it(model: MobileNetV2) -> None:
    whole = body(model)
    less = Group("body", tuple(name for name in whole.tensors if name != "features.9.conv.2.weight"))
    with pytest.raises(InputError, match=r"1 of 158 parameters are in no group, the first is features\.9\.conv\.2"):
        audited(model, of_groups(head(model), less))


def test_a_parameter_in_two_groups_is_refused_naming_all_three(model: MobileNetV2) -> None:
    extra = Group("extra", ("features.9.conv.2.weight",))
    with pytest.raises(InputError, match=r"features\.9\.conv\.2\.weight is in the groups 'body' and 'extra'"):
        audited(model, of_groups(head(model), body(model), extra))


def test_a_parameter_twice_in_one_group_is_refused(model: MobileNetV2) -> None:
    twice = Group("head", (*head(model).tensors, "classifier.1.bias"))
    with pytest.raises(InputError, match=r"classifier\.1\.bias is in the groups 'head' and 'head'"):
        audited(model, of_groups(twice, body(model)))


@pytest.mark.parametrize(
    ("name", "near"),
    [("features.9.conv.2.wieght", "features.9.conv.2.weight"), ("features.0.1.running_mean", "features.0.1.")],
)
def test_a_name_that_is_no_parameter_is_refused_naming_the_nearest(model: MobileNetV2, name: str, near: str) -> None:
    with pytest.raises(
        InputError, match=f"group 'extra' names '{name}', which is no parameter of the model; did you mean '{near}"
    ):
        audited(model, of_groups(head(model), body(model), Group("extra", (name,))))


def test_two_groups_of_one_name_are_refused(model: MobileNetV2) -> None:
    # Rates, curves and the audit go by the name: one of the two would be lost.
    first, second = Group("all", head(model).tensors), Group("all", body(model).tensors)
    with pytest.raises(InputError, match="all"):
        audited(model, of_groups(first, second))


@pytest.mark.parametrize("scale", [0.0, -0.5])
def test_a_group_at_no_rate_is_refused_unless_it_is_frozen(model: MobileNetV2, scale: float) -> None:
    with pytest.raises(InputError, match="body"):
        audited(model, of_groups(head(model), body(model, lr_scale=scale)))


def test_a_phase_in_which_nothing_is_trained_is_refused(model: MobileNetV2) -> None:
    with pytest.raises(InputError, match="plan: "):
        audited(model, of_groups(head(model, frozen=True), body(model, frozen=True, batchnorm="eval")))


@pytest.mark.parametrize("shares", [(0.5,), (0.5, 0.6), (0.3, 0.3)])
def test_shares_that_do_not_add_up_are_refused(model: MobileNetV2, shares: tuple[float, ...]) -> None:
    phases = tuple(Phase((head(model), body(model)), share) for share in shares)
    with pytest.raises(InputError, match="shares"):
        audited(model, Plan("pretrained", phases))


def test_a_fault_in_the_second_phase_is_found(model: MobileNetV2) -> None:
    phases = (Phase((head(model), body(model)), 0.5), Phase((head(model),), 0.5))
    with pytest.raises(InputError, match="156 of 158 parameters are in no group"):
        audited(model, Plan("pretrained", phases))


def test_a_plan_without_phases_is_refused(model: MobileNetV2) -> None:
    with pytest.raises(InputError, match="shares"):
        audited(model, Plan("pretrained", ()))


# Frozen groups and BatchNorm


def test_a_frozen_group_that_would_update_statistics_is_refused(model: MobileNetV2) -> None:
    with pytest.raises(InputError, match=r"BatchNorm layer features\.0\.1 .*frozen group 'body'.*batchnorm to eval"):
        audited(model, of_groups(head(model), body(model, frozen=True, batchnorm="train")))


def test_a_batchnorm_layer_under_two_policies_is_refused(model: MobileNetV2) -> None:
    rest = tuple(name for name in body(model).tensors if name != "features.0.1.bias")
    odd = Group("odd", ("features.0.1.bias",), batchnorm="eval")
    with pytest.raises(InputError, match=r"BatchNorm layer features\.0\.1 is under two policies, \['eval', 'train'\]"):
        audited(model, of_groups(head(model), Group("body", rest), odd))


def test_a_frozen_group_is_frozen_in_every_row_of_the_audit(model: MobileNetV2) -> None:
    rows = audited(model, of_groups(head(model), body(model, frozen=True, batchnorm="eval")))
    for row in rows:
        frozen = row["group"] == "body"
        assert row["frozen"] is frozen
        assert (row["lr"], row["weight_decay"]) == ((0.0, 0.0) if frozen else (LR, DECAY))


def test_under_eval_weights_move_but_batchnorm_stays(model: MobileNetV2) -> None:
    rows = audited(model, of_groups(head(model), body(model, batchnorm="eval")))
    frozen = {row["tensor"]: row["frozen"] for row in rows}
    assert frozen["features.0.0.weight"] is False
    assert frozen["features.0.1.weight"] is frozen["features.0.1.bias"] is True
    assert frozen["features.0.1.running_mean"] is True


def test_under_affine_only_batchnorms_weight_and_bias_move_and_its_statistics_stay(model: MobileNetV2) -> None:
    rows = audited(model, of_groups(head(model), body(model, batchnorm="affine_only")))
    frozen = {row["tensor"]: row["frozen"] for row in rows}
    assert frozen["features.0.1.weight"] is frozen["features.0.1.bias"] is False
    assert frozen["features.0.1.running_mean"] is frozen["features.0.1.num_batches_tracked"] is True


def test_trainable_lists_what_moves(model: MobileNetV2) -> None:
    groups = (head(model), body(model, frozen=True, batchnorm="eval"))
    assert trainable(model, groups) == {"head": ["classifier.1.weight", "classifier.1.bias"], "body": []}


# Options


@pytest.mark.parametrize("options", [{}, {"last_scale": 0.5}, {"last_scale": 1}, {"last_blocks": 3}, {"decay": False}])
def test_options_of_the_plan_are_taken(options: dict[str, Any]) -> None:
    check_options("mine", "separate_lr", options)


def test_an_unknown_option_is_refused_with_the_nearest(model: MobileNetV2) -> None:
    with pytest.raises(
        InputError, match=r"strategies\.mine: plan separate_lr has no option 'last_scal'; did you mean 'la"
    ):
        check_options("mine", "separate_lr", {"last_scal": 0.5})


def test_an_option_of_a_plan_that_has_none_is_refused() -> None:
    with pytest.raises(InputError, match=r"strategies\.same_lr: plan same_lr has no option 'decay'; it has none"):
        check_options("same_lr", "same_lr", {"decay": False})


@pytest.mark.parametrize(
    ("name", "value", "kind", "expected"),
    [
        ("last_scale", "fast", "str", "float"),
        ("last_scale", True, "bool", "float"),
        ("last_scale", None, "NoneType", "float"),
        ("last_blocks", 2.5, "float", "int"),
        ("last_blocks", True, "bool", "int"),
        ("decay", "no", "str", "bool"),
        ("decay", 0, "int", "bool"),
    ],
)
def test_an_option_of_the_wrong_type_is_refused(name: str, value: Any, kind: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        check_options("mine", "separate_lr", {name: value})
    assert str(caught.value) == (f"params.yaml: strategies.mine.{name}: found {value!r} ({kind}), expected {expected}")


def test_the_model_is_no_option() -> None:
    with pytest.raises(InputError, match="no option 'model'"):
        check_options("mine", "same_lr", {"model": "x"})


def test_an_unknown_plan_is_refused_with_all() -> None:
    with pytest.raises(InputError, match=r"strategies\.mine: there is no plan 'separate'; .*separate_lr"):
        check_options("mine", "separate", {})
