"""What a run costs, as cost.json has it: seconds, memory, parameters, operations.

What does not depend on the machine is worked out from shapes alone, on a network of the same make whose tensors hold
no values (PyTorch's fake and meta tensors), so that it takes no time, no memory, and changes no number of the run.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import MobileNetV2

from finetune.clock import PHASES
from finetune.device import autocast, change_layers, memory_format
from finetune.optimizers import make_optimizer
from finetune.recipe import TrainingParams
from finetune.recomputation import Recomputed
from finetune.state import peak_memory
from finetune.step import set_modes
from finetune.strategies.plan import Penalty, Phase
from finetune.training import Progress


def cost(
    model: nn.Module,
    audit: Sequence[Mapping[str, Any]],
    result: Progress,
    recipe: TrainingParams,
    images: int,
    fixed: Mapping[str, int],
) -> dict[str, Any]:
    """The content of cost.json.

    Args:
        audit: the rows of audit.csv, which tell what was trained.
        images: of the training split.
        fixed: what `worked_out` returned.
    """
    moving = {row["tensor"] for row in audit if row["kind"] == "parameter" and not row["frozen"]}
    parameters = dict(model.named_parameters())
    return {
        "seconds": round(result.seconds, 3),
        "seconds_per_epoch": round(result.seconds / recipe.epochs, 3),
        **{f"{phase}_seconds": round(result.phase_seconds[phase], 3) for phase in PHASES},
        "images_per_second": round(images * recipe.epochs / result.train_seconds, 1),
        "peak_memory_bytes": max(result.peak_memory, peak_memory(recipe.device)),
        **fixed,
        "trainable_parameters": sum(parameters[name].numel() for name in moving),
        "total_parameters": sum(p.numel() for p in parameters.values()),
    }


def worked_out(
    build: Callable[[], MobileNetV2], phases: Sequence[Phase], recipe: TrainingParams, images: int
) -> dict[str, int]:
    """What follows from the recipe and the number of training images: `activation_bytes` and `flops_per_image`.

    Args:
        build: makes the network of the run.
    """
    return {
        "activation_bytes": activation_bytes(build, phases, recipe, min(images, recipe.batch_size)),
        "flops_per_image": flops_per_image(build, recipe.image_size),
    }


def activation_bytes(
    build: Callable[[], MobileNetV2], phases: Sequence[Phase], recipe: TrainingParams, batch: int
) -> int:
    """Bytes that autograd keeps from the forward pass of `batch` images for the backward pass; of the greediest phase.

    The loss is with the phase's penalty; where a phase measures its rates, the pass for that counts, if it keeps more.
    As they are kept op by op; a compiled pass keeps fewer. Without parameters and buffers, and what a penalty holds by
    itself, such as the weights of the start; with bf16, the weights' copies are kept, too, and counted. fp32 counts are
    exact on a CPU (a GPU's pointwise convolutions are products, which keep no input where the weight is frozen); bf16
    ones are short by 4 bytes per channel of BatchNorm that PyTorch normalises (0.07 MB for all), and by 4 per group and
    image of group norms, as shapes alone do not tell their statistics to be fp32. With activation checkpointing, what a
    block keeps to begin again from is counted in its place.
    """
    on_cpu = recipe.model_copy(update={"device": "cpu"})
    with FakeTensorMode():
        model = build()
        images = torch.empty(batch, 3, recipe.image_size, recipe.image_size)
        images = images.to(memory_format=memory_format(recipe))
        labels = torch.empty(batch, dtype=torch.int64)
        begins: list[Tensor] = []  # of the blocks that are computed again
        change_layers(model, recipe)
        for block in model.modules():
            if isinstance(block, Recomputed):
                block.register_forward_pre_hook(lambda _, inputs: begins.append(inputs[0]))

        def loss(penalty: Penalty | None = None) -> Tensor:
            with autocast(images.device, recipe.precision):
                loss = cross_entropy(model(images), labels)
            return loss if penalty is None else loss + penalty(images)

        def kept(penalty: Penalty | None = None) -> int:
            begins.clear()
            return kept_for_backward(partial(loss, penalty), (*model.parameters(), *model.buffers()), begins)

        most = 0
        for phase in phases:
            make_optimizer(model, phase, on_cpu)  # says which parameters want gradients
            if phase.scales is not None:
                model.eval()
                most = max(most, kept())
            set_modes(model, phase)
            with phase.penalty(model) if phase.penalty else nullcontext() as penalty:
                most = max(most, kept(penalty))
    return most


def kept_for_backward(forward: Callable[[], Tensor], owned: Iterable[Tensor], more: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd keeps of what `forward` computes, each storage counted once and whole; none of `owned`'s.

    Args:
        more: what is kept otherwise; read afterwards.
    """
    kept: dict[StorageWeakRef, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        kept[StorageWeakRef(storage)] = storage

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda nothing: nothing):
        forward()
    for tensor in more:
        if tensor.requires_grad:
            keep(tensor)
    for tensor in owned:
        kept.pop(StorageWeakRef(tensor.untyped_storage()), None)
    return sum(storage.nbytes() for storage in kept.values())


def flops_per_image(build: Callable[[], MobileNetV2], image_size: int) -> int:
    """Operations of one evaluation image's forward pass, 2 per multiplication and addition: FLOPs = 2 x MACs.

    Those of convolutions and matrix products, as torch.utils.flop_counter counts them.
    """
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        build().eval()(torch.empty(1, 3, image_size, image_size))
    return int(counter.get_total_flops())


def forget_peak_memory(device: str) -> None:
    """Let a GPU's peak be this run's alone; a process on a CPU has one peak over all that it did."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
