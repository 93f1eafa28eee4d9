"""What the recipe changes about any plan, and the combinations that are refused with their reason."""

from typing import Any

import pytest
from torchvision.models import MobileNetV2

from finetune.errors import InputError
from finetune.model import build
from finetune.recipe import TrainingParams
from finetune.strategies import build_model, build_plan
from finetune.strategies.adjustments import adjusted
from finetune.strategies.plan import Group, Phase, Plan, audit, batchnorm_layers, feature_blocks, tensors_of
from finetune.training import epochs_of


@pytest.fixture(scope="module")
def model() -> MobileNetV2:
    return build(3, 0)


def recipe(**values: Any) -> TrainingParams:
    return TrainingParams.model_validate({"epochs": 4, **values})


def probe(model: MobileNetV2, **head: Any) -> Plan:
    body = Group("body", tensors_of(model, feature_blocks()), frozen=True, batchnorm="eval")
    return Plan("pretrained", (Phase((Group("head", tensors_of(model, ["classifier"])), body), **head),))


def two_phases(model: MobileNetV2) -> Plan:
    everything = Phase((Group("all", tensors_of(model, [*feature_blocks(), "classifier"])),), 0.5)
    return Plan("pretrained", (Phase(probe(model).phases[0].groups, 0.5), everything))


def norms(model: MobileNetV2) -> Plan:
    """BatchNorm's weights and biases, and the head."""
    norm = tuple(f"{layer}.{part}" for layer in batchnorm_layers(model) for part in ("weight", "bias"))
    rest = tuple(name for name in tensors_of(model, feature_blocks()) if name not in norm)
    groups = (
        Group("head", tensors_of(model, ["classifier"])),
        Group("norm", norm),
        Group("rest", rest, frozen=True, batchnorm="eval"),
    )
    return Plan("pretrained", (Phase(groups),))


def test_a_recipe_without_options_changes_nothing(model: MobileNetV2) -> None:
    plan = two_phases(model)
    assert adjusted(model, plan, recipe()) == plan


@pytest.mark.parametrize("policy", ["train", "eval", "affine_only"])
def test_bn_is_the_policy_of_every_group_that_is_trained(model: MobileNetV2, policy: str) -> None:
    first, second = adjusted(model, two_phases(model), recipe(bn=policy)).phases
    assert [(group.name, group.batchnorm) for group in first.groups] == [("head", policy), ("body", "eval")]
    assert [(group.name, group.batchnorm) for group in second.groups] == [("all", policy)]


def test_bn_eval_leaves_batchnorms_weights_untrained(model: MobileNetV2) -> None:
    rows = audit(model, adjusted(model, build_plan(model, "same_lr", {}), recipe(bn="eval")), 1e-3, 0.0)
    frozen = {row["tensor"] for row in rows if row["frozen"] and row["kind"] == "parameter"}
    assert frozen == {f"{layer}.{part}" for layer in batchnorm_layers(model) for part in ("weight", "bias")}


def test_frozen_epochs_come_first_and_the_plan_has_the_rest(model: MobileNetV2) -> None:
    plan = adjusted(model, two_phases(model), recipe(epochs=10, freeze_epochs=2))
    assert [(first, end) for _, first, end in epochs_of(plan, 10)] == [(0, 2), (2, 6), (6, 10)]
    assert [(group.name, group.frozen, group.batchnorm) for group in plan.phases[0].groups] == [
        ("head_first", False, "train"),
        ("waiting", True, "eval"),
    ]
    audit(model, plan, 1e-3, 0.0)  # coverage is total


