"""An independent plain training loop on CIFAR-10, to hold this project's figures against: it imports nothing of it.

torchvision's model and torch's defaults, Adam 1e-3, weight decay 1e-4, batch 64, 96 px, three epochs, exponential
decay 0.9 per epoch, flip and pad-4 crop at 32 px, whole-image evaluation, the last epoch: `studies/parity.yaml`.
Run: `python -m benchmarks.plain_loop cifar-10-python.tar.gz from_scratch 0 1` or with `same_lr` and `--weights FILE`.
"""

import pickle
import tarfile
from pathlib import Path

import click
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, pad
from torchvision.models import mobilenet_v2

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


def read(archive: Path, names: list[str]) -> tuple[Tensor, Tensor]:
    """uint8 images, N x 3 x 32 x 32, and int64 labels of the batches `names`."""
    with tarfile.open(archive) as tar:
        batches = [pickle.load(tar.extractfile(f"cifar-10-batches-py/{name}"), encoding="bytes") for name in names]  # type: ignore[arg-type]
    images = torch.cat([torch.from_numpy(batch[b"data"]).view(-1, 3, 32, 32) for batch in batches])
    return images, torch.cat([torch.tensor(batch[b"labels"]) for batch in batches])


def enlarge(images: Tensor) -> Tensor:
    """N x 3 x 32 x 32 of 0 to 255 -> normalised N x 3 x 96 x 96."""
    big = interpolate(images.float() / 255, size=96, mode="bilinear", antialias=True, align_corners=False)
    return (big - MEAN) / STD


def pad_crop(image: Tensor) -> Tensor:
    """One image, shifted by up to four pixels either way and flipped half of the time."""
    top, left = torch.randint(0, 9, (2,)).tolist()
    view = pad(image, (4, 4, 4, 4))[:, top : top + 32, left : left + 32]
    return view.flip(-1) if torch.rand(()) < 0.5 else view


def run(archive: Path, weights: Path | None, seed: int) -> float:
    """Test top-1, in percent, of one training."""
    torch.manual_seed(seed)
    images, labels = read(archive, [f"data_batch_{i}" for i in range(1, 6)])
    model = mobilenet_v2(num_classes=10)
    if weights:
        state = {k: v for k, v in load_file(weights).items() if not k.startswith("classifier")}
        model.load_state_dict(state, strict=False)
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    for epoch in range(3):
        model.train()
        for rows in torch.randperm(len(images)).split(64):
            batch = enlarge(torch.stack([pad_crop(images[i]) for i in rows]))
            loss = cross_entropy(model(batch.contiguous(memory_format=torch.channels_last)), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        print(f"seed {seed} epoch {epoch + 1}: last loss {loss.item():.3f}", flush=True)
    return top1(model, *read(archive, ["test_batch"]))


@torch.inference_mode()
def top1(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """In percent."""
    model.eval()
    guesses = torch.cat([model(enlarge(part)).argmax(1) for part in images.split(200)])
    return 100 * (guesses == labels).double().mean().item()


@click.command()
@click.argument("archive", type=click.Path(exists=True, path_type=Path))
@click.argument("strategy", type=click.Choice(["same_lr", "from_scratch"]))
@click.argument("seeds", type=int, nargs=-1, required=True)
@click.option("--weights", type=click.Path(exists=True, path_type=Path), help="ImageNet weights, for same_lr")
@click.option("--threads", default=2, show_default=True)
def main(archive: Path, strategy: str, seeds: tuple[int, ...], weights: Path | None, threads: int) -> None:
    """Train once per seed and print each test top-1."""
    if (strategy == "same_lr") != (weights is not None):
        raise click.UsageError("same_lr starts from --weights FILE; from_scratch takes none")
    torch.set_num_threads(threads)
    for seed in seeds:
        print(f"{strategy} seed {seed}: test top-1 {run(archive, weights, seed):.2f} %", flush=True)


if __name__ == "__main__":
    main()
