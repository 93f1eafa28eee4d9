"""Blocks that are computed again give the same bits, and keep less."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchvision.models import MobileNetV2

from finetune.accounting import kept_for_backward
from finetune.model import build
from finetune.recomputation import checkpoint_blocks

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
LABELS = torch.tensor([0, 1, 2, 0])


def trained(change: Callable[[MobileNetV2], None], batchnorm: bool, precision: str) -> dict[str, Tensor]:
    """Parameters' gradients and BatchNorm's statistics after a forward and backward pass."""
    torch.set_num_threads(1)
    model = build(3, 0).to(memory_format=torch.channels_last)
    change(model)
    model.train(batchnorm)
    model.classifier[0].p = 0.0
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = cross_entropy(model(IMAGES), LABELS)
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()} | dict(model.named_buffers())  # type: ignore[dict-item]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("batchnorm", [True, False], ids=["batch statistics", "running statistics"])
def test_gradients_and_statistics_are_the_same_bits(batchnorm: bool, precision: str) -> None:
    kept = trained(lambda model: None, batchnorm, precision)
    again = trained(checkpoint_blocks, batchnorm, precision)
    assert [name for name in kept if not torch.equal(kept[name], again[name])] == []


def test_the_names_of_tensors_stay() -> None:
    model = build(3, 0)
    before = list(model.state_dict())
    checkpoint_blocks(model)
    assert list(model.state_dict()) == before


def test_the_inner_activations_of_blocks_are_not_kept() -> None:
    def kept(change: Callable[[MobileNetV2], None]) -> int:
        model = build(3, 0)
        change(model)
        return kept_for_backward(lambda: model(IMAGES), (*model.parameters(), *model.buffers()))

    assert kept(checkpoint_blocks) < 0.5 * kept(lambda model: None)


def test_without_gradients_nothing_is_different() -> None:
    model = build(3, 0).eval()
    with torch.no_grad():
        before = model(IMAGES)
        checkpoint_blocks(model)
        assert torch.equal(model(IMAGES), before)
