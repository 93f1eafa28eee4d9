"""A stage depends on every module that decides its numbers, so that none can change without the stage running again."""

from pathlib import Path

import grimp
import pytest
import yaml

ROOT = Path(__file__).parents[1]

# Where each stage's numbers come from. What stands above these opens inputs and writes what they return.
SOURCES = {
    "prepare": ["prepare"],
    "sheet": ["sheets", "batches"],
    "backbone": ["model"],
    "train": ["training", "device", "strategies", "strategies.adjustments"],
    "evaluate": ["evaluation", "device", "strategies"],
    "compare": ["comparison"],
    "report": ["report"],
}
# How things are told, timed, written, refused or stopped; and params.yaml's form, whose values DVC compares itself (a
# recipe's defaults, which it does not see, are in `recipe`).
EVERYWHERE = {
    "allocator",
    "checkpoint",
    "clock",
    "counting",
    "errors",
    "interruption",
    "last_resort",
    "params",
    "params_file",
    "processor",
    "runs",
    "starter",
    "study",
    "unsignalled",
}
BESIDE = {
    "prepare": {"aside", "kept", "recipe", "store_check"},  # where a store is made, and whether it has to be
    "sheet": {"datasets"},  # names
    "train": {"datasets"},
    "evaluate": {"datasets", "strategies.plan", "cpu_gradients", "recomputation"}  # the last ones of the backward pass
    | {"cpu_kernels", "kernel_library", "native_batches", "native_layers"},
    "compare": {"datasets", "recipe"},
    # comparison.json has what they worked out; the store's reader is for types.
    "report": {"comparison_cost", "datasets", "evaluated_runs", "recipe", "store"},
}


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    return grimp.build_graph("finetune")


@pytest.mark.parametrize("stage", SOURCES)
def test_a_stage_depends_on_what_decides_its_numbers(stage: str, imports: grimp.ImportGraph) -> None:
    named = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]["deps"]
    listed = [path.removeprefix("src/finetune/") for path in named if path.startswith("src/finetune/")]
    covered = {path.removesuffix("/__init__.py").removesuffix(".py").replace("/", ".") for path in listed}
    folders = {path.replace("/", ".") for path in listed if not path.endswith(".py")} | BESIDE.get(stage, set())
    modules = {f"finetune.{source}" for source in SOURCES[stage]}
    modules |= {module for source in set(modules) for module in imports.find_upstream_modules(source)}
    found = {module.removeprefix("finetune.") for module in modules}
    assert {"errors"} <= found
    assert {
        module
        for module in found - covered - EVERYWHERE
        if not any(module == folder or module.startswith(f"{folder}.") for folder in folders)
    } == set()


def test_every_file_that_a_stage_names_is_there() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    named = [path for stage in stages for path in stage["deps"] if path.startswith("src/")]
    assert [path for path in named if not (ROOT / path).exists()] == []
