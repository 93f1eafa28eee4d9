"""params.yaml: what is refused and how it is said; which setting wins over which."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune import params
from finetune.errors import InputError
from finetune.params import AugmentationParams, Params, PrepareParams, TrainingParams

Raw = dict[str, Any]


def refusal(raw: Raw) -> str:
    with pytest.raises(InputError) as caught:
        params.parse(raw)
    message = str(caught.value)
    assert "\n" not in message
    return message


def written(folder: Path, raw: Raw) -> Path:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def test_a_study_of_nothing_but_names_has_the_defaults() -> None:
    loaded = params.parse(
        {
            "study": {"name": "s", "datasets": ["d"], "strategies": ["same_lr"], "seeds": [0], "baseline": "same_lr"},
            "datasets": {"d": {}},
            "strategies": {"same_lr": {}},
        }
    )
    recipe = loaded.training_for("d", "same_lr")
    assert (recipe.image_size, recipe.lr, recipe.weight_decay, recipe.crop_pct) == (224, 1e-3, 1e-4, 224 / 256)
    assert recipe.schedule.name == "exponential"
    assert recipe.augmentation == AugmentationParams(name="random_resized_crop", scale=(0.08, 1.0))
    assert loaded.prepare_for("d").val_fraction == 0.1


def test_how_a_gpu_computes_is_plain_unless_told(tiny: Raw) -> None:
    recipe = params.parse(tiny).training
    plain = ("fp32", "none", "torch", False)
    assert (recipe.precision, recipe.compile, recipe.depthwise, recipe.deterministic) == plain


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("precision", value) for value in ("fp32", "tf32", "bf16")),
        *(("compile", value) for value in ("none", "default", "reduce-overhead", "max-autotune")),
        *(("depthwise", value) for value in ("torch", "triton")),
        *(("deterministic", value) for value in (True, False)),
    ],
)
def test_how_a_gpu_computes_is_read_and_may_be_overridden(
    key: str, value: str | bool, tmp_path: Path, tiny: Raw
) -> None:
    text = f"training.{key}={str(value).lower()}"
    assert getattr(overridden(tmp_path, tiny, text).training_for("toy", "same_lr"), key) == value


# Unknown keys


@pytest.mark.parametrize(
    ("section", "key", "nearest"),
    [
        ((), "trainnig", "training"),
        (("study",), "data_sets", "datasets"),
        (("training",), "learning", "lr"),  # too far from any: only the list helps
        (("training",), "epoch", "epochs"),
        (("training", "augmentation"), "pading", "padding"),
        (("training", "schedule"), "gama", "gamma"),
        (("prepare",), "val_frction", "val_fraction"),
        (("backbone",), "sorce", "source"),
        (("datasets", "toy"), "trainig", "training"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(
    tiny: Raw, section: tuple[str, ...], key: str, nearest: str
) -> None:
    node = tiny
    for part in section:
        node = node.setdefault(part, {})
    node[key] = {}
    message = refusal(tiny)
    assert ".".join((*section, key)) in message
    assert nearest in message.partition("known: ")[2]
    if key != "learning":
        assert f"did you mean '{nearest}'?" in message


def test_the_file_is_named_in_a_refusal(tiny: Raw, tmp_path: Path) -> None:
    tiny["training"]["epoch"] = 3
    path = written(tmp_path, tiny)
    with pytest.raises(InputError, match=str(path)):
        params.load(path)


@pytest.mark.parametrize("kind", ["datasets", "strategies"])
def test_a_bad_key_in_an_override_is_named_in_full(tiny: Raw, kind: str) -> None:
    name = {"datasets": "toy", "strategies": "same_lr"}[kind]
    tiny[kind][name] = {"training": {"epoch": 3}}
    message = refusal(tiny)
    assert f"{kind}.{name}.training.epoch" in message
    assert "did you mean 'epochs'?" in message


def test_a_bad_key_deep_in_an_override_is_named_in_full(tiny: Raw) -> None:
    tiny["datasets"]["toy"] = {"training": {"augmentation": {"pading": 2}}}
    message = refusal(tiny)
    assert "datasets.toy.training.augmentation.pading" in message
    assert "did you mean 'padding'?" in message


def test_a_bad_key_in_a_data_sets_preparation_is_named_in_full(tiny: Raw) -> None:
    tiny["datasets"]["toy"] = {"prepare": {"shortside": 64}}
    message = refusal(tiny)
    assert "datasets.toy.prepare.shortside" in message
    assert "did you mean 'short_side'?" in message


def test_a_bad_override_of_an_entry_that_the_study_does_not_list_is_refused_too(tiny: Raw) -> None:
    tiny["strategies"]["later"] = {"training": {"epoch": 3}}
    assert "strategies.later.training.epoch" in refusal(tiny)


# Wrong values


@pytest.mark.parametrize(
    ("section", "key", "value", "kind", "expected"),
    [
        ("training", "epochs", "many", "str", "integer"),
        ("training", "lr", "fast", "str", "number"),
        ("training", "lr", None, "NoneType", "number"),
        ("training", "epochs", 2.5, "float", "integer"),
        ("training", "schedule", "cosine", "str", "dictionary"),
        ("training", "precision", "fp16", "str", "'fp32', 'tf32' or 'bf16'"),
        ("training", "compile", "fast", "str", "'none', 'default', 'reduce-overhead' or 'max-autotune'"),
        ("training", "compile", True, "bool", "'none', 'default', 'reduce-overhead' or 'max-autotune'"),
        ("training", "depthwise", "cudnn", "str", "'torch' or 'triton'"),
        ("training", "deterministic", "maybe", "str", "boolean"),
        ("training", "deterministic", 2, "int", "boolean"),
        ("training", "epochs", "5", "str", "integer"),
        ("training", "threads", True, "bool", "integer"),
        ("study", "datasets", "toy", "str", "tuple"),
        ("prepare", "short_side", [32], "list", "integer"),
    ],
)
def test_a_value_of_the_wrong_type_is_told_with_key_found_and_expected(
    tiny: Raw, section: str, key: str, value: Any, *, kind: str, expected: str
) -> None:
    tiny[section][key] = value
    message = refusal(tiny)
    assert f"{section}.{key}" in message
    assert f"found {value!r} ({kind})" in message
    assert expected in message.partition("expected: ")[2]


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("training", "epochs", 0),
        ("training", "lr", 0.0),
        ("training", "lr", -1e-3),
        ("training", "lr", float("nan")),
        ("training", "weight_decay", -1.0),
        ("training", "batch_size", 1),  # BatchNorm cannot train on one image
        ("training", "crop_pct", 1.01),
        ("training", "threads", 0),
        ("prepare", "val_fraction", 1.0),
        ("prepare", "val_fraction", -0.1),
    ],
)
def test_a_number_outside_its_range_is_told_with_key_and_found(tiny: Raw, section: str, key: str, value: float) -> None:
    tiny[section][key] = value
    message = refusal(tiny)
    assert f"{section}.{key}: found {value!r}" in message


@pytest.mark.parametrize("seeds", [[-1], [0, -5]])
def test_a_negative_seed_is_refused(tiny: Raw, seeds: list[int]) -> None:
    tiny["study"]["seeds"] = seeds
    assert "study.seeds" in refusal(tiny)


def test_a_negative_split_seed_is_refused(tiny: Raw) -> None:
    tiny["prepare"]["split_seed"] = -1
    assert "prepare.split_seed" in refusal(tiny)


@pytest.mark.parametrize("scale", [[0.0, 1.0], [0.5, 0.2], [0.5, 1.5]])
def test_a_crop_scale_that_is_no_share_of_the_area_is_refused(tiny: Raw, scale: list[float]) -> None:
    tiny["training"]["augmentation"] = {"name": "random_resized_crop", "scale": scale}
    message = refusal(tiny)
    assert "training.augmentation" in message
    assert str(scale) in message


def test_falling_crop_ratios_are_refused(tiny: Raw) -> None:
    tiny["training"]["augmentation"] = {"name": "random_resized_crop", "ratio": [1.5, 0.5]}
    assert "ratio [1.5, 0.5]" in refusal(tiny)


@pytest.mark.parametrize("section", ["study", "datasets", "strategies"])
def test_a_missing_section_is_named(tiny: Raw, section: str) -> None:
    del tiny[section]
    assert f"{section} is missing" in refusal(tiny)


def test_a_missing_key_is_named(tiny: Raw) -> None:
    del tiny["study"]["seeds"]
    assert "study.seeds is missing" in refusal(tiny)


# The study's lists


@pytest.mark.parametrize(("key", "values"), [("seeds", [0, 1, 0]), ("datasets", ["toy", "toy"])])
def test_an_entry_listed_twice_is_refused(tiny: Raw, key: str, values: list[Any]) -> None:
    tiny["study"][key] = values
    message = refusal(tiny)
    assert f"{key} lists an entry twice" in message


def test_a_strategy_listed_twice_is_refused(tiny: Raw) -> None:
    tiny["study"]["strategies"] = ["same_lr", "same_lr"]
    assert "strategies lists an entry twice" in refusal(tiny)


@pytest.mark.parametrize("key", ["datasets", "strategies", "seeds"])
def test_an_empty_list_is_refused(tiny: Raw, key: str) -> None:
    tiny["study"][key] = []
    assert f"study.{key}" in refusal(tiny)


def test_a_listed_data_set_without_an_entry_is_named_with_the_nearest(tiny: Raw) -> None:
    tiny["study"]["datasets"] = ["toy", "tyo"]
    message = refusal(tiny)
    assert "study.datasets lists 'tyo'" in message
    assert "did you mean 'toy'?" in message


def test_a_listed_strategy_without_an_entry_is_named_with_the_nearest(tiny: Raw) -> None:
    tiny["study"]["strategies"] = ["same_lr", "separat_lr"]
    message = refusal(tiny)
    assert "study.strategies lists 'separat_lr'" in message
    assert "did you mean 'separate_lr'?" in message


def test_a_baseline_that_is_not_studied_is_refused(tiny: Raw) -> None:
    tiny["study"]["baseline"] = "separate"
    assert "baseline 'separate' is not among strategies" in refusal(tiny)


def test_best_epoch_by_validation_without_validation_is_refused(tiny: Raw) -> None:
    tiny["prepare"]["val_fraction"] = 0
    message = refusal(tiny)
    assert "training.selection" in message
    assert "prepare.val_fraction" in message
    assert "toy" in message


def test_last_epoch_without_validation_is_taken(tiny: Raw) -> None:
    tiny["prepare"]["val_fraction"] = 0
    tiny["training"]["selection"] = "last"
    assert params.parse(tiny).training_for("toy", "same_lr").selection == "last"


def test_a_strategys_own_best_without_validation_is_refused(tiny: Raw) -> None:
    tiny["prepare"]["val_fraction"] = 0
    tiny["training"]["selection"] = "last"
    tiny["strategies"]["separate_lr"] = {"training": {"selection": "best"}}
    assert "training.selection" in refusal(tiny)


# Precedence


def layered(tiny: Raw, general: Raw, dataset: Raw, strategy: Raw) -> TrainingParams:
    tiny["training"] |= general
    tiny["datasets"]["toy"] = {"training": dataset}
    tiny["strategies"]["separate_lr"] = {"training": strategy}
    return params.parse(tiny).training_for("toy", "separate_lr")


def test_a_data_set_overrides_the_general_recipe(tiny: Raw) -> None:
    recipe = layered(tiny, {"lr": 0.1, "epochs": 7}, {"lr": 0.2}, {})
    assert (recipe.lr, recipe.epochs) == (0.2, 7)


def test_a_strategy_overrides_the_data_set(tiny: Raw) -> None:
    recipe = layered(tiny, {"lr": 0.1, "epochs": 7}, {"lr": 0.2, "epochs": 8}, {"lr": 0.3})
    assert (recipe.lr, recipe.epochs) == (0.3, 8)


def test_another_strategy_is_left_alone(tiny: Raw) -> None:
    layered(tiny, {"lr": 0.1}, {}, {"lr": 0.3})
    assert params.parse(tiny).training_for("toy", "same_lr").lr == 0.1


def test_a_schedule_is_overridden_key_by_key(tiny: Raw) -> None:
    recipe = layered(
        tiny,
        {"schedule": {"name": "exponential", "gamma": 0.5}},
        {"schedule": {"gamma": 0.6}},
        {"schedule": {"name": "cosine"}},
    )
    assert (recipe.schedule.name, recipe.schedule.gamma) == ("cosine", 0.6)


def test_an_augmentation_is_overridden_key_by_key(tiny: Raw) -> None:
    recipe = layered(
        tiny,
        {"augmentation": {"name": "pad_crop", "padding": 2, "flip": True}},
        {"augmentation": {"padding": 3}},
        {"augmentation": {"flip": False}},
    )
    assert recipe.augmentation == AugmentationParams(name="pad_crop", padding=3, flip=False)


def test_a_list_is_overridden_as_a_whole(tiny: Raw) -> None:
    recipe = layered(tiny, {}, {"augmentation": {"scale": [0.5, 0.9]}}, {})
    assert recipe.augmentation.scale == (0.5, 0.9)


def test_a_data_set_overrides_the_preparation(tiny: Raw) -> None:
    tiny["datasets"]["toy"] = {"prepare": {"val_fraction": 0.5}}
    assert params.parse(tiny).prepare_for("toy") == PrepareParams(short_side=32, val_fraction=0.5)


# Variants


def test_a_variant_is_of_the_plan_of_its_own_name(tiny: Raw) -> None:
    assert params.parse(tiny).plan_for("separate_lr") == "separate_lr"


def test_a_variant_names_its_plan_and_any_other_key_is_an_option(tiny: Raw) -> None:
    tiny["strategies"]["slower"] = {"plan": "separate_lr", "deep_scale": 0.1, "training": {"epochs": 5}}
    loaded = params.parse(tiny)
    assert loaded.plan_for("slower") == "separate_lr"
    assert loaded.strategies["slower"].options == {"deep_scale": 0.1}


# The file


def test_a_number_with_an_exponent_alone_is_a_float(tmp_path: Path, tiny: Raw) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(tiny | {"training": {}}).replace("training: {}", "training: {lr: 2e-3}"))
    assert params.load(path).training.lr == 0.002


@pytest.mark.parametrize(
    ("text", "content"),
    [("lr: 1e-3", 1e-3), ("lr: 1E5", 1e5), ("lr: -2.5e+3", -2500.0), ("lr: 'x1e-3'", "x1e-3"), ("lr: 12", 12)],
)
def test_yaml_numbers_are_read_as_dvc_reads_them(tmp_path: Path, tiny: Raw, text: str, content: object) -> None:
    path = tmp_path / "params.yaml"
    option = text.replace("lr:", "option:")
    tiny["study"]["strategies"] = ["same_lr"]
    path.write_text(yaml.safe_dump(tiny | {"strategies": "HERE"}).replace("HERE", f"{{same_lr: {{{option}}}}}"))
    found = params.load(path).strategies["same_lr"].options["option"]
    assert found == content
    assert type(found) is type(content)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.yaml: no such file"):
        params.load(tmp_path / "absent.yaml")


@pytest.mark.parametrize("text", ["study: [", "a: b: c", "\tstudy: 1"])
def test_a_file_that_is_not_yaml_is_named_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match="not valid YAML") as caught:
        params.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "kind"), [("", "NoneType"), ("- a\n", "list"), ("word\n", "str")])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, kind: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=f"found {kind}, expected a mapping"):
        params.load(path)


# Overrides from the command line


def overridden(folder: Path, raw: Raw, *texts: str) -> Params:
    return params.load(written(folder, raw), texts)


def test_an_override_beats_the_file(tmp_path: Path, tiny: Raw) -> None:
    assert overridden(tmp_path, tiny, "training.lr=5e-2", "training.epochs=9").training.lr == 0.05


def test_an_override_may_add_a_section(tmp_path: Path, tiny: Raw) -> None:
    assert overridden(tmp_path, tiny, "training.schedule.gamma=0.5").training.schedule.gamma == 0.5


def test_an_override_may_be_a_list(tmp_path: Path, tiny: Raw) -> None:
    assert overridden(tmp_path, tiny, "study.seeds=[3, 4]").study.seeds == (3, 4)


def test_the_later_of_two_overrides_wins(tmp_path: Path, tiny: Raw) -> None:
    assert overridden(tmp_path, tiny, "training.epochs=3", "training.epochs=4").training.epochs == 4


def test_the_value_of_an_override_may_hold_an_equals_sign(tmp_path: Path, tiny: Raw) -> None:
    assert overridden(tmp_path, tiny, "backbone.source=a=b.pth").backbone.source == "a=b.pth"


def test_an_overrides_unknown_key_is_named_with_the_nearest(tmp_path: Path, tiny: Raw) -> None:
    with pytest.raises(InputError, match=r"training\.epoch .*did you mean 'epochs'"):
        overridden(tmp_path, tiny, "training.epoch=3")


@pytest.mark.parametrize("text", ["training.lr", "=3", ""])
def test_an_override_without_key_or_value_is_refused(tmp_path: Path, tiny: Raw, text: str) -> None:
    with pytest.raises(InputError, match="expected KEY=VALUE"):
        overridden(tmp_path, tiny, text)


def test_an_override_below_a_plain_value_is_refused(tmp_path: Path, tiny: Raw) -> None:
    with pytest.raises(InputError, match="lr is not a section"):
        overridden(tmp_path, tiny, "training.lr.gamma=3")


def test_an_override_that_is_not_yaml_is_refused(tmp_path: Path, tiny: Raw) -> None:
    with pytest.raises(InputError, match="not a YAML value"):
        overridden(tmp_path, tiny, "training.lr=[1")


def test_params_are_frozen(tiny: Raw) -> None:
    with pytest.raises(ValueError, match="frozen"):
        params.parse(tiny).training.lr = 1.0  # type: ignore[misc]
