"""params.yaml: what is refused and how it is said; which setting wins over which."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune import params, strategies
from finetune.errors import InputError
from finetune.params import AugmentationParams, DatasetParams, Params, PrepareParams, ScheduleParams, TrainingParams

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
        ("training", "epochs", "many", "text", "an integer"),
        ("training", "lr", "fast", "text", "a number"),
        ("training", "epochs", 2.5, "number", "an integer"),
        ("training", "schedule", "cosine", "text", "a section with keys of name, gamma, every, warmup_epochs"),
        (
            "datasets",
            "toy",
            [],
            "list",
            "a section with keys of training, prepare, sources, reader, title, archive, test_fraction, test_seed, "
            "fraction",
        ),
        ("datasets", "toy", {"training": 3}, "integer", "a section, as {name: …}"),
        ("training", "precision", "fp16", "text", "one of 'fp32', 'tf32' or 'bf16'"),
        ("training", "compile", "fast", "text", "one of 'none', 'default', 'reduce-overhead' or 'max-autotune'"),
        ("training", "compile", True, "true or false", "one of 'none', 'default', 'reduce-overhead' or 'max-autotune'"),
        ("training", "depthwise", "cudnn", "text", "one of 'torch' or 'triton'"),
        ("training", "deterministic", "maybe", "text", "true or false"),
        ("training", "deterministic", 2, "integer", "true or false"),
        ("training", "epochs", "5", "text", "an integer"),
        ("training", "threads", True, "true or false", "an integer"),
        ("training", "augmentation", {"scale": [0.1, 0.5, 1.0]}, "list", "a list of 2 or fewer"),
        ("study", "datasets", "toy", "text", "a list, as [a, b]"),
        ("study", "seeds", [], "list", "a list of 1 or more"),
        ("study", "name", 3, "integer", "text; put quotes around it"),
        ("prepare", "short_side", [32], "list", "an integer"),
    ],
)
def test_a_value_of_the_wrong_type_is_told_with_key_found_and_expected(
    tiny: Raw, section: str, key: str, value: Any, *, kind: str, expected: str
) -> None:
    tiny[section][key] = value
    message = refusal(tiny)
    assert f"{section}.{key}" in message
    assert f"found {next(iter(value.values())) if isinstance(value, dict) else value!r} ({kind})" in message
    assert message.partition("expected: ")[2] == expected


def test_null_where_a_value_is_wanted_is_said_in_yamls_word(tiny: Raw) -> None:
    tiny["training"]["lr"] = None
    assert refusal(tiny) == "params.yaml: training.lr: found nothing (null), expected: a number"


def test_a_list_that_is_too_short_is_shown(tiny: Raw) -> None:
    tiny["training"]["augmentation"] = {"scale": [0.5]}
    message = refusal(tiny)
    assert message == "params.yaml: training.augmentation.scale: found [0.5] (list), expected more entries; add them"


@pytest.mark.parametrize("kind", ["datasets", "strategies"])
@pytest.mark.parametrize("name", ["a/b", "..", "-x", "a b", "", "ä"])
def test_a_name_that_cannot_be_a_folder_is_refused(tiny: Raw, kind: str, name: str) -> None:
    tiny[kind][name] = {}
    assert refusal(tiny) == (
        f"params.yaml: {kind}: found {name!r} (text), expected: a name of letters, digits, '.', '_' and '-' that "
        "begins with none of '.' and '-'"
    )


@pytest.mark.parametrize("name", ["..", "a/b", ""])
def test_a_study_takes_such_a_name_neither(tiny: Raw, name: str) -> None:
    tiny["study"]["name"] = name
    assert f"study.name: found {name!r} (text), expected: a name of letters" in refusal(tiny)


def test_a_key_that_is_no_text_is_to_be_quoted(tiny: Raw) -> None:
    tiny["datasets"][10] = {}
    assert refusal(tiny) == "params.yaml: datasets: found 10 (integer), expected: text; put quotes around it"


# A section of which only the name is there


def test_an_empty_section_is_taken_as_one_without_settings(tiny: Raw, tmp_path: Path) -> None:
    tiny["datasets"]["toy"] = tiny["strategies"]["same_lr"] = None
    tiny["training"]["schedule"] = tiny["backbone"] = None
    path = written(tmp_path, tiny)
    path.write_text(path.read_text().replace("null", ""))
    loaded = params.load(path)
    assert loaded.datasets["toy"] == DatasetParams()
    assert loaded.plan_for("same_lr") == "same_lr"
    assert loaded.training.schedule == ScheduleParams()


@pytest.mark.parametrize("empty", [{"training": None}, {"training": {"schedule": None}}, {"prepare": None}])
def test_an_empty_section_overrides_nothing(tiny: Raw, empty: Raw) -> None:
    tiny["training"]["schedule"] = {"name": "cosine"}
    before = params.parse(tiny)
    tiny["datasets"]["toy"] = empty
    loaded = params.parse(tiny)
    assert loaded.training_for("toy", "same_lr") == before.training_for("toy", "same_lr")
    assert loaded.prepare_for("toy") == before.prepare_for("toy")


@pytest.mark.parametrize("section", ["datasets", "strategies", "study"])
def test_an_empty_section_that_must_not_be_is_refused(tiny: Raw, section: str) -> None:
    tiny[section] = None
    assert section in refusal(tiny)


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


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        ([-1], "study.seeds[0]: found -1 (integer), expected: a number of at least 0"),
        ([0, -5], "study.seeds[1]: found -5 (integer), expected: a number of at least 0"),
        ([2**63], f"study.seeds[0]: found {2**63} (integer), expected: a number of at most {2**63 - 1}"),
    ],
)
def test_a_seed_that_pytorch_does_not_take_is_refused(tiny: Raw, seeds: list[int], expected: str) -> None:
    tiny["study"]["seeds"] = seeds
    assert refusal(tiny) == f"params.yaml: {expected}"


def test_the_largest_seed_is_taken(tiny: Raw) -> None:
    tiny["study"]["seeds"] = [2**63 - 1]
    assert params.parse(tiny).study.seeds == (2**63 - 1,)


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


@pytest.mark.parametrize(("name", "why"), [(".", "Is a directory"), ("params.yaml/more", "Not a directory")])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, tiny: Raw, name: str, why: str) -> None:
    written(tmp_path, tiny)
    path = tmp_path / name
    with pytest.raises(InputError, match=re.escape(f"{path}: cannot be read ({why}); name a file with --params")):
        params.load(path)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (
            "study: {}\ntraining:\n  epochs: 6\n  lr: 1\n  epochs: 7\n",
            "key 'epochs' in line 5 stands in line 3 already",
        ),
        ("study: {}\nprepare: {}\nstudy: {}\n", "key 'study' in line 3 stands in line 1 already"),
        ("study: {seeds: [0], seeds: [1]}", "key 'seeds' in line 1 stands in line 1 already"),
        ("training: {1: a, 1: b}", "key '1' in line 1 stands in line 1 already"),
    ],
)
def test_a_key_given_twice_is_refused_with_its_lines(tmp_path: Path, text: str, where: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        params.load(path)
    assert str(caught.value) == f"{path}: {where}; keep one of them"


def test_equal_keys_of_different_sections_and_of_a_yaml_merge_are_no_duplicates(tmp_path: Path, tiny: Raw) -> None:
    path = tmp_path / "params.yaml"
    del tiny["strategies"]
    tiny["study"]["strategies"] = ["same_lr", "slow"]
    own = "strategies:\n  same_lr: &own {training: {lr: 0.5, epochs: 3}}\n  slow: {<<: *own, plan: separate_lr}\n"
    path.write_text(yaml.safe_dump(tiny) + own)
    loaded = params.load(path)
    assert loaded.training_for("toy", "slow").lr == 0.5
    assert loaded.plan_for("slow") == "separate_lr"


@pytest.mark.parametrize("text", ["study: [", "a: b: c", "\tstudy: 1"])
def test_a_file_that_is_not_yaml_is_named_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match="not valid YAML") as caught:
        params.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "kind"), [("", "nothing (null)"), ("- a\n", "['a'] (list)"), ("word\n", "'word' (text)")]
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, kind: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(f"found {kind}, expected a mapping")):
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
    with pytest.raises(InputError, match=r"lr is not a section.*known: augmentation"):
        overridden(tmp_path, tiny, "training.lr.gamma=3")


def test_an_override_with_a_key_given_twice_is_refused(tmp_path: Path, tiny: Raw) -> None:
    with pytest.raises(InputError, match="not a YAML value"):
        overridden(tmp_path, tiny, "training={lr: 1, lr: 2}")


def test_an_override_that_is_not_yaml_is_refused(tmp_path: Path, tiny: Raw) -> None:
    with pytest.raises(InputError, match="not a YAML value"):
        overridden(tmp_path, tiny, "training.lr=[1")


def test_params_are_frozen(tiny: Raw) -> None:
    with pytest.raises(ValueError, match="frozen"):
        params.parse(tiny).training.lr = 1.0  # type: ignore[misc]


# The recipe's options


@pytest.mark.parametrize(
    ("training", "sentence"),
    [
        ({"optimizer": {"name": "sgd", "momentum": 0.0}}, "training.optimizer: nesterov needs a momentum above 0; set"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, "training.optimizer: betas [0.9, 1.0] must be two numbers in [0, 1)"),
        ({"optimizer": {"name": "lamb"}}, "training.optimizer.name: found 'lamb' (text), expected: one of 'adam', 'ad"),
        ({"epochs": 3, "freeze_epochs": 3}, "training: freeze_epochs is 3 but epochs is 3; leave an epoch for"),
        ({"epochs": 3, "schedule": {"warmup_epochs": 3.5}}, "training: schedule.warmup_epochs is 3.5 but epochs is 3"),
        (
            {"compile": "default", "activation_checkpointing": True},
            "training: activation_checkpointing and compile: default exclude each other",
        ),
        ({"compile": "default", "lean_backward": True}, "training: lean_backward and compile: default exclude"),
        ({"compile": "default", "cpu_kernels": "native"}, "training: cpu_kernels: native and compile: default exclude"),
        (
            {"memory_format": "contiguous", "cpu_kernels": "native"},
            "training: cpu_kernels: native is for memory_format: channels_last, found contiguous; set that, or",
        ),
        ({"cpu_kernels": "own"}, "training.cpu_kernels: found 'own' (text), expected: one of 'torch' or 'native'"),
        ({"ema": 1.0}, "training.ema: found 1.0 (number), expected: a number below 1"),
        ({"accumulation": 0}, "training.accumulation: found 0 (integer), expected: a number of at least 1"),
        ({"bn": "frozen"}, "training.bn: found 'frozen' (text), expected: one of 'train', 'eval' or 'affine_only'"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_refused_with_the_reason(tiny: Raw, training: Raw, sentence: str) -> None:
    assert sentence in refusal({**tiny, "training": {**tiny["training"], **training}})


def test_overrides_that_exclude_each_other_only_together_name_the_run(tiny: Raw) -> None:
    # Each is right by itself: 3 frozen epochs of 5, and 2 epochs for the data set.
    tiny["training"]["epochs"] = 5
    tiny["datasets"]["toy"] = {"training": {"epochs": 2}}
    tiny["strategies"]["same_lr"] = {"training": {"freeze_epochs": 3}}
    assert "training.<toy, same_lr>: freeze_epochs is 3 but epochs is 2; leave an epoch" in refusal(tiny)


@pytest.mark.parametrize("number", [".inf", "-.inf", ".nan"])
@pytest.mark.parametrize(
    "key", ["training.lr", "training.weight_decay", "training.mixup", "training.schedule.warmup_epochs"]
)
def test_numbers_without_an_end_are_refused(tmp_path: Path, tiny: dict[str, Any], key: str, number: str) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tiny))
    with pytest.raises(InputError, match=rf"{key}: found -?(inf|nan) \(number\), expected: a finite number"):
        params.load(tmp_path / "params.yaml", [f"{key}={number}"])


@pytest.mark.parametrize("number", [float("inf"), float("nan"), -float("inf")])
@pytest.mark.parametrize(
    ("plan", "option"),
    [
        ("l2_sp", "alpha"),
        ("lp_ft", "tune_scale"),
        ("spottune", "tau"),
        ("separate_lr", "last_scale"),
        ("bss", "eta"),
        ("delta", "beta"),
    ],
)
def test_options_without_an_end_are_refused(plan: str, option: str, number: float) -> None:
    with pytest.raises(InputError, match=rf"strategies\.mine\.{option}: found .* expected a finite number"):
        strategies.check_options("mine", plan, {option: number})
