"""A tiny data set, its store, a backbone and a tiny params.yaml, shared by the tests of the core."""

import copy
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from finetune.datasets import Contents, Dataset, Edition, Example
from finetune.params import PrepareParams
from finetune.study import Layout

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read once, when torch is imported: not by what is imported here

# A shell starts what it runs in the background with Ctrl-C ignored, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored

# Files that take a minute and more, longest first: at the end of a parallel run nothing long is left for one worker.
LONGEST = ["dvc", "mlproject", "gpu_benchmark", "benchmarks", "strategy_contract", "resumption", "workflow"]

SIDE = 32  # pixels
COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture
def threads_put_back() -> Iterator[None]:
    """PyTorch has as many threads after a test as before."""
    import torch  # takes seconds

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_ambient_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an outer `mlflow run` or `dvc repro` has set is no concern of a test's."""
    for name in list(os.environ):
        if name.startswith("MLFLOW_") or name in ("DVC_ROOT", "DVC_STAGE", "FINETUNE_STUDY"):
            monkeypatch.delenv(name)


def _pixels(label: int, number: int) -> np.ndarray:
    """A noisy image of the class's colour: uint8, SIDE x SIDE x 3; the same whenever it is asked for."""
    noise = np.random.default_rng((label, number)).integers(-40, 56, (SIDE, SIDE, 3))
    return np.asarray(COLOURS[label] + noise, np.uint8)


def _examples(train: int, test: int) -> Iterator[Example]:
    """Training and test images, the classes taking turns."""
    for split, images in (("train", train), ("test", test)):
        for number in range(images):
            for label in range(len(COLOURS)):
                pixels = _pixels(label, number if split == "train" else train + number)
                yield Example(split, label, pixels, f"toy.bin: {split}/{label}/{number}")  # type: ignore[arg-type]


def _toy(
    train: int = 12,
    test: int = 4,
    editions: Mapping[str, Edition] = MappingProxyType({}),
    examples: Callable[[], Iterator[Example]] | None = None,
    archives: tuple[str, ...] = ("toy.bin",),
) -> Dataset:
    stream = examples or (lambda: _examples(train, test))
    return Dataset(
        name="toy",
        title="Toy",
        classes=len(COLOURS),
        archives=archives,
        editions=editions,
        read=lambda folder: Contents(("red", "green", "blue"), stream()),
    )


@pytest.fixture(scope="session")
def make_toy() -> Callable[..., Dataset]:
    """Makes a data set of three colours, `train` and `test` images per class, with archives and editions as told."""
    return _toy


@pytest.fixture(scope="session")
def toy_archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the toy's one archive, the bytes b"toy"."""
    folder = tmp_path_factory.mktemp("archives")
    (folder / "toy.bin").write_bytes(b"toy")
    return folder


@pytest.fixture(scope="session")
def toy_inputs(tmp_path_factory: pytest.TempPathFactory, toy_archives: Path) -> Path:
    """A root holding the toy's store (27 train, 9 val, 12 test images) and a backbone of random weights."""
    from safetensors.torch import save_file

    from finetune.model import build, prepare_backbone
    from finetune.prepare import prepare

    layout = Layout(tmp_path_factory.mktemp("inputs"))
    settings = PrepareParams(short_side=SIDE, val_fraction=0.25)
    prepare(_toy(), "any", settings, toy_archives, layout.store("toy"))
    raw = layout.root / "weights.safetensors"
    save_file(build(5, seed=99).state_dict(), raw)
    prepare_backbone(str(raw), "", Path("no-sample"), layout.backbone)
    return layout.root


@pytest.fixture(scope="session")
def tiny_content() -> Mapping[str, Any]:
    """The content of a tiny study's params.yaml, on the toy; not to be changed."""
    return {
        "study": {
            "name": "tiny",
            "edition": "any",
            "datasets": ["toy"],
            "strategies": ["same_lr", "separate_lr", "from_scratch"],
            "seeds": [0, 1],
            "baseline": "same_lr",
        },
        "prepare": {"short_side": SIDE, "val_fraction": 0.25},
        "backbone": {"source": "weights.safetensors"},
        "training": {
            "image_size": SIDE,
            "epochs": 2,
            "batch_size": 9,
            "lr": 1e-3,
            "crop_pct": 1.0,
            "augmentation": {"name": "pad_crop"},
            "threads": 1,
            "device": "cpu",
        },
        "datasets": {"toy": {}},
        "strategies": {"same_lr": {}, "separate_lr": {}, "from_scratch": {}},
    }


@pytest.fixture
def tiny(tiny_content: Mapping[str, Any]) -> dict[str, Any]:
    """The same, to be changed at will."""
    return copy.deepcopy(dict(tiny_content))
