"""What every penalty keeps to: it leaves no trace, changes nothing but gradients, and resumes to the bit; and what it
is given."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune import strategies
from finetune.batches import Batches
from finetune.interruption import Interrupted
from finetune.optimizers import make_optimizer
from finetune.recomputation import checkpoint_blocks
from finetune.step import Step
from finetune.store import open_store
from finetune.study import Layout
from finetune.training import train_epoch
from penalised import RECIPE, entered, images, jolt, network, same, train, value_of

PENALISED = ("bss", "delta", "l2_sp")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=PENALISED)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def hooks_of(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def test_no_hook_outlives_the_training(name: str) -> None:
    model = network()
    with pytest.raises(KeyError), entered(model, strategies.build_plan(model, name, {})):
        raise KeyError
    assert hooks_of(model) == 0


def test_it_changes_neither_weights_nor_statistics_nor_random_numbers(name: str) -> None:
    model = network()
    with entered(model, strategies.build_plan(model, name, {})) as (_, penalty):
        model(images(4))
        state, drawn = copy.deepcopy(model.state_dict()), torch.get_rng_state()
        penalty(images(4)).backward()
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_entering_it_changes_neither_weights_nor_modes_nor_random_numbers(name: str) -> None:
    model = network().eval()
    state, drawn = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    (phase,) = strategies.build_plan(model, name, {}).phases
    assert phase.penalty is not None
    with phase.penalty(model):
        assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
        assert not any(module.training for module in model.modules())
        assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_its_value_is_a_finite_float32_scalar_above_zero(name: str, precision: str) -> None:
    model = network()
    with entered(model, strategies.build_plan(model, name, {})) as (_, penalty):
        value = value_of(penalty, model, images(4), precision)
    assert value.dtype == torch.float32
    assert value.shape == ()
    assert 0 < value.item() < float("inf")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_its_gradients_are_finite_and_not_all_zero(name: str, precision: str) -> None:
    model = network()
    with entered(model, strategies.build_plan(model, name, {})) as (_, penalty):
        jolt(model)
        value_of(penalty, model, images(4), precision).backward()
    gradients = [parameter.grad for parameter in model.features.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)


def test_a_validation_in_between_changes_nothing(name: str) -> None:
    model = network()
    with entered(model, strategies.build_plan(model, name, {})) as (_, penalty):
        jolt(model)
        before = value_of(penalty, model, images(4))
        model(images(4))
        modes = {module: module.training for module in model.modules()}
        with torch.no_grad():
            model.eval()(images(6, seed=5))
        for module, mode in modes.items():
            module.training = mode
        assert penalty(images(4)).item() == before.item()


def test_recomputed_blocks_give_the_same_value_and_gradients(name: str) -> None:
    def of_a_batch(recomputed: bool) -> list[Any]:
        model = network()
        if recomputed:
            checkpoint_blocks(model)
        with entered(model, strategies.build_plan(model, name, {})) as (_, penalty):
            jolt(model)
            value = value_of(penalty, model, images(4))
            value.backward()
        return [value.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    plain, recomputed = of_a_batch(False), of_a_batch(True)
    assert len(plain) == len(recomputed) > 1
    assert all(torch.equal(one, two) for one, two in zip(plain, recomputed, strict=True))


@pytest.mark.parametrize("stop", [(1, 1), (1, 3), (2, 1), (2, 2)])
def test_a_resumed_run_gives_the_bits_of_an_uninterrupted_one(
    name: str, stop: tuple[int, int], toy_inputs: Path, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        train(toy_inputs, tmp_path / "stopped", name, stop=stop)
    assert same(train(toy_inputs, tmp_path / "stopped", name), train(toy_inputs, tmp_path / "whole", name))


def test_a_run_trains_in_bf16_with_accumulation_and_averaged_weights(
    name: str, toy_inputs: Path, tmp_path: Path
) -> None:
    changes = {"precision": "bf16", "accumulation": 2, "ema": 0.9, "mixup": 0.2}
    with pytest.raises(Interrupted):
        train(toy_inputs, tmp_path / "stopped", name, stop=(2, 1), **changes)
    resumed = train(toy_inputs, tmp_path / "stopped", name, **changes)
    assert same(resumed, train(toy_inputs, tmp_path / "whole", name, **changes))


def test_it_is_given_the_images_that_the_network_saw_which_may_be_mixed(toy_inputs: Path) -> None:
    model = network()
    (phase,) = strategies.build_plan(model, "same_lr", {}).phases
    seen: list[Tensor] = []
    told: list[Tensor] = []

    def noted(images: Tensor) -> Tensor:
        told.append(images)
        return torch.zeros(())

    model.features.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    recipe = RECIPE.model_copy(update={"mixup": 1.0, "accumulation": 2})
    store = open_store(Layout(toy_inputs).store("toy"))
    batches = Batches(store.split("train"), 32, 10, torch.device("cpu"), torch.channels_last, 1.0)
    train_epoch(Step(model, phase, make_optimizer(model, phase, recipe), recipe, penalty=noted), batches, 3, 0, "toy")
    unmixed = [images for images, _ in batches.training(recipe.augmentation, 3, 0)]
    assert len(told) == len(seen) == len(unmixed) == 3
    assert all(torch.equal(one, other) for one, other in zip(told, seen, strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(told, unmixed, strict=True))
