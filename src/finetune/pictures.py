"""A comparison's pictures: drawn into the report's folder, and the Markdown that shows them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune import audit_picture, figures, strategy_figures


def titles(comparison: Mapping[str, Any]) -> dict[str, str]:
    """Data set -> its name as papers write it, in the study's order."""
    return {name: of_set["title"] for name, of_set in comparison["datasets"].items()}


def curves(
    comparison: Mapping[str, Any], datasets: Sequence[str], strategies: Sequence[str], folder: Path, stem: str
) -> str:
    """Draw accuracy and loss over epochs, a panel per data set; returns the Markdown of both pictures."""
    rows = [row for row in comparison["curves"] if row["dataset"] in datasets and row["strategy"] in strategies]
    known = titles(comparison)
    links = []
    for metric, word in (("acc", "accuracy"), ("loss", "loss")):
        name = f"{stem}-{word}.png"
        figures.curves(rows, metric, _looks(comparison), known, folder / name)
        links.append(f"![{word} over epochs: {', '.join(known[dataset] for dataset in datasets)}]({name})")
    return "\n\n".join(links)


def strategies(comparison: Mapping[str, Any], folder: Path) -> str:
    """Draw test accuracy of every strategy, data set and seed; returns the Markdown of the picture."""
    strategy_figures.strategy_dots(
        comparison["rows"], _looks(comparison), titles(comparison), folder / "strategies.png"
    )
    return "![test accuracy of every strategy, each seed a dot](strategies.png)"


def accuracy_over_cost(comparison: Mapping[str, Any], folder: Path) -> str:
    """Draw test accuracy over activation memory; returns the Markdown, "" where no run has counted that memory."""
    rows = [row for row in comparison["rows"] if row["cost"]["activation_mb"] is not None]
    if not rows:
        return ""
    strategy_figures.accuracy_over_cost(rows, _looks(comparison), titles(comparison), folder / "accuracy-over-cost.png")
    return (
        "![test accuracy over the memory kept for backward, a marker per strategy](accuracy-over-cost.png)\n\n"
        "Markers that would cover each other stand side by side; grey lines lead to where they belong."
    )


def audit(comparison: Mapping[str, Any], strategy: str, title: str, folder: Path) -> str:
    """Draw what a strategy trains, block by block and phase by phase; returns the Markdown."""
    rows = [row for row in comparison["audits"] if row["strategy"] == strategy]
    name = f"strategy-{strategy}.png"
    audit_picture.draw(rows, title, folder / name)
    return f"![what {strategy} trains, block by block]({name})"


def _looks(comparison: Mapping[str, Any]) -> dict[str, figures.Style]:
    return figures.styles(comparison["study"]["strategies"])
