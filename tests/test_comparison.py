import csv
import json
import math

import pytest

from finetune import comparison, runs
from finetune.errors import InputError
from finetune.study import Layout, Run
from synthetic_study import make_params, older, write_run, write_toy_study


@pytest.fixture
def toy(tmp_path):
    return comparison.compare(write_toy_study(tmp_path), Layout(tmp_path))


def test_rows_follow_the_study(toy):
    assert [(row["dataset"], row["strategy"], row["seeds"]) for row in toy["rows"]] == [
        ("toy", "same_lr", [0, 1]),
        ("toy", "separate_lr", [0, 1]),
    ]


def test_test_accuracy_over_seeds(toy):
    test = comparison.row_of(toy, "toy", "separate_lr")["test"]
    assert (test["n"], test["images"], test["values"]) == (2, 10, [0.6, 0.8])
    assert test["mean"] == pytest.approx(0.7)
    assert test["sd"] == pytest.approx(math.sqrt(0.02))


def test_binomial_error_is_of_one_test_figure(toy):
    # sqrt(0.7 * 0.3 / 10)
    assert comparison.row_of(toy, "toy", "separate_lr")["test"]["binomial_se"] == pytest.approx(math.sqrt(0.021))


def test_validation_accuracy_counts_validation_images(toy):
    val = comparison.row_of(toy, "toy", "same_lr")["val"]
    assert (val["mean"], val["images"]) == (pytest.approx(0.45), 20)


def test_difference_to_the_baseline_by_seed(toy):
    gap = comparison.row_of(toy, "toy", "separate_lr")["to_baseline"]
    assert gap["test"]["mean"] == pytest.approx(0.15)  # 0.1 and 0.2
    assert gap["val"]["mean"] == pytest.approx(0.125)  # 0.2 and 0.05


def test_difference_to_the_baseline_by_image(toy):
    # right in seeds, ours : the baseline's: image 4 1 : 2, image 5 1 : 1, images 6 and 7 2 : 0; p = 2 * (1 + 3) / 2^3
    assert comparison.row_of(toy, "toy", "separate_lr")["to_baseline"]["per_image"] == {
        "images": 10,
        "won": 2,
        "lost": 1,
        "mcnemar_p": pytest.approx(1.0),
    }


def test_the_baseline_has_no_difference(toy):
    assert comparison.row_of(toy, "toy", "same_lr")["to_baseline"] is None


def test_cost_is_over_seeds_and_relative_to_the_baseline(toy):
    cost = comparison.row_of(toy, "toy", "separate_lr")["cost"]
    assert cost["seconds"]["mean"] == 11.0
    assert cost["relative"] == {
        "trainable_parameters": 1.0,
        "activation_mb": 1.0,
        "peak_memory_mb": 1.0,
        "seconds_per_epoch": pytest.approx(11 / 12),
    }


def test_the_baseline_may_be_another(tmp_path):
    write_toy_study(tmp_path)
    found = comparison.compare(make_params(("separate_lr", "same_lr")), Layout(tmp_path))
    cost = comparison.row_of(found, "toy", "same_lr")["cost"]
    assert cost["relative"]["seconds_per_epoch"] == pytest.approx(12 / 11)


def test_audits_tell_what_each_strategy_trains(toy):
    same_lr, other = toy["audits"][:2], toy["audits"][2:]
    all_of = {"strategy": "same_lr", "phase": 0, "epochs": 2, "adds": "", "group": "all", "lr_scale": 1.0}
    assert same_lr == [
        all_of | {"block": "features.0", "parameters": 928, "moved": 928, "batchnorm": "train"},
        all_of | {"block": "classifier", "parameters": 3840, "moved": 3840, "batchnorm": ""},
    ]
    assert [row["strategy"] for row in other] == ["separate_lr", "separate_lr"]


def test_scales_are_relative_to_the_runs_own_rate(tmp_path):
    write_run(tmp_path, Run("toy", "same_lr", 0), "1100")
    path = tmp_path / "runs/toy/same_lr/0/run.json"
    runs.write_json(path, runs.read_json(path) | {"training": {"lr": 4e-3, "epochs": 2}})
    found = comparison.compare(make_params(("same_lr",), (0,)), Layout(tmp_path))
    assert {row["lr_scale"] for row in found["audits"]} == {0.25}


def test_other_costs_leave_the_audits_as_they_are(tmp_path, toy):
    write_run(tmp_path, Run("toy", "same_lr", 0), "1100110011", 0.3, seconds=99)
    assert comparison.compare(make_params(), Layout(tmp_path))["audits"] == toy["audits"]


