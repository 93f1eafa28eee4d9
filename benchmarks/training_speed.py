"""Training steps per second: this project's epoch against a plain PyTorch loop, in turn, on random images.

Prints one line per size: images per second of each (medians over rounds) and the median of the ratios.
"""

import statistics
import time

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from finetune import model as models
from finetune.allocator import keep_freed_memory
from finetune.batches import Batches
from finetune.params import TrainingParams
from finetune.store import Split
from finetune.strategies import build_plan
from finetune.training import make_optimizer, train_epoch

IMAGES, ROUNDS = 192, 3


def main() -> None:
    """Measure at 48 and 96 px, batch 32, fp32, two threads."""
    keep_freed_memory()  # for both: the ratio is of the loops and the memory format
    torch.set_num_threads(2)
    for size in (48, 96):
        rng = np.random.default_rng(0)
        flat = rng.integers(0, 256, IMAGES * size * size * 3, np.uint8)
        index = np.array([(i * size * size * 3, size, size) for i in range(IMAGES)], np.int64)
        split = Split(flat, index, rng.integers(0, 10, IMAGES))
        pairs = [(ours(split, size), plain(split, size)) for _ in range(ROUNDS)]
        a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(x / y for x, y in pairs)
        print(f"{size} px: finetune {a:.0f} images/s, plain loop {b:.0f} images/s, ratio {ratio:.2f}", flush=True)


def ours(split: Split, size: int) -> float:
    """Images per second of one epoch, augmentation included."""
    recipe = TrainingParams(image_size=size, batch_size=32, epochs=1, device="cpu")
    model = models.build(10, 0).to(memory_format=torch.channels_last)
    phase = build_plan(model, "same_lr", {}).phases[0]
    batches = Batches(split, size, 32, torch.device("cpu"), torch.channels_last, 0.875)
    optimizer = make_optimizer(model, phase, recipe)
    began = time.perf_counter()
    train_epoch(model, phase, optimizer, recipe, batches, 0, 0, "bench", ())
    return IMAGES / (time.perf_counter() - began)


def plain(split: Split, size: int) -> float:
    """Images per second of torch's defaults on images that are ready in memory, without augmentation."""
    images = torch.from_numpy(split.pixels.reshape(-1, size, size, 3).copy()).permute(0, 3, 1, 2).float() / 255
    images = images.contiguous()
    labels = torch.from_numpy(split.labels)
    model = models.build(10, 0).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, weight_decay=1e-4)
    began = time.perf_counter()
    for start in range(0, IMAGES, 32):
        loss = cross_entropy(model(images[start : start + 32]), labels[start : start + 32])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return IMAGES / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
