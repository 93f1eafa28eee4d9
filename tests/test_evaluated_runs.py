import pytest

from finetune import evaluated_runs, runs
from finetune.errors import InputError
from finetune.study import Layout, Run
from synthetic_study import write_run

LISTED = [Run("toy", strategy, seed) for strategy in ("same_lr", "separate_lr") for seed in (0, 1)]


@pytest.fixture
def layout(tmp_path):
    for run in LISTED:
        write_run(tmp_path, run, "1110000000")
    return Layout(tmp_path)


def test_runs_are_read_in_the_order_listed(layout):
    assert [record.run for record in evaluated_runs.read(LISTED[::-1], layout)] == LISTED[::-1]


def test_a_record_knows_which_images_were_told_right(layout):
    record = evaluated_runs.read(LISTED, layout)[0]
    assert record.labels.tolist() == [0, 1] * 5
    assert record.correct.tolist() == [True] * 3 + [False] * 7


def test_missing_runs_are_counted_and_the_first_is_named(layout, tmp_path):
    (tmp_path / "runs/toy/same_lr/1/metrics.json").unlink()
    (tmp_path / "evaluations/toy/separate_lr/0/predictions.csv").unlink()
    with pytest.raises(InputError, match=r"2 of the 4 runs .* no runs/toy/same_lr/1/metrics.json\); .*`dvc repro`"):
        evaluated_runs.read(LISTED, layout)


def test_an_evaluation_of_another_run_is_refused(layout, tmp_path):
    path = tmp_path / "evaluations/toy/same_lr/0/metrics.json"
    runs.write_json(path, runs.read_json(path) | {"run_key": "older"})
    with pytest.raises(InputError, match=r"same_lr/0/metrics.json: evaluates run older, .* key-of-toy-same_lr-0"):
        evaluated_runs.read(LISTED, layout)


def test_an_evaluation_of_other_test_images_is_refused(layout, tmp_path):
    write_run(tmp_path, Run("toy", "separate_lr", 1), "1111111100", first_label=1)
    records = evaluated_runs.read(LISTED, layout)
    with pytest.raises(InputError, match="toy/separate_lr/1 and toy/same_lr/0 saw different test images"):
        evaluated_runs.require_one_test_split(records)


def test_predictions_that_are_too_few_are_refused(layout, tmp_path):
    path = tmp_path / "evaluations/toy/same_lr/0/predictions.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match="found 9 predictions, expected 10"):
        evaluated_runs.read(LISTED, layout)