def test_what_older_runs_did_not_record_is_left_blank(tmp_path, toy):
    older(tmp_path, Run("toy", "same_lr", 1))
    found = comparison.compare(make_params(), Layout(tmp_path))
    cost = comparison.row_of(found, "toy", "same_lr")["cost"]
    assert [key for key, value in cost.items() if value is None] == [
        *("start_seconds", "data_seconds", "compute_seconds", "evaluation_seconds", "saving_seconds"),
        *("activation_mb", "flops_per_image"),
    ]
    assert comparison.row_of(found, "toy", "separate_lr")["cost"]["relative"]["activation_mb"] is None
    comparison.write(found, tmp_path)
    with (tmp_path / "comparison.csv").open() as file:
        base, ours = csv.DictReader(file)
    assert base["seconds_mean"] == "12.0"
    assert {base[key] for key in ("start_seconds_n", "data_seconds_mean", "activation_mb", "flops_per_image")} == {""}
    assert (ours["start_seconds_mean"], ours["activation_mb"]) == ("4.0", "120.0")
    measured = ("seconds", "seconds_per_epoch", "images_per_second", "peak_memory_mb")
    assert all(float(ours[f"{key}_mean"]) > 0 for key in measured)


def test_the_winner_is_the_best_mean_validation_and_its_best_seed(toy):
    assert toy["datasets"]["toy"]["winner"] == {
        "strategy": "separate_lr",
        "seed": 0,
        "run_key": "key-of-toy-separate_lr-0",
        "val": 0.6,
        "test": 0.6,
    }


def test_test_accuracy_does_not_choose_the_winner(tmp_path):
    write_run(tmp_path, Run("toy", "same_lr", 0), "1100", val=0.9)
    write_run(tmp_path, Run("toy", "separate_lr", 0), "1111", val=0.8)
    found = comparison.compare(make_params(seeds=(0,)), Layout(tmp_path))
    assert found["datasets"]["toy"]["winner"]["strategy"] == "same_lr"


def test_a_tie_goes_to_fewer_trainable_parameters(tmp_path):
    write_run(tmp_path, Run("toy", "same_lr", 0), "1100", val=0.8, seconds=1)
    write_run(tmp_path, Run("toy", "separate_lr", 0), "1100", val=0.8, seconds=9, trainable=1000)
    found = comparison.compare(make_params(seeds=(0,)), Layout(tmp_path))
    assert found["datasets"]["toy"]["winner"]["strategy"] == "separate_lr"


def test_a_tie_of_equal_size_goes_to_fewer_seconds(tmp_path):
    # 0.1 + 0.2 and 0.3 + 0 are one accuracy but two floats
    for seed, (first, second) in enumerate([(0.1, 0.3), (0.2, 0.0)]):
        write_run(tmp_path, Run("toy", "same_lr", seed), "1100", val=first, seconds=9)
        write_run(tmp_path, Run("toy", "separate_lr", seed), "1100", val=second, seconds=1)
    found = comparison.compare(make_params(), Layout(tmp_path))
    assert found["datasets"]["toy"]["winner"]["strategy"] == "separate_lr"


def test_without_validation_there_is_no_winner(tmp_path):
    for strategy in ("same_lr", "separate_lr"):
        write_run(tmp_path, Run("toy", strategy, 0), "1100", val=None)
    found = comparison.compare(make_params(seeds=(0,)), Layout(tmp_path))
    assert found["datasets"]["toy"]["winner"] is None
    row = comparison.row_of(found, "toy", "separate_lr")
    assert (row["val"], row["to_baseline"]["val"]) == (None, None)


def test_the_store_of_a_data_set_is_named_where_all_runs_agree(tmp_path, toy):
    assert toy["datasets"]["toy"]["store_digest"] is None  # runs that do not tell
    layout = Layout(tmp_path)
    folders = [layout.run(Run("toy", strategy, seed)) for strategy in ("same_lr", "separate_lr") for seed in (0, 1)]
    for stores, expected in (("aaaa", "a"), ("aaba", None)):
        for folder, store in zip(folders, stores, strict=True):
            runs.write_json(folder / runs.RUN, runs.read_json(folder / runs.RUN) | {"store_digest": store})
        assert comparison.compare(make_params(), layout)["datasets"]["toy"]["store_digest"] == expected


def test_every_run_is_listed_with_its_key(toy):
    assert [run["run_key"] for run in toy["runs"]] == [
        "key-of-toy-same_lr-0",
        "key-of-toy-same_lr-1",
        "key-of-toy-separate_lr-0",
        "key-of-toy-separate_lr-1",
    ]


def test_published_numbers_stand_beside(tmp_path):
    write_run(tmp_path, Run("food101", "same_lr", 0), "1100")
    found = comparison.compare(make_params(("same_lr",), (0,), ("food101",)), Layout(tmp_path))
    of_set = found["datasets"]["food101"]
    assert of_set["original_report"]["val_top1_percent"] == 81.124
    assert [result["top1_percent"] for result in of_set["published"]] == [81.1, 77.8]


