"""The entry point `train` of MLproject through the real `mlflow run`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from dvc_checkout import Checkout

pytestmark = pytest.mark.dvc

RUN = ("-m", "mlflow", "run", ".", "--env-manager", "local")
TRAIN = (*RUN, "-e", "train", "-P", "dataset=cifar10")
FILES = ("run.json", "audit.csv", "curves.csv", "metrics.json", "model.safetensors")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout in which nothing is prepared yet, whose clones can pull its data."""
    made = Checkout(tmp_path_factory.mktemp("mlproject"), datasets=("cifar10",))
    made.dvc("remote", "add", "-q", "-d", "store", str(tmp_path_factory.mktemp("remote")))
    made.dvc("push", "-q", "data.dvc")
    made.commit()
    return made


def test_mlflow_run_gives_the_numbers_of_the_dvc_stage_bit_for_bit(checkout: Checkout) -> None:
    checkout.run(sys.executable, *TRAIN, "-P", "strategy=slow", "--experiment-name", "trial")
    assert not (checkout.root / "runs").exists()
    (own,) = (checkout.root / ".finetune" / "runs").glob("*/runs/cifar10/slow/0")
    checkout.dvc("repro", "evaluate@cifar10-slow-0")
    stage = checkout.root / "runs" / "cifar10" / "slow" / "0"
    for name in FILES:
        assert (own / name).read_bytes() == (stage / name).read_bytes(), name
    evaluation = Path("evaluations", "cifar10", "slow", "0", "metrics.json")
    assert (own.parents[3] / evaluation).read_bytes() == (checkout.root / evaluation).read_bytes()


def test_its_run_keeps_the_source_that_mlflow_gave_it_and_is_shown(checkout: Checkout) -> None:
    client = MlflowClient(f"sqlite:///{checkout.root / 'mlflow.db'}")
    trial = client.get_experiment_by_name("trial")
    assert trial is not None
    [run] = client.search_runs([trial.experiment_id])
    assert run.data.tags["mlflow.source.type"] == "PROJECT"
    assert run.data.tags["mlflow.source.name"] != "finetune"
    assert run.data.tags["current"] == "true"
    assert run.info.status == "FINISHED"


def test_a_git_url_is_cloned_and_gives_the_same_bits(checkout: Checkout, tmp_path: Path) -> None:
    folder = checkout.root
    # Percent-encoded: MLflow takes what it finds as a folder for one, and runs there.
    address = f"file://{folder.parent}/%{ord(folder.name[0]):02X}{folder.name[1:]}"
    clones = tmp_path / "clones"
    clones.mkdir()
    words = [address if word == "." else word for word in TRAIN]
    environment = checkout.environment(TMPDIR=str(clones))
    subprocess.run([sys.executable, *words, "-P", "strategy=slow"], cwd=tmp_path, env=environment, check=True)
    (own,) = clones.glob("*/.finetune/runs/*/runs/cifar10/slow/0")
    for name in FILES:
        assert (own / name).read_bytes() == (folder / "runs" / "cifar10" / "slow" / "0" / name).read_bytes(), name


def test_its_overrides_reach_the_training(checkout: Checkout) -> None:
    overrides = "set=training.lr=2e-3 training.epochs=1"
    checkout.run(sys.executable, *TRAIN, "-P", "strategy=same_lr", "-P", overrides)
    (own,) = (checkout.root / ".finetune" / "runs").glob("*/runs/cifar10/same_lr/0")
    training = json.loads((own / "run.json").read_text())["training"]
    assert (training["lr"], training["epochs"]) == (0.002, 1)


def test_a_device_that_is_not_there_is_one_sentence(checkout: Checkout) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    output = checkout.run(
        sys.executable, *TRAIN, "-P", "strategy=same_lr", "-P", "device=cuda", "-P", "seed=5", check=False
    )
    assert "device cuda: PyTorch sees no CUDA device" in output
    assert not list((checkout.root / ".finetune" / "runs").glob("*/runs/cifar10/same_lr/5"))


def test_the_entry_point_main_runs_the_whole_study(checkout: Checkout) -> None:
    output = checkout.run(sys.executable, *RUN, "--experiment-name", "whole")
    assert "cifar10-classifier version 1 is " in output
    client = MlflowClient(f"sqlite:///{checkout.root / 'mlflow.db'}")
    whole = client.get_experiment_by_name("whole")
    assert whole is not None
    found = client.search_runs([whole.experiment_id], "tags.current = 'true'")
    assert {run.info.run_name for run in found} == {f"cifar10/{name}/0" for name in ("same_lr", "slow", "from_scratch")}
    assert all("mlflow.parentRunId" not in run.data.tags for run in found)
