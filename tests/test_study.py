"""Runs, their order, their places, and what their fingerprints depend on."""

from pathlib import Path
from typing import Any

import pytest

from finetune import datasets, params, study
from finetune.errors import InputError
from finetune.params import AugmentationParams, OptimizerParams, ScheduleParams, TrainingParams
from finetune.study import Layout, Run

RUN = Run("cub200", "separate_lr", 3)
OTHER: dict[str, Any] = {  # of every field a value that is not its default
    "image_size": 96,
    "epochs": 2,
    "batch_size": 8,
    "accumulation": 2,
    "lr": 0.5,
    "weight_decay": 0.5,
    "optimizer": OptimizerParams(name="sgd"),
    "schedule": ScheduleParams(name="cosine"),
    "freeze_epochs": 1,
    "bn": "eval",
    "mixup": 0.2,
    "cutmix": 1.0,
    "label_smoothing": 0.1,
    "ema": 0.9,
    "lean_backward": True,
    "cpu_kernels": "native",
    "activation_checkpointing": True,
    "augmentation": AugmentationParams(flip=False),
    "crop_pct": 1.0,
    "selection": "last",
    "precision": "bf16",
    "compile": "default",
    "depthwise": "triton",
    "deterministic": True,
    "memory_format": "contiguous",
    "threads": 1,
    "device": "cuda",
}
BASE: dict[str, Any] = {
    "run": RUN,
    "plan": "separate_lr",
    "options": {"last_scale": 0.6, "deep_scale": 0.4},
    "training": TrainingParams(device="cpu"),
    "store_digest": "5d",
    "backbone_digest": "bb",
    "fraction": 1.0,
    "split_seed": 0,
    "plan_source": "50",
}


def test_runs_come_data_set_by_data_set_then_strategy_then_seed(tiny: dict[str, Any]) -> None:
    tiny["study"] |= {"datasets": ["toy", "art"], "strategies": ["separate_lr", "same_lr"], "seeds": [5, 2]}
    tiny["datasets"] = {"art": {}, "toy": {}}
    assert [run.name for run in study.runs(params.parse(tiny))] == [
        "toy/separate_lr/5",
        "toy/separate_lr/2",
        "toy/same_lr/5",
        "toy/same_lr/2",
        "art/separate_lr/5",
        "art/separate_lr/2",
        "art/same_lr/5",
        "art/same_lr/2",
    ]


def test_a_known_run_passes(tiny: dict[str, Any]) -> None:
    tiny["datasets"]["cub200"] = {}
    study.check_run(params.parse(tiny), "cub200", "same_lr")


def test_a_data_set_without_a_reader_is_named_with_the_nearest_and_all(tiny: dict[str, Any]) -> None:
    tiny["datasets"]["cub20"] = {}
    with pytest.raises(
        InputError, match=r"'cub20' .* has no reader src/finetune/datasets/cub20\.py; did you mean 'cub200'\?"
    ):
        study.check_run(params.parse(tiny), "cub20", "same_lr")


def test_the_first_data_set_without_a_reader_is_named() -> None:
    study.check_readers(datasets.names())
    with pytest.raises(InputError, match=r"'toy' .*known: cars196, cifar10, cifar100, cub200, food101"):
        study.check_readers(["cifar10", "toy", "art"])


def test_an_unknown_data_set_is_named_with_the_nearest_and_all(tiny: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"data set 'tyo'.*did you mean 'toy'\? known: toy"):
        study.check_run(params.parse(tiny), "tyo", "same_lr")


def test_an_unknown_strategy_is_named_with_the_nearest_and_all(tiny: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"'sam_lr'.*did you mean 'same_lr'\? known: from_scratch, same_lr, separate"):
        study.check_run(params.parse(tiny), "toy", "sam_lr")


# Places


