"""Trains and evaluates the runs of a params file in one process, so that what is compiled is compiled once."""

import json
import time
from pathlib import Path

from torchvision.models import MobileNetV2

from finetune.device import configure, move_to_device
from finetune.params import load
from finetune.resolved import resolve
from finetune.runs import METRICS, read_json
from finetune.stages import evaluate, train
from finetune.study import Layout, runs


def run(params_file: Path, overrides: tuple[str, ...], inputs: Path, out: Path, minutes: float) -> None:
    """Write runs/ and evaluations/ under `out`, as the stages train and evaluate do.

    Runs that are there already are left alone, so that a study may be done in several goes. Seed by seed, so that
    whatever is done in the time is a whole comparison.
    """
    end = time.monotonic() + 60 * minutes
    params = load(params_file, overrides)
    layout = Layout(out, inputs)
    networks: dict[tuple[str, ...], MobileNetV2] = {}
    for one in sorted(runs(params), key=lambda run: run.seed):
        if (layout.evaluation(one) / METRICS).is_file():
            continue
        if time.monotonic() > end:
            print(f"{one.name}: no time left", flush=True)
            continue
        began = time.monotonic()
        prepared = resolve(params, layout, one)
        key = (one.dataset, prepared.recipe.model_dump_json(), prepared.plan, json.dumps(prepared.options))
        if key not in networks:
            configure(prepared.recipe)
            networks[key] = prepared.model()
            move_to_device(networks[key], prepared.recipe)
        train(prepared, layout, module=networks[key])
        evaluate(layout, one)
        test = read_json(layout.evaluation(one) / METRICS)["test"]
        print(f"{one.name}: test top-1 {100 * test['acc']:.2f} %, {time.monotonic() - began:.0f} s in all", flush=True)
