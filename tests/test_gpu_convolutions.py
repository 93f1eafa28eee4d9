import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from finetune.gpu_convolutions import PaddedConv2d, PointwiseConv2d, use_fast_forms
from finetune.model import build

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def networks(device: str = "cpu") -> tuple[nn.Module, nn.Module]:
    """One with the fast forms, one without, the same weights."""
    plain = build(5, 0).to(device, memory_format=torch.channels_last).eval()
    fast = copy.deepcopy(plain)
    use_fast_forms(fast, channels_last=True)
    return fast, plain


def images(device: str = "cpu") -> Tensor:
    torch.manual_seed(0)
    return torch.randn(4, 3, 64, 64, device=device).contiguous(memory_format=torch.channels_last)


def trained(network: nn.Module, batch: Tensor) -> list[Tensor]:
    """Logits and gradients."""
    network.zero_grad()
    logits = network(batch)
    logits.float().square().sum().backward()
    return [logits.detach().float(), *(p.grad for p in network.parameters() if p.grad is not None)]


def apart(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative difference, by the Euclidean norm of each."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))


def kinds(network: nn.Module) -> dict[type, int]:
    found = [type(module) for module in network.modules() if isinstance(module, nn.Conv2d)]
    return {kind: found.count(kind) for kind in set(found)}


def test_pointwise_convolutions_and_the_first_one_are_other_forms_of_the_same_weights() -> None:
    fast, plain = networks()
    assert kinds(fast) == {PointwiseConv2d: 34, PaddedConv2d: 1, nn.Conv2d: 17}
    assert list(fast.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(fast.state_dict().values(), plain.state_dict().values(), strict=True))


def test_in_the_contiguous_format_pointwise_convolutions_stay() -> None:
    network = build(5, 0)
    use_fast_forms(network, channels_last=False)
    assert kinds(network) == {nn.Conv2d: 51, PaddedConv2d: 1}


def test_on_a_cpu_they_are_torchs_to_the_bit() -> None:
    fast, plain = networks()
    assert all(torch.equal(a, b) for a, b in zip(trained(fast, images()), trained(plain, images()), strict=True))


def test_their_forms_give_the_same_but_for_rounding_and_gradients_of_the_weights_strides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fast, plain = networks()
    monkeypatch.setattr(PointwiseConv2d, "forward", PointwiseConv2d.product)
    monkeypatch.setattr(PaddedConv2d, "forward", PaddedConv2d.padded)
    assert apart(trained(fast, images()), trained(plain, images())) < 1e-5
    for module in fast.modules():
        if isinstance(module, PointwiseConv2d):
            assert module.weight.grad is not None
            assert module.weight.grad.stride() == module.weight.stride()  # which fused optimizers ask for


def test_a_bias_is_added() -> None:
    layer = nn.Conv2d(6, 7, 1)
    expected = layer(batch := torch.randn(2, 6, 3, 5))
    use_fast_forms(layer, channels_last=True)  # type: ignore[arg-type]
    assert isinstance(layer, PointwiseConv2d)
    torch.testing.assert_close(layer.product(batch), expected)


@pytest.mark.parametrize(
    "other",
    [
        lambda: nn.Conv2d(8, 8, 3),
        lambda: nn.Conv2d(8, 8, 1, stride=2),
        lambda: nn.Conv2d(8, 8, 1, padding=1),
        lambda: nn.Conv2d(8, 8, 1, groups=2),
        lambda: nn.Conv2d(3, 3, 3, groups=3),
    ],
)
def test_other_convolutions_are_left_alone(other: Callable[[], nn.Conv2d]) -> None:
    layer = other()
    use_fast_forms(layer, channels_last=True)  # type: ignore[arg-type]
    assert type(layer) is nn.Conv2d


@gpu
def test_on_a_gpu_they_come_near_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in (torch.backends.cuda.matmul, torch.backends.cudnn):
        monkeypatch.setattr(backend, "allow_tf32", False)
    fast, plain = networks("cuda")
    expected = trained(plain, images("cuda"))
    assert 0 < apart(trained(fast, images("cuda")), expected) < 1e-4
    with torch.autocast("cuda", torch.bfloat16):
        assert apart(trained(fast, images("cuda"))[:1], expected[:1]) < 3e-2
