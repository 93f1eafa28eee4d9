"""A comparison as text: figures as words, Markdown tables, aligned columns for the terminal, flat rows for CSV."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from finetune.clock import PHASES


def percent(figure: Mapping[str, Any] | None, signed: bool = False) -> str:
    """A `spread` of fractions as percent: mean ± standard deviation; without the latter for n = 1; – for None."""
    if figure is None:
        return "–"
    mean = f"{100 * figure['mean']:{'+' if signed else ''}.2f}"
    return mean if figure["sd"] is None else f"{mean} ± {100 * figure['sd']:.2f}"


def interval(figure: Mapping[str, Any] | None) -> str:
    """The 95 % t-interval of a `spread` of fractions, in percent; – where there is none."""
    if figure is None or figure["ci95"] is None:
        return "–"
    return " to ".join(f"{100 * (figure['mean'] + end):+.2f}" for end in (-figure["ci95"], figure["ci95"]))


def count(figure: Mapping[str, Any] | None, digits: int = 0) -> str:
    """A `spread` of counts or seconds: mean ± standard deviation; without the latter for n = 1; – for None."""
    if figure is None:
        return "–"
    return f"{figure['mean']:.{digits}f}" + ("" if figure["sd"] is None else f" ± {figure['sd']:.{digits}f}")


def scaled(value: float | None, unit: float = 1.0, digits: int = 0) -> str:
    """A figure in `unit`s; – for None."""
    return "–" if value is None else f"{value / unit:.{digits}f}"


def ratio(value: float | None) -> str:
    """A multiple of something, with two decimals; – for None."""
    return "–" if value is None else "< 0.01" if value < 0.005 else f"{value:.2f}"


def p_value(p: float) -> str:
    """Three decimals, or that it is smaller."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def span(percents: Sequence[float]) -> str:
    """From the lowest to the highest of published numbers; – if there is none."""
    return " – ".join(dict.fromkeys(f"{end:.1f}" for end in (min(percents), max(percents)))) if percents else "–"


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]], words: int) -> str:
    """A Markdown table: the first `words` columns left-aligned, the figures after them right-aligned."""
    rule = [":--" if i < words else "--:" for i in range(len(head))]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (head, rule, *rows))


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Lines of columns as wide as their widest cell; those numbered in `right` (from 0) are right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in rows
    ]


def table(comparison: Mapping[str, Any]) -> str:
    """The comparison as aligned plain text, one block per data set."""
    baseline = comparison["study"]["baseline"]
    head = ["  strategy", "n", "val top-1 %", "test top-1 %", f"Δ test to {baseline}", "trainable M", "s/run"]
    blocks = {name: [head] for name in comparison["datasets"]}
    for row in comparison["rows"]:
        winner = comparison["datasets"][row["dataset"]]["winner"]
        chosen = winner is not None and winner["strategy"] == row["strategy"]
        blocks[row["dataset"]].append(_cells(row, "* " if chosen else "  "))
    cells = [row for rows in blocks.values() for row in rows]
    text = iter(aligned(cells, right=range(1, len(head))))  # as wide in every block
    lines = []
    for name, rows in blocks.items():
        of_set = comparison["datasets"][name]
        lines.append(f"{of_set['title']}, {of_set['images']['test']} test images")
        lines += [next(text) for _ in rows]
        lines.append("")
    note = "mean ± standard deviation over n seeds; Δ in points, paired by seed; * chosen by validation"
    return "\n".join([*lines, note])


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as one line of CSV: the same columns for every row, empty where there is no figure."""
    cost, nothing = row["cost"], dict.fromkeys(("n", "mean", "sd", "se", "ci95"))
    measured = ("seconds", "seconds_per_epoch", "images_per_second", "peak_memory_mb")
    phases = [f"{phase}_seconds" for phase in PHASES]
    against = row["to_baseline"] or {"per_image": dict.fromkeys(("images", "won", "lost", "mcnemar_p"))}
    parts: dict[str, Mapping[str, Any]] = {
        "val": row["val"] or dict.fromkeys(row["test"]),
        "test": row["test"],
        "val_to_baseline": against.get("val") or nothing,
        "test_to_baseline": against.get("test") or nothing,
        "test_per_image": against["per_image"],
        **{key: cost[key] or nothing for key in (*measured, *phases)},
        "relative": cost["relative"],
    }
    flat = {key: row[key] for key in ("dataset", "strategy", "plan")} | {"seeds": " ".join(map(str, row["seeds"]))}
    for part, figures in parts.items():
        flat |= {f"{part}_{key}": value for key, value in figures.items() if key != "values"}
    fixed = ("trainable_parameters", "total_parameters", "activation_mb", "flops_per_image")
    return flat | {key: cost[key] for key in fixed}


def _cells(row: Mapping[str, Any], mark: str) -> list[str]:
    against, cost = row["to_baseline"], row["cost"]
    return [
        mark + row["strategy"],
        str(row["test"]["n"]),
        percent(row["val"]),
        percent(row["test"]),
        percent(against["test"], signed=True) if against else "–",
        f"{cost['trainable_parameters'] / 1e6:.2f}",
        f"{cost['seconds']['mean']:.0f}",
    ]
