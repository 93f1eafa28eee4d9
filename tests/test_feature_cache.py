"""Features of a frozen backbone: cached where nothing changes them, and then the head learns the same."""

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import MobileNetV2

from finetune import feature_cache
from finetune.batches import Batches
from finetune.errors import InputError
from finetune.evaluation import predict
from finetune.feature_cache import Cached, Trained, cacheable, cached, trained
from finetune.model import build
from finetune.recipe import TrainingParams
from finetune.strategies.plan import Group, Phase, Plan, feature_blocks, tensors_of
from finetune.training import Listener, Progress, fit
from small_splits import NONE, noise, order, split_of

CPU = torch.device("cpu")


@pytest.fixture
def model() -> MobileNetV2:
    torch.set_num_threads(1)
    return build(3, 0).to(memory_format=torch.channels_last)


def probe(model: MobileNetV2, **changes: Any) -> Phase:
    body = {"frozen": True, "batchnorm": "eval", **changes}
    groups = (
        Group("head", tensors_of(model, ["classifier"])),
        Group("body", tensors_of(model, feature_blocks()), **body),
    )
    return Phase(groups)


def batches(images: int = 10, batch_size: int = 4) -> Batches:
    split = split_of(noise(images))
    return Batches(
        type(split)(split.pixels, split.index, split.labels % 3), 32, batch_size, CPU, torch.channels_last, 1.0
    )


def recipe(**values: Any) -> TrainingParams:
    alone = {"image_size": 32, "batch_size": 4, "epochs": 3, "threads": 1, "crop_pct": 1.0, "device": "cpu"}
    return TrainingParams.model_validate({**alone, "augmentation": {"name": "none"}, **values})


@pytest.mark.parametrize(
    ("values", "body", "expected"),
    [
        ({}, {}, True),
        ({"augmentation": {"name": "pad_crop"}}, {}, False),
        ({"mixup": 0.5}, {}, False),
        ({"cutmix": 0.5}, {}, False),
        ({"label_smoothing": 0.1, "ema": 0.9, "accumulation": 2}, {}, True),
        ({}, {"frozen": False}, False),
        ({}, {"frozen": False, "batchnorm": "affine_only"}, False),
    ],
)
def test_cached_where_nothing_changes_what_reaches_the_head(
    model: MobileNetV2, values: dict[str, Any], body: dict[str, Any], expected: bool
) -> None:
    assert cacheable(model, probe(model, **body), recipe(**values)) == expected


def test_a_penalty_sees_the_whole_network(model: MobileNetV2) -> None:
    phase = Phase(probe(model).groups, penalty=lambda network: None)  # type: ignore[arg-type,return-value]
    assert not cacheable(model, phase, recipe())


def test_features_are_what_reaches_the_head_in_evaluation(model: MobileNetV2) -> None:
    found = cached(model, batches(), recipe())
    assert found.features.shape == (10, 1280)
    assert torch.equal(found.labels, torch.arange(10) % 3)
    with torch.no_grad():
        logits = torch.cat([model.eval()(images) for images, _ in batches().evaluation()])
        assert torch.equal(model.classifier(found.features), logits)


def test_the_head_sees_the_same_images_in_the_same_order_as_without() -> None:
    split = split_of(noise(11))  # whose labels are the images' indices
    images = Batches(split, 32, 4, CPU, torch.channels_last, 1.0)
    features = Cached(torch.arange(11.0)[:, None], torch.arange(11), 4, CPU)
    found = [labels.tolist() for _, labels in features.training(NONE, 3, 2)]
    assert [len(labels) for labels in found] == [4, 4, 3]
    assert list(chain(*found)) == order(images, 3, 2)
    assert [labels.tolist() for _, labels in features.training(NONE, 3, 2, first=1)] == found[1:]


@pytest.mark.parametrize(("images", "steps"), [(8, 2), (9, 2), (10, 3), (1, 1)])
def test_steps_are_those_of_the_images(images: int, steps: int) -> None:
    features = Cached(torch.zeros(images, 5), torch.zeros(images, dtype=torch.int64), 4, CPU)
    assert features.training_steps() == steps == batches(images).training_steps()


def trained_head(folder: Path, model: MobileNetV2, recipe: TrainingParams, *listeners: Listener) -> Progress:
    folder.mkdir(exist_ok=True)
    plan = Plan("pretrained", (probe(model),))
    common: dict[str, Any] = {"name": "toy", "work": folder, "fingerprint": "f", "listeners": listeners}
    return fit(model, plan, recipe, batches(), batches(6), 0, **common)


def test_a_head_learns_the_same_with_and_without(
    model: MobileNetV2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_cache = trained_head(tmp_path / "with", model, recipe())
    assert (
        "the backbone is frozen and images are not augmented: features of 16 images are cached"
        in capsys.readouterr().out
    )
    monkeypatch.setattr(feature_cache, "MOST_BYTES", 0)
    without = trained_head(tmp_path / "without", build(3, 0).to(memory_format=torch.channels_last), recipe())
    assert "not cached" in capsys.readouterr().out
    assert len(with_cache.rows) == 3
    for one, other in zip(with_cache.rows, without.rows, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    for name, tensor in without.kept_state.items():
        assert torch.allclose(with_cache.kept_state[name], tensor, atol=1e-6), name


def test_the_backbone_is_run_once_over_each_image(model: MobileNetV2, tmp_path: Path) -> None:
    seen: list[int] = []
    model.features.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    trained_head(tmp_path / "work", model, recipe())
    assert sum(seen) == 10 + 6


def test_a_solution_is_the_heads_and_is_evaluated(model: MobileNetV2, tmp_path: Path) -> None:
    told: list[tuple[tuple[int, ...], float]] = []

    def solve(features: Tensor, labels: Tensor, decay: float) -> tuple[Tensor, Tensor]:
        told.append((tuple(features.shape), decay))
        return torch.zeros(3, 1280), torch.tensor([0.0, 5.0, 0.0])  # says 1 of every image

    phase = Phase(probe(model).groups, solve=solve)
    single = recipe(epochs=1, weight_decay=0.25)
    common: dict[str, Any] = {"name": "toy", "work": tmp_path, "fingerprint": "f"}
    (row,) = fit(model, Plan("pretrained", (phase,)), single, batches(), batches(6), 0, **common).rows
    assert told == [((10, 1280), 0.25)]
    assert (row["train/acc"], row["val/acc"]) == (0.3, pytest.approx(2 / 6))
    assert row["lr/head"] == 0.0
    assert predict(model, batches(), "fp32").predictions.tolist() == [1] * 10


def test_a_solve_needs_all_features_at_once(
    model: MobileNetV2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache, "MOST_BYTES", 0)
    phase = Phase(probe(model).groups, solve=lambda *given: given[:2])  # type: ignore[arg-type,return-value]
    common: dict[str, Any] = {"name": "toy", "work": tmp_path, "fingerprint": "f"}
    with pytest.raises(InputError, match=r"^the features of 10 training .* take more than 0 GiB, .* by steps, or"):
        fit(model, Plan("pretrained", (phase,)), recipe(epochs=1), batches(), None, 0, **common)


def test_without_a_validation_split_there_is_none(model: MobileNetV2) -> None:
    scene: Trained = trained(model, probe(model), recipe(), batches(), None)
    assert scene.val is None
    assert scene.network is model.classifier
