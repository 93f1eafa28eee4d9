"""DELTA: how far feature maps are from those of the network at the start, which stays as it was."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models import MobileNetV2

import trained_plan
from finetune.errors import InputError
from finetune.optimizers import make_optimizer
from finetune.step import Step
from finetune.strategies import build_plan
from finetune.strategies.delta import LAYERS
from finetune.strategies.plan import audit
from finetune.training import train_epoch
from penalised import entered, images, jolt, network, value_of, with_running_statistics

TWO = ["features.2", "features.14"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def maps_of(model: MobileNetV2, batch: Tensor, *blocks: int) -> list[np.ndarray]:
    """What these blocks put out, in float64, of a copy of the network in its modes, without hooks."""
    found, features = [], copy.deepcopy(model).features
    with torch.no_grad():
        for number, block in enumerate(features):
            batch = block(batch)
            if number in blocks:
                found.append(batch.double().numpy().copy())
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_is_0_at_the_start_under_running_statistics(precision: str) -> None:
    model = network()
    plan = with_running_statistics(build_plan(model, "delta", {"beta": 0.0}))
    with entered(model, plan) as (_, penalty):
        assert value_of(penalty, model, images(4), precision).item() == 0


def test_it_is_0_at_the_start_of_mixed_images_too(toy_inputs: Path) -> None:
    # Both networks see the same ones. Of maps of others the distance would be above 0, as every image has its own.
    def loss_of_a_step(penalised: bool) -> Any:
        model = trained_plan.network(toy_inputs)
        plan = with_running_statistics(build_plan(model, "delta", {"alpha": 1.0, "beta": 0.0}))
        recipe, batches = trained_plan.recipe(mixup=1.0), replace(trained_plan.images(toy_inputs), batch_size=12)
        with entered(model, plan) as (phase, penalty):
            added = penalty if penalised else None
            step = Step(model, phase, make_optimizer(model, phase, recipe), recipe, penalty=added)
            return train_epoch(step, batches, 3, 0, "toy")["train/loss"]

    assert loss_of_a_step(True) == loss_of_a_step(False)


def test_it_is_above_0_at_the_start_under_batch_statistics() -> None:
    model = network()
    with entered(model, build_plan(model, "delta", {"beta": 0.0})) as (_, penalty):
        assert value_of(penalty, model, images(4)).item() > 0


def test_its_value_is_half_alpha_times_squares_summed_over_channels_and_averaged_over_the_rest() -> None:
    model = network()
    start = copy.deepcopy(model).eval()
    with entered(model, build_plan(model, "delta", {"alpha": 0.3, "beta": 0.0, "layers": TWO})) as (_, penalty):
        jolt(model)
        pairs = zip(maps_of(model, images(4), 2, 14), maps_of(start, images(4), 2, 14), strict=True)
        value = value_of(penalty, model, images(4)).item()
    squares = [((own - there) ** 2).sum(1).mean() for own, there in pairs]
    assert min(squares) > 0.01 * max(squares)  # neither is lost in the other's rounding
    assert value == pytest.approx(0.15 * sum(squares), rel=1e-4)


def test_the_blocks_at_the_end_of_each_size_of_map_are_compared() -> None:
    sides = [found.shape[-1] for found in maps_of(network().eval(), images(1), *range(19))]
    assert [f"features.{i}" for i in range(2, 19) if i == 18 or sides[i] != sides[i + 1]] == LAYERS


def test_its_gradient_at_a_map_is_alpha_times_the_difference_over_positions_and_images() -> None:
    model = network()
    start = copy.deepcopy(model).eval()
    seen: list[Tensor] = []
    options = {"alpha": 0.3, "beta": 0.0, "layers": ["features.14"]}
    with entered(model, build_plan(model, "delta", options)) as (_, penalty):
        jolt(model)
        model.features[14].register_forward_hook(lambda block, inputs, output: seen.append(output))
        model(images(4))
        seen[0].retain_grad()
        penalty(images(4)).backward()
    (there,) = maps_of(start, images(4), 14)  # 160 maps of 2 x 2
    assert seen[0].grad is not None
    expected = 0.3 * (seen[0].detach().double().numpy() - there) / (4 * 2 * 2)
    assert np.allclose(seen[0].grad.numpy(), expected, rtol=1e-3, atol=1e-6)


def test_blocks_above_the_layers_compared_get_no_gradient() -> None:
    model = network()
    with entered(model, build_plan(model, "delta", {"layers": TWO})) as (_, penalty):
        value_of(penalty, model, images(4)).backward()
    assert all(p.grad is not None for p in model.features[:15].parameters())
    assert all(p.grad is None for p in model.features[15:].parameters())


def test_of_the_starts_pass_nothing_is_kept_for_backward_but_the_maps() -> None:
    model = network()
    kept: list[Tensor] = []
    with entered(model, build_plan(model, "delta", {"beta": 0.0, "layers": TWO})) as (_, penalty):
        model(images(4))
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda kept: kept):
            penalty(images(4))
    # 24 maps of 16 x 16 and 160 of 2 x 2: the trained ones and the start's. The rest is the head's.
    sizes = sorted(tensor.numel() for tensor in kept if tensor.ndim == 4)
    assert sizes == sorted(2 * [4 * 160 * 2 * 2, 4 * 24 * 16 * 16])


def test_twice_the_same_images_cost_as_much_as_once() -> None:
    model = network()
    with entered(model, with_running_statistics(build_plan(model, "delta", {}))) as (_, penalty):
        jolt(model)
        once = value_of(penalty, model, images(3)).item()
        assert value_of(penalty, model, images(3).repeat(2, 1, 1, 1)).item() == pytest.approx(once, rel=1e-4)


def test_beta_costs_half_the_heads_squares_with_its_bias() -> None:
    model = network()
    with torch.no_grad():
        model.classifier[1].weight.fill_(0.5)  # 3 x 1280
        model.classifier[1].bias.fill_(2.0)
    with entered(model, build_plan(model, "delta", {"alpha": 0.0, "beta": 0.1})) as (_, penalty):
        assert value_of(penalty, model, images(4)).item() == pytest.approx(0.05 * (3840 * 0.25 + 3 * 4), rel=1e-6)


def test_nothing_decays_whatever_the_recipe_says() -> None:
    model = network()
    rows = audit(model, build_plan(model, "delta", {}), 1e-3, 1e-4)
    assert {(row["lr"], row["weight_decay"]) for row in rows if row["kind"] == "parameter"} == {(1e-3, 0.0)}


@pytest.mark.parametrize("layers", [[], ["features.19"], ["classifier"], [3], ["features.3", "features.3"]])
def test_layers_that_cannot_be_are_refused_naming_them(layers: list[Any]) -> None:
    with pytest.raises(InputError) as error:
        build_plan(network(), "delta", {"layers": layers})
    assert str(error.value).startswith(f"delta: layers: found {layers}, expected ")


@pytest.mark.parametrize("option", ["alpha", "beta"])
def test_a_push_away_is_refused_naming_the_option(option: str) -> None:
    with pytest.raises(InputError, match=f"delta: {option}: found -0.1, expected 0"):
        build_plan(network(), "delta", {option: -0.1})
