import re

import pytest

from finetune import report, sheets
from finetune.comparison import compare
from finetune.errors import InputError
from finetune.study import Layout, Run
from small_store import store_of
from synthetic_study import make_params, write_run, write_toy_study


def _report(root, params):
    layout = Layout(root)
    report.write(params, compare(params, layout), layout)
    return (root / "report" / "report.md").read_text()


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The report of two strategies and two seeds, with numbers worked out by hand."""
    root = tmp_path_factory.mktemp("toy")
    return _report(root, write_toy_study(root))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The folder of a report that has every section."""
    root = tmp_path_factory.mktemp("full")
    _report(root, _one_run_each(root, ("food101",), ("same_lr", "separate_lr_as_published", "from_scratch")))
    return root


def _one_run_each(root, datasets=("toy",), strategies=("same_lr",), val=0.5, **extra):
    for dataset in datasets:
        for strategy in strategies:
            write_run(root, Run(dataset, strategy, 0), "1100", val=val)
    return make_params(strategies, (0,), datasets, **extra)


def _section(text, heading):
    return text.split(f"{heading}\n", 1)[1].split("\n## ", 1)[0]


def test_the_sections_stand_as_in_the_original(full):
    text = (full / "report/report.md").read_text()
    assert re.findall(r"^##? .*", text, re.M) == [
        "# Fine-tuning report: synthetic",
        "## Settings",
        "## Strategies",
        "## Results (best fine-tuning strategy)",
        "## Strategy Compare",
        "## Cost",
        "## Data",
        "## Published numbers",
        "## How to read this",
    ]


def test_the_result_has_validation_and_test_of_the_winner(toy):
    results = _section(toy, "## Results (best fine-tuning strategy)")
    assert "| toy | `separate_lr` | 2 | 57.50 ± 3.54 | 70.00 ± 14.14 | – | – |" in results


def test_published_numbers_stand_beside_the_result(full):
    results = _section((full / "report/report.md").read_text(), "## Results (best fine-tuning strategy)")
    assert "| `same_lr` | 1 | 50.00 | 50.00 | 81.124 | 77.8 – 81.1 |" in results


def test_the_sources_of_published_numbers_are_listed(full):
    listed = _section((full / "report/report.md").read_text(), "## Published numbers")
    assert "| Food-101 | full fine-tuning | test; STM32 model zoo | 77.8 |" in listed
    assert "| Food-101 | full fine-tuning | validation; the original report; printed there as 8.124" in listed


def test_every_strategy_has_both_accuracies(toy):
    # binomial: sqrt(0.55 * 0.45 / 10)
    assert "| toy | `same_lr` | 2 | 45.00 ± 7.07 | 55.00 ± 7.07 | 15.73 |" in toy


def test_every_strategy_is_compared_with_the_baseline(toy):
    # t-interval: 15 ± 12.7062 * 5
    assert "| toy | `separate_lr` | 2 | +12.50 ± 10.61 | +15.00 ± 7.07 | -48.53 to +78.53 | 2 : 1 | 1.000 |" in toy


def test_every_picture_shown_exists_and_none_is_left_over(full):
    shown = set(re.findall(r"\]\((.*?\.png)\)", (full / "report/report.md").read_text()))
    assert shown == {path.name for path in (full / "report").glob("*.png")}
    assert {"curves-food101-accuracy.png", "strategy-from_scratch.png", "accuracy-over-cost.png"} <= shown


def test_the_page_has_every_picture_inside(full):
    text, html = ((full / "report" / name).read_text() for name in ("report.md", "report.html"))
    assert html.count("data:image/png;base64,") == text.count(".png)")


def test_nothing_is_left_beside_the_report(full):
    assert sorted(path.name for path in full.iterdir()) == ["evaluations", "report", "runs"]


def test_without_validation_the_baseline_stands_in(tmp_path):
    training = {"selection": "last"}
    params = _one_run_each(tmp_path, val=None, prepare={"val_fraction": 0}, training=training)
    text = _report(tmp_path, params)
    assert "| toy | none without a validation split; baseline `same_lr` | 1 | – | 50.00 | – | – |" in text
    assert "no winner is chosen" in text


def test_a_study_of_one_strategy_has_nothing_to_compare(tmp_path):
    text = _report(tmp_path, _one_run_each(tmp_path))
    assert "## Strategy Compare" not in text and "Against the baseline" not in text


@pytest.mark.parametrize(
    ("edition", "words"),
    [
        ("sample", "drawn stand-ins"),
        ("official", "same official splits"),
        ("reduced", "`reduced` edition is not the official one"),
    ],
)
def test_the_report_says_how_far_published_numbers_compare(tmp_path, edition, words):
    assert words in _report(tmp_path, _one_run_each(tmp_path, ("food101",), edition=edition))


def test_without_published_numbers_nothing_is_said_of_them(tmp_path):
    text = _report(tmp_path, _one_run_each(tmp_path, strategies=("same_lr", "from_scratch")))
    assert "Mean ± standard deviation over n seeds.\n" in text
    assert "published" not in _section(text, "## How to read this") and "stand-ins" not in text


def test_the_sheets_are_in_the_report_and_in_the_page(tmp_path):
    train = [(0, 8, 9), (1, 5, 7), (0, 6, 6)] * 20
    store = store_of(tmp_path, {"train": train, "test": [(1, 3, 3)] * 4}, classes=3)
    sheets.write(store, "toy", tmp_path / "sheets" / "toy")
    text = _report(tmp_path, _one_run_each(tmp_path))
    assert "| toy | train | 40 |" in _section(text, "## Data")
    assert (tmp_path / "report" / "data-toy-sheet.png").is_file()
    assert (tmp_path / "report" / "report.html").read_text().count("data:image/png;base64,") == text.count(".png)")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"datasets": ("toy", "food101")}, "compares datasets toy, but the study has toy, food101;"),
        ({"strategies": ("same_lr",)}, "compares strategies same_lr, separate_lr, but the study has same_lr;"),
        ({"seeds": (0, 1, 2)}, "compares seeds 0, 1, but the study has 0, 1, 2;"),
    ],
)
def test_a_comparison_of_another_study_is_refused_and_the_old_report_stays(tmp_path, other, words):
    compared = compare(write_toy_study(tmp_path), Layout(tmp_path))
    older = tmp_path / "report" / "report.md"
    older.parent.mkdir()
    older.write_text("older")
    with pytest.raises(InputError, match=f"{words} .*`dvc repro`"):
        report.write(make_params(**other), compared, Layout(tmp_path))
    assert [path.name for path in older.parent.iterdir()] == ["report.md"] and older.read_text() == "older"


def test_a_comparison_with_another_baseline_is_refused(tmp_path):
    compared = compare(write_toy_study(tmp_path), Layout(tmp_path))
    compared["study"]["baseline"] = "separate_lr"
    with pytest.raises(InputError, match="compares baseline separate_lr, but the study has same_lr;"):
        report.write(make_params(), compared, Layout(tmp_path))


def test_an_older_report_is_replaced_whole(tmp_path):
    stale = tmp_path / "report" / "curves-dropped-accuracy.png"
    stale.parent.mkdir()
    stale.write_bytes(b"")
    _report(tmp_path, _one_run_each(tmp_path))
    assert not stale.exists()
