"""`python -m benchmarks` on a few small pictures: it runs and writes what it promises; no time is looked at."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import tiny_archives
from finetune import datasets, kernel_library
from finetune.batches import Batches
from finetune.params import AugmentationParams, PrepareParams
from finetune.prepare import prepare
from finetune.processor import cpu_has_bf16
from finetune.store import Split

ROOT = Path(__file__).parents[1]
PETS = "datasets.pets={reader: class_folders, title: Pets}"


def printed(module: str, *words: str, **environment: str) -> str:
    """What a benchmark prints, run as its users do."""
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": "src"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_benchmark_writes_its_keys_and_where_they_were_taken(tmp_path: Path) -> None:
    tiny_archives.write("cub200", tmp_path / "archives", classes=2, train=90, test=2)
    words = ["--archive", str(tmp_path / "archives" / "CUB_200_2011.tgz"), "--out", str(tmp_path / "results")]
    words += ["--sizes", "32", "--rounds", "1", "--steps", "1", "--warm-up", "1", "--starts", "1"]
    printed("benchmarks", *words, OMP_NUM_THREADS="1")
    latest, dated = sorted((tmp_path / "results").iterdir(), key=lambda file: file.name, reverse=True)
    assert latest.name == "latest.json"
    assert latest.read_text() == dated.read_text()
    found = json.loads(latest.read_text())
    assert {"commit", "dirty", "date", "machine", "python", "torch"} <= found.keys()
    assert {"images_per_second", "vs_plain", "vs_plain_in_batches"} <= found["prepare"].keys()
    against = {"vs_plain", "feed_ratio"} | ({"vs_own_fp32"} if cpu_has_bf16() else set())
    against |= {"vs_own_torch_kernels"} if kernel_library.available() else set()
    if importlib.util.find_spec("timm"):  # `make test` installs it
        against |= {"vs_timm_default", "vs_timm_best", "vs_timm_same_allocator"}
    assert {"images_per_second", *against} <= found["train_32"].keys()
    assert found["train_32"]["spread"].keys() == against
    assert found["train_32"]["feed_ratios"].keys() == {"fp32"} | ({"bf16"} if cpu_has_bf16() else set())
    assert ("bfloat16" in found["timm_best"]) == cpu_has_bf16()
    assert found["start_seconds"] == found["start"]["seconds"]["auto"][0]
    assert all(rate > 0 for rates in found["train_32"]["rounds"].values() for rate in rates)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sizes", "96,x"], "found '96,x', expected pixels, comma separated"),
        (["--sizes", "0"], "found '0', expected pixels"),
        (["--rounds", "0"], "0 is not in the range x>=1"),
        (["--starts", "0"], "0 is not in the range x>=1"),
        (["--archive", __file__], "expected the archive under its own name, CUB_200_2011.tgz"),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.__main__ import main

    found = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "results")])
    assert found.exit_code == 2
    assert said in found.output
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("module", "words", "said"),
    [
        ("cpu_kernels", ["batchnorm", "--size", "0"], "0 is not in the range x>=1"),
        ("cpu_kernels", ["views", str(ROOT / "src")], "src: no store here; make it with `dvc repro -s prepare@src`"),
        ("kills", ["--kills", "0"], "0 is not in the range x>=1"),
        ("threads", ["--threads", "0"], "0 is not in the range x>=1"),
        ("engine", ["ours", "--steps", "0"], "0 is not in the range x>=1"),
        ("step_memory", [str(ROOT / "params.yaml"), "cifar10", "--set", "training.lr=x"], "training.lr: found 'x'"),
        ("step_memory", [str(ROOT / "params.yaml"), "cifar10", "sam_lr"], "strategy 'sam_lr' has no entry"),
        ("step_memory", [str(ROOT / "params.yaml"), "cifar9"], "data set 'cifar9' has no entry"),
        (
            "step_memory",
            [str(ROOT / "params.yaml"), "pets", "--set", PETS],
            "pets: its classes are known from its images",
        ),
        ("strategy_costs", [str(ROOT / "params.yaml"), "cifar9"], "data set 'cifar9' has no entry"),
    ],
)
def test_bad_input_is_a_sentence_of_each_benchmark(
    module: str, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    found = CliRunner().invoke(import_module(f"benchmarks.{module}").main, words)
    assert found.exit_code == 2
    assert said in found.output


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_an_archive_that_is_cut_off_is_said(share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.__main__ import main

    tiny_archives.write("cub200", tmp_path, classes=2, train=4, test=2)
    archive = tmp_path / "CUB_200_2011.tgz"
    archive.write_bytes((whole := archive.read_bytes())[: int(share * len(whole))])
    found = CliRunner().invoke(main, ["--archive", str(archive), "--out", str(tmp_path / "results")])
    assert found.exit_code == 2
    assert f"{archive}: is no whole archive (" in found.output


def test_what_is_measured_is_kept_where_the_next_part_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import __main__ as bench

    def broken(*_: object) -> None:
        raise RuntimeError("a broken disk")

    tiny_archives.write("cub200", tmp_path / "archives", classes=2, train=4, test=2)
    monkeypatch.setattr(bench.prepare_speed, "measure", lambda *_: {"images_per_second": 7.0})
    monkeypatch.setattr(bench, "training", broken)
    words = ["--archive", str(tmp_path / "archives" / "CUB_200_2011.tgz"), "--out", str(tmp_path / "results")]
    assert isinstance(CliRunner().invoke(bench.main, words).exception, RuntimeError)
    (dated,) = (tmp_path / "results").iterdir()
    assert dated.name != "latest.json"
    assert json.loads(dated.read_text())["prepare"] == {"images_per_second": 7.0}


def test_the_feed_ratio_is_that_of_the_faster_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.__main__ import compared

    rates = {"ours": [20.0, 22.0, 10.0], "ours_bf16": [30.0, 30.0, 30.0]}
    found = compared(rates, {"ours": [0.9, 0.8, 0.7], "ours_bf16": [0.95, 0.97, 0.9]})
    assert found["fastest"] == "ours_bf16"
    assert found["feed_ratios"] == {"fp32": 0.8, "bf16": 0.95}
    assert (found["feed_ratio"], found["vs_own_fp32"]) == (0.95, 1.5)
    assert found["spread"] == {"feed_ratio": [0.9, 0.97], "vs_own_fp32": [1.364, 3.0]}  # 30 / 22, 30 / 10


def test_steps_on_fed_batches_and_on_the_ready_one_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import engine

    pixels = np.arange(5 * 8 * 8 * 3, dtype=np.uint32).astype(np.uint8)
    index = np.stack([np.arange(5) * 8 * 8 * 3, np.full(5, 8), np.full(5, 8)], 1)
    split = Split(pixels, index, np.arange(5))
    fed = Batches(split, 8, 1, torch.device("cpu"), torch.channels_last, 1.0)
    ready = (torch.zeros(1, 3, 8, 8), torch.tensor([9]))
    now = iter([0.0, 3.0, 4.0, 10.0, 12.0, 15.0, 16.0, 19.0, 20.0, 23.0, 24.0])
    monkeypatch.setattr(engine.time, "perf_counter", lambda: next(now))
    in_turn = engine.InTurn(**vars(fed), fed=fed, ready=ready, seconds=[])
    seen = [int(labels) for _, labels in in_turn.training(AugmentationParams(name="none"), 0, 0)]
    assert in_turn.training_steps() == len(seen) == 10
    assert seen[1::2] == [9] * 5
    assert sorted(seen[::2]) == [0, 1, 2, 3, 4]
    assert in_turn.seconds == [(3.0, 1.0), (6.0, 2.0), (3.0, 1.0), (3.0, 1.0), (3.0, 1.0)]
    assert engine.fed_at(in_turn.seconds) == pytest.approx(1 / 3)


def test_a_cpu_without_bf16_is_measured_in_float32_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import engine
    from benchmarks.__main__ import compared

    monkeypatch.setattr(engine, "cpu_has_bf16", lambda: False)
    monkeypatch.setattr(kernel_library, "available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    ways = engine.sensible()
    assert ways == ("ours", "ours_torch", "plain", "timm_default", "timm_best", "timm_same_allocator")
    assert engine.timms_best_flags() == "--channels-last"
    found = compared({way: [2.0 * (number + 1)] for number, way in enumerate(ways)}, {"ours": [0.5]})
    assert found["fastest"] == "ours"
    assert found["feed_ratios"] == {"fp32": 0.5}
    others = {f"vs_{way}" for way in ways[2:]} | {"vs_own_torch_kernels"}
    assert found["spread"].keys() == others | {"feed_ratio"}  # not beside itself


def test_only_what_is_set_up_as_ours_is_has_threads_that_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.__main__ import environment
    from benchmarks.engine import WAYS

    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # as make exports it
    own = {"ours", "ours_bf16", "ours_torch", "timm_same_allocator"}
    assert {way for way in WAYS if environment(way).get("OMP_WAIT_POLICY") == "passive"} == own


def test_the_memory_of_a_step_is_told_by_strategy() -> None:
    settings = ("training.image_size=32", "training.batch_size=4", "training.precision=fp32")
    words = ["studies/catalogue.yaml", "cifar10", "last_layer", "last_layer_exact"]
    *_, row, solved = printed(
        "benchmarks.step_memory", *words, *(w for s in settings for w in ("--set", s))
    ).splitlines()
    assert solved == "| `last_layer_exact` | – | – | – | – |"
    row = row.split("|")[1:-1]
    kept, alive, _, before = map(float, row[1:])
    assert row[0].strip() == "`last_layer`"
    assert 0 <= kept < 1 < before  # MB
    assert kept < alive


def test_the_most_alive_is_the_highest_sum_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.step_memory import most_alive

    assert most_alive([5, 3, -4, 2, -6]) == 8
    assert most_alive([]) == 0


@pytest.mark.skipif(not kernel_library.available(), reason="no C++ compiler")
@pytest.mark.parametrize(
    ("module", "words", "said"),
    [
        ("cpu_kernels batchnorm", ["--rounds", "1"], r"\| all \| \|( \d+ \|){4}"),
        ("cpu_kernels middle", ["--rounds", "1"], r"\| all \| \|( \d+ \|){6}"),
        ("cpu_kernels middle", ["--rounds", "1", "--precision", "bf16"], r"\| all \| \|( \d+ \|){6}"),
        (
            "step_profile",
            ["--steps", "1", "--warm-up", "1"],
            r"\| that twice with depthwise, ours \| 0 \| 0 \| \d+ \| 0 \| \d+ \|",
        ),
    ],
)
def test_where_a_steps_time_goes_is_told(module: str, words: list[str], said: str) -> None:
    out = printed(*f"benchmarks.{module}".split(), "--size", "32", "--batch-size", "2", "--threads", "1", *words)
    assert re.search(said, out), out


@pytest.mark.skipif(not kernel_library.available(), reason="no C++ compiler")
def test_what_views_take_is_told(tmp_path: Path) -> None:
    tiny_archives.write("cub200", tmp_path / "archives", classes=2, train=20, test=2)
    prepare(datasets.load("cub200"), "any", PrepareParams(short_side=40), tmp_path / "archives", tmp_path / "store")
    words = "--size", "32", "--batch-size", "4", "--threads", "1", "--rounds", "9"  # more than an epoch has
    out = printed("benchmarks.cpu_kernels", "views", str(tmp_path / "store"), *words)
    assert re.search(r"medians of 9 batches of 4; .* an image: PyTorch \d+\.\d{3}, ours \d+\.\d{3}", out), out
