"""The optimizers that a recipe names, by one step on known gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from finetune import kernel_library
from finetune.device import memory_format, move_to_device
from finetune.model import build
from finetune.optimizers import make_optimizer, set_rates, set_scales
from finetune.recipe import TrainingParams
from finetune.strategies.plan import Group, Phase, feature_blocks, tensors_of

LR, DECAY = 0.1, 0.5
needs_compiler = pytest.mark.skipif(not kernel_library.available(), reason="no C++ compiler")


@pytest.fixture(scope="module")
def model() -> Any:
    return build(2, 0)


def phase(model: Any, **head: Any) -> Phase:
    body = Group("body", tensors_of(model, feature_blocks()), frozen=True, batchnorm="eval")
    return Phase((Group("head", tensors_of(model, ["classifier"]), **head), body))


def recipe(**optimizer: Any) -> TrainingParams:
    return TrainingParams.model_validate({"lr": LR, "weight_decay": DECAY, "device": "cpu", "optimizer": optimizer})


def moved(model: Any, recipe: TrainingParams, steps: int, **head: Any) -> tuple[Tensor, Tensor]:
    """The head's bias before, and after steps under gradients of 1."""
    bias = model.classifier[1].bias
    with torch.no_grad():
        bias.fill_(0.25)
    optimizer = make_optimizer(model, phase(model, **head), recipe)
    before = bias.detach().clone()
    for _ in range(steps):
        optimizer.zero_grad()
        bias.grad = torch.ones(2)
        optimizer.step()
    return before, bias.detach().clone()


def test_adams_first_step_is_the_rate_whatever_the_gradients_size(model: Any) -> None:
    before, after = moved(model, recipe(name="adam"), 1)
    assert torch.allclose(after, before - LR, atol=1e-5)  # decay is in the gradient, whose size does not matter


def test_adamws_decay_is_apart_from_the_gradient(model: Any) -> None:
    before, after = moved(model, recipe(name="adamw"), 1)
    assert torch.allclose(after, before * (1 - LR * DECAY) - LR, atol=1e-5)


def test_adams_betas_are_the_recipes(model: Any) -> None:
    given = make_optimizer(model, phase(model), recipe(name="adam", betas=[0.8, 0.9]))
    assert given.param_groups[0]["betas"] == (0.8, 0.9)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_a_tensors_update_is_one_kernel(model: Any, name: str) -> None:
    moved(model, recipe(name=name), 1)  # what is first used is imported now
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        moved(model, recipe(name=name), 1)
    called = {event.key for event in seen.key_averages()}
    assert f"aten::_fused_{name}_" in called
    assert not called & {"aten::addcdiv_", "aten::lerp_", "aten::mul_"}


@pytest.mark.parametrize(
    ("layout", "kernels"),
    [
        ("channels_last", "torch"),
        ("contiguous", "torch"),
        pytest.param("channels_last", "native", marks=needs_compiler),
    ],
)
def test_a_whole_networks_update_is_that_of_plain_operations(layout: str, kernels: str) -> None:
    """The one kernel goes through memory as it lies, so weights and gradients have to lie alike."""
    settings = {"device": "cpu", "optimizer": {"name": "adam"}, "memory_format": layout, "cpu_kernels": kernels}
    recipe = TrainingParams.model_validate(settings | {"lr": 1e-2})
    ours, plain = build(3, 0).train(), build(3, 0).train()
    for network in (ours, plain):
        move_to_device(network, recipe)
    whole = Phase((Group("all", tensors_of(ours, [*feature_blocks(), "classifier"])),))
    fused = make_optimizer(ours, whole, recipe)
    separate = torch.optim.Adam(plain.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=False)
    images = torch.rand(4, 3, 40, 40).contiguous(memory_format=memory_format(recipe))
    for _ in range(2):
        fused.zero_grad()
        cross_entropy(ours(images), torch.tensor([0, 1, 2, 0])).backward()
        for own, other in zip(ours.parameters(), plain.parameters(), strict=True):
            assert own.grad is not None
            other.grad = own.grad.clone()
        fused.step()
        separate.step()
    for own, other in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_by_hand(model: Any, nesterov: bool) -> None:
    before, after = moved(model, recipe(name="sgd", momentum=0.9, nesterov=nesterov), 2)
    weight, velocity = before, torch.zeros(2)
    for _ in range(2):
        gradient = 1 + DECAY * weight
        velocity = 0.9 * velocity + gradient
        weight = weight - LR * (gradient + 0.9 * velocity if nesterov else velocity)
    assert torch.allclose(after, weight)


def test_a_group_without_decay_has_none(model: Any) -> None:
    before, after = moved(model, recipe(name="sgd", momentum=0.0, nesterov=False), 1, decay=False)
    assert torch.allclose(after, before - LR)


def test_what_is_frozen_wants_no_gradient_and_has_no_group(model: Any) -> None:
    optimizer = make_optimizer(model, phase(model), recipe(name="adam"))
    assert [group["name"] for group in optimizer.param_groups] == ["head"]
    assert [name for name, p in model.named_parameters() if p.requires_grad] == list(tensors_of(model, ["classifier"]))


def test_scales_are_multiplied_by_the_steps_rate_and_kept_by_a_checkpoint(model: Any) -> None:
    optimizer = make_optimizer(model, phase(model, lr_scale=0.5), recipe(name="adam"))
    set_rates(optimizer, 0.4)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2)
    set_scales(optimizer, {"head": 0.25, "other": 9.0})
    again = make_optimizer(model, phase(model, lr_scale=0.5), recipe(name="adam"))
    again.load_state_dict(optimizer.state_dict())
    set_rates(again, 0.4)
    assert again.param_groups[0]["lr"] == pytest.approx(0.1)
