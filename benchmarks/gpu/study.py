"""Trains and evaluates the runs of a params file in one process, so that what is compiled is compiled once.

A run's peak memory on a GPU has the networks of earlier runs in it, which wait there for the next seed.
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torchvision.models import MobileNetV2

from finetune.device import configure, move_to_device
from finetune.errors import InputError
from finetune.params import Params, load
from finetune.resolved import Prepared, resolve
from finetune.runs import COST, METRICS, RUN, read_json
from finetune.stages import evaluate, train
from finetune.store import open_store
from finetune.study import Layout, runs

_TINY = {"image_size": 32, "epochs": 1, "batch_size": 8, "compile": "none", "threads": 1}
_TINY_IMAGES = 64  # of each training split, about


def run(
    params_file: Path,
    overrides: tuple[str, ...],
    inputs: Path,
    out: Path,
    minutes: float,
    device: str | None = None,
    tiny: bool = False,
    keep: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
) -> list[dict[str, Any]]:
    """Write runs/ and evaluations/ under `out`, as the stages train and evaluate do; give `keep` a row of each run.

    Runs that are there already, trained on the same data with the same settings by code of the same numerics, are left
    alone, so that a study may be done in several goes. Seed by seed, so that whatever is done in the time is a whole
    comparison. A run that fails has its error in place of figures.

    Args:
        device: where all runs train; None: as the params have it.
        tiny: few images, small, for an epoch.

    Raises:
        InputError: a run cannot be worked out.
    """
    end = time.monotonic() + 60 * minutes
    layout = Layout(out, inputs)
    params = load(params_file, overrides)
    if tiny:
        params = load(params_file, (*overrides, *tiny_settings(params, layout)))
    rows: list[dict[str, Any]] = []
    networks: dict[tuple[str, ...], MobileNetV2] = {}
    # All are worked out before the first is trained.
    for prepared in [resolve(params, layout, one, device) for one in sorted(runs(params), key=lambda run: run.seed)]:
        one = prepared.run
        began = time.monotonic()
        if not _is_there(prepared, layout):
            if began > end:
                print(f"{one.name}: no time left", flush=True)
                continue
            try:
                if not _is_trained(prepared, layout):
                    train(prepared, layout, module=_network(prepared, networks))
                evaluate(layout, one, device)
            except Exception as error:  # one run that is out of memory must not lose the others
                rows.append({"run": one.name, "error": f"{type(error).__name__}: {error}"[:300]})
                keep(rows)
                print(f"{one.name}: {rows[-1]['error']}", flush=True)
                continue
            seconds = time.monotonic() - began
            print(f"{one.name}: test top-1 {_accuracy(layout, prepared):.2f} %, {seconds:.0f} s in all", flush=True)
        cost = read_json(layout.run(one) / COST)
        figures = {"test_top1": round(_accuracy(layout, prepared), 2)}
        rows.append({"run": one.name} | figures | {key: cost[key] for key in ("images_per_second", "seconds")})
        keep(rows)
    return rows


def _is_there(prepared: Prepared, layout: Layout) -> bool:
    try:
        return read_json(layout.evaluation(prepared.run) / METRICS)["run_key"] == prepared.key
    except InputError:  # there is none, or it is damaged
        return False


def _is_trained(prepared: Prepared, layout: Layout) -> bool:
    try:
        return bool(read_json(layout.run(prepared.run) / RUN)["run_key"] == prepared.key)
    except InputError:
        return False


def all_failed(rows: list[dict[str, Any]]) -> bool:
    """Whether runs were trained, and none has figures."""
    return bool(rows) and all("error" in row for row in rows)


def _network(prepared: Prepared, networks: dict[tuple[str, ...], MobileNetV2]) -> MobileNetV2:
    """The network that earlier runs of the kind were trained in, or a new one."""
    key = (prepared.run.dataset, prepared.recipe.model_dump_json(), prepared.plan, json.dumps(prepared.options))
    if key not in networks:
        configure(prepared.recipe)
        networks[key] = prepared.model()
        move_to_device(networks[key], prepared.recipe)
    return networks[key]


def _accuracy(layout: Layout, prepared: Prepared) -> float:
    """Top-1 of the test split, in %."""
    return 100 * float(read_json(layout.evaluation(prepared.run) / METRICS)["test"]["acc"])


def tiny_settings(params: Params, layout: Layout) -> tuple[str, ...]:
    """Overrides for few images, small, for an epoch."""
    return (*everywhere(params, _TINY), *few(params, layout, _TINY_IMAGES))


def everywhere(params: Params, recipe: Mapping[str, Any]) -> tuple[str, ...]:
    """Overrides of the recipe, also where a data set or a strategy has settings of its own."""
    own = {f"datasets.{name}.training": dataset.training for name, dataset in params.datasets.items()}
    own |= {f"strategies.{name}.training": strategy.training for name, strategy in params.strategies.items()}
    places = {key: ["training", *(place for place, has in own.items() if key in has)] for key in recipe}
    return tuple(f"{place}.{key}={str(recipe[key]).lower()}" for key in recipe for place in places[key])


def few(params: Params, layout: Layout, images: int) -> tuple[str, ...]:
    """Overrides for about so many images of each training split, where there are more."""
    found = {name: len(open_store(layout.store(name)).split("train")) for name in params.study.datasets}
    return tuple(f"datasets.{name}.fraction={min(1.0, images / most):.6f}" for name, most in found.items())
