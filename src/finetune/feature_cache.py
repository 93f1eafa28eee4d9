"""A frozen backbone computes the same features of an image every time: they are computed once and the head trains on
them, where nothing else would change what the network sees."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d
from torchvision.models import MobileNetV2

from finetune.augmentation import epoch_order
from finetune.batches import Batches, training_steps
from finetune.counting import counted
from finetune.device import autocast
from finetune.errors import InputError
from finetune.evaluation import predict
from finetune.recipe import AugmentationParams, TrainingParams
from finetune.state import Row
from finetune.strategies.plan import Phase, Solution, batchnorm_layers, trainable

MOST_BYTES = 4 * 2**30  # of features in memory; a larger split trains without the cache
_BYTES_PER_IMAGE = 1280 * 4


@dataclass(frozen=True)
class Cached:
    """As `Batches`, with features (N x 1280) in the place of images."""

    features: Tensor
    labels: Tensor  # int64
    batch_size: int
    device: torch.device

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def training_steps(self) -> int:
        """As `Batches.training_steps`."""
        return training_steps(len(self.labels), self.batch_size)

    def training(
        self, augmentation: AugmentationParams, seed: int, epoch: int, *, first: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """In the very order in which `Batches` would train on the images."""
        order = torch.from_numpy(epoch_order(len(self.labels), seed, epoch)).to(self.device)
        for step in range(first, self.training_steps()):
            rows = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield self.features[rows], self.labels[rows]

    def evaluation(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.features.split(self.batch_size), self.labels.split(self.batch_size), strict=True)


@dataclass(frozen=True)
class Trained:
    """What a phase trains: a network, and batches of what it takes."""

    network: nn.Module
    train: Batches | Cached
    val: Batches | Cached | None


def trained(model: MobileNetV2, phase: Phase, recipe: TrainingParams, train: Batches, val: Batches | None) -> Trained:
    """The whole network on images; or the head on cached features, where that comes to the same, which is said.

    The features are those of whole evaluation batches, so a run that goes on has the same ones again.
    """
    if not cacheable(model, phase, recipe):
        return Trained(model, train, val)
    images = len(train.split) + (len(val.split) if val else 0)
    if images * _BYTES_PER_IMAGE > MOST_BYTES:
        print(f"the features of {images:,} images would take more than {MOST_BYTES >> 30} GiB: not cached", flush=True)
        return Trained(model, train, val)
    print(f"the backbone is frozen and images are not augmented: features of {images:,} images are cached", flush=True)
    return Trained(model.classifier, cached(model, train, recipe), cached(model, val, recipe) if val else None)


def cacheable(model: MobileNetV2, phase: Phase, recipe: TrainingParams) -> bool:
    """Whether what reaches the head is the same in every epoch."""
    if recipe.augmentation.name != "none" or recipe.mixup or recipe.cutmix or phase.penalty or phase.scales:
        return False
    moving = (name for names in trainable(model, phase.groups).values() for name in names)
    policies = {group.batchnorm for group in phase.groups if set(group.tensors) & _batchnorm_weights(model)}
    return all(name.startswith("classifier.") for name in moving) and "train" not in policies


@torch.no_grad()
def cached(model: MobileNetV2, batches: Batches, recipe: TrainingParams) -> Cached:
    """The features of a split, as evaluation has them."""
    model.eval()
    features, labels, done = [], [], 0
    with counted("features", len(batches.split), "images") as advance:
        for images, of_images in batches.evaluation():
            with autocast(batches.device, recipe.precision):
                features.append(adaptive_avg_pool2d(model.features(images), 1).flatten(1))  # as MobileNetV2.forward
            labels.append(of_images)
            advance(done := done + len(of_images))
    return Cached(torch.cat(features), torch.cat(labels), batches.batch_size, batches.device)


@torch.no_grad()
def solved(model: MobileNetV2, solve: Callable[..., Solution], recipe: TrainingParams, train: Batches | Cached) -> Row:
    """Give the head the solution of `solve`; the loss and accuracy of the training split under it.

    Raises:
        InputError: there are too many features to be held in memory.
    """
    if not isinstance(train, Cached):
        raise InputError(
            f"the features of {len(train.split):,} training images, with those of validation, take more than "
            f"{MOST_BYTES >> 30} GiB, which an exact solve would need at once; train the head by steps, or set the "
            "data set's fraction"
        )
    head = model.classifier[-1]
    weight, bias = solve(train.features.float(), train.labels, recipe.weight_decay)
    head.weight.copy_(weight)
    head.bias.copy_(bias)
    seen = predict(model.classifier, train, recipe.precision)
    return {"train/loss": seen.loss, "train/acc": seen.acc}


def _batchnorm_weights(model: MobileNetV2) -> set[str]:
    return {f"{layer}.weight" for layer in batchnorm_layers(model)}
