"""Pretrains the sample backbone: a MobileNetV2 on the drawn upstream set, by this project's own loop.

The sample edition is to run without a network, and fine-tuning has to have something to transfer. The upstream set is
drawn by other means than the five stand-ins, and shares no class with them.
"""

import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from finetune import model as models
from finetune import samples
from finetune.crew import end_with_the_parent
from finetune.device import Feed, configure, move_to_device
from finetune.params import AugmentationParams, ScheduleParams, TrainingParams
from finetune.prepare import stratified
from finetune.processor import cores
from finetune.progress import progress
from finetune.store import Store, open_store
from finetune.store_writer import Writer
from finetune.strategies import build_plan
from finetune.study import work_area
from finetune.training import fit
from finetune.work_lock import locked

IMAGES = 32_000
SEED = 0
RECIPE = TrainingParams(
    image_size=48,
    epochs=8,
    batch_size=64,
    lr=3e-3,
    weight_decay=0.0,
    schedule=ScheduleParams(name="cosine"),
    augmentation=AugmentationParams(scale=(0.7, 1.0)),
    crop_pct=1.0,
    selection="last",
    threads=2,
    device="cpu",
)


def pretrain(out: Path) -> float:
    """Draw the upstream set, train on it from scratch, write the backbone to `out` as fp16 safetensors.

    An interrupted pretraining goes on where it was.

    Returns:
        Top-1 accuracy on a tenth of the upstream set that was not trained on, in [0, 1].
    """
    configure(RECIPE)
    key = f"upstream-{IMAGES}-{SEED}"
    with locked(work_area(key)) as work:
        store = _upstream(work / "store")
        model = models.build(len(store.classes), SEED)
        move_to_device(model, RECIPE)
        feed = Feed(RECIPE)
        train, val = feed.batches(store.split("train")), feed.batches(store.split("val"))
        plan = build_plan(model, "from_scratch", {})
        with progress("upstream", RECIPE.epochs, len(train.split)) as shown:
            done = fit(
                model, plan, RECIPE, train, val, SEED, name="upstream", work=work, fingerprint=key, listeners=(shown,)
            )
        state = {k: v for k, v in done.kept_state.items() if k.startswith("features.")}
        out.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in state.items()}, out)
        shutil.rmtree(work)
    return float(done.rows[-1]["val/acc"] or 0.0)


def _upstream(place: Path) -> Store:
    if (place / "meta.json").is_file():
        return open_store(place)
    shutil.rmtree(place, ignore_errors=True)
    writer = Writer(place)
    with ProcessPoolExecutor(cores(), get_context("spawn"), end_with_the_parent) as pool:
        try:
            for example in pool.map(partial(samples.upstream_example, seed=SEED), range(IMAGES), chunksize=128):
                assert isinstance(example.image, np.ndarray)
                writer.add("train", example.label, example.image)
        except BaseException:  # what is not drawn yet is not waited for
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    meta = {"dataset": "upstream", "classes": list(samples.UPSTREAM_CLASSES)}
    writer.finish(stratified(writer.labels(), 0.1, SEED), meta)
    return open_store(place)
