"""An epoch of training in which nothing may wait for the GPU, but where the log reads its numbers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.rates import Trained
from finetune import training
from finetune.params import TrainingParams

_READS = ("_check_finite", "_total")  # of finetune.training: what the log, and a loss that is not finite, are read by


def epochs(store: Path, device: str, tiny: bool) -> dict[str, str | None]:
    """By where the pixels lie, what waited for the GPU, in PyTorch's words; None: nothing did."""
    size, batch = (32, 8) if tiny else (224, 64)
    recipe = TrainingParams.model_validate(
        {"image_size": size, "batch_size": batch, "device": device, "precision": "bf16", "mixup": 0.2, "cutmix": 1.0}
    )
    trained = Trained(store, recipe)
    found: dict[str, str | None] = {}
    for way in ("resident", "streamed"):
        batches = trained.batches(6 * batch, way == "streamed")
        trained.epoch(batches, 0)  # what is made once is made
        try:
            with forbidden(device):
                trained.epoch(batches, 1)
            found[way] = None
        except RuntimeError as error:
            found[way] = str(error)[:300]
        said = found[way] or (
            "nothing waits for the GPU" if device == "cuda" else "trained; only a GPU can be waited for"
        )
        print(f"an epoch of {way} pixels: {said}", flush=True)
    return found


@contextmanager
def forbidden(device: str) -> Iterator[None]:
    """Within, what waits for a GPU is an error, except the reads of the log."""
    if device != "cuda":
        yield
        return

    def let(read: Callable[..., Any]) -> Callable[..., Any]:
        def reading(*values: Any) -> Any:
            with _mode("default"):
                return read(*values)

        return reading

    before = {name: getattr(training, name) for name in _READS}
    for name, read in before.items():
        setattr(training, name, let(read))
    try:
        with _mode("error"):
            yield
    finally:
        for name, read in before.items():
            setattr(training, name, read)


@contextmanager
def _mode(mode: str) -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
