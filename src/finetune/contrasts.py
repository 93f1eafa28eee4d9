"""Strategy against strategy, as the original report compared them: learning rates, and scratch against fine-tuning."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune import pictures, published
from finetune.comparison import row_of
from finetune.params import Params
from finetune.spread import difference
from finetune.tables import markdown, percent, span

_STEPS = {
    ("same_lr", "separate_lr"): "changes only learning rates: the classifier trains at lr, the last blocks slower, the "
    "deep blocks slowest; the weight decay stays. This is the effect of the learning rate.",
    ("separate_lr", "separate_lr_as_published"): "drops the weight decay, and has 0.4 lr for the whole backbone: in "
    "the original code the group of the last blocks, meant for 0.6 lr, was empty, because it compared ids of modules "
    "with ids of parameters. This is the effect of the weight decay and of that slip.",
    ("same_lr", "separate_lr_as_published"): "is the comparison that the original report printed. It makes all of "
    "these changes at once, so it cannot tell which of them did it.",
}


def learning_rates(params: Params, comparison: Mapping[str, Any], folder: Path) -> str:
    """The same learning rate in each layer against separate ones; empty unless the study has two of the three."""
    study = comparison["study"]["strategies"]
    steps = {pair: text for pair, text in _STEPS.items() if set(pair) <= set(study)}
    if not steps:
        return ""
    rows, effects = [], []
    for (before, after), text in steps.items():
        change = f"`{before}` → `{after}`"
        points = {}
        for dataset, title in pictures.titles(comparison).items():
            old, new = row_of(comparison, dataset, before), row_of(comparison, dataset, after)
            val, test = (difference(new[split], old[split]) for split in ("val", "test"))
            assert test is not None
            points[title] = 100 * test["mean"]
            rows.append([title, change, test["n"], percent(val, signed=True), percent(test, signed=True)])
        effects.append(f"- {change} {text} Test top-1: {_words(points)}.{_other_changes(params, before, after)}")
    compared = [name for name in study if any(name in pair for pair in steps)]
    return "\n\n".join(
        [
            "### Same lr in each layer vs separate lr",
            "\n".join(effects),
            markdown(("Data set", "change", "n", "Δ val, points", "Δ test, points"), rows, words=2),
            pictures.curves(comparison, list(comparison["datasets"]), compared, folder, "learning-rates"),
        ]
    )


def from_scratch(params: Params, comparison: Mapping[str, Any], folder: Path) -> str:
    """Random weights against fine-tuning for the same epochs; empty unless the study has both."""
    study = comparison["study"]
    scratch = next((name for name in study["strategies"] if params.plan_for(name) == "from_scratch"), None)
    tuned = [name for name in study["strategies"] if params.plan_for(name) != "from_scratch"]
    if scratch is None or not tuned:
        return ""
    # The original report took its separate learning rates.
    partner = next((name for name in ("separate_lr", study["baseline"]) if name in tuned), tuned[0])
    rows, points = [], {}
    for dataset, of_set in comparison["datasets"].items():
        ours, random = row_of(comparison, dataset, partner), row_of(comparison, dataset, scratch)
        gain = difference(ours["test"], random["test"])
        assert gain is not None
        points[of_set["title"]] = 100 * gain["mean"]
        accuracies = [percent(side[split]) for split in ("val", "test") for side in (ours, random)]
        known = [result["top1_percent"] for result in of_set["published"] if result["method"] == published.SCRATCH]
        rows.append([of_set["title"], gain["n"], *accuracies, percent(gain, signed=True), span(known)])
    sides = [f"{split} %, {side}" for split in ("val", "test") for side in ("fine-tuned", "scratch")]
    return "\n\n".join(
        [
            "### Train-from-scratch vs fine-tune",
            f"For the same epochs `{partner}` starts from the pretrained weights and `{scratch}` from random ones. "
            f"Fine-tuned minus scratch, test top-1: {_words(points)}.{_other_changes(params, partner, scratch)} "
            "Equal epochs favour fine-tuning: from scratch the same accuracy takes about 17 times the steps "
            "(Kornblith et al. 2019, arXiv:1805.08974).",
            markdown(("Data set", "n", *sides, "Δ test, points", "published, scratch %"), rows, words=1),
            pictures.curves(comparison, list(comparison["datasets"]), [partner, scratch], folder, "from-scratch"),
        ]
    )


def _other_changes(params: Params, before: str, after: str) -> str:
    """A warning when the two strategies override the recipe differently."""
    old, new = (params.strategies[name].training for name in (before, after))
    keys = [f"training.{key}" for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return f" Their recipes differ, too: {', '.join(keys)}." if keys else ""


def _words(points: Mapping[str, float]) -> str:
    """Percentage points per data set, as words."""
    mean = f"{statistics.fmean(points.values()):+.2f} points"
    if len(points) == 1:
        return f"{mean} on {next(iter(points))}"
    low, high = min(points, key=points.__getitem__), max(points, key=points.__getitem__)
    ends = f"{points[low]:+.2f} on {low} to {points[high]:+.2f} on {high}"
    return f"{mean} on average over {len(points)} data sets ({ends})"
