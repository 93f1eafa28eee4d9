"""What tells `norm_and_bias` from `norm_only`, which trains the same parameters, and `bias_only` from both."""

from dataclasses import replace
from pathlib import Path

import torch
from torchvision.models import MobileNetV2

from finetune.strategies import build_plan
from finetune.strategies.plan import batchnorm_layers
from trained_plan import moved, network, recipe, trained

HEAD = {"classifier.1.weight", "classifier.1.bias"}


def of_batchnorm(model: MobileNetV2, *parts: str) -> set[str]:
    return {f"{layer}.{part}" for layer in batchnorm_layers(model) for part in parts}


def test_norm_only_leaves_the_pretrained_statistics(toy_inputs: Path, tmp_path: Path) -> None:
    model, _ = trained(toy_inputs, tmp_path / "work", "norm_only", recipe())
    assert moved(toy_inputs, model) == HEAD | of_batchnorm(model, "weight", "bias")


def test_norm_and_bias_lets_the_statistics_follow_the_data(toy_inputs: Path, tmp_path: Path) -> None:
    model, _ = trained(toy_inputs, tmp_path / "work", "norm_and_bias", recipe())
    statistics = of_batchnorm(model, "running_mean", "running_var", "num_batches_tracked")
    assert moved(toy_inputs, model) == HEAD | of_batchnorm(model, "weight", "bias") | statistics


def test_nothing_else_tells_them_apart(toy_inputs: Path) -> None:
    model = network(toy_inputs)
    (both,), (norms,) = (build_plan(model, name, {}).phases for name in ("norm_and_bias", "norm_only"))
    under_batch_statistics = (replace(g, batchnorm="train") if g.name == "norm" else g for g in norms.groups)
    assert tuple(under_batch_statistics) == both.groups != norms.groups


def test_bias_only_leaves_weights_of_norms_and_statistics(toy_inputs: Path, tmp_path: Path) -> None:
    model, _ = trained(toy_inputs, tmp_path / "work", "bias_only", recipe())
    assert moved(toy_inputs, model) == HEAD | of_batchnorm(model, "bias")


def test_bias_only_under_batch_statistics_lets_those_follow_the_data(toy_inputs: Path, tmp_path: Path) -> None:
    model, _ = trained(toy_inputs, tmp_path / "work", "bias_only", recipe(bn="train"))
    expected = of_batchnorm(model, "bias", "running_mean", "running_var", "num_batches_tracked")
    assert moved(toy_inputs, model) == HEAD | expected


def test_every_bias_of_the_network_is_batchnorms_or_the_heads(toy_inputs: Path) -> None:
    # Which is why all norms and all biases are no more than all norms.
    model = network(toy_inputs)
    biases = {name for name, _ in model.named_parameters() if name.endswith(".bias")}
    assert biases == of_batchnorm(model, "bias") | {"classifier.1.bias"}


def test_norms_and_biases_are_not_decayed(toy_inputs: Path, tmp_path: Path) -> None:
    # A decay of a million would drown every gradient: only the head's path may depend on it.
    for plan in ("bias_only", "norm_only"):
        rates = {"lr": 1e-8, "epochs": 1}
        one, _ = trained(toy_inputs, tmp_path / f"{plan} 0", plan, recipe(weight_decay=0.0, **rates))
        other, _ = trained(toy_inputs, tmp_path / f"{plan} 1", plan, recipe(weight_decay=1e6, **rates))
        for name in of_batchnorm(one, "bias"):
            assert torch.allclose(one.state_dict()[name], other.state_dict()[name], atol=1e-9, rtol=0)
