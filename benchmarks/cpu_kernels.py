"""This project's kernels for a CPU beside PyTorch's way, in turn: milliseconds, medians of rounds.

    python -m benchmarks.cpu_kernels batchnorm --size 224 --batch-size 32
    python -m benchmarks.cpu_kernels middle
    python -m benchmarks.cpu_kernels views STORE

batchnorm: the 35 layers of MobileNetV2 with ReLU6 behind them, each by itself. middle: what lies between the pointwise
convolutions of its 16 inverted residuals that expand: by PyTorch's kernels, by ours one by one around PyTorch's
convolution, and by ours as one. PyTorch's way is that of training here in float32: ReLU6 in place, and its gradient cut
in place.
views: a batch from a store's split train, cropped, resized, mirrored and normalised.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2
from torchvision.ops.misc import Conv2dNormActivation

from benchmarks.command import ONE_OR_MORE, Group
from finetune import cpu_kernels
from finetune.allocator import keep_freed_memory
from finetune.batches import Batches
from finetune.native_batches import NativeBatches
from finetune.params import AugmentationParams
from finetune.store import open_store

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Maps = tuple[int, ...]  # channels, height, width; and stride
Ways = Mapping[str, Callable[[], object]]


def normalised(size: int) -> Counter[Maps]:
    """Channels, height and width of what each ConvNormReLU6 normalises."""
    found: Counter[Maps] = Counter()
    with torch.device("meta"):
        model = mobilenet_v2()
        for module in model.modules():
            if isinstance(module, Conv2dNormActivation):
                module.register_forward_hook(lambda _, __, out: found.update([tuple(out.shape[1:])]))
        model(torch.empty(2, 3, size, size))
    return found


def in_the_middle(size: int) -> Counter[Maps]:
    """Channels, height, width and stride of each depthwise convolution but the first, whose block does not expand."""
    found: Counter[Maps] = Counter()

    def note(layer: Any, inputs: tuple[Tensor]) -> None:
        found[*inputs[0].shape[1:], layer.stride[0]] += 1

    with torch.device("meta"):
        model = mobilenet_v2()
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                module.register_forward_pre_hook(note)
        model(torch.empty(2, 3, size, size))
    found.subtract([next(iter(found))])
    return +found


def norm_of(channels: int) -> cpu_kernels.Norm:
    weight, bias, mean, variance = (torch.ones(channels) for _ in range(4))
    return cpu_kernels.Norm(weight, bias, mean, variance)


def by_pytorch(x: Tensor, norm: cpu_kernels.Norm) -> tuple[Tensor, Tensor, Tensor]:
    """What BatchNorm with ReLU6 makes and keeps."""
    out, *kept = torch.native_batch_norm(x, *norm[:4], True, norm.momentum, norm.eps)
    return torch.ops.aten.hardtanh_(out, 0, 6), *kept


def back_by_pytorch(x: Tensor, norm: cpu_kernels.Norm, made: Sequence[Tensor], gradient: Tensor) -> Tensor:
    out, *kept = made
    cut = torch.ops.aten.hardtanh_backward(gradient, out, 0, 6, grad_input=gradient)
    of_x, *_ = torch.ops.aten.native_batch_norm_backward(
        cut, x, norm.weight, None, None, *kept, True, norm.eps, [True] * 3
    )
    return of_x


def of_batchnorm(x: Tensor, _: int) -> Ways:
    norm, gradients = norm_of(x.shape[1]), (torch.randn_like(x), torch.randn_like(x))
    theirs, kept = by_pytorch(x, norm), cpu_kernels.batchnorm(x, norm, True)[1]
    return {
        "PyTorch, forward": lambda: by_pytorch(x, norm),
        "ours, forward": lambda: cpu_kernels.batchnorm(x, norm, True),
        "PyTorch, backward": lambda: back_by_pytorch(x, norm, theirs, gradients[0]),
        "ours, backward": lambda: cpu_kernels.batchnorm_backward(x, gradients[1], norm.weight, kept, True, True),
    }


def of_middle(x: Tensor, stride: int) -> Ways:
    norm, channels = norm_of(x.shape[1]), x.shape[1]
    taps = torch.randn(channels, 1, 3, 3)
    geometry = (stride, stride), (1, 1), (1, 1)

    def convolved(activated: Tensor) -> Tensor:
        return torch.conv2d(activated, taps.to(x.dtype), None, *geometry, channels)

    def back(gradient: Tensor, activated: Tensor) -> Tensor:
        of_activated, *_ = torch.ops.aten.convolution_backward(
            gradient, activated, taps.to(x.dtype), None, *geometry, False, (0, 0), channels, (True, True, False)
        )
        return of_activated

    def forward() -> tuple[Sequence[Tensor], Tensor, Sequence[Tensor]]:
        first = by_pytorch(x, norm)
        between = convolved(first[0])
        return first, between, by_pytorch(between, norm)

    def apart() -> tuple[Sequence[Tensor], Tensor, Sequence[Tensor]]:
        first = cpu_kernels.batchnorm(x, norm, True)
        between = convolved(first[0])
        return first, between, cpu_kernels.batchnorm(between, norm, True)

    theirs, ours, as_one = forward(), apart(), cpu_kernels.middle(x, taps, stride, norm, norm)
    given = [torch.randn_like(as_one.out) for _ in range(3)]

    def backward() -> Tensor:
        of_between = back_by_pytorch(theirs[1], norm, theirs[2], given[0])
        return back_by_pytorch(x, norm, theirs[0], back(of_between, theirs[0][0]))

    def backward_apart() -> object:
        last = norm.weight, ours[2][1], True
        of_between, *_ = cpu_kernels.batchnorm_backward(ours[1], given[1], *last, in_place=True)
        of_first = back(of_between, ours[0][0])
        return cpu_kernels.batchnorm_backward(x, of_first, norm.weight, ours[0][1], True, in_place=True)

    weights, kept = (norm.weight, norm.weight), (as_one.convolved, as_one.kept)
    return {
        "PyTorch, forward": forward,
        "ours apart, forward": apart,
        "ours, forward": lambda: cpu_kernels.middle(x, taps, stride, norm, norm),
        "PyTorch, backward": backward,
        "ours apart, backward": backward_apart,
        "ours, backward": lambda: cpu_kernels.middle_backward(x, taps, stride, weights, *kept, given[2]),
    }


def medians(ways: Ways, rounds: int) -> list[float]:
    """Milliseconds of each way."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    return [1000 * statistics.median(found) for found in seconds.values()]


