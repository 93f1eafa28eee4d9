import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d
from torchvision.models import mobilenet_v2

from finetune.depthwise import DepthwiseConv2d, depthwise_conv3x3, obstacle, use_triton_depthwise

SMALL = [(2, 32, 9, 11, 1), (1, 144, 8, 5, 1), (2, 40, 9, 6, 2), (1, 96, 14, 7, 2), (3, 5, 1, 2, 2)]
SHAPES = [*SMALL, (2, 32, 112, 112, 1), (3, 96, 75, 75, 2), (2, 576, 14, 14, 2), (9, 960, 7, 7, 1), (1, 384, 10, 10, 1)]

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_mobilenet_has_17_eligible_layers_and_stays_the_same_on_cpu() -> None:
    torch.manual_seed(0)
    plain = mobilenet_v2(num_classes=5).train()
    model = copy.deepcopy(plain)
    assert use_triton_depthwise(model) == 17
    assert use_triton_depthwise(model) == 0
    assert all(isinstance(m, DepthwiseConv2d) for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups > 1)
    x = torch.randn(2, 3, 64, 64)
    outputs = []
    for net in (plain, model, copy.deepcopy(model)):
        torch.manual_seed(1)  # for dropout
        outputs.append(net(x))
        outputs[-1].square().sum().backward()
        assert list(net.state_dict()) == list(plain.state_dict())
        for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
            assert torch.equal(ours.grad, theirs.grad)
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    plain.load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    "changes",
    [
        {"groups": 4},
        {"out_channels": 16},
        {"kernel_size": 5, "padding": 2},
        {"padding": 0},
        {"dilation": 2},
        {"stride": (1, 2)},
        {"stride": 3},
        {"bias": True},
        {"padding_mode": "reflect"},
        {"padding": "same"},
    ],
    ids=str,
)
def test_other_convolutions_are_left_alone(changes: dict) -> None:
    eligible = {"in_channels": 8, "out_channels": 8, "groups": 8, "kernel_size": 3, "padding": 1, "bias": False}
    assert use_triton_depthwise(nn.Sequential(nn.Conv2d(**eligible))) == 1
    assert use_triton_depthwise(nn.Sequential(nn.Conv2d(**(eligible | changes)))) == 0


def check(shape: tuple[int, ...], dtype: torch.dtype, device: str, tolerance: float) -> None:
    """Output and gradients against conv2d in float64, relative to the largest value of each."""
    n, c, height, width, stride = shape
    torch.manual_seed(0)
    x = torch.randn(n, c, height, width, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(c, 1, 3, 3, device=device).to(dtype)
    ours, exact = [x.requires_grad_(), weight.requires_grad_()], [t.detach().double() for t in (x, weight)]
    y = depthwise_conv3x3(*ours, stride)
    assert y.is_contiguous(memory_format=torch.channels_last)
    expected = conv2d(*(t.requires_grad_() for t in exact), stride=stride, padding=1, groups=c)
    grad = torch.randn(y.shape, device=device).to(dtype)  # not in channels_last
    y.backward(grad)
    expected.backward(grad.double())
    pairs = {"output": (y, expected), "x": (ours[0].grad, exact[0].grad), "weight": (ours[1].grad, exact[1].grad)}
    for name, (actual, reference) in pairs.items():
        error = ((actual.double() - reference).abs().max() / reference.abs().max()).item()
        assert actual.dtype == dtype and error < tolerance, f"{name} of {shape}, {dtype}: {error}"


def test_kernels_in_tritons_interpreter() -> None:
    pytest.importorskip("triton")
    run = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]


def test_without_triton_the_layers_are_torchs() -> None:
    code = """
import sys
sys.modules["triton"] = None
import torch
from finetune.depthwise import obstacle, use_triton_depthwise
layer = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
assert use_triton_depthwise(layer) == 1 and obstacle() == "Triton is not installed"
layer(torch.randn(1, 8, 4, 4)).sum().backward()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@gpu
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-3)], ids=str)
def test_kernels_on_gpu(shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    check(shape, dtype, "cuda", tolerance)


@gpu
def test_nothing_stands_in_their_way_on_a_gpu() -> None:
    assert obstacle() == ""


@gpu
@pytest.mark.parametrize("mode", [None, "default", "reduce-overhead"])
def test_layers_under_autocast_and_compile_come_near_float32_and_repeat_themselves(mode: str | None) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU6(), *depthwise(32, 1, 2), nn.ReLU6()
    )
    plain = plain.cuda().to(memory_format=torch.channels_last)
    x = torch.randn(8, 3, 34, 34, device="cuda").contiguous(memory_format=torch.channels_last)
    ours = copy.deepcopy(plain)
    assert use_triton_depthwise(ours) == 2
    expected = gradients(plain, x, torch.float32)
    step = ours if mode is None else torch.compile(ours, mode=mode, fullgraph=True)
    first, second, third = (gradients(step, x, torch.bfloat16) for _ in range(3))
    for a, b, c, e in zip(first, second, third, expected, strict=True):
        assert torch.equal(b, c)
        assert ((a - e).norm() / e.norm()).item() < 0.1


def depthwise(channels: int, *strides: int) -> list[nn.Conv2d]:
    return [nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False) for stride in strides]


def gradients(net: nn.Module, x: Tensor, dtype: torch.dtype) -> list[Tensor]:
    net.zero_grad()
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        y = net(x)
    y.float().square().mean().backward()
    return [y.detach().float().clone(), *(p.grad.clone() for p in net.parameters() if p.shape[1:] == (1, 3, 3))]


if __name__ == "__main__":
    for small in SMALL:
        check(small, torch.float32, "cpu", 1e-5)
    check(SMALL[0], torch.bfloat16, "cpu", 1e-2)  # the interpreter truncates to bf16
    check(SMALL[2], torch.bfloat16, "cpu", 1e-2)
