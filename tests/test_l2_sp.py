"""L2-SP: which tensors are pulled, how hard, and to where."""

import pytest
import torch
from torch import nn

from finetune.errors import InputError
from finetune.strategies import build_plan
from finetune.strategies.plan import audit
from penalised import entered, images, jolt, network, value_of

OPTIONS = {"alpha": 0.5, "beta": 0.25}


def test_the_gradient_is_alpha_times_the_way_from_the_start_on_convolutions_and_beta_w_on_the_head() -> None:
    model = network()
    with entered(model, build_plan(model, "l2_sp", OPTIONS)) as (_, penalty):
        moves = jolt(model)
        value_of(penalty, model, images(4)).backward()
    kernels = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    assert len(kernels) == 52
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert set(gradients) == {f"{name}.weight" for name in kernels} | {"classifier.1.weight"}
    for name in kernels:
        assert torch.allclose(gradients[f"{name}.weight"], 0.5 * moves[f"{name}.weight"], atol=1e-7)
    assert torch.allclose(gradients["classifier.1.weight"], 0.25 * model.classifier[1].weight)


def test_one_weight_that_moved_by_2_costs_2_alpha() -> None:
    model = network()
    with entered(model, build_plan(model, "l2_sp", {"alpha": 0.5, "beta": 0.0})) as (_, penalty):
        assert penalty(images(4)).item() == 0
        with torch.no_grad():
            model.features[7].conv[2].weight[3, 5] += 2
        assert penalty(images(4)).item() == pytest.approx(1.0, rel=1e-6)


def test_beta_costs_half_the_heads_squares() -> None:
    model = network()
    with torch.no_grad():
        model.classifier[1].weight.fill_(0.5)  # 3 x 1280
    with entered(model, build_plan(model, "l2_sp", {"alpha": 7.0, "beta": 0.1})) as (_, penalty):
        assert penalty(images(4)).item() == pytest.approx(0.05 * 3840 * 0.25, rel=1e-6)


def test_batchnorm_and_the_heads_bias_are_free() -> None:
    model = network()
    with entered(model, build_plan(model, "l2_sp", OPTIONS)) as (_, penalty):
        before = penalty(images(4)).item()
        with torch.no_grad():
            model.features[18][1].weight += 1
            model.features[18][1].bias += 1
            model.classifier[1].bias += 1
        assert penalty(images(4)).item() == before


def test_nothing_decays_whatever_the_recipe_says() -> None:
    model = network()
    rows = audit(model, build_plan(model, "l2_sp", {}), 1e-3, 1e-4)
    assert {(row["lr"], row["weight_decay"]) for row in rows if row["kind"] == "parameter"} == {(1e-3, 0.0)}


@pytest.mark.parametrize("option", ["alpha", "beta"])
@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_a_push_away_is_refused_naming_the_option(option: str, value: float) -> None:
    with pytest.raises(InputError, match=f"l2_sp: {option}: found {value}, expected 0"):
        build_plan(network(), "l2_sp", {option: value})
