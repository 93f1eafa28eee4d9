"""A checkout of this repository with tiny data, in which tests run the real DVC."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file

import tiny_archives
from finetune import model

ROOT = Path(__file__).parent.parent
STRATEGIES = {
    "same_lr": {"plan": "same_lr"},
    "slow": {"plan": "separate_lr", "last_blocks": 3, "deep_scale": 0.1},
    "from_scratch": {"plan": "from_scratch"},
}


class Checkout:
    """A temporary git repository with this one's code and DVC pipeline, and a study of seconds."""

    def __init__(self, root: Path, datasets: tuple[str, ...] = ("cifar10", "cub200")) -> None:
        self.root = root
        for name in ("src", "MLproject", "python_env.yaml", "dvc.yaml", ".dvcignore", ".gitignore", "pyproject.toml"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, root / name)
        for dataset in datasets:
            tiny_archives.write(dataset, root / "data" / dataset, classes=3, train=8, test=4)
        (root / "samples").mkdir()
        weights = model.build(3, seed=1).state_dict()
        save_file(weights, root / "samples" / "backbone.safetensors")
        self.write_params(
            {
                "study": {
                    "name": "tiny",
                    "edition": "any",
                    "datasets": list(datasets),
                    "strategies": list(STRATEGIES),
                    "seeds": [0],
                    "baseline": "same_lr",
                },
                "prepare": {"short_side": 32, "val_fraction": 0.25, "split_seed": 0},
                "backbone": {"source": "sample"},
                "training": {
                    "image_size": 32,
                    "epochs": 2,
                    "batch_size": 8,
                    "threads": 1,
                    "device": "cpu",
                    "lr": 0.001,
                    "weight_decay": 0.0001,
                },
                "datasets": {name: {} for name in datasets},
                "strategies": STRATEGIES,
            }
        )
        self.git("init", "-q")
        self.dvc("init", "-q")
        self.dvc("config", "core.analytics", "false")
        shutil.copytree(ROOT / ".dvc" / "plots", root / ".dvc" / "plots")
        outs = [{"path": f"data/{dataset}"} for dataset in datasets]
        (root / "data.dvc").write_text(yaml.safe_dump({"outs": outs}))
        self.dvc("commit", "-q", "-f", "data.dvc")
        self.commit()

    def params(self) -> dict[str, Any]:
        return yaml.safe_load((self.root / "params.yaml").read_text())

    def write_params(self, content: dict[str, Any]) -> None:
        (self.root / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))

    def dvc(self, *words: str, check: bool = True, **env: str) -> str:
        """Run DVC; returns what it printed."""
        return self.run(sys.executable, "-m", "dvc", *words, check=check, **env)

    def finetune(self, *words: str, check: bool = True, **env: str) -> str:
        return self.run(sys.executable, "-m", "finetune", *words, check=check, **env)

    def git(self, *words: str) -> str:
        return self.run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", *words)

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "state", "--allow-empty")

    def run(self, *command: str, check: bool = True, **env: str) -> str:
        done = subprocess.run(
            command, cwd=self.root, env=self.environment(**env), capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start DVC and go on."""
        command = [sys.executable, "-m", "dvc", *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=self.root, env=self.environment(), stdout=pipe, stderr=subprocess.STDOUT, text=True
        )

    def environment(self, **more: str) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "DVC_"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"
        return clean | {"PATH": path, "PYTHONPATH": "src", "MLFLOW_DISABLE_TELEMETRY": "true"} | more

    def ran(self, output: str) -> list[str]:
        """The stages that a `dvc repro` really ran, sorted."""
        lines = [line for line in output.splitlines() if line.startswith("Running stage ")]
        return sorted(line.split("'")[1] for line in lines)

    def comparison(self) -> dict[str, Any]:
        return json.loads((self.root / "comparison" / "comparison.json").read_text())
