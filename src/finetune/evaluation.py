"""Model + batches -> predictions and metrics."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from finetune.device import autocast


class Evaluable(Protocol):
    """Batches of a split, with what the network takes and the labels."""

    @property
    def device(self) -> torch.device: ...

    def evaluation(self) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True)
class Predictions:
    """What a model says of each image, in the split's order."""

    labels: np.ndarray  # int64, images
    predictions: np.ndarray  # int64, images: the most probable class
    confidence: np.ndarray  # float32, images: its probability
    in_top5: np.ndarray  # bool, images: whether the label is among the five most probable classes
    losses: np.ndarray  # float32, images: cross-entropy in nats

    @property
    def loss(self) -> float:
        return float(self.losses.mean(dtype=np.float64))

    @property
    def acc(self) -> float:
        """Top-1 accuracy in [0, 1]."""
        return float((self.predictions == self.labels).mean())

    @property
    def acc5(self) -> float:
        """Top-5 accuracy in [0, 1]."""
        return float(self.in_top5.mean())


@torch.no_grad()
def predict(model: nn.Module, batches: Evaluable, precision: str) -> Predictions:
    """Run `model` in evaluation mode over every image of `batches`; its mode is put back afterwards."""
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    columns: list[list[Tensor]] = [[] for _ in range(5)]
    for images, labels in batches.evaluation():
        with autocast(batches.device, precision):
            logits = model.forward(images).float()  # not what was compiled for whole training batches
        probabilities, order = logits.softmax(1).topk(min(5, logits.shape[1]))
        losses = cross_entropy(logits, labels, reduction="none")
        hits = (order == labels[:, None]).any(1)
        for column, values in zip(columns, (labels, order[:, 0], probabilities[:, 0], hits, losses), strict=True):
            column.append(values)
    for module, mode in was_training.items():
        module.training = mode
    return Predictions(*(torch.cat(column).cpu().numpy() for column in columns))
