"""Real images and real ImageNet weights through prepare, train and evaluate; and what the bundled remote holds."""

import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from finetune import datasets, params, resolved, runs, stages
from finetune.images import decode, shrink
from finetune.model import prepare_backbone
from finetune.prepare import prepare
from finetune.study import Layout, Run

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
WEIGHTS = SHARED / "weights" / "mobilenet_v2-imagenet1k.safetensors"
RUN = Run("cub200", "same_lr", 0)


def test_the_bundled_remote_holds_the_archives_that_the_sample_edition_declares() -> None:
    outs = {Path(out["path"]).name: out for out in yaml.safe_load((ROOT / "data.dvc").read_text())["outs"]}
    files = ROOT / "samples" / "dvc-remote" / "files" / "md5"
    assert sorted(outs) == datasets.names()
    for name, out in outs.items():
        assert out["remote"] == "sample"
        listed = json.loads((files / out["md5"][:2] / out["md5"][2:]).read_text())
        assert {entry["relpath"]: entry["md5"] for entry in listed} == datasets.load(name).editions["sample"].md5
        for entry in listed:
            assert (files / entry["md5"][:2] / entry["md5"][2:]).is_file()


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is absent")
def test_real_birds_are_learnt_from_imagenet_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    layout = Layout(tmp_path)
    read = params.parse(
        {
            "study": {
                "name": "birds",
                "edition": "reduced",
                "datasets": ["cub200"],
                "strategies": ["same_lr"],
                "seeds": [0],
                "baseline": "same_lr",
            },
            "prepare": {"short_side": 72},
            "backbone": {"source": str(WEIGHTS)},
            "training": {"image_size": 64, "epochs": 5, "batch_size": 32, "device": "cpu"},
            "datasets": {"cub200": {}},
            "strategies": {"same_lr": {}},
        }
    )
    store = prepare(
        datasets.load("cub200"), "reduced", read.prepare, SHARED / "data" / "cub200", layout.store("cub200")
    )
    assert store.meta["counts"] == {"train": 1400, "val": 200, "test": 800}
    prepare_backbone(read.backbone.source, read.backbone.weights, tmp_path, layout.backbone)
    stages.train(resolved.resolve(read, layout, RUN), layout)
    stages.evaluate(layout, RUN)
    test = runs.read_json(layout.evaluation(RUN) / runs.METRICS)["test"]
    assert test["images"] == 800
    assert test["acc"] > 8 / 200  # eight times chance, after 220 steps


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is absent")
@pytest.mark.parametrize(("name", "short_side"), [("cub200", 256), ("cars196", 128), ("food101", 48)])
def test_prepared_pixels_are_honest(name: str, short_side: int) -> None:
    """At least 40 dB on average and never under 32 dB against Pillow's decoding and antialiased bilinear resizing."""
    found = []
    for example in itertools.islice(datasets.load(name).read(SHARED / "data" / name).examples, 200):
        assert isinstance(example.image, bytes)
        ours = shrink(decode(example.image, example.member), short_side)
        with Image.open(io.BytesIO(example.image)) as image:
            size = (ours.shape[1], ours.shape[0])
            plain = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR), np.float64)
        found.append(10 * np.log10(255**2 / max(((ours - plain) ** 2).mean(), 1e-9)))
    assert np.mean(found) >= 40
    assert min(found) >= 32
