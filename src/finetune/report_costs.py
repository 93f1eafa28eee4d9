"""The report's section on what the strategies cost."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune import pictures
from finetune.clock import PHASES
from finetune.tables import count, markdown, ratio, scaled


def section(comparison: Mapping[str, Any], folder: Path) -> str:
    """The section as Markdown; its picture is drawn into the report's `folder`."""
    known, baseline = pictures.titles(comparison), comparison["study"]["baseline"]
    relative, measured, phases = [], [], []
    for row in comparison["rows"]:
        cost = row["cost"]
        who = [known[row["dataset"]], f"`{row['strategy']}`", cost["seconds"]["n"]]
        texts = {
            "trainable_parameters": scaled(cost["trainable_parameters"], 1e6, 3),
            "activation_mb": scaled(cost["activation_mb"], digits=1),
            "peak_memory_mb": count(cost["peak_memory_mb"]),
            "seconds_per_epoch": count(cost["seconds_per_epoch"], 1),
        }
        pairs = [(text, ratio(cost["relative"][key])) for key, text in texts.items()]
        relative.append([*who, *(cell for pair in pairs for cell in pair)])
        rates = [count(cost[key]) for key in ("seconds", "images_per_second")]
        worked_out = [scaled(cost["total_parameters"], 1e6, 2), scaled(cost["flops_per_image"], 1e6)]
        measured.append([*who, *rates, *worked_out])
        phases.append([*who, *(count(cost[f"{phase}_seconds"], 1) for phase in PHASES)])
    head = ("Data set", "Strategy", "n")
    columns = ("trainable, million", "kept for backward, MB", "peak memory, MB", "seconds an epoch")
    rates_head = ("seconds a run", "images/s", "all parameters, million", "MFLOPs an image")
    parts = [
        "## Cost",
        markdown((*head, *(cell for column in columns for cell in (column, "×"))), relative, words=2),
        f"×: relative to `{baseline}`. Mean ± standard deviation over n seeds, as measured on the machine that "
        "trained. Trainable: in any phase. Kept for backward: by autograd, of one batch, in the greediest phase; with "
        "what a penalty keeps, and of the pass that measures rates, where there is one that keeps more. "
        "Seconds: of training and validation.",
        pictures.accuracy_over_cost(comparison, folder),
        markdown((*head, *rates_head), measured, words=2),
        "FLOPs: 2 × multiply-adds, of one image's forward pass.",
        "Where a run's seconds go:",
        markdown(
            (*head, "start-up", "waiting for data", "forward + backward", "evaluation", "saving"), phases, words=2
        ),
    ]
    return "\n\n".join(filter(None, parts))
