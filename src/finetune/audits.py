"""What a run's audit says of each phase, by group and by block of the network."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Audit = Sequence[Mapping[str, Any]]  # rows of audit.csv, as `strategies.plan.audit` makes them or as read back

_NO_RATE = ("measured", "solved")  # in the place of a learning rate


def by_block(audit: Audit, lr: float, phases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per phase, block and group.

    Args:
        lr: the run's learning rate at scale 1.
        phases: `epochs` (None where it is not known) and `adds` of each phase.

    Returns:
        Rows of phase (from 0), its epochs and adds, block, group, parameters (how many there are), moved (how many of
        them are trained), lr_scale (0 if none is, None if it is measured as the run goes, or the head is solved for
        without a rate) and batchnorm (the policy of the group's BatchNorm layers in the
        block, "" if it has none there). What a plan adds outside the network's own blocks is one block, named by the
        first part of its tensors' names.
    """
    found: dict[tuple[int, str, str], dict[str, Any]] = {}
    normalised = _batchnorm_tensors(audit)
    for row in _parameters(audit):
        phase, block, group = int(row["phase"]), _block(row["block"]), row["group"]
        told = phases[phase]
        new = {"phase": phase, "epochs": told["epochs"], "adds": told["adds"], "block": block, "group": group}
        nothing = {"parameters": 0, "moved": 0, "lr_scale": 0.0, "batchnorm": ""}
        _count(found.setdefault((phase, block, group), new | nothing), row, lr, normalised)
    return list(found.values())


def by_group(audit: Audit, lr: float) -> list[dict[str, Any]]:
    """One row per phase and group: phase (from 0), group, blocks (in order), tensors, and as of `by_block` parameters,
    moved, lr_scale and batchnorm; weight_decay is what applies to what is trained."""
    found: dict[tuple[int, str], dict[str, Any]] = {}
    normalised = _batchnorm_tensors(audit)
    for row in _parameters(audit):
        phase, group = int(row["phase"]), row["group"]
        counts = {"tensors": 0, "parameters": 0, "moved": 0, "lr_scale": 0.0, "weight_decay": 0.0, "batchnorm": ""}
        entry = found.setdefault((phase, group), {"phase": phase, "group": group, "blocks": [], **counts})
        if (block := _block(row["block"])) not in entry["blocks"]:
            entry["blocks"].append(block)
        entry["tensors"] += 1
        entry["weight_decay"] = max(entry["weight_decay"], float(row["weight_decay"]))
        _count(entry, row, lr, normalised)
    return list(found.values())


def typed(row: Mapping[str, str]) -> dict[str, Any]:
    """A row of `by_block` as it was before it was written as text."""
    texts, counts = ("adds", "block", "group", "batchnorm"), ("phase", "parameters", "moved")
    numbers: dict[str, Any] = {"epochs": int(row["epochs"]) if row["epochs"] else None}
    numbers["lr_scale"] = float(row["lr_scale"]) if row["lr_scale"] else None
    return {key: row[key] for key in texts} | {key: int(row[key]) for key in counts} | numbers


def trained(audit: Audit) -> tuple[int, int]:
    """How many parameters any phase trains, and how many there are."""
    rows = list(_parameters(audit))
    sizes = {row["tensor"]: int(row["numel"]) for row in rows}
    return sum(sizes[tensor] for tensor in {row["tensor"] for row in rows if not _frozen(row)}), sum(sizes.values())


def phases_of(run: Mapping[str, Any], audit: Audit) -> list[dict[str, Any]]:
    """`epochs` and `adds` of each phase, as run.json has them; runs of earlier versions tell them of one phase only."""
    if "phases" in run:
        bounds = [phase["epochs"] for phase in run["phases"]]
        adds = [" ".join(phase.get("adds", ())) for phase in run["phases"]]
        return [{"epochs": last - first + 1, "adds": adds[i]} for i, (first, last) in enumerate(bounds)]
    n = 1 + max(int(row["phase"]) for row in audit)
    return [{"epochs": run["training"]["epochs"] if n == 1 else None, "adds": ""} for _ in range(n)]


def _count(entry: dict[str, Any], row: Mapping[str, Any], lr: float, normalised: set[str]) -> None:
    entry["parameters"] += int(row["numel"])
    if not _frozen(row):
        entry["moved"] += int(row["numel"])
        rate = row["lr"]
        # 0.009 / 0.01 is 0.9, without the last bit
        entry["lr_scale"] = None if rate in _NO_RATE else float(f"{float(rate) / lr:.9g}")
    if row["tensor"] in normalised:
        entry["batchnorm"] = row["batchnorm"]


def _parameters(audit: Audit) -> Iterable[Mapping[str, Any]]:
    return (row for row in audit if row["kind"] == "parameter")


def _batchnorm_tensors(audit: Audit) -> set[str]:
    """Weights and biases of BatchNorm layers, which are what has buffers."""
    layers = {row["tensor"].rpartition(".")[0] for row in audit if row["kind"] == "buffer"}
    return {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}


def _block(block: str) -> str:
    head = block.partition(".")[0]
    return block if head == "features" else head


def _frozen(row: Mapping[str, Any]) -> bool:
    return str(row["frozen"]) == "True"  # text in a file
