import pytest

from finetune import tables
from finetune.comparison import compare
from finetune.spread import spread
from finetune.study import Layout, Run
from synthetic_study import make_params, write_run, write_toy_study


def test_the_table_is_aligned_and_marks_the_winner(tmp_path):
    text = tables.table(compare(write_toy_study(tmp_path), Layout(tmp_path)))
    assert text.splitlines() == [
        "toy, 10 test images",
        "  strategy     n   val top-1 %   test top-1 %  Δ test to same_lr  trainable M  s/run",
        "  same_lr      2  45.00 ± 7.07   55.00 ± 7.07                  –         2.00     12",
        "* separate_lr  2  57.50 ± 3.54  70.00 ± 14.14      +15.00 ± 7.07         2.00     11",
        "",
        "mean ± standard deviation over n seeds; Δ in points, paired by seed; * chosen by validation",
    ]


def test_the_table_without_validation_and_with_one_seed(tmp_path):
    write_run(tmp_path, Run("toy", "same_lr", 0), "1100", val=None)
    text = tables.table(compare(make_params(("same_lr",), (0,)), Layout(tmp_path)))
    assert text.splitlines()[2].split() == ["same_lr", "1", "–", "50.00", "–", "2.00", "10"]


def test_columns_are_as_wide_in_every_data_set(tmp_path):
    for name, right in (("toy", "1100"), ("another", "1111")):
        write_run(tmp_path, Run(name, "same_lr", 0), right)
    lines = tables.table(compare(make_params(("same_lr",), (0,), ("toy", "another")), Layout(tmp_path))).splitlines()
    assert len(lines[1]) == len(lines[2]) == len(lines[5]) == len(lines[6])


@pytest.mark.parametrize(
    ("figure", "signed", "text"),
    [
        (spread([0.5]), False, "50.00"),
        (spread([0.6, 0.8]), False, "70.00 ± 14.14"),
        (spread([0.012]), True, "+1.20"),
        (spread([-0.012]), True, "-1.20"),
        (None, False, "–"),
    ],
)
def test_percent(figure, signed, text):
    assert tables.percent(figure, signed) == text


def test_interval_is_mean_minus_and_plus_its_half_width():
    # 12.7062 * 0.001 either side of 0.01
    assert tables.interval(spread([0.009, 0.011])) == "-0.27 to +2.27"


def test_one_seed_has_no_interval():
    assert tables.interval(spread([0.01])) == "–"


def test_count():
    assert [tables.count(spread(values)) for values in ([12.3], [10.0, 14.0])] == ["12", "12 ± 3"]


def test_ratio():
    assert [tables.ratio(value) for value in (None, 0.0049, 0.005, 1.0, 2.345)] == [
        "–",
        "< 0.01",
        "0.01",
        "1.00",
        "2.35",
    ]


def test_columns_are_as_wide_as_their_widest_cell():
    assert tables.aligned([("a", "bbb", "c"), ("dd", "e", "")], right=(1,)) == ["a   bbb  c", "dd    e"]


def test_p_value():
    assert [tables.p_value(p) for p in (0.0004, 0.0314, 1.0)] == ["< 0.001", "0.031", "1.000"]


def test_span():
    assert [tables.span(values) for values in ([], [78.8], [94.7, 96.2, 95.7])] == ["–", "78.8", "94.7 – 96.2"]


def test_markdown_puts_figures_to_the_right():
    assert tables.markdown(("Name", "n"), [["a", 1]], words=1) == "| Name | n |\n| :-- | --: |\n| a | 1 |"