def table(
    part: Callable[[Tensor, int], Ways],
    shapes: Counter[Maps],
    *,
    batch_size: int,
    threads: int,
    precision: str,
    rounds: int,
) -> None:
    """A row of milliseconds for all layers of one shape together, and one of their sums."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    print(f"batch {batch_size}, {precision}, {threads} threads, medians of {rounds} rounds; milliseconds\n")
    total: list[float] = []
    for (channels, height, width, *stride), number in shapes.items():
        x = torch.randn(batch_size, channels, height, width, dtype=DTYPES[precision])
        ways = part(x.contiguous(memory_format=torch.channels_last), *stride or [1])
        if not total:
            print(f"| layers | maps | {' | '.join(ways)} |\n| --: | --- |{' --: |' * len(ways)}")
            total = [0.0] * len(ways)
        found = [number * milliseconds for milliseconds in medians(ways, rounds)]
        total = [a + b for a, b in zip(total, found, strict=True)]
        maps = f"{channels} x {height} x {width}" + "".join(f", stride {step}" for step in stride)
        print(f"| {number} | {maps} | {' | '.join(f'{value:.1f}' for value in found)} |", flush=True)
    print(f"| all | | {' | '.join(f'{value:.0f}' for value in total)} |")


def options(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option("--rounds", default=9, type=ONE_OR_MORE, show_default=True)(command)
    command = click.option("--threads", default=2, type=ONE_OR_MORE, show_default=True)(command)
    command = click.option("--batch-size", default=32, type=ONE_OR_MORE, show_default=True)(command)
    return click.option("--size", default=224, type=ONE_OR_MORE, show_default=True, help="Pixels.")(command)


precisions = click.option("--precision", type=click.Choice(list(DTYPES)), default="fp32", show_default=True)


@click.group(cls=Group)
def main() -> None:
    """This project's kernels for a CPU beside PyTorch's way, in turn."""


@main.command()
@options
@precisions
def batchnorm(size: int, **given: Any) -> None:
    """BatchNorm with the ReLU6 behind it."""
    table(of_batchnorm, normalised(size), **given)


@main.command()
@options
@precisions
def middle(size: int, **given: Any) -> None:
    """Between the pointwise convolutions of the inverted residuals that expand."""
    table(of_middle, in_the_middle(size), **given)


def epochs(batches: Batches) -> Iterator[object]:
    """Batches of epoch after epoch."""
    crop = AugmentationParams(name="random_resized_crop")
    return chain.from_iterable(batches.training(crop, 0, epoch) for epoch in count())


@main.command()
@options
@click.argument("store", type=click.Path(exists=True, file_okay=False, path_type=Path))
def views(store: Path, size: int, batch_size: int, threads: int, rounds: int) -> None:
    """Batches of views of the store's split `train`, one a round."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    split = open_store(store).split("train")
    common = split, size, min(batch_size, len(split)), torch.device("cpu"), torch.channels_last, 0.875
    kinds = {"PyTorch": Batches(*common), "ours": NativeBatches(*common)}
    found = medians({name: partial(next, epochs(batches)) for name, batches in kinds.items()}, rounds)
    each = ", ".join(f"{name} {value / common[2]:.3f}" for name, value in zip(kinds, found, strict=True))
    print(f"{size} px, {threads} threads, medians of {rounds} batches of {common[2]}; milliseconds an image: {each}")


if __name__ == "__main__":
    main()
