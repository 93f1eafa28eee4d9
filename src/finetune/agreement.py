"""Whether a study's strategies go with its recipes: asked before anything is brought, prepared or trained.

PyTorch works that out, which takes seconds to import; so what has passed is noted, and asked again only when the
settings or the code have changed.
"""

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from finetune import strategies
from finetune.errors import InputError
from finetune.imports import uncollected
from finetune.params import Params, TrainingParams
from finetune.params_file import sentence

_CODE = Path(__file__).parent
_KEPT = 50  # notes


def check(params: Params, root: Path) -> None:
    """Every strategy of the study under every data set's recipe; noted in `root`/.finetune, where that can be written.

    Raises:
        InputError: as `resolved.check_strategies`.
    """
    key = _key(params)
    if key not in _noted(root):
        _work_out(params, root, key)


def check_run(params: Params, root: Path, dataset: str, strategy: str) -> None:
    """One strategy under one data set's recipe, whether the study lists them or not; see `check`."""
    try:
        params.training_for(dataset, strategy)
    except ValidationError as error:  # each override is right by itself
        raise InputError(
            sentence("params.yaml", ("training", f"<{dataset}, {strategy}>"), error, TrainingParams)
        ) from None
    only = {"datasets": (dataset,), "strategies": (strategy,), "baseline": strategy}
    alone = params.model_copy(update={"study": params.study.model_copy(update=only)})
    noted, key = _noted(root), _key(alone)
    listed = dataset in params.study.datasets and strategy in params.study.strategies
    if key not in noted and not (listed and _key(params) in noted):  # with the study, its cells have passed
        _work_out(alone, root, key)


def _noted(root: Path) -> list[str]:
    notes = root / ".finetune" / "agreed"
    return notes.read_text().split() if notes.is_file() else []


def _work_out(params: Params, root: Path, key: str) -> None:
    notes = root / ".finetune" / "agreed"
    with uncollected():
        from finetune.resolved import check_strategies

    check_strategies(params)
    with suppress(OSError):  # a folder that is only read
        notes.parent.mkdir(exist_ok=True)
        part = notes.with_name(f".agreed.{key}.part")
        part.write_text("\n".join([*_noted(root), key][-_KEPT:]) + "\n")
        part.replace(notes)


def _key(params: Params) -> str:
    """32 hex digits of all that the answer depends on."""
    study, names = params.study, params.study.strategies
    settings = {
        "cells": [[d, s, params.training_for(d, s).model_dump(mode="json")] for d in study.datasets for s in names],
        "plans": [[s, params.plan_for(s), params.strategies[s].options] for s in names],
    }
    hashed = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    own = (_CODE / f"{name}.py" for name in ("model", "recipe", "resolved"))
    for file in (*own, *sorted(Path(strategies.__path__[0]).glob("*.py"))):
        hashed.update(file.read_bytes())
    return hashed.hexdigest()[:32]
