"""Costs worked out by hand, or measured with real tensors."""

import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.models import MobileNet_V2_Weights, MobileNetV2

from finetune import accounting, kernel_library
from finetune.accounting import activation_bytes, flops_per_image, kept_for_backward
from finetune.clock import PHASES
from finetune.device import autocast, move_to_device
from finetune.model import build
from finetune.optimizers import make_optimizer
from finetune.params import TrainingParams
from finetune.step import set_modes
from finetune.strategies import build_model, build_plan
from finetune.strategies.plan import Group, Phase, Plan, feature_blocks, tensors_of
from finetune.training import Progress

CLASSES = 3
network = partial(build, CLASSES, 0)
MODEL = build(CLASSES, 0)
EVERYTHING = Phase((Group("all", tuple(name for name, _ in MODEL.named_parameters())),))
HEAD = Phase(
    (
        Group("head", tensors_of(MODEL, ["classifier"])),
        Group("body", tensors_of(MODEL, feature_blocks()), frozen=True, batchnorm="eval"),
    )
)


def recipe(image_size: int = 48, precision: str = "fp32", device: str = "cpu", **others: Any) -> TrainingParams:
    own = {"image_size": image_size, "batch_size": 4, "threads": 1, "precision": precision, "device": device}
    return TrainingParams.model_validate(own | others)


def measured(phase: Phase, recipe: TrainingParams, batch: int, model: MobileNetV2 | None = None) -> int:
    """The same with real tensors, of a network that is set up as training does it."""
    model = model or build(CLASSES, 0)
    move_to_device(model, recipe)
    make_optimizer(model, phase, recipe)
    set_modes(model, phase)
    images = torch.zeros(batch, 3, recipe.image_size, recipe.image_size).to(memory_format=torch.channels_last)

    def loss() -> Tensor:
        with autocast(images.device, recipe.precision):
            return cross_entropy(model(images), torch.zeros(batch, dtype=torch.int64))

    return kept_for_backward(loss, (*model.parameters(), *model.buffers()))


def test_a_linear_layer_keeps_its_input() -> None:
    layer, images = nn.Linear(5, 3), torch.zeros(7, 5)
    assert kept_for_backward(lambda: layer(images), layer.parameters()) == 7 * 5 * 4


def test_a_second_linear_layer_keeps_its_weight_and_input_but_its_weight_is_a_parameter() -> None:
    layers, images = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2)), torch.zeros(7, 5)
    assert kept_for_backward(lambda: layers(images), layers.parameters()) == 7 * (5 + 3) * 4
    assert kept_for_backward(lambda: layers(images), ()) == 7 * (5 + 3) * 4 + 3 * 2 * 4


def test_a_storage_that_is_kept_twice_counts_once_and_whole() -> None:
    x = torch.ones(4, 6, requires_grad=True)
    assert kept_for_backward(lambda: x * x + x[0] * x[0], ()) == 4 * 6 * 4


def test_without_gradients_nothing_is_kept() -> None:
    layer = nn.Linear(5, 3).requires_grad_(False)
    assert kept_for_backward(lambda: layer(torch.zeros(7, 5)), layer.parameters()) == 0


def test_under_a_frozen_backbone_only_what_head_and_loss_need_is_kept() -> None:
    features, log_softmax, labels, total_weight = 4 * 1280 * 4, 4 * CLASSES * 4, 4 * 8, 4
    assert activation_bytes(network, [HEAD], recipe(), 4) == features + log_softmax + labels + total_weight


