"""`python -m benchmarks` on a few small pictures: it runs and writes what it promises; no time is looked at."""

import json
import os
import subprocess
import sys
from pathlib import Path

import tiny_archives

ROOT = Path(__file__).parents[1]


def test_the_benchmark_writes_its_keys_and_where_they_were_taken(tmp_path: Path) -> None:
    tiny_archives.write("cub200", tmp_path / "archives", classes=2, train=70, test=2)
    words = ["--archive", str(tmp_path / "archives" / "CUB_200_2011.tgz"), "--out", str(tmp_path / "results")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--sizes", "32", "--rounds", "1", "--steps", "1", *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": "src", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    latest, dated = sorted((tmp_path / "results").iterdir(), key=lambda file: file.name, reverse=True)
    assert latest.name == "latest.json"
    assert latest.read_text() == dated.read_text()
    found = json.loads(latest.read_text())
    assert {"commit", "dirty", "date", "machine", "python", "torch"} <= found.keys()
    assert {"images_per_second", "vs_plain", "vs_plain_in_batches"} <= found["prepare"].keys()
    assert {"images_per_second", "vs_plain", "vs_own_fp32", "feed_ratio"} <= found["train_32"].keys()
    assert all(rate > 0 for rates in found["train_32"]["rounds"].values() for rate in rates)
