"""The kernel's views are those of the matrix products, which are held against torch's own resize."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from finetune import batches, view_kernel
from finetune.batches import Batches, DeviceBatches, normalise
from finetune.params import AugmentationParams
from finetune.store import Split
from small_splits import NONE, PAD_CROP, RESIZED_CROP, levels_apart, noise, oblong, split_of

AUGMENTATIONS = (PAD_CROP, RESIZED_CROP, NONE)
CPU = torch.device("cpu")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def drawn_and_multiplied(
    split: Split, augmentation: AugmentationParams | None, size: int, layout: torch.memory_format
) -> tuple[Tensor, Tensor]:
    """All views of a split by the kernel, and by matrix products; of evaluation where there is no augmentation."""
    order, pixels = np.arange(len(split))[::-1].copy(), torch.from_numpy(split.pixels)
    made = DeviceBatches(split, size, 4, CPU, layout, 0.8, pixels, True)
    crops = batches.draw(augmentation, split.index[:, 1:], 3, 1) if augmentation else None
    views = made._views(split.index[order], order, crops)
    rows = slice(1, len(order))
    products = normalise(views.resample(pixels, rows, True), layout)
    return views.drawn(pixels, rows, batches.statistics(CPU), layout), products


def compare() -> None:
    """Run in Triton's interpreter."""
    for layout in (torch.channels_last, torch.contiguous_format):
        for augmentation in (*AUGMENTATIONS, None):
            drawn, products = drawn_and_multiplied(split_of(oblong(9)), augmentation, 24, layout)
            assert drawn.is_contiguous(memory_format=layout)
            assert levels_apart(drawn, products) < 1.01, augmentation
            assert (drawn != products).float().mean() < 0.01, "what lies half-way may be rounded either way"
    drawn, products = drawn_and_multiplied(split_of(noise(5, 24, 24)), PAD_CROP, 24, torch.channels_last)
    assert torch.equal(drawn, products), "nothing is resized"


def test_the_kernel_in_tritons_interpreter() -> None:
    pytest.importorskip("triton")
    settings = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [sys.executable, __file__], env=os.environ | settings, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]


@gpu
@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("way", ["resident", "streamed"])
def test_on_a_gpu_the_views_are_the_hosts(augmentation: AugmentationParams, way: str) -> None:
    split, device = split_of(oblong(26)), torch.device("cuda")
    pixels = torch.from_numpy(split.pixels).cuda() if way == "resident" else None
    host = Batches(split, 24, 4, CPU, torch.channels_last, 0.8).training(augmentation, 3, 1)
    found = DeviceBatches(split, 24, 4, device, torch.channels_last, 0.8, pixels, False).training(augmentation, 3, 1)
    for (images, labels), (same, order) in zip(found, host, strict=True):
        assert labels.tolist() == order.tolist()
        assert levels_apart(images.cpu(), same) < 1.01


@gpu
def test_on_a_gpu_views_that_are_not_resized_are_the_hosts_to_the_bit() -> None:
    split, device = split_of(noise(10, 24, 24)), torch.device("cuda")
    host = Batches(split, 24, 4, CPU, torch.channels_last, 0.8).training(PAD_CROP, 3, 1)
    pixels = torch.from_numpy(split.pixels).cuda()
    found = DeviceBatches(split, 24, 4, device, torch.channels_last, 0.8, pixels, False).training(PAD_CROP, 3, 1)
    assert all(torch.equal(images.cpu(), same) for (images, _), (same, _) in zip(found, host, strict=True))


def test_where_the_kernel_cannot_be_compiled_it_is_said_and_not_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ones(*shape: int, device: str) -> Tensor:
        raise RuntimeError("Failed to find C compiler\nor so")

    monkeypatch.setattr(view_kernel, "INSTALLED", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", ones)
    assert not view_kernel.usable.__wrapped__()
    assert "cannot make views on this GPU (Failed to find C compiler): matrix products do" in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not view_kernel.usable.__wrapped__()


if __name__ == "__main__":
    compare()