def test_in_the_first_epochs_the_head_has_the_rate_that_the_plan_gives_it(model: MobileNetV2) -> None:
    plan = build_plan(model, "separate_lr", {"decay": False})
    head = adjusted(model, plan, recipe(freeze_epochs=1)).phases[0].groups[0]
    assert (head.lr_scale, head.decay) == (1.0, False)
    assert head.tensors == tensors_of(model, ["classifier"])


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"bn": "eval"},
            r"^mine: bn: eval uses the pretrained running statistics, and this strategy starts ",
        ),
        (
            {"freeze_epochs": 2},
            r"^mine: freeze_epochs: 2 would train a head on random features.* use freeze_epochs: 0",
        ),
    ],
)
def test_random_weights_have_nothing_to_keep(model: MobileNetV2, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        adjusted(model, build_plan(model, "from_scratch", {}), recipe(**values), "mine")


def test_bn_train_from_random_weights_is_what_it_is_anyway(model: MobileNetV2) -> None:
    plan = build_plan(model, "from_scratch", {})
    assert adjusted(model, plan, recipe(bn="train")) == plan


def test_bn_eval_where_batchnorm_is_all_that_a_group_trains(model: MobileNetV2) -> None:
    with pytest.raises(InputError, match=r"bn: eval leaves the strategy's group 'norm' nothing .* use bn: affine_only"):
        adjusted(model, norms(model), recipe(bn="eval"))


@pytest.mark.parametrize(("plan", "options"), [("bias_only", {}), ("lite_residual", {"bias": True})])
def test_bn_train_where_a_layers_weight_is_frozen_and_its_bias_is_not(plan: str, options: dict[str, Any]) -> None:
    network = build_model(3, 0, plan, options)
    rows = audit(network, adjusted(network, build_plan(network, plan, options), recipe(bn="train")), 1e-3, 0.0)
    layers = batchnorm_layers(network)
    own = [row for row in rows if row["tensor"].rpartition(".")[0] in layers]
    moving = {row["tensor"].rpartition(".")[2] for row in own if not row["frozen"]}
    assert moving == {"bias", "running_mean", "running_var", "num_batches_tracked"}
    assert {row["batchnorm"] for row in own} == {"train"}


def test_bn_train_where_some_layers_have_their_biases_trained(model: MobileNetV2) -> None:
    """Frozen layers stay as they are, though they are in one group with halves of those that are not."""
    head, trained = tensors_of(model, ["classifier"]), "features.18.1"
    rest = tuple(name for name in tensors_of(model, feature_blocks()) if name != f"{trained}.bias")
    groups = (
        Group("head", head),
        Group("bias", (f"{trained}.bias",)),
        Group("rest", rest, frozen=True, batchnorm="eval"),
    )
    rows = audit(model, adjusted(model, Plan("pretrained", (Phase(groups),)), recipe(bn="train")), 1e-3, 0.0)
    layers = batchnorm_layers(model)
    policies = {row["tensor"].rpartition(".")[0]: row["batchnorm"] for row in rows}
    assert {layer for layer in layers if policies[layer] == "train"} == {trained}
    moving = {row["tensor"] for row in rows if not row["frozen"]} - set(head)
    assert moving == {f"{trained}.{part}" for part in ("bias", "running_mean", "running_var", "num_batches_tracked")}


@pytest.mark.parametrize("plan", ["l2_sp", "delta"])
def test_a_head_that_a_penalty_decays_has_weight_decay_in_the_first_epochs(model: MobileNetV2, plan: str) -> None:
    first, second = adjusted(model, build_plan(model, plan, {}), recipe(freeze_epochs=1)).phases
    assert first.groups[0].decay
    assert not second.groups[0].decay


def test_fewer_epochs_than_phases_with_the_one_that_is_added(model: MobileNetV2) -> None:
    sentence = r"leaves none for phase 3 of the strategy's 3, the first of which freeze_epochs: 3 adds; .* set freeze_e"
    with pytest.raises(InputError, match=sentence):
        adjusted(model, two_phases(model), recipe(epochs=4, freeze_epochs=3))


def test_fewer_epochs_than_phases(model: MobileNetV2) -> None:
    sentence = r"epochs: 1 leaves none for phase 1 of the strategy's 2; give the run more epochs, or the strategy fewer"
    with pytest.raises(InputError, match=sentence):
        adjusted(model, two_phases(model), recipe(epochs=1))


def test_a_compiled_network_hides_what_a_penalty_looks_at(model: MobileNetV2) -> None:
    plan = probe(model, penalty=lambda network: None)
    with pytest.raises(InputError, match=r"compile: default: this strategy has a penalty.* use compile: none"):
        adjusted(model, plan, recipe(compile="default"))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"epochs": 4}, r"epochs: 4: this strategy solves the head at once, .*; give its training epochs 1"),
        ({"augmentation": {"name": "pad_crop"}}, r"augmentation: pad_crop: .*; give its training augmentation none"),
        ({"mixup": 0.2}, r"mixup: 0.2: .*; give its training mixup 0"),
        ({"cutmix": 0.2}, r"cutmix: 0.2: .*; give its training cutmix 0"),
        ({"label_smoothing": 0.1}, r"label_smoothing: 0.1: .*; give its training label_smoothing 0"),
        ({"ema": 0.5}, r"ema: 0.5: .*; give its training ema 0"),
        ({"weight_decay": 0.0}, r"weight_decay: 0: this strategy solves the head exactly.*; give its training one"),
    ],
)
def test_an_exact_solve_takes_the_images_as_they_are(model: MobileNetV2, values: dict[str, Any], sentence: str) -> None:
    plan = probe(model, solve=lambda features, labels, decay: (features, labels))
    alone = {"epochs": 1, "augmentation": {"name": "none"}}
    adjusted(model, plan, recipe(**alone))
    with pytest.raises(InputError, match=sentence):
        adjusted(model, plan, recipe(**{**alone, **values}))


@pytest.mark.parametrize("plan", ["last_layer", "lite_residual"])
@pytest.mark.parametrize("bn", ["train", "affine_only"])
def test_bn_where_no_batchnorm_layer_is_trained(plan: str, bn: str) -> None:
    network = build_model(3, 0, plan, {})
    made = build_plan(network, plan, {})
    with pytest.raises(InputError, match=rf"^mine: bn: {bn} is for .* this strategy trains none.*; leave bn out"):
        adjusted(network, made, recipe(bn=bn), "mine")
    assert adjusted(network, made, recipe(bn="eval"))  # which is how it is


@pytest.mark.parametrize(
    ("plan", "bn", "other"),
    [
        ("norm_and_bias", "affine_only", "norm_only"),
        ("norm_and_bias", "eval", "last_layer"),
        ("norm_only", "train", "norm_and_bias"),
    ],
)
def test_a_policy_that_makes_the_plan_another_one(model: MobileNetV2, plan: str, bn: str, other: str) -> None:
    made = build_plan(model, plan, {})
    with pytest.raises(InputError, match=rf"^mine: bn: {bn} would (leave|make) .*{other}; take plan: {other}$"):
        adjusted(model, made, recipe(bn=bn), "mine")
