from typing import Any

import pytest

from finetune.comparison_cost import cost_of, relative_to


def _cost(seconds: float, **other: Any) -> dict[str, Any]:
    cost: dict[str, Any] = {"seconds": seconds, "seconds_per_epoch": seconds / 4, "images_per_second": 20.0}
    cost |= {f"{phase}_seconds": 1.0 for phase in ("start", "data", "compute", "evaluation", "saving")}
    cost |= {"peak_memory_bytes": 300_000_000, "activation_bytes": 120_000_000, "flops_per_image": 6}
    return cost | {"trainable_parameters": 2_000, "total_parameters": 2_500} | other


def test_measured_costs_are_spreads_over_seeds() -> None:
    cost = cost_of([_cost(10), _cost(14)])
    assert (cost["seconds"]["n"], cost["seconds"]["mean"]) == (2, 12.0)
    assert (cost["seconds_per_epoch"]["mean"], cost["seconds_per_epoch"]["sd"]) == (3.0, pytest.approx(0.5**0.5))


def test_bytes_are_told_in_megabytes() -> None:
    cost = cost_of([_cost(10)])
    assert (cost["peak_memory_mb"]["mean"], cost["activation_mb"]) == (300.0, 120.0)


def test_costs_are_relative_to_the_baselines_means() -> None:
    baseline = cost_of([_cost(10, peak_memory_bytes=200_000_000), _cost(30, peak_memory_bytes=600_000_000)])
    ours = cost_of([_cost(5, trainable_parameters=500, activation_bytes=30_000_000, peak_memory_bytes=100_000_000)])
    assert relative_to(baseline, ours) == {
        "trainable_parameters": 0.25,
        "activation_mb": 0.25,
        "peak_memory_mb": 0.25,  # 100 : 400
        "seconds_per_epoch": 0.25,  # 5 : 20
    }


@pytest.mark.parametrize("older_side", [0, 1])
def test_what_one_side_did_not_record_has_no_ratio(older_side: int) -> None:
    sides = [_cost(10), _cost(10)]
    for key in ("activation_bytes", "flops_per_image"):
        del sides[older_side][key]
    ratios = relative_to(*(cost_of([side]) for side in sides))
    assert (ratios["activation_mb"], ratios["peak_memory_mb"]) == (None, 1.0)
