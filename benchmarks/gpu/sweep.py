"""Images per second of training, setting by setting, and what feeding it costs.

Each setting trains a stretch of a real store twice: as `finetune train` does, and on one batch that lies ready on the
device. The quotient of the two rates says what the data cost. The fastest setting is then measured with pixels that
are streamed from the host, and with `deterministic: true` and without.
"""

from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from benchmarks.gpu import rates
from finetune.errors import InputError
from finetune.params import TrainingParams

# What promises most comes first, by an H100 (results/gpu-h100); and what takes long to find out last, which is
# max-autotune, as it compiles for minutes.
PRECISIONS = ("bf16", "tf32", "fp32")
COMPILED = ("reduce-overhead", "none", "default", "max-autotune")
BATCHES = (256, 512, 128, 1024, 64)
OTHERWISE = (  # the other kernels and the other memory format, where most is promised
    "bf16/reduce-overhead/channels_last/256/torch",
    "bf16/none/channels_last/256/triton",
    "bf16/reduce-overhead/contiguous/256/torch",
)
TINY_SETTINGS = ("fp32/none/channels_last/8/torch", "bf16/none/contiguous/8/torch")
AT_BEST: dict[str, dict[str, bool]] = {  # what is tried there: changes of the recipe
    "streamed": {},
    "deterministic": {"deterministic": True},
    "not deterministic": {"deterministic": False},
}
_PARTS = ("precision", "compile", "memory_format", "batch_size", "depthwise")  # of a setting's name
_FOR_GRID = 0.7  # of the time; the rest is for the fastest setting

Row = dict[str, Any]


def grid() -> list[str]:
    """Precision x compilation x batch size, best promise first, with the depthwise kernels that were faster there."""
    places = sorted(product(*(range(len(axis)) for axis in (PRECISIONS, COMPILED, BATCHES))), key=lambda p: (sum(p), p))
    chosen = [(PRECISIONS[p], COMPILED[c], BATCHES[b]) for p, c, b in places]
    return [f"{p}/{c}/channels_last/{b}/{'torch' if c == 'none' else 'triton'}" for p, c, b in chosen]


def settings() -> tuple[str, ...]:
    """All that are tried, each as precision/compile/memory format/batch size/depthwise kernels."""
    first, *others = grid()
    return (first, *OTHERWISE, *others)


def first(tiny: bool) -> str:
    """The setting that promises most."""
    return TINY_SETTINGS[0] if tiny else settings()[0]


def measure(
    store: Path,
    device: str,
    tiny: bool,
    words: list[str],
    minutes: float,
    keep: Callable[[dict[str, list[Row]]], None],
    done: dict[str, Any] | None = None,
) -> dict[str, list[Row]]:
    """Give `keep` the rows so far after each: `rows` of the settings, `at_best` of the fastest of them. A setting that
    fails has its error in place of figures.

    Args:
        words: only settings whose name holds one of these; none: all.
        minutes: after which no new row is begun.
        done: what an earlier go kept; what has figures there is not measured again.

    Raises:
        InputError: a word is in no setting's name.
    """
    chosen = _chosen(TINY_SETTINGS if tiny else settings(), words)
    began, images, before = monotonic(), rates.TINY_IMAGES if tiny else rates.IMAGES, done or {}
    found: dict[str, list[Row]] = {kind: _with_figures(before.get(kind, ())) for kind in ("rows", "at_best")}
    keep(found)

    def measured(kind: str, named: Row, recipe: TrainingParams, streamed: bool) -> None:
        try:
            row = named | rates.measured(store, recipe, images, streamed)
        except Exception as error:  # one setting that is out of memory must not lose the others
            row = named | {"error": f"{type(error).__name__}: {error}"[:300]}
        torch.compiler.reset()
        if device == "cuda":
            torch.cuda.empty_cache()
        found[kind].append(row)
        keep(found)
        print(*(f"{key} {value}" for key, value in row.items()), sep=", ", flush=True)

    known = {row["setting"] for row in found["rows"]}
    for setting in chosen:
        if setting in known:
            continue
        if monotonic() - began >= 60 * minutes * _FOR_GRID:
            break
        measured("rows", {"setting": setting}, recipe_of(setting, device, tiny), False)
    if (best := fastest(found["rows"])) is None:
        return found
    found["at_best"] = [row for row in found["at_best"] if row["setting"] == best]
    known = {row["with"] for row in found["at_best"]}
    for name, changes in AT_BEST.items():
        if name not in known and monotonic() - began < 60 * minutes:
            recipe = recipe_of(best, device, tiny).model_copy(update=changes)
            measured("at_best", {"setting": best, "with": name}, recipe, name == "streamed")
    return found


def fastest(rows: Iterable[Row]) -> str | None:
    """The setting that trained most images per second; None: none has figures."""
    with_figures = _with_figures(rows)
    return max(with_figures, key=lambda row: row["images_per_second"])["setting"] if with_figures else None


def all_failed(found: dict[str, list[Row]]) -> bool:
    """Whether settings were tried, and none has figures."""
    return bool(found["rows"]) and not _with_figures(found["rows"])


def recipe_of(setting: str, device: str, tiny: bool) -> TrainingParams:
    """The recipe of a setting.

    Raises:
        InputError: it is none.
    """
    try:
        named = dict(zip(_PARTS, setting.split("/"), strict=True))
        return TrainingParams.model_validate(
            {
                "image_size": 32 if tiny else 224,
                "epochs": 1,
                "device": device,
                **{part: int(named[part]) if part == "batch_size" else named[part] for part in _PARTS},
            }
        )
    except ValueError:  # also pydantic's
        raise InputError(f"setting: found '{setting}', expected {'/'.join(_PARTS)}, such as {settings()[0]}") from None


def _chosen(known: tuple[str, ...], words: list[str]) -> list[str]:
    for word in words:
        if not any(word in setting for setting in known):
            raise InputError(f"--only: '{word}' is in the name of no setting; they are {', '.join(known)}")
    return [setting for setting in known if not words or any(word in setting for word in words)]


def _with_figures(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if "error" not in row]