def test_a_run_outside_the_study_is_not_read(tmp_path, toy):
    write_run(tmp_path, Run("toy", "dropped", 0), "1111111111", val=1.0)
    write_run(tmp_path, Run("toy", "same_lr", 7), "1111111111", val=1.0)
    assert comparison.compare(make_params(), Layout(tmp_path)) == toy


def test_runs_of_other_test_images_are_not_compared(tmp_path, toy):
    write_run(tmp_path, Run("toy", "separate_lr", 1), "1111111100", first_label=1)
    with pytest.raises(InputError, match="saw different test images"):
        comparison.compare(make_params(), Layout(tmp_path))


def test_what_is_written_reads_back(tmp_path, toy):
    comparison.write(toy, tmp_path / "comparison")
    assert comparison.read(tmp_path / "comparison") == toy


def test_a_study_without_validation_reads_back(tmp_path):
    write_run(tmp_path, Run("toy", "same_lr", 0), "1100", val=None)
    found = comparison.compare(make_params(("same_lr",), (0,)), Layout(tmp_path))
    comparison.write(found, tmp_path / "comparison")
    assert comparison.read(tmp_path / "comparison") == found


def test_reading_an_absent_comparison_says_how_to_make_it(tmp_path):
    with pytest.raises(InputError, match=r"comparison.json: no such file; make it with `dvc repro`"):
        comparison.read(tmp_path)


@pytest.mark.parametrize("text", ["{}", "[]", "{"])
def test_a_damaged_comparison_is_named_with_the_stage_that_makes_it_again(tmp_path, toy, text):
    place = tmp_path / "comparison"
    comparison.write(toy, place)
    (place / "comparison.json").write_text(text)
    with pytest.raises(InputError, match=r"comparison\.json: .*make it again with `dvc repro -f -s compare`"):
        comparison.require_study(comparison.read(place), make_params())


def test_curves_without_a_column_are_refused(tmp_path, toy):
    place = tmp_path / "comparison"
    comparison.write(toy, place)
    (place / "curves.csv").write_text("dataset,strategy,seed\ntoy,same_lr,0\n")
    with pytest.raises(InputError, match=r"curves\.csv: lacks 'epoch', .*`dvc repro -f -s compare`"):
        comparison.read(place)


@pytest.mark.parametrize("name", ["run.json", "metrics.json", "cost.json"])
def test_a_damaged_run_is_named_with_the_stage_that_makes_it_again(tmp_path, toy, name):
    (tmp_path / "runs/toy/same_lr/0" / name).write_text("{}")
    with pytest.raises(InputError, match=rf"{name}: lacks '\w+', .*`dvc repro -f -s train@toy-same_lr-0`"):
        comparison.compare(make_params(), Layout(tmp_path))


def test_a_damaged_evaluation_is_named_with_the_stage_that_makes_it_again(tmp_path, toy):
    (tmp_path / "evaluations/toy/same_lr/0/metrics.json").write_text('{"run_key": "key-of-toy-same_lr-0", "test": {}}')
    with pytest.raises(InputError, match=r"metrics\.json: lacks 'images', .*`dvc repro -f -s evaluate@toy-same_lr-0`"):
        comparison.compare(make_params(), Layout(tmp_path))


def test_metrics_hold_one_mean_per_split(tmp_path, toy):
    comparison.write(toy, tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["toy"]["separate_lr"] == {"val": pytest.approx(0.575), "test": pytest.approx(0.7)}


def test_metrics_leave_out_an_absent_validation(tmp_path):
    write_run(tmp_path, Run("toy", "same_lr", 0), "1100", val=None)
    comparison.write(comparison.compare(make_params(("same_lr",), (0,)), Layout(tmp_path)), tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"toy": {"same_lr": {"test": 0.5}}}


def test_the_csv_has_a_flat_line_per_row(tmp_path, toy):
    comparison.write(toy, tmp_path)
    with (tmp_path / "comparison.csv").open() as file:
        base, ours = csv.DictReader(file)
    assert (ours["strategy"], ours["seeds"], ours["test_n"], ours["test_per_image_won"]) == (
        "separate_lr",
        "0 1",
        "2",
        "2",
    )
    assert float(ours["test_to_baseline_mean"]) == pytest.approx(0.15)
    assert float(ours["seconds_per_epoch_mean"]) == 5.5
    assert float(ours["relative_seconds_per_epoch"]) == pytest.approx(11 / 12)
    assert base["test_to_baseline_mean"] == base["test_per_image_mcnemar_p"] == ""


def test_the_curves_are_in_long_form(tmp_path, toy):
    comparison.write(toy, tmp_path)
    lines = (tmp_path / "curves.csv").read_text().splitlines()
    assert lines[:2] == [
        "dataset,strategy,seed,epoch,train/loss,train/acc,val/loss,val/acc",
        "toy,same_lr,0,1,2.0,0.25,1.5,0.2",
    ]
    assert len(lines) == 1 + 2 * 2 * 2  # strategies x seeds x epochs
