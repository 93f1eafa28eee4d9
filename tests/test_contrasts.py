import pytest

from finetune import contrasts
from finetune.comparison import compare
from finetune.study import Layout, Run
from synthetic_study import make_params, write_run

ALL = ("same_lr", "separate_lr", "separate_lr_as_published", "from_scratch")
RIGHT = {"same_lr": "1111100000", "separate_lr": "1111111000", "separate_lr_as_published": "1111111100"}


@pytest.fixture
def section(tmp_path):
    """Calls one of the sections for a study of these strategies; test top-1 0.5, 0.7, 0.8 and scratch 0.1."""

    def write(which, names, recipes=None):
        params = make_params(names, (0,), recipes=recipes or {})
        for strategy in names:
            write_run(tmp_path, Run("toy", strategy, 0), RIGHT.get(strategy, "1000000000"))
        (tmp_path / "report").mkdir()
        return which(params, compare(params, Layout(tmp_path)), tmp_path / "report")

    return write


def test_learning_rate_and_weight_decay_are_told_apart(section):
    text = section(contrasts.learning_rates, ALL)
    assert "| toy | `same_lr` → `separate_lr` | 1 | +0.00 | +20.00 |" in text
    assert "| toy | `separate_lr` → `separate_lr_as_published` | 1 | +0.00 | +10.00 |" in text
    assert "| toy | `same_lr` → `separate_lr_as_published` | 1 | +0.00 | +30.00 |" in text


def test_the_effect_is_said_in_words(section):
    text = section(contrasts.learning_rates, ALL[:2])
    assert "effect of the learning rate. Test top-1: +20.00 points on toy." in text


def test_a_step_to_an_absent_strategy_is_left_out(section):
    text = section(contrasts.learning_rates, ALL[:2])
    assert "separate_lr_as_published" not in text


def test_one_learning_rate_strategy_alone_makes_no_section(section):
    assert section(contrasts.learning_rates, ("same_lr", "from_scratch")) == ""


def test_the_learning_rate_pictures_are_drawn(section, tmp_path):
    section(contrasts.learning_rates, ALL)
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "learning-rates-accuracy.png",
        "learning-rates-loss.png",
    ]


def test_scratch_is_compared_with_the_separate_learning_rates(section):
    text = section(contrasts.from_scratch, ALL)
    assert "`separate_lr` starts from the pretrained weights" in text
    assert "Fine-tuned minus scratch, test top-1: +60.00 points on toy." in text


def test_scratch_is_compared_with_the_baseline_otherwise(section):
    assert "`same_lr` starts from the pretrained weights" in section(
        contrasts.from_scratch, ("same_lr", "from_scratch")
    )


def test_without_scratch_there_is_no_section(section):
    assert section(contrasts.from_scratch, ("same_lr",)) == ""


def test_scratch_alone_makes_no_section(section):
    assert section(contrasts.from_scratch, ("from_scratch",)) == ""


def test_another_recipe_is_said(section):
    text = section(contrasts.from_scratch, ("same_lr", "from_scratch"), {"from_scratch": {"epochs": 80}})
    assert "Their recipes differ, too: training.epochs." in text
