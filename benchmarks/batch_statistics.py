"""What batch statistics do to frozen features: an independent loop on CIFAR-10, to hold norm_and_bias against.

Imports nothing of finetune: torchvision's network with ImageNet weights, its convolutions frozen; the head is trained,
with or without BatchNorm's weights and biases, on batch or on running statistics. Adam 1e-3, weight decay 1e-4, batch
64, 96 px, three epochs of a cosine, pad-4 crop and flip of whole batches, one thread.
Run: `python -m benchmarks.batch_statistics cifar-10-python.tar.gz mobilenet_v2.safetensors`.
"""

from pathlib import Path

import click
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, pad
from torchvision.models import mobilenet_v2

from benchmarks.command import Command
from benchmarks.plain_loop import MEAN, STD, read

BATCH, EPOCHS, PER_CLASS = 64, 3, 450


def views(images: Tensor) -> Tensor:
    scaled = interpolate((images.float() / 255 - MEAN) / STD, size=96, mode="bilinear", antialias=True)
    return scaled.contiguous(memory_format=torch.channels_last)


def train(
    affine: bool, batch_statistics: bool, weights: Path, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
) -> float:
    """Accuracy on the test images after the last epoch."""
    torch.manual_seed(1)
    model = mobilenet_v2()
    model.load_state_dict(load_file(weights))
    model.classifier[1] = nn.Linear(1280, 10)
    model.to(memory_format=torch.channels_last)
    model.features.requires_grad_(False)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms if affine else ():
        norm.requires_grad_(True)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    images, labels = train
    for _ in range(EPOCHS):
        model.train()
        for norm in () if batch_statistics else norms:
            norm.eval()
        for rows in torch.randperm(len(labels)).split(BATCH):
            x = pad(images[rows], (4, 4, 4, 4))
            left, top = torch.randint(0, 9, (2,)).tolist()
            x = x[:, :, top : top + 32, left : left + 32]
            x = x.flip(3) if torch.rand(()) < 0.5 else x
            optimizer.zero_grad()
            cross_entropy(model(views(x)), labels[rows]).backward()
            optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        right = [
            (model(views(x)).argmax(1) == y).sum() for x, y in zip(test[0].split(200), test[1].split(200), strict=True)
        ]
    return float(torch.stack(right).sum()) / len(test[1])


@click.command(cls=Command)
@click.argument("archive", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("weights", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(archive: Path, weights: Path) -> None:
    """Train all four ways, on the first 450 images of each class."""
    torch.set_num_threads(1)
    images, labels = read(archive, [f"data_batch_{i}" for i in range(1, 6)])
    chosen = torch.cat([torch.nonzero(labels == label)[:PER_CLASS, 0] for label in range(10)])
    some, test = (images[chosen], labels[chosen]), read(archive, ["test_batch"])
    for affine in (True, False):
        for batch_statistics in (True, False):
            accuracy = train(affine, batch_statistics, weights, some, test)
            what = "head, norm weights and biases" if affine else "head"
            print(
                f"{what}, {'batch' if batch_statistics else 'running'} statistics: {100 * accuracy:.1f} %", flush=True
            )


if __name__ == "__main__":
    main()
