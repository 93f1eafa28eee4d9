"""Batches whose views are made all at once by this project's kernels for a CPU (`training.cpu_kernels: native`).

The bits are those of `Batches`, whose views are PyTorch's, one by one (docs/performance.md).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finetune import cpu_kernels
from finetune.augmentation import Crops
from finetune.batches import Batches, statistics
from finetune.resampling import Axis, crop_axes, evaluation_axes


@dataclass(frozen=True)
class NativeBatches(Batches):
    """Batches on a CPU."""

    def _pass(self, order: np.ndarray, crops: Crops | None, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(steps):
            rows = order[step * self.batch_size : (step + 1) * self.batch_size]
            lines = cpu_kernels.views(
                self.split.pixels, self._wanted(rows, crops), *statistics(self.device, self.image_size)
            )
            labels = torch.from_numpy(self.split.labels[rows])
            yield lines.permute(0, 3, 1, 2).contiguous(memory_format=self.memory_format), labels

    def _wanted(self, rows: np.ndarray, crops: Crops | None) -> np.ndarray:
        """As `cpu_kernels.views` takes it."""
        index = self.split.index[rows]
        if crops is None:
            axes = evaluation_axes(index[:, 1:], self.image_size, round(self.image_size / self.crop_pct))
            flips = np.zeros(len(rows), bool)
        else:
            axes, flips = crop_axes(crops.boxes[rows], self.image_size), crops.flips[rows]
        return np.column_stack([index, *(axis.starts for axis in axes), *map(self._resized, axes), flips])

    def _resized(self, axis: Axis) -> np.ndarray:
        whole = np.rint(axis.lengths / axis.scales).astype(np.int64)
        return np.column_stack([axis.lengths, whole, axis.offsets])