def test_the_greediest_phase_counts() -> None:
    alone = activation_bytes(network, [EVERYTHING], recipe(), 4)
    assert activation_bytes(network, [EVERYTHING, HEAD], recipe(), 4) == alone
    assert activation_bytes(network, [HEAD, EVERYTHING], recipe(), 4) == alone
    assert alone > 100 * activation_bytes(network, [HEAD], recipe(), 4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("phase", [EVERYTHING, HEAD])
def test_tensors_without_values_count_as_real_ones(phase: Phase, precision: str) -> None:
    # With bf16, BatchNorm's mean and deviation per channel really are fp32: 2 x 2 bytes more.
    channels = sum(layer.num_features for layer in MODEL.modules() if isinstance(layer, nn.BatchNorm2d))
    exact = measured(phase, recipe(32, precision), 2)
    difference = exact - activation_bytes(network, [phase], recipe(32, precision), 2)
    assert difference == (4 * channels if precision == "bf16" and phase is EVERYTHING else 0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["bias_only", "norm_only", "lite_residual", "same_lr"])
def test_where_frozen_layers_keep_less_what_training_keeps_is_counted(name: str, precision: str) -> None:
    lean, made = recipe(32, precision, lean_backward=True), partial(build_model, CLASSES, 0, name, {})
    (phase,) = build_plan(made(), name, {}).phases
    counted, model = activation_bytes(made, [phase], lean, 2), made()
    exact = measured(phase, lean, 2, model)
    layers = list(model.modules())
    statistics = sum(n.num_features for n in layers if isinstance(n, nn.BatchNorm2d) and n.training)
    statistics += sum(2 * n.num_groups for n in layers if isinstance(n, nn.GroupNorm))
    assert exact - counted == (4 * statistics if precision == "bf16" else 0)


@pytest.mark.skipif(not kernel_library.available(), reason="no C++ compiler")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_by_this_projects_kernels_it_is_what_those_keep(precision: str) -> None:
    native, by_pytorch = (recipe(32, precision, cpu_kernels=kernels) for kernels in ("native", "torch"))
    counted = activation_bytes(network, [EVERYTHING], native, 2)
    assert counted == measured(EVERYTHING, native, 2)
    assert counted != activation_bytes(network, [EVERYTHING], by_pytorch, 2)


def test_activations_grow_with_batch_and_image() -> None:
    bytes_of = {
        (n, size): activation_bytes(network, [EVERYTHING], recipe(size), n) for n in (2, 4, 6) for size in (32, 64)
    }
    assert bytes_of[6, 32] - bytes_of[4, 32] == bytes_of[4, 32] - bytes_of[2, 32] > 0
    assert bytes_of[4, 64] == pytest.approx(
        4 * bytes_of[4, 32], rel=0.03
    )  # but for the head and BatchNorm's statistics


def test_a_gpus_recipe_counts_where_there_is_none() -> None:
    assert activation_bytes(network, [EVERYTHING], recipe(device="cuda"), 4) > 0


def test_counting_changes_no_random_state_and_no_gradient_mode() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    accounting.worked_out(network, [EVERYTHING, HEAD], recipe(), 100)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()
    assert torch.zeros(2).sum().item() == 0.0  # tensors hold values again


def test_a_batch_is_no_larger_than_the_training_split() -> None:
    phases = [EVERYTHING]
    few = accounting.worked_out(network, phases, recipe(), images=3)["activation_bytes"]
    assert few == activation_bytes(network, phases, recipe(), 3)
    many = accounting.worked_out(network, phases, recipe(), images=100)["activation_bytes"]
    assert many == activation_bytes(network, phases, recipe(), 4)


def test_flops_are_twice_the_published_multiply_adds() -> None:
    published = MobileNet_V2_Weights.IMAGENET1K_V1.meta["_ops"]  # multiply-adds at 224 px, in 10^9: 0.301
    assert flops_per_image(partial(build, 1000, 0), 224) / 2e9 == pytest.approx(published, abs=5e-4)


def test_a_class_more_is_a_row_of_the_head_more() -> None:
    assert flops_per_image(partial(build, 11, 0), 32) - flops_per_image(partial(build, 10, 0), 32) == 2 * 1280


def test_peak_memory_is_at_least_what_is_held() -> None:
    held = torch.ones(25_000_000)
    assert accounting.peak_memory("cpu") > held.nbytes


def test_peak_memory_is_a_processs_own_whatever_had_started_it() -> None:
    own = "from finetune.state import peak_memory; print(peak_memory('cpu'))"
    starter = f"""
        import subprocess, sys
        held = b"x" * 1_500_000_000  # with which the ru_maxrss of its children begins
        subprocess.run([sys.executable, "-c", {own!r}], check=True)
    """
    environment = os.environ | {"PYTHONPATH": str(Path(accounting.__file__).parents[1])}
    words = [sys.executable, "-c", textwrap.dedent(starter)]
    found = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert 1e8 < int(found.stdout) < 1.5e9


def cost_of(progress: Progress) -> dict[str, Any]:
    fixed = {"activation_bytes": 1, "flops_per_image": 1}
    return accounting.cost(MODEL, [], progress, recipe(), images=4, fixed=fixed)


def test_peak_memory_is_that_of_the_attempt_that_had_most() -> None:
    seconds = dict.fromkeys(PHASES, 1.0)
    own = cost_of(Progress(phase_seconds=seconds))["peak_memory_bytes"]
    assert own == pytest.approx(accounting.peak_memory("cpu"), rel=0.01)
    assert cost_of(Progress(phase_seconds=seconds, peak_memory=own + 1000))["peak_memory_bytes"] == own + 1000
    assert cost_of(Progress(phase_seconds=seconds, peak_memory=1000))["peak_memory_bytes"] >= own


def kept_with_penalty(plan: Plan, recipe: TrainingParams, batch: int) -> int:
    """As `measured`, with real tensors, of the loss with the plan's penalty."""
    model = build(CLASSES, 0)
    move_to_device(model, recipe)
    (phase,) = plan.phases
    make_optimizer(model, phase, recipe)
    set_modes(model, phase)
    images = torch.rand(batch, 3, recipe.image_size, recipe.image_size).to(memory_format=torch.channels_last)
    assert phase.penalty is not None
    with phase.penalty(model) as penalty:

        def loss() -> Tensor:
            return cross_entropy(model(images), torch.zeros(batch, dtype=torch.int64)) + penalty(images)

        return kept_for_backward(loss, (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("name", ["l2_sp", "delta", "bss"])
def test_what_a_penalty_keeps_is_counted(name: str) -> None:
    plan = build_plan(MODEL, name, {})
    counted = activation_bytes(network, plan.phases, recipe(32), 4)
    assert counted == kept_with_penalty(plan, recipe(32), 4)
    assert counted > activation_bytes(network, [EVERYTHING], recipe(32), 4)


def test_the_pull_to_the_start_keeps_the_difference_of_all_kernels() -> None:
    kernels = sum(p.numel() for name, p in MODEL.named_parameters() if p.ndim == 4)
    plain = activation_bytes(network, [EVERYTHING], recipe(32), 4)
    more = activation_bytes(network, build_plan(MODEL, "l2_sp", {}).phases, recipe(32), 4) - plain
    assert more == pytest.approx(4 * kernels, abs=100)  # and scalars


class _GreedyInEvaluation(nn.Module):
    """In evaluation mode alone, keeps the features, their exponentials and the product, where one goes on."""

    def forward(self, features: Tensor) -> Tensor:
        return features if self.training else features * features.exp()


def test_a_pass_that_measures_rates_is_counted_where_it_keeps_more() -> None:
    def greedy() -> MobileNetV2:
        model = build(CLASSES, 0)
        model.classifier[0] = _GreedyInEvaluation()
        return model

    running = Phase((replace(EVERYTHING.groups[0], batchnorm="affine_only"),))  # BatchNorm is alike in both modes
    measuring = replace(running, scales=lambda *_: {})
    more = activation_bytes(greedy, [measuring], recipe(), 4) - activation_bytes(greedy, [running], recipe(), 4)
    assert more == 2 * 4 * 1280 * 4
