"""Comparison -> report.md with pictures and a self-contained report.html, laid out as the original report was."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune import contrasts, page, pictures, published, report_costs, report_data, report_settings, runs
from finetune.comparison import require_study, row_of
from finetune.params import Params
from finetune.study import Layout
from finetune.tables import interval, markdown, p_value, percent, span

MARKDOWN, HTML = "report.md", "report.html"


def write(params: Params, comparison: Mapping[str, Any], layout: Layout) -> None:
    """Write the report folder anew: report.md, its PNGs, report.html.

    `comparison` is what `comparison.compare` or `comparison.read` returned. Sections whose strategies are not in the
    study are left out.

    Raises:
        InputError: the comparison is of another study than `params`.
    """
    require_study(comparison, params)
    layout.report.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".report-", dir=layout.report.parent) as aside:
        folder = Path(aside) / layout.report.name
        folder.mkdir()
        sections = (
            f"# Fine-tuning report: {comparison['study']['name']}",
            report_settings.section(params, comparison),
            report_settings.strategies(params, comparison, folder),
            _results(comparison),
            _accuracies(comparison, folder),
            _curves(comparison, folder),
            _contrasts(params, comparison, folder),
            report_costs.section(comparison, folder),
            report_data.section(comparison, layout, folder),
            _published(comparison),
            _reading(comparison),
        )
        text = "\n\n".join(filter(None, sections)) + "\n"
        runs.write_text(folder / MARKDOWN, text)
        runs.write_text(folder / HTML, page.render(text, folder))
        runs.move_into_place(folder, layout.report)


def _results(comparison: Mapping[str, Any]) -> str:
    rows = []
    for dataset, of_set in comparison["datasets"].items():
        winner, original = of_set["winner"], of_set["original_report"]
        strategy = winner["strategy"] if winner else comparison["study"]["baseline"]
        choice = f"`{strategy}`" if winner else f"none without a validation split; baseline `{strategy}`"
        row = row_of(comparison, dataset, strategy)
        ours = [row["test"]["n"], percent(row["val"]), percent(row["test"])]
        full = [result["top1_percent"] for result in of_set["published"] if result["method"] == published.FULL]
        theirs = [f"{original['val_top1_percent']:.3f}" if original else "–", span(full)]
        rows.append([of_set["title"], choice, *ours, *theirs])
    head = ("Data set", "Strategy chosen by validation", "n", "Val_acc% (top1)", "Test_acc% (top1)")
    return "\n\n".join(
        [
            "## Results (best fine-tuning strategy)",
            markdown((*head, "original report, val %", "published, full fine-tuning %"), rows, words=2),
            f"Mean ± standard deviation over n seeds. {_comparable(comparison)}".rstrip(),
        ]
    )


def _accuracies(comparison: Mapping[str, Any], folder: Path) -> str:
    known = pictures.titles(comparison)
    accuracies, differences = [], []
    for row in comparison["rows"]:
        who, test, gap = [known[row["dataset"]], f"`{row['strategy']}`"], row["test"], row["to_baseline"]
        accuracies.append([*who, test["n"], percent(row["val"]), percent(test), f"{100 * test['binomial_se']:.2f}"])
        if gap:
            seeds = [percent(gap["val"], signed=True), percent(gap["test"], signed=True), interval(gap["test"])]
            images = gap["per_image"]
            per_image = [f"{images['won']} : {images['lost']}", p_value(images["mcnemar_p"])]
            differences.append([*who, gap["test"]["n"], *seeds, *per_image])
    parts = [
        "### Every strategy",
        markdown(("Data set", "Strategy", "n", "val %", "test %", "binomial SE, points"), accuracies, words=2),
        pictures.strategies(comparison, folder),
    ]
    if differences:
        baseline = f"`{comparison['study']['baseline']}`"
        head = ("Data set", "Strategy", "n", "Δ val", "Δ test", "95 % interval", "images won : lost", "McNemar p")
        parts += [
            f"Against the baseline {baseline}:",
            markdown(head, differences, words=2),
            "Δ: in points, paired by seed, mean ± standard deviation; the t-interval, of Δ test, needs two seeds or "
            f"more. Won : lost: test images that the strategy gets right in more seeds than {baseline}, and the "
            "reverse; p: the exact two-sided McNemar test of that count.",
        ]
    return "\n\n".join(parts)


def _curves(comparison: Mapping[str, Any], folder: Path) -> str:
    parts = [
        "### Curves",
        "X-axis: epoch. Y-axis: accuracy in percent, then loss. Lines are means over seeds, bands reach from the "
        "lowest seed to the highest. Loss is cross-entropy; that of training is of augmented images while the weights "
        "move, and has the strategy's penalty in it, where there is one.",
    ]
    for dataset, title in pictures.titles(comparison).items():
        every = comparison["study"]["strategies"]
        parts += [f"#### {title}", pictures.curves(comparison, [dataset], every, folder, f"curves-{dataset}")]
    return "\n\n".join(parts)


def _contrasts(params: Params, comparison: Mapping[str, Any], folder: Path) -> str:
    parts = [section(params, comparison, folder) for section in (contrasts.learning_rates, contrasts.from_scratch)]
    return "\n\n".join(["## Strategy Compare", *filter(None, parts)]) if any(parts) else ""


def _published(comparison: Mapping[str, Any]) -> str:
    rows = []
    for of_set in comparison["datasets"].values():
        for known in of_set["published"]:
            rows.append([of_set["title"], known["method"], f"test; {known['source']}", f"{known['top1_percent']:.1f}"])
        if original := of_set["original_report"]:
            source = "; ".join(filter(None, ("validation; the original report", original["note"])))
            rows.append([of_set["title"], published.FULL, source, f"{original['val_top1_percent']:.3f}"])
    if not rows:
        return ""
    table = markdown(("Data set", "method", "split; source", "top-1 %"), rows, words=3)
    return f"## Published numbers\n\nMobileNetV2 1.0 at 224 px, official splits.\n\n{table}"


def _reading(comparison: Mapping[str, Any]) -> str:
    study = comparison["study"]
    n = len(study["seeds"])
    lines = [
        f"Every figure comes from n = {n} seed{'s' if n > 1 else ''}; ± is the standard deviation over them, which "
        "tells how much a single training varies, and is missing for n = 1.",
        "The binomial standard error (SE) tells how much one test figure would vary with the test images drawn. "
        "Strategies share their test images, so for a difference read Δ and McNemar's p instead.",
        "Two tests, two questions: the interval of Δ speaks of other seeds on these images, McNemar's p of other "
        "images for these trained models. Among many strategies some p will be small by chance.",
        "Validation chooses the epoch (where the epoch kept is `best`) and the strategy, so validation figures of the "
        "chosen are a little too high. Test is read once, after all choices.",
    ]
    if comparable := _comparable(comparison):
        lines.append(comparable)
    if comparable and study["edition"] == "sample" and "from_scratch" in {row["plan"] for row in comparison["rows"]}:
        lines.append(
            "Training from scratch loses here because the budget is tiny; with a full one on the real CIFAR-10 it was "
            "published at 94.8 %, against 96.2 % for fine-tuning."
        )
    if any(of_set["winner"] is None for of_set in comparison["datasets"].values()):
        lines.append("Without a validation split no winner is chosen, because test must not choose.")
    return "\n\n".join(["## How to read this", "\n".join(f"- {line}" for line in lines)])


def _comparable(comparison: Mapping[str, Any]) -> str:
    """How far the published numbers compare; empty where there are none."""
    if not any(of_set["published"] or of_set["original_report"] for of_set in comparison["datasets"].values()):
        return ""
    edition = comparison["study"]["edition"]
    if edition == "sample":
        return (
            "The images of the sample edition are drawn stand-ins, not the data sets whose names they bear: the "
            "original and the published numbers are not comparable with ours and stand there for the layout only."
        )
    if edition == "official":
        return "The published numbers belong to the same official splits, but to other recipes and budgets."
    return (
        f"The `{edition}` edition is not the official one: the original and the published numbers, which took all "
        "official images at 224 px, are for orientation only."
    )
