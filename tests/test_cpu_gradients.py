"""Strided convolutions in groups under bf16 autocast on a CPU: the same forward pass, gradients of float32."""

import copy

import pytest
import torch
from torch import Tensor, nn

from finetune import model as models
from finetune.cpu_gradients import use_float32_gradients
from finetune.device import move_to_device
from finetune.params import TrainingParams


def strided(groups: int = 8) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(groups, groups, 3, 2, 1, groups=groups, bias=False).to(memory_format=torch.channels_last)


def passes(layer: nn.Module, images: Tensor, autocast: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What comes out, and the gradients of the input and of the weight."""
    given = images.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = layer(given)
    (out.float() * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    weight = next(layer.parameters())
    assert given.grad is not None
    assert weight.grad is not None
    return out.detach(), given.grad, weight.grad


def images() -> Tensor:
    return torch.randn(4, 8, 13, 13, generator=torch.Generator().manual_seed(1)).contiguous(
        memory_format=torch.channels_last
    )


def patched(layer: nn.Conv2d) -> nn.Sequential:
    model = nn.Sequential(copy.deepcopy(layer))
    use_float32_gradients(model)
    return model


def test_the_forward_pass_is_that_of_bf16_bit_for_bit() -> None:
    layer = strided()
    assert torch.equal(passes(patched(layer), images(), True)[0], passes(nn.Sequential(layer), images(), True)[0])


def test_gradients_are_float32s_of_the_rounded_input() -> None:
    layer, rounded = strided(), images().bfloat16().float()
    _, of_images, of_weight = passes(patched(layer), rounded, True)
    _, expected_images, expected_weight = passes(nn.Sequential(layer), rounded, False)
    torch.testing.assert_close(of_weight, expected_weight, rtol=5e-3, atol=5e-2)  # the gradient came in as bf16
    torch.testing.assert_close(of_images, expected_images, rtol=1e-2, atol=1e-2)
    assert of_weight.dtype == of_images.dtype == torch.float32


def test_a_frozen_weight_keeps_no_input_and_gives_it_the_same_gradient() -> None:
    trained, frozen = patched(strided()), patched(strided())
    frozen.requires_grad_(False)
    found, kept = [], []
    for model in (trained, frozen):
        given, sizes = images().requires_grad_(), []
        with (
            torch.autocast("cpu", torch.bfloat16),
            torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t),
        ):
            out = model(given)
        (out.float() * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        found.append(given.grad)
        kept.append(max(sizes))
    assert torch.equal(found[0], found[1])
    assert kept == [images().numel(), trained[0].weight.numel()]


def test_images_taken_a_few_at_a_time_have_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, batch = strided(), torch.cat([images(), images()[:1]])
    _, expected_images, expected_weight = passes(patched(layer), batch, True)
    monkeypatch.setattr("finetune.cpu_gradients._PIECE", 2 * 4 * images()[0].numel())
    _, of_images, of_weight = passes(patched(layer), batch, True)
    assert torch.equal(of_images, expected_images)
    torch.testing.assert_close(of_weight, expected_weight, rtol=1e-5, atol=1e-5)
    assert not torch.equal(of_weight, expected_weight)  # three sums were added up


def test_of_a_single_pixel_the_parts_of_a_weight_that_it_does_not_reach_get_no_gradient() -> None:
    torch.manual_seed(0)
    model = patched(nn.Conv2d(96, 96, 5, 2, 2, groups=2, bias=False))
    of_weight = passes(model, torch.randn(4, 96, 1, 1), True)[2]
    of_weight[:, :, 2, 2] = 0
    assert of_weight.count_nonzero() == 0


def test_without_autocast_nothing_changes() -> None:
    layer = strided()
    for one, other in zip(
        passes(patched(layer), images(), False),
        passes(nn.Sequential(copy.deepcopy(layer)), images(), False),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_a_frozen_weight_gets_no_gradient() -> None:
    model = patched(strided())
    model[0].weight.requires_grad_(False)
    given = images().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        model(given).sum().backward()
    assert model[0].weight.grad is None
    assert given.grad is not None


def test_of_mobilenet_the_four_strided_depthwise_layers_are_meant_under_bf16_alone() -> None:
    for precision, expected in (("bf16", 4), ("fp32", 0)):
        model = models.build(3, 0)
        names = list(model.state_dict())
        move_to_device(model, TrainingParams(device="cpu", precision=precision))  # type: ignore[arg-type]
        found = [module for module in model.modules() if type(module).__name__ == "StridedConv2d"]
        assert len(found) == expected
        assert list(model.state_dict()) == names
