"""Where a training step's time goes: plain PyTorch's and this project's, by kind of operation.

    python -m benchmarks.step_profile --size 224 --batch-size 32

Plain is torchvision's network as it comes, float32, contiguous, PyTorch's own memory; then this project's step, float32
and bf16, by PyTorch's kernels and, where there is a C++ compiler, by this project's. Milliseconds are torch.profiler's,
of the operations themselves, means over the steps.
"""

from collections import defaultdict
from collections.abc import Callable

import click
import torch
from torch.autograd.profiler_util import EventList
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile
from torchvision.models import mobilenet_v2

from benchmarks.command import ONE_OR_MORE, Command
from benchmarks.engine import CLASSES
from finetune import kernel_library
from finetune import model as models
from finetune.device import configure, memory_format, move_to_device
from finetune.optimizers import make_optimizer
from finetune.recipe import TrainingParams
from finetune.step import Step, set_modes
from finetune.strategies import build_plan

KINDS = {
    "convolutions, forward": ("mkldnn_convolution", "thnn_conv2d", "_slow_conv2d_forward", "conv_depthwise2d"),
    "convolutions, backward": ("convolution_backward", "_slow_conv2d_backward"),
    "BatchNorm, forward": ("native_batch_norm", "_native_batch_norm_legit"),
    "BatchNorm, backward": ("native_batch_norm_backward",),
    "BatchNorm with ReLU6, ours": ("_Normalisation", "_NormalisationBackward"),
    "that twice with depthwise, ours": ("_Middle", "_MiddleBackward"),
    "ReLU6": ("hardtanh", "hardtanh_", "hardtanh_backward", "clamp", "clamp_"),
    "copies and casts": ("copy_", "fill_", "zero_"),
    "optimizer": ("_fused_adam_", "addcdiv_", "addcmul_", "lerp_"),
}


def steps_of(way: str, size: int, batch: int, threads: int) -> Callable[[], object]:
    """A training step on one batch that lies ready; of `plain`, `ours fp32`, `ours fp32 native` and the like."""
    images, labels = torch.rand(batch, 3, size, size), torch.arange(batch) % CLASSES
    if way == "plain":
        torch.set_num_threads(threads)
        plain = mobilenet_v2(num_classes=CLASSES).train()
        adam = torch.optim.Adam(plain.parameters(), 1e-3, weight_decay=1e-4)

        def step() -> None:
            adam.zero_grad()
            cross_entropy(plain(images), labels).backward()
            adam.step()

        return step
    _, precision, *own_kernels = way.split()
    settings = {"image_size": size, "batch_size": batch, "precision": precision, "threads": threads, "device": "cpu"}
    recipe = TrainingParams.model_validate(settings | ({"cpu_kernels": "native"} if own_kernels else {}))
    configure(recipe)
    model = models.build(CLASSES, 0)
    move_to_device(model, recipe)
    phase = build_plan(model, "same_lr", {}).phases[0]
    own = Step(model, phase, make_optimizer(model, phase, recipe), recipe)
    set_modes(model, phase)
    ready = images.contiguous(memory_format=memory_format(recipe)), labels
    return lambda: own([ready], 0, 0, 0, 1)


def by_kind(events: EventList, steps: int) -> dict[str, float]:
    """Milliseconds a step of each kind."""
    found: dict[str, float] = defaultdict(float)
    for event in events:
        name = event.key.removeprefix("aten::").removeprefix("torch_native::")
        fused = name.startswith("_foreach")
        kind = "optimizer" if fused else next((kind for kind, names in KINDS.items() if name in names), "rest")
        found[kind] += event.self_cpu_time_total / 1000 / steps
    return found


@click.command(cls=Command)
@click.option("--size", default=224, type=ONE_OR_MORE, show_default=True, help="Pixels.")
@click.option("--batch-size", default=32, type=ONE_OR_MORE, show_default=True)
@click.option("--threads", default=2, type=ONE_OR_MORE, show_default=True)
@click.option("--steps", default=5, type=ONE_OR_MORE, show_default=True)
@click.option(
    "--warm-up",
    default=10,
    type=ONE_OR_MORE,
    show_default=True,
    help="Steps before them, through which the heap grows.",
)
def main(size: int, batch_size: int, threads: int, steps: int, warm_up: int) -> None:
    """Profile each way, one after another in a process: plain first, before the allocator is set."""
    columns: dict[str, dict[str, float]] = {}
    kernels = ("", " native") if kernel_library.available() else ("",)
    for way in ("plain", *(f"ours {precision}{own}" for precision in ("fp32", "bf16") for own in kernels)):
        step = steps_of(way, size, batch_size, threads)
        for _ in range(warm_up):
            step()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            for _ in range(steps):
                step()
        columns[way] = by_kind(seen.key_averages(), steps)
    print(f"{size} px, batches of {batch_size}, {threads} threads: milliseconds a step, means of {steps}\n")
    print(f"| kind of operation | {' | '.join(columns)} |\n| --- |{' --: |' * len(columns)}")
    for kind in (*KINDS, "rest"):
        print(f"| {kind} | {' | '.join(f'{column.get(kind, 0.0):.0f}' for column in columns.values())} |")
    print(f"| all | {' | '.join(f'{sum(column.values()):.0f}' for column in columns.values())} |")


if __name__ == "__main__":
    main()
