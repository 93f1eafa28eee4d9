import math

import numpy as np
import pytest

from finetune import spread


def test_spread_of_two_values():
    # mean 0.7, sd sqrt(0.02), se 0.1; Student's t for one degree of freedom at 97.5 % is 12.7062
    assert spread.spread([0.6, 0.8]) == {
        "n": 2,
        "mean": pytest.approx(0.7),
        "sd": pytest.approx(math.sqrt(0.02)),
        "se": pytest.approx(0.1),
        "ci95": pytest.approx(1.27062, abs=1e-5),
    }


def test_one_value_has_no_spread():
    assert spread.spread([0.6]) == {"n": 1, "mean": 0.6, "sd": None, "se": None, "ci95": None}


def test_accuracy_has_the_binomial_error_of_one_figure():
    # sqrt(0.5 * 0.5 / 100)
    assert spread.accuracy([0.4, 0.6], images=100)["binomial_se"] == pytest.approx(0.05)


def test_accuracy_keeps_every_seed():
    assert spread.accuracy([0.4, 0.6], images=100)["values"] == [0.4, 0.6]


def test_difference_is_paired_by_seed():
    ours, other = spread.accuracy([0.6, 0.8], 10), spread.accuracy([0.5, 0.6], 10)
    gap = spread.difference(ours, other)
    # 0.1 and 0.2: mean 0.15, sd 0.1 / sqrt(2)
    assert gap is not None
    assert (gap["mean"], gap["sd"]) == (pytest.approx(0.15), pytest.approx(0.1 / math.sqrt(2)))


def test_no_difference_without_a_figure():
    assert spread.difference(None, None) is None


def _images(*seeds: str) -> np.ndarray:
    return np.array([[hit == "1" for hit in seed] for seed in seeds])


def test_mcnemar_of_one_seed():
    # three images ours alone, one the other's alone: p = 2 * (1 + 4) / 2^4
    found = spread.per_image(_images("111110"), _images("110001"))
    assert found == {"images": 6, "won": 3, "lost": 1, "mcnemar_p": pytest.approx(0.625)}


def test_mcnemar_counts_an_image_once_over_seeds():
    # right in 2 : 0, 1 : 1 and 0 : 1 seeds: one won, none for the tie, one lost
    found = spread.per_image(_images("110", "100"), _images("010", "001"))
    assert (found["won"], found["lost"], found["mcnemar_p"]) == (1, 1, 1.0)


def test_mcnemar_of_equal_predictions_is_one():
    assert spread.per_image(_images("1100"), _images("1100"))["mcnemar_p"] == 1.0


def test_mcnemar_of_many_one_sided_images_is_small():
    # ten against none: 2 / 2^10
    assert spread.per_image(_images("1" * 10), _images("0" * 10))["mcnemar_p"] == pytest.approx(2 / 1024)
