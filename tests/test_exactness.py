"""What agrees within which tolerance, as docs/exactness.md has it; what is the same to the bit is tested elsewhere."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from finetune import model as models
from finetune.batches import Batches
from finetune.device import autocast, configure, memory_format, move_to_device
from finetune.model import prepare_backbone
from finetune.optimizers import make_optimizer
from finetune.params import TrainingParams
from finetune.step import set_modes
from finetune.strategies import build_plan
from small_splits import RESIZED_CROP, noise, split_of
from test_resampling import ROUNDING

pytestmark = pytest.mark.usefixtures("threads_put_back")

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
BF16 = 1e-3  # of the first loss, relative; the six seeds gave 8e-6 to 3.5e-4
OTHER_ORDER = 1e-6  # the same for float32 summed in another order; they gave up to 3.1e-7


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pretrained weights: random ones, under batch statistics, blow rounding up a hundredfold."""
    path = tmp_path_factory.mktemp("models") / "backbone.safetensors"
    prepare_backbone("sample", "", ROOT / "samples" / "backbone.safetensors", path)
    return path


def first_loss(backbone: Path, seed: int, **changes: str | int) -> float:
    """Of the first step of a training, without dropout."""
    settings = {"image_size": 64, "batch_size": 16, "device": "cpu", "threads": 1} | changes
    recipe = TrainingParams.model_validate(settings)
    configure(recipe)
    model = models.build(10, seed)
    models.load_backbone(model, backbone)
    move_to_device(model, recipe)
    phase = build_plan(model, "same_lr", {}).phases[0]
    make_optimizer(model, phase, recipe)
    set_modes(model, phase)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    split = split_of(noise(16, 80, 80))
    split.labels[:] = np.arange(16) % 10
    batches = Batches(split, 64, 16, CPU, memory_format(recipe), 0.875)
    images, labels = next(batches.training(RESIZED_CROP, seed, 0))
    with autocast(CPU, recipe.precision):
        return float(cross_entropy(model(images), labels).detach())


@pytest.mark.parametrize("seed", range(6))
def test_the_first_loss_in_bf16_is_that_in_float32_but_for_rounding(seed: int, backbone: Path) -> None:
    expected, found = (first_loss(backbone, seed, precision=precision) for precision in ("fp32", "bf16"))
    assert 0 < abs(found - expected) / expected <= BF16


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("changes", [{"threads": 2}, {"memory_format": "contiguous"}])
def test_other_threads_and_another_memory_format_change_the_order_of_sums_alone(
    changes: dict[str, str | int], seed: int, backbone: Path
) -> None:
    expected = first_loss(backbone, seed)
    assert abs(first_loss(backbone, seed, **changes) - expected) / expected <= OTHER_ORDER


def test_the_document_has_the_tolerances_that_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.gpu import agreement

    text = (ROOT / "docs" / "exactness.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")]
    written = {cells[0].strip(): cells[1].strip() for cells in rows if len(cells) == 3}
    for name, tolerance in {
        "pixels of a view": agreement.LEVELS,
        "first loss, float32": agreement.FIRST_LOSS,
        "first gradients, float32": agreement.GRADIENTS,
        "losses of the next four steps, float32": agreement.LATER_LOSSES,
        "first loss in bf16, by that in float32": BF16,
        "first loss on other threads, or in the other memory format": OTHER_ORDER,
        "a view before it is rounded, in float32": ROUNDING[True],
        "a view before it is rounded, in float16": ROUNDING[False],
    }.items():
        number = re.match(r"[\d.]+(e-\d+)?", written[name])
        assert number and float(number[0]) == tolerance, name


def test_the_document_names_tests_that_there_are() -> None:
    text = (ROOT / "docs" / "exactness.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+)\.(test_\w+)`", text)
    assert len(named) > 5
    for module, test in named:
        assert f"def {test}(" in (ROOT / "tests" / f"{module}.py").read_text(encoding="utf-8"), test
