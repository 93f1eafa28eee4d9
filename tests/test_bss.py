"""BSS against numpy's singular value decomposition."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from torchvision.models import MobileNetV2

from finetune.device import autocast
from finetune.errors import InputError
from finetune.strategies import build_plan
from finetune.strategies.plan import audit
from penalised import entered, images, network, train, value_of, with_running_statistics


def features_of(model: MobileNetV2, batch: Tensor, precision: str = "fp32") -> np.ndarray:
    """Images x 1280 in float64, of a copy of the network in its modes, without hooks."""
    with torch.no_grad(), autocast(batch.device, precision):
        pooled = adaptive_avg_pool2d(copy.deepcopy(model).features(batch), 1).flatten(1)
    return pooled.double().numpy()


@pytest.mark.parametrize(("k", "precision"), [(1, "fp32"), (3, "fp32"), (1, "bf16"), (3, "bf16")])
def test_its_value_is_eta_times_the_k_smallest_squared_singular_values(k: int, precision: str) -> None:
    model = network()
    with entered(model, build_plan(model, "bss", {"eta": 0.1, "k": k})) as (_, penalty):
        falling = np.linalg.svd(features_of(model, images(5), precision), compute_uv=False)
        value = value_of(penalty, model, images(5), precision).item()
    assert len(falling) == 5
    assert value == pytest.approx(0.1 * (falling[-k:] ** 2).sum(), rel=1e-4)


def test_its_gradient_at_the_features_is_2_eta_sigma_u_v() -> None:
    model = network()
    seen: list[Tensor] = []
    with entered(model, build_plan(model, "bss", {"eta": 0.1, "k": 2})) as (_, penalty):
        model.classifier.register_forward_pre_hook(lambda head, inputs: seen.append(inputs[0]))
        model(images(5))
        seen[0].retain_grad()
        penalty(images(5)).backward()
    u, sigma, v = np.linalg.svd(seen[0].detach().double().numpy(), full_matrices=False)
    expected = sum(2 * 0.1 * sigma[i] * np.outer(u[:, i], v[i]) for i in (-1, -2))
    assert seen[0].grad is not None
    assert np.abs(seen[0].grad.numpy() - expected).max() < 1e-3 * np.abs(expected).max()


def test_of_a_batch_of_fewer_than_k_images_all_singular_values_count_once() -> None:
    # Their squares add up to those of the features.
    model = network()
    with entered(model, build_plan(model, "bss", {"eta": 0.1, "k": 8})) as (_, penalty):
        features = features_of(model, images(3))
        value = value_of(penalty, model, images(3)).item()
    assert value == pytest.approx(0.1 * (features**2).sum(), rel=1e-4)


def test_two_images_that_are_the_same_cost_nothing_and_have_finite_gradients() -> None:
    model = network()
    with entered(model, with_running_statistics(build_plan(model, "bss", {"eta": 1.0}))) as (_, penalty):
        value = value_of(penalty, model, images(1).repeat(2, 1, 1, 1))
        value.backward()
    assert value.item() == pytest.approx(0, abs=1e-9)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_features_that_are_not_finite_make_the_penalty_so() -> None:
    model = network()
    with entered(model, build_plan(model, "bss", {})) as (_, penalty):
        assert math.isnan(value_of(penalty, model, images(4) * math.nan).item())


def test_a_run_that_goes_astray_stops_with_its_own_message(toy_inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"toy/bss/3: the loss is not finite at epoch 1, step 2;"):
        train(toy_inputs, tmp_path / "work", "bss", lr=1e30)


def test_weight_decay_stays() -> None:
    model = network()
    rows = audit(model, build_plan(model, "bss", {}), 1e-3, 1e-4)
    assert {(row["lr"], row["weight_decay"]) for row in rows if row["kind"] == "parameter"} == {(1e-3, 1e-4)}


@pytest.mark.parametrize("options", [{"eta": -0.1}, {"eta": float("nan")}, {"k": 0}])
def test_what_cannot_be_is_refused_naming_the_option(options: dict[str, float]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(InputError, match=f"bss: {name}: found {value}, expected"):
        build_plan(network(), "bss", options)
