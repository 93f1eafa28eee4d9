"""Auto-RGN by hand, in a run and under the recipe's BatchNorm policies; options that exclude each other."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import MobileNetV2

from finetune.device import autocast
from finetune.errors import InputError
from finetune.model import BLOCKS, build
from finetune.strategies import build_plan
from finetune.strategies.adjustments import adjusted
from finetune.strategies.plan import Group
from finetune.strategies.surgical import relative_gradient_norms
from trained_plan import network, recipe, trained


@pytest.fixture(scope="module")
def model() -> MobileNetV2:
    return build(10, 0)


class Line(nn.Module):
    """Logits (a x + b, 0) with a = 2, b = 4."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(4.0))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.a * x + self.b, torch.zeros_like(x)], 1)


def scales(batches: list[float], most: int) -> Any:
    pairs = [(torch.tensor([x]), torch.tensor([1])) for x in batches]
    return relative_gradient_norms(Line(), iter(pairs), groups=(Group("a", ("a",)), Group("b", ("b",))), most=most)  # type: ignore[arg-type]


def test_a_ratio_is_of_gradient_to_weight() -> None:
    # At x = 1 both have the same gradient, and b is twice a.
    assert scales([1.0], 1) == pytest.approx({"a": 1.0, "b": 0.5})


def test_ratios_of_batches_are_averaged() -> None:
    # The gradients of class 1's loss: p x for a, p for b, with p = sigmoid(2 x + 4).
    p, q = (1 / (1 + math.exp(-(2 * x + 4))) for x in (1, -2))
    a, b = (p / 2 + 2 * q / 2) / 2, (p / 4 + q / 4) / 2
    assert scales([1.0, -2.0], 2) == pytest.approx({"a": 1.0, "b": b / a})


def test_batches_beyond_the_first_are_not_looked_at() -> None:
    assert scales([1.0, -2.0], 1) == scales([1.0], 1)


def test_a_ratio_of_nothing_stands_still_but_has_a_rate() -> None:
    found = scales([0.0], 1)  # no gradient for a
    assert found["b"] == 1.0
    assert 0 < found["a"] <= 1e-9


def test_measuring_changes_nothing_of_the_network() -> None:
    network = build(4, 1).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    (phase,) = build_plan(network, "surgical", {"auto": True}).phases
    assert phase.scales is not None
    phase.scales(network, iter([(torch.rand(4, 3, 32, 32), torch.arange(4))]))
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_rates_are_measured_anew_each_epoch(toy_inputs: Path, tmp_path: Path) -> None:
    settings = recipe(epochs=2, schedule={"name": "constant"})
    _, progress = trained(toy_inputs, tmp_path / "work", "surgical", settings, auto=True)
    rates = [{block: row[f"lr/{block}"] for block in BLOCKS[:-1]} for row in progress.rows]
    for row, of_blocks in zip(progress.rows, rates, strict=True):
        assert row["lr/head"] == settings.lr
        assert max(of_blocks.values()) == settings.lr  # type: ignore[type-var]
    assert rates[0] != rates[1]


@pytest.mark.parametrize("bn", ["eval", "affine_only"])
def test_it_goes_with_the_recipes_batchnorm(toy_inputs: Path, tmp_path: Path, bn: str) -> None:
    # Under eval, BatchNorm's parameters want no gradient.
    model, _ = trained(toy_inputs, tmp_path / "work", "surgical", recipe(bn=bn), auto=True)
    start = network(toy_inputs)
    assert not torch.equal(model.features[1].conv[0][0].weight, start.features[1].conv[0][0].weight)
    assert torch.equal(model.features[1].conv[0][1].weight, start.features[1].conv[0][1].weight) == (bn == "eval")


def test_the_head_may_be_listed_and_is_trained_anyway(model: MobileNetV2) -> None:
    listed, unlisted = (build_plan(model, "surgical", {"blocks": b}).phases for b in ([3, "classifier"], [3]))
    assert listed == unlisted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": [True]}, r"blocks: found \[True\], expected some of 0 to 18 and classifier, each once"),
        ({"blocks": [[1]]}, r"blocks: found \[\[1\]\], expected some of"),
        ({"blocks": []}, r"blocks: found \[\], expected some of"),
        ({"blocks": [3, "classifier", "classifier"]}, "each once"),
        ({"blocks": ["classifier"]}, "that is last_layer"),
        ({"blocks": list(range(19))}, "that is same_lr"),
        ({"blocks": [3], "auto": True}, r"blocks: found \[3\] beside auto: true"),
        ({"blocks": [15, 16, 17, 18], "auto": True}, "beside auto: true"),  # what it is by default, but given
        ({"batches": 2}, "batches: found 2 without auto"),
    ],
)
def test_what_cannot_be_is_refused(model: MobileNetV2, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"surgical: .*{message}"):
        adjusted(model, build_plan(model, "surgical", options), recipe())


def test_the_pass_that_measures_runs_at_the_trainings_precision() -> None:
    seen = []

    class Noting(Line):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().forward(images)

    pairs = iter([(torch.ones(1), torch.zeros(1, dtype=torch.int64))])
    context = partial(autocast, torch.device("cpu"), "bf16")
    groups = (Group("a", ("a",)), Group("b", ("b",)))
    relative_gradient_norms(Noting(), pairs, context, groups=groups, most=1)  # type: ignore[arg-type]
    assert seen == [True]
