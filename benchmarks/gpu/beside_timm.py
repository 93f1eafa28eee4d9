"""Training beside timm on the same device, in turn: images per second.

timm takes JPEG files from class folders, as its train.py does: its create_loader with workers, its model and optimizer,
with flags `--channels-last --amp --amp-dtype bfloat16`, those and `--torchcompile`, and as it comes (float32, products
rounded to TF32 by PyTorch and train.py). Ours is `finetune train`'s epoch from a prepared store.
Both crop at random and flip, at the same size of images and batches.
"""

import math
import statistics
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

from benchmarks.gpu import rates
from benchmarks.gpu.sweep import recipe_of
from benchmarks.unpacking import unpack_files
from finetune.errors import InputError
from finetune.recipe import TrainingParams
from finetune.store import Split, open_store

WORKERS, TINY_WORKERS = 16, 1
ROUNDS = 3
_AS_IT_COMES, _COMPILED = "timm_default", "timm_compiled"
_TIMMS = ("timm", _COMPILED, _AS_IT_COMES)
_QUALITY, _MOST = 95, 12288  # of JPEGs that are written from a store


def measure(
    store: Path,
    device: str,
    tiny: bool,
    setting: str,
    archive: Path | None,
    scratch: Path,
    minutes: float,
    keep: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Give `keep` the rates so far after each; `said` has why there are none.

    Args:
        setting: of ours, as the sweep writes it; its batch size and precision are timm's, too.
        archive: a .tar or .tar.gz of class folders of JPEGs; None: they are written from the store's pixels.
        scratch: where the JPEGs go.
        minutes: after which no new rate is begun.
    """
    found: dict[str, Any] = {"timm": None, "setting": setting}
    if not _installed():
        found["said"] = "timm is not installed on this machine, so it was not measured; pip install timm"
        print(found["said"], flush=True)
        keep(found)
        return found
    end, recipe = time.monotonic() + 60 * minutes, recipe_of(setting, device, tiny)
    images, workers = (rates.TINY_IMAGES, TINY_WORKERS) if tiny else (rates.IMAGES, WORKERS)
    folder, whence = pictures(open_store(store).split("train"), archive, scratch, images)
    found |= {"timm": version("timm"), "workers": workers, "images": whence, "rates": {}}
    keep(found)
    ways = {"ours": _ours(store, recipe, images)}
    ways |= {way: _timm(folder, recipe, images, workers, way) for way in _TIMMS if not (tiny and way == _COMPILED)}
    rated: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(ROUNDS):
        for way, rate in ways.items():
            if time.monotonic() >= end:
                found["said"] = "no time was left for all of the rounds"
                print(found["said"], flush=True)
                keep(found)
                return found
            if way not in rated:
                continue
            try:
                rated[way].append(round(rate(), 1))
            except RuntimeError as error:  # such as one that is out of memory; ours and timm's others go on
                if way == "ours":
                    raise
                found.setdefault("failed", {})[way] = f"{type(error).__name__}: {error}"[:300]
                print(f"{way}: {found['failed'][way]}", flush=True)
                del rated[way]
                torch.cuda.empty_cache()
                continue
            found |= {"rates": rated} | compared(rated)
            keep(found)
            print(f"round {turn + 1}/{ROUNDS}: {way} {rated[way][-1]:.0f} images/s", flush=True)
    return found


def _installed() -> bool:
    try:
        import timm  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def complete(found: dict[str, Any]) -> bool:
    """Whether every round was measured."""
    rated = found.get("rates") or {"ours": []}
    return all(len(values) == ROUNDS for values in rated.values())


def compared(rated: dict[str, list[float]]) -> dict[str, Any]:
    """The median of ours, and of its ratios to each of timm's ways, round by round; `vs_timm` is the least."""
    ratios = {
        way: round(statistics.median(a / b for a, b in zip(rated["ours"], values, strict=False)), 3)
        for way, values in rated.items()
        if way != "ours" and values and rated["ours"]
    }
    ours = {"images_per_second": statistics.median(rated["ours"])} if rated["ours"] else {}
    return ours | {"ratios": ratios} | ({"vs_timm": min(ratios.values())} if ratios else {})


def pictures(split: Split, archive: Path | None, scratch: Path, most: int) -> tuple[Path, str]:
    """Class folders of JPEGs under `scratch`, and what they are.

    Raises:
        InputError: the archive cannot be read, or has no class folders of JPEGs.
    """
    if archive is None:
        _write_pictures(split, scratch, min(most, _MOST))
        return scratch, f"JPEGs of quality {_QUALITY}, written from the store's pixels"
    try:
        with tarfile.open(archive) as tar:
            files = [member for member in tar if not Path(member.name).name.startswith("._")]  # macOS' own
            unpack_files(tar, scratch, files)
    except (OSError, tarfile.TarError) as error:
        why = str(error).partition("\n")[0].rstrip(":")
        raise InputError(f"{archive}: cannot be unpacked ({why}); name a .tar or .tar.gz of class folders") from None
    first = next((path for path in sorted(scratch.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg")), None)
    if first is None or first.parent == scratch:
        raise InputError(f"{archive}: found no class folders of JPEGs; name an archive that has some, or none")
    return first.parent.parent, f"JPEGs of {archive.name}, as they were taken"


def _write_pictures(split: Split, folder: Path, most: int) -> None:
    for label in set(split.labels.tolist()):
        (folder / f"{label:05d}").mkdir(parents=True)

    def write(i: int) -> None:
        Image.fromarray(split.image(i)).save(folder / f"{split.labels[i]:05d}" / f"{i}.jpg", quality=_QUALITY)

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(min(most, len(split)))))


def _ours(store: Path, recipe: TrainingParams, images: int) -> Callable[[], float]:
    trained = rates.Trained(store, recipe)
    batches = trained.batches(images)
    trained.rate(trained.batches(4 * recipe.batch_size), 0)
    return lambda: trained.rate(batches, 1)


class _Repeated(Dataset[Any]):
    """A data set over and over, up to so many images."""

    def __init__(self, dataset: Any, images: int) -> None:
        self._dataset, self._images = dataset, images

    def __len__(self) -> int:
        return self._images

    def __getitem__(self, i: int) -> Any:
        return self._dataset[i % len(self._dataset)]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "transform":  # which the loader sets
            self._dataset.transform = value
        else:
            super().__setattr__(name, value)


def _timm(folder: Path, recipe: TrainingParams, images: int, workers: int, way: str) -> Callable[[], float]:
    """What gives the rate of an epoch, from when the batches that the workers had ready are used up."""
    from timm import create_model
    from timm.data import create_dataset, create_loader
    from timm.optim import create_optimizer_v2

    device, size, batch = torch.device(recipe.device), recipe.image_size, recipe.batch_size
    layout = torch.contiguous_format if way == _AS_IT_COMES else torch.channels_last
    low = recipe.precision == "bf16" and way != _AS_IT_COMES
    dataset = create_dataset("", root=str(folder), split="train")
    classes = len(dataset.reader.class_to_idx)
    ahead = 2 * workers  # batches: a DataLoader's prefetch_factor
    repeated: Any = _Repeated(dataset, ahead * batch + math.ceil(images / batch) * batch)
    loader = create_loader(
        repeated,
        input_size=(3, size, size),
        batch_size=batch,
        is_training=True,
        num_workers=workers,
        color_jitter=0.0,
        interpolation="bilinear",
        pin_memory=device.type == "cuda",
        device=device,
    )
    model: Any = create_model("mobilenetv2_100", pretrained=False, num_classes=classes)
    model.to(device, memory_format=layout).train()
    optimizer = create_optimizer_v2(model, "adam", lr=recipe.lr, weight_decay=recipe.weight_decay)
    model = torch.compile(model) if way == _COMPILED else model

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def rate() -> float:
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # as in train.py
        try:
            return epoch()
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before

    def epoch() -> float:
        began, timed = 0.0, 0
        for number, (seen, labels) in enumerate(loader):
            if number == ahead:
                wait()
                began = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=low):
                loss = cross_entropy(model(seen.contiguous(memory_format=layout)), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            timed += len(labels) if number >= ahead else 0
        wait()
        return timed / (time.perf_counter() - began)

    return rate