def test_everything_lies_under_the_root() -> None:
    layout = Layout(Path("root"))
    assert layout.archives("cub200") == Path("root/data/cub200")
    assert layout.store("cub200") == Path("root/prepared/cub200")
    assert layout.backbone == Path("root/models/backbone.safetensors")
    assert layout.run(RUN) == Path("root/runs/cub200/separate_lr/3")
    assert layout.evaluation(RUN) == Path("root/evaluations/cub200/separate_lr/3")
    assert layout.comparison == Path("root/comparison")
    assert layout.report == Path("root/report")


def test_stores_and_backbone_may_lie_elsewhere() -> None:
    layout = Layout(Path("own"), inputs=Path("shared"))
    assert layout.store("cub200") == Path("shared/prepared/cub200")
    assert layout.backbone == Path("shared/models/backbone.safetensors")
    assert layout.run(RUN) == Path("own/runs/cub200/separate_lr/3")


def test_the_anchor_is_dvcs_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert study.anchor() == tmp_path.resolve()


def test_the_anchor_is_the_current_folder_outside_dvc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert study.anchor() == tmp_path.resolve()


def test_the_work_area_is_under_the_anchor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert study.work_area("0123-4") == tmp_path.resolve() / ".finetune" / "work" / "0123-4"


# Fingerprints


def test_a_fingerprint_is_16_hex_digits() -> None:
    found = study.fingerprint(**BASE)
    assert len(found) == 16
    int(found, 16)


def test_the_same_run_has_the_same_fingerprint_whatever_the_order_of_its_options() -> None:
    turned = BASE | {"options": {"deep_scale": 0.4, "last_scale": 0.6}, "training": TrainingParams(device="cpu")}
    assert study.fingerprint(**turned) == study.fingerprint(**BASE)


@pytest.mark.parametrize(
    "change",
    [
        {"run": Run("cars196", "separate_lr", 3)},
        {"run": Run("cub200", "slower", 3)},
        {"plan": "same_lr"},
        {"options": {"last_scale": 0.6, "deep_scale": 0.3}},
        {"store_digest": "5e"},
        {"backbone_digest": "bc"},
        {"fraction": 0.5},
        {"plan_source": "51"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_a_run_is_made_of_changes_its_fingerprint(change: dict[str, Any]) -> None:
    assert study.fingerprint(**BASE | change) != study.fingerprint(**BASE)


def test_the_seed_of_the_split_counts_where_it_chooses_what_is_trained_on() -> None:
    part = BASE | {"fraction": 0.5}
    assert study.fingerprint(**part | {"split_seed": 1}) != study.fingerprint(**part)
    assert study.fingerprint(**BASE | {"split_seed": 1}) == study.fingerprint(**BASE)


@pytest.mark.parametrize("key", TrainingParams.model_fields)
def test_every_setting_of_the_recipe_changes_the_fingerprint(key: str) -> None:
    changed = BASE["training"].model_copy(update={key: OTHER[key]})
    assert study.fingerprint(**BASE | {"training": changed}) != study.fingerprint(**BASE)


def test_a_new_numerics_version_changes_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    before = study.fingerprint(**BASE)
    monkeypatch.setattr(study, "NUMERICS_VERSION", study.NUMERICS_VERSION + 1)
    assert study.fingerprint(**BASE) != before


def test_new_numerics_of_the_native_kernels_change_fingerprints_of_what_takes_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def prints() -> list[str]:
        kinds = [("torch", "cpu"), ("native", "cuda"), ("native", "cpu")]
        changes = [{"cpu_kernels": kernels, "device": device} for kernels, device in kinds]
        return [study.fingerprint(**BASE | {"training": BASE["training"].model_copy(update=one)}) for one in changes]

    before = prints()
    monkeypatch.setattr(study, "NATIVE_NUMERICS_VERSION", study.NATIVE_NUMERICS_VERSION + 1)
    assert [one == other for one, other in zip(before, prints(), strict=True)] == [True, True, False]


def test_seeds_share_a_fingerprint_and_differ_in_their_run_key() -> None:
    other_seed = BASE | {"run": Run("cub200", "separate_lr", 4)}
    assert study.fingerprint(**other_seed) == study.fingerprint(**BASE)
    assert study.run_key("abcd", 3) == "abcd-3"
