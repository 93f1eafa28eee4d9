"""The head alone: the exact solve against what can be worked out by hand, and what a run leaves alone."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy

from finetune.errors import InputError
from finetune.strategies import last_layer
from finetune.strategies.last_layer import logistic_regression
from trained_plan import images, moved, recipe, trained


def problem(images: int = 90) -> tuple[Tensor, Tensor]:
    """Features of four widths and offsets, three classes that cannot be told apart by them."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 3, (images,), generator=generator)
    noise = torch.randn(images, 4, generator=generator)
    features = noise * torch.tensor([1.0, 0.2, 3.0, 1.0]) + torch.tensor([0.0, 20.0, 5.0, -3.0])
    features[:, 0] += labels
    return features, labels


def test_two_images_are_solved_as_by_hand() -> None:
    # x = 1 of class 0 and x = -1 of class 1: W = (w, -w) costs log(1 + e^-2w) + decay w^2, least where
    # decay w = 1 / (1 + e^2w); so a decay of 1 / (1 + e^2) gives w = 1.
    weight, bias = logistic_regression(
        torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1]), 1 / (1 + math.exp(2)), classes=2, tolerance=1e-10
    )
    assert weight.flatten().tolist() == pytest.approx([1, -1], abs=1e-8)
    assert bias.tolist() == pytest.approx([0, 0], abs=1e-8)


def test_the_bias_is_not_decayed() -> None:
    # Features that tell nothing: what is left are the shares of the classes, 3 : 1, at any decay.
    weight, bias = logistic_regression(torch.ones(4, 2), torch.tensor([0, 0, 0, 1]), 10.0, classes=2, tolerance=1e-10)
    assert weight.abs().max() == 0
    assert float(bias[0] - bias[1]) == pytest.approx(math.log(3), abs=1e-8)


def test_at_the_solution_autograd_finds_no_gradient() -> None:
    features, labels = problem()
    weight, bias = (t.requires_grad_() for t in logistic_regression(features, labels, 0.03, classes=3, tolerance=1e-7))
    loss = cross_entropy(features.double() @ weight.T + bias, labels) + 0.03 / 2 * weight.square().sum()
    for gradient in torch.autograd.grad(loss, [weight, bias]):
        assert gradient.abs().max() < 1e-5  # an error of 1e-7 in the bias, times features of 20


def test_an_offset_of_the_features_is_the_biass_alone() -> None:
    features, labels = problem()
    offset = torch.tensor([8.0, -16.0, 4.0, 32.0])
    weight, bias = logistic_regression(features, labels, 0.03, classes=3, tolerance=1e-7)
    moved_weight, moved_bias = logistic_regression(features + offset, labels, 0.03, classes=3, tolerance=1e-7)
    assert torch.allclose(weight, moved_weight, atol=1e-4)
    assert torch.allclose(bias - weight @ offset.double(), moved_bias, atol=2e-3)


def test_features_are_taken_some_rows_at_a_time_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = problem()
    whole = logistic_regression(features, labels, 0.03, classes=3, tolerance=1e-7)
    monkeypatch.setattr(last_layer, "_ROWS", 7)
    parts = logistic_regression(features, labels, 0.03, classes=3, tolerance=1e-7)
    assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(whole, parts, strict=True))


def test_a_class_without_images_is_never_told() -> None:
    features, labels = problem()
    weight, bias = logistic_regression(features, labels, 0.03, classes=5)
    logits = features.double() @ weight.T + bias
    assert logits.isfinite().all()
    assert logits.softmax(1)[:, 3:].max() < 1e-4


def test_a_search_that_does_not_come_to_an_end_is_an_error_that_says_how_far_it_came() -> None:
    features, labels = problem()
    with pytest.raises(InputError, match=r"gradient is \S+ after 2 iterations at most, expected within 1e-06; raise"):
        logistic_regression(features, labels, 0.03, classes=3, most=2)


def test_a_run_gives_the_head_the_solution_and_leaves_all_else(toy_inputs: Path, tmp_path: Path) -> None:
    model, progress = trained(
        toy_inputs, tmp_path / "work", "last_layer", recipe(epochs=1, weight_decay=0.1), solver="lbfgs"
    )
    assert moved(toy_inputs, model) == {"classifier.1.weight", "classifier.1.bias"}
    model.eval()
    with torch.no_grad():
        seen = [(adaptive_avg_pool2d(model.features(x), 1).flatten(1), y) for x, y in images(toy_inputs).evaluation()]
    features, labels = (torch.cat(column) for column in zip(*seen, strict=True))
    head = model.classifier[1]
    loss = cross_entropy(head(features), labels)
    by_weight, by_bias = torch.autograd.grad(loss + 0.1 / 2 * head.weight.square().sum(), [head.weight, head.bias])
    assert by_weight.abs().max() < 1e-5
    assert by_bias.abs().max() < 1e-5
    assert progress.rows[0]["train/loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_by_steps_too_the_backbone_and_its_statistics_stay(toy_inputs: Path, tmp_path: Path) -> None:
    augmented = recipe(augmentation={"name": "pad_crop"})
    model, _ = trained(toy_inputs, tmp_path / "work", "last_layer", augmented)
    assert moved(toy_inputs, model) == {"classifier.1.weight", "classifier.1.bias"}
