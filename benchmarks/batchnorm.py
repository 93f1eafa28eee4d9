"""BatchNorm with the ReLU6 behind it, forward and backward: PyTorch's kernels and this project's for a CPU, in turn.

    python -m benchmarks.batchnorm --size 224 --batch-size 32

On maps as the 35 such layers of MobileNetV2 have them: milliseconds of all of one shape together, medians of rounds.
PyTorch's way is that of training here: ReLU6 in place, and its gradient cut in place.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable

import click
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2
from torchvision.ops.misc import Conv2dNormActivation

from finetune import cpu_kernels
from finetune.allocator import keep_freed_memory

WAYS = ("PyTorch, forward", "ours, forward", "PyTorch, backward", "ours, backward")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def shapes(size: int) -> Counter[tuple[int, int, int]]:
    """Channels, height and width of each such layer's maps."""
    found: Counter[tuple[int, int, int]] = Counter()

    def note(_: nn.Module, __: tuple[Tensor, ...], out: Tensor) -> None:
        channels, height, width = out.shape[1:]
        found[channels, height, width] += 1

    with torch.device("meta"):
        model = mobilenet_v2()
        for module in model.modules():
            if isinstance(module, Conv2dNormActivation):
                module.register_forward_hook(note)
        model(torch.empty(2, 3, size, size))
    return found


def ways(x: Tensor) -> tuple[Callable[[], object], ...]:
    """Each of WAYS on maps like `x`."""
    channels = x.shape[1]
    weight, bias, mean, variance = (torch.ones(channels) for _ in range(4))
    norm = cpu_kernels.Norm(weight, bias, mean, variance)
    gradients = torch.randn_like(x), torch.randn_like(x)

    def forward() -> tuple[Tensor, Tensor, Tensor]:
        out, *kept = torch.native_batch_norm(x, weight, bias, mean, variance, True, 0.1, 1e-5)
        return torch.ops.aten.hardtanh_(out, 0, 6), *kept

    out, *kept = forward()
    _, ours_kept = cpu_kernels.batchnorm(x, norm, True)

    def backward() -> None:
        cut = torch.ops.aten.hardtanh_backward(gradients[0], out, 0, 6, grad_input=gradients[0])
        torch.ops.aten.native_batch_norm_backward(cut, x, weight, None, None, *kept, True, 1e-5, [True] * 3)

    return (
        forward,
        lambda: cpu_kernels.batchnorm(x, norm, True),
        backward,
        lambda: cpu_kernels.batchnorm_backward(x, gradients[1], weight, ours_kept, True, in_place=True),
    )


@click.command()
@click.option("--size", default=224, show_default=True, help="Pixels.")
@click.option("--batch-size", default=32, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--precision", type=click.Choice(list(DTYPES)), default="fp32", show_default=True)
@click.option("--rounds", default=9, show_default=True)
def main(size: int, batch_size: int, threads: int, precision: str, rounds: int) -> None:
    """Measure each shape, all ways in turn."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    total = [0.0] * len(WAYS)
    print(f"{size} px, batch {batch_size}, {precision}, {threads} threads, medians of {rounds} rounds; milliseconds\n")
    print(f"| layers | maps | {' | '.join(WAYS)} |\n| --: | --- |{' --: |' * len(WAYS)}")
    for (channels, height, width), layers in shapes(size).items():
        x = torch.randn(batch_size, channels, height, width, dtype=DTYPES[precision])
        found: list[list[float]] = [[] for _ in WAYS]
        todo = ways(x.contiguous(memory_format=torch.channels_last))
        for _ in range(rounds):
            for seconds, way in zip(found, todo, strict=True):
                began = time.perf_counter()
                way()
                seconds.append(time.perf_counter() - began)
        medians = [1000 * layers * statistics.median(seconds) for seconds in found]
        total = [a + b for a, b in zip(total, medians, strict=True)]
        cells = " | ".join(f"{value:.1f}" for value in medians)
        print(f"| {layers} | {channels} x {height} x {width} | {cells} |", flush=True)
    print(f"| all | | {' | '.join(f'{value:.0f}' for value in total)} |")


if __name__ == "__main__":
    main()
