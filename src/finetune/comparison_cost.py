"""What the runs of a strategy cost: over seeds, and relative to the baseline's."""

from collections.abc import Mapping, Sequence
from typing import Any

from finetune.clock import PHASES
from finetune.spread import spread

# What is compared with the baseline.
RELATIVE = ("trainable_parameters", "activation_mb", "peak_memory_mb", "seconds_per_epoch")


def cost_of(costs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The cost.json of each seed -> `spread` of what was measured, figures of what follows from the recipe.

    Of that, what a cost.json of an earlier version lacks is None.
    """

    def over_seeds(key: str, unit: float = 1.0) -> dict[str, Any]:
        return spread([cost[key] / unit for cost in costs])

    newer = all("flops_per_image" in cost for cost in costs)  # than when costs were not yet counted by phase
    return {
        "seconds": over_seeds("seconds"),
        "seconds_per_epoch": over_seeds("seconds_per_epoch"),
        **{f"{phase}_seconds": over_seeds(f"{phase}_seconds") if newer else None for phase in PHASES},
        "images_per_second": over_seeds("images_per_second"),
        "peak_memory_mb": over_seeds("peak_memory_bytes", 1e6),
        "activation_mb": costs[0]["activation_bytes"] / 1e6 if newer else None,
        "flops_per_image": costs[0]["flops_per_image"] if newer else None,
        "trainable_parameters": costs[0]["trainable_parameters"],
        "total_parameters": costs[0]["total_parameters"],
    }


def relative_to(baseline: Mapping[str, Any], cost: Mapping[str, Any]) -> dict[str, float | None]:
    """Each of RELATIVE as a multiple of the baseline's, of means over seeds; None where one of the two is not known."""
    ratios: dict[str, float | None] = {}
    for key in RELATIVE:
        ours, theirs = (side[key]["mean"] if isinstance(side[key], Mapping) else side[key] for side in (cost, baseline))
        ratios[key] = ours / theirs if ours is not None and theirs else None
    return ratios
