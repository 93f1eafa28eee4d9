"""Plans that are groups and phases alone: which block is in which group, at which scale, worked out by hand."""

from typing import Any

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchvision.models import MobileNetV2

from finetune.errors import InputError
from finetune.model import BLOCKS, block_of, build
from finetune.step import set_modes
from finetune.strategies import build_plan
from finetune.strategies.last_layer import logistic_regression
from finetune.strategies.plan import Phase, audit, batchnorm_layers
from finetune.strategies.surgical import relative_gradient_norms


@pytest.fixture(scope="module")
def model() -> MobileNetV2:
    return build(10, 0)


def trained_blocks(model: MobileNetV2, phase: Phase) -> set[str]:
    return {block_of(name) for group in phase.groups if not group.frozen for name in group.tensors}


def trained_parameters(model: MobileNetV2, plan: str, **options: Any) -> int:
    rows = audit(model, build_plan(model, plan, options), 1.0, 0.0)
    return sum(row["numel"] for row in rows if row["kind"] == "parameter" and not row["frozen"])


def refusal(model: MobileNetV2, plan: str, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        build_plan(model, plan, options)
    return str(caught.value)


HEAD = 1280 * 10 + 10
NORMS = 2 * 17_056  # MobileNetV2's BatchNorm layers have 17,056 channels in all


def test_how_many_parameters_each_trains(model: MobileNetV2) -> None:
    assert trained_parameters(model, "last_layer") == HEAD
    assert trained_parameters(model, "bias_only") == HEAD + NORMS // 2
    assert trained_parameters(model, "norm_only") == HEAD + NORMS
    assert trained_parameters(model, "norm_and_bias") == HEAD + NORMS
    # features.18 is 320 x 1280 and its norm; features.17: 160 -> 960 -> 960 (3 x 3) -> 320, and three norms
    eighteen, seventeen = 320 * 1280 + 2 * 1280, 160 * 960 + 960 * 9 + 960 * 320 + 2 * (960 + 960 + 320)
    assert trained_parameters(model, "last_blocks", blocks=2) == HEAD + eighteen + seventeen


@pytest.mark.parametrize(("plan", "batch"), [("bias_only", False), ("norm_only", False), ("norm_and_bias", True)])
def test_which_statistics_norms_use(model: MobileNetV2, plan: str, batch: bool) -> None:
    set_modes(model, build_plan(model, plan, {}).phases[0])
    assert {layer.training for layer in batchnorm_layers(model).values()} == {batch}


def test_the_last_blocks_are_those_next_to_the_head(model: MobileNetV2) -> None:
    (phase,) = build_plan(model, "last_blocks", {"blocks": 3}).phases
    assert trained_blocks(model, phase) == {"features.16", "features.17", "features.18", "classifier"}
    assert "found 0, expected 1 to 18; for the head alone take last_layer" in refusal(model, "last_blocks", blocks=0)
    assert "found 19, expected 1 to 18" in refusal(model, "last_blocks", blocks=19)


def test_layer_decay_is_geometric_from_the_head_down(model: MobileNetV2) -> None:
    (phase,) = build_plan(model, "layer_decay", {"decay": 0.5}).phases
    scales = {group.name: group.lr_scale for group in phase.groups}
    assert scales["classifier"] == 1
    assert scales["features.18"] == 0.5
    assert scales["features.17"] == 0.25
    assert scales["features.0"] == 0.5**19
    assert len(scales) == 20
    assert "decay: found 0, expected a number above 0, and 1 at most" in refusal(model, "layer_decay", decay=0)


def test_unfreezing_begins_with_the_head_and_ends_with_everything(model: MobileNetV2) -> None:
    phases = build_plan(model, "gradual_unfreeze", {"stages": 3}).phases
    assert [phase.share for phase in phases] == pytest.approx([1 / 3] * 3)
    assert trained_blocks(model, phases[0]) == {"classifier"}
    assert trained_blocks(model, phases[1]) == {*(f"features.{i}" for i in range(9, 19)), "classifier"}
    assert trained_blocks(model, phases[2]) == set(BLOCKS)
    assert "stages: found 1, expected 2 to 20" in refusal(model, "gradual_unfreeze", stages=1)


def test_with_twenty_stages_each_unfreezes_one_block_more(model: MobileNetV2) -> None:
    phases = build_plan(model, "gradual_unfreeze", {"stages": 20}).phases
    assert [len(trained_blocks(model, phase)) for phase in phases] == list(range(1, 21))


def test_a_probe_comes_before_full_fine_tuning(model: MobileNetV2) -> None:
    probe, tune = build_plan(model, "lp_ft", {"probe_share": 0.25, "tune_scale": 0.1}).phases
    assert (probe.share, tune.share) == (0.25, 0.75)
    assert trained_blocks(model, probe) == {"classifier"}
    assert trained_blocks(model, tune) == set(BLOCKS)
    assert [group.lr_scale for group in tune.groups] == [0.1]
    assert "probe_share: found 1.0, expected a number between 0 and 1" in refusal(model, "lp_ft", probe_share=1.0)
    assert "tune_scale: found 0.0, expected a number above 0" in refusal(model, "lp_ft", tune_scale=0.0)


def test_tiers_go_from_below_the_head_downwards_and_what_is_left_is_frozen(model: MobileNetV2) -> None:
    (phase,) = build_plan(model, "separate_lr", {"tiers": [[2, 0.5], [1, 0], [3, 0.25]]}).phases
    found = {
        group.name: (group.lr_scale, group.frozen, {block_of(name) for name in group.tensors}) for group in phase.groups
    }
    assert found == {
        "head": (1.0, False, {"classifier"}),
        "tier_1": (0.5, False, {"features.18", "features.17"}),
        "tier_3": (0.25, False, {"features.15", "features.14", "features.13"}),
        "frozen": (1.0, True, {"features.16", *(f"features.{i}" for i in range(13))}),
    }
    assert "tiers: found [0, 1.0], expected [number of" in refusal(model, "separate_lr", tiers=[[0, 1.0]])
    assert "tiers: found 20 blocks in all, expected 19 at most" in refusal(model, "separate_lr", tiers=[[20, 1.0]])


def test_surgery_trains_the_head_and_the_chosen_blocks(model: MobileNetV2) -> None:
    (phase,) = build_plan(model, "surgical", {"blocks": [4, 2]}).phases
    assert trained_blocks(model, phase) == {"classifier", "features.2", "features.4"}
    assert "blocks: found [2, 2], expected some of 0 to 18" in refusal(model, "surgical", blocks=[2, 2])
    assert "blocks: found [19], expected some of 0 to 18" in refusal(model, "surgical", blocks=[19])
    assert "batches: found 0, expected 1 or more" in refusal(model, "surgical", auto=True, batches=0)


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [(torch.rand(4, 3, 32, 32, generator=generator), torch.tensor([0, 1, 2, 3])) for _ in range(count)]


def test_scales_are_ratios_of_gradient_to_weight_over_the_largest() -> None:
    # The same from autograd's own .grad, block by block; the last batch is not looked at.
    model = build(10, 1).eval()
    (phase,) = build_plan(model, "surgical", {"auto": True, "batches": 2}).phases
    assert phase.scales is not None
    found = phase.scales(model, iter(batches(3)))
    ratios = dict.fromkeys(BLOCKS[:-1], 0.0)
    for images, labels in batches(2):
        model.zero_grad()
        cross_entropy(model(images), labels).backward()
        for block in ratios:
            own = [p for name, p in model.named_parameters() if block_of(name) == block]
            gradient, weight = (torch.cat([t.flatten() for t in ts]) for ts in ([p.grad for p in own], own))
            ratios[block] += (gradient.norm() / weight.norm()).item() / 2
    largest = max(ratios.values())
    assert found == {block: pytest.approx(ratio / largest, rel=1e-4) for block, ratio in ratios.items()}
    assert max(found.values()) == 1.0


def test_a_block_without_gradient_breaks_nothing() -> None:
    model = build(10, 1).eval()
    with torch.no_grad():
        model.features[18][1].weight.zero_()  # nothing from below gets through
        model.features[18][1].bias.zero_()
    groups = build_plan(model, "surgical", {"auto": True}).phases[0].groups
    found = relative_gradient_norms(model, iter(batches(1)), groups=groups, most=1)
    assert all(0 < scale <= 1 for scale in found.values())


def test_the_exact_solution_is_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(120, 7, generator=generator) + 3
    labels = (features[:, :3] + torch.randn(120, 3, generator=generator)).argmax(1)
    weight, bias = logistic_regression(features, labels, 0.05, classes=3, tolerance=1e-8)
    theirs = LogisticRegression(C=1 / (120 * 0.05), tol=1e-10, max_iter=10_000).fit(features.double(), labels)
    assert weight.numpy() == pytest.approx(theirs.coef_, abs=1e-5)
    apart = bias.numpy() - theirs.intercept_  # biases are free up to a constant
    assert apart - apart.mean() == pytest.approx([0, 0, 0], abs=1e-5)


def test_without_decay_there_is_no_solution() -> None:
    with pytest.raises(InputError, match="found weight_decay 0, expected above 0"):
        logistic_regression(torch.zeros(2, 2), torch.tensor([0, 1]), 0.0, classes=2)
    assert "solver: found 'newton', expected steps or lbfgs" in refusal(build(2, 0), "last_layer", solver="newton")
