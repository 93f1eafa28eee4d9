"""A study through DVC, and one run outside DVC."""

import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

import tiny_archives
from dvc_checkout import Checkout
from finetune import kept, model, params, runs, stages, study, tracking, workflow
from finetune.errors import InputError
from finetune.interruption import Interrupted
from finetune.params import Params
from finetune.prepare import prepare
from finetune.study import Layout, Run
from tracked_study import move_home

REPOSITORY = Path(__file__).parent.parent
RUN = Run("cifar10", "same_lr", 0)
NOWHERE = "http://127.0.0.1:9"


def silent(_: str) -> None:
    pass


# Where the repository is


@pytest.mark.parametrize("marker", ["dvc.yaml", ".dvc/config"])
def test_the_anchor_is_the_folder_upwards_that_dvc_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marker: str
) -> None:
    (tmp_path / marker).parent.mkdir(exist_ok=True)
    (tmp_path / marker).touch()
    below = tmp_path / "docs" / "images"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert study.anchor() == tmp_path.resolve()


def test_dvcs_own_word_on_the_root_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "told").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "told"))
    assert study.anchor() == (tmp_path / "told").resolve()


# Pulling


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What DVC was asked for; it pulls, and fails at all else."""
    made: list[tuple[str, ...]] = []

    def dvc(*words: str, cwd: Path) -> int:
        made.append(words)
        return 0 if words[0] == "pull" else 3

    monkeypatch.setattr(workflow, "_dvc", dvc)
    return made


def study_of(*datasets: str, **sections: Any) -> Params:
    content = {
        "study": {
            "name": "tiny",
            "edition": "any",
            "datasets": list(datasets),
            "strategies": ["same_lr"],
            "seeds": [0],
            "baseline": "same_lr",
        },
        "training": {"image_size": 32, "epochs": 1, "batch_size": 8, "threads": 1, "device": "cpu"},
        "datasets": {name: {} for name in datasets},
        "strategies": {"same_lr": {}},
    }
    return params.parse(content | sections)


def test_a_study_of_two_data_sets_pulls_all_that_dvc_repro_asks_for(
    tmp_path: Path, asked: list[tuple[str, ...]]
) -> None:
    shutil.copy(REPOSITORY / "data.dvc", tmp_path)
    with pytest.raises(InputError, match="dvc repro ended with exit code 3"):
        workflow.run_study(study_of("cub200", "cifar10"), Layout(tmp_path), silent)
    every = [f"data/{name}" for name in ("cars196", "cifar10", "cifar100", "cub200", "food101")]
    assert asked == [("pull", *every), ("repro",)]


@pytest.mark.parametrize("device", [None, "cpu", "auto"])
def test_kernels_that_cannot_be_compiled_are_refused_before_a_run_brings_anything(
    device: str | None, tmp_path: Path, asked: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    native = study_of("cub200", training={"image_size": 32, "device": "cpu", "cpu_kernels": "native"})
    with pytest.raises(InputError, match=r"CXX is no-such-compiler"):
        workflow.run_alone(native, Run("cub200", "same_lr", 0), device)
    assert asked == []


def test_a_recipe_for_a_gpu_that_is_none_for_a_cpu_is_refused_before_a_run_brings_anything(
    tmp_path: Path, asked: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    both = study_of("cub200", training={"device": "cuda", "cpu_kernels": "native", "memory_format": "contiguous"})
    with pytest.raises(InputError, match=r"params\.yaml on cpu: training: cpu_kernels: native is for memory_format"):
        workflow.run_alone(both, Run("cub200", "same_lr", 0), "cpu")
    assert asked == []


def test_what_is_there_is_not_pulled(tmp_path: Path, asked: list[tuple[str, ...]]) -> None:
    tiny_archives.write("cub200", tmp_path / "data" / "cub200")
    tiny_archives.write("cars196", tmp_path / "data" / "cars196")
    next((tmp_path / "data" / "cars196").iterdir()).unlink()
    workflow.pull_archives(Layout(tmp_path), ["data/cub200", "data/cars196"])
    workflow.pull_archives(Layout(tmp_path), ["data/cub200"])
    assert asked == [("pull", "data/cars196")]


def test_an_out_of_data_dvc_may_be_a_file(tmp_path: Path, asked: list[tuple[str, ...]]) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.txt").write_text("of the data")
    workflow.pull_archives(Layout(tmp_path), ["data/notes.txt"])
    assert asked == []


def test_archives_that_cannot_be_pulled_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow, "_dvc", lambda *_, cwd: 255)
    with pytest.raises(InputError, match=r"^data/a data/b: archives are missing and `dvc pull data/a data/b` ended"):
        workflow.pull_archives(Layout(tmp_path), ["data/b", "data/a"])


# Inputs of a run outside DVC


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with archives and a backbone, in which nothing is prepared."""
    tiny_archives.write("cifar10", tmp_path / "data" / "cifar10", classes=3, train=8, test=4)
    save_file(model.build(3, seed=1).state_dict(), tmp_path / "weights.safetensors")
    return move_home(monkeypatch, tmp_path)


def settings(root: Path, fraction: float = 0.25, **sections: Any) -> Params:
    backbone = {"source": str(root / "weights.safetensors")}
    return study_of("cifar10", prepare={"short_side": 32, "val_fraction": fraction}, backbone=backbone, **sections)


def prepare_as_dvc_does(root: Path, fraction: float) -> Path:
    ps, place = settings(root, fraction), Layout(root).store("cifar10")
    prepare(workflow.datasets.load("cifar10"), "any", ps.prepare_for("cifar10"), root / "data" / "cifar10", place)
    return place


def store_of(root: Path, fraction: float = 0.25) -> Path:
    inputs = workflow._inputs(settings(root, fraction), root, "cifar10")
    return Layout(root, inputs).store("cifar10")


def fraction_of(store: Path) -> float:
    return runs.read_json(store / "meta.json")["prepare"]["val_fraction"]


def test_without_a_store_of_dvcs_one_is_prepared_and_used_again(root: Path) -> None:
    store = store_of(root)
    before = (store / "meta.json").stat().st_mtime_ns
    assert not store.is_symlink()
    assert store_of(root) == store
    assert (store / "meta.json").stat().st_mtime_ns == before


def test_dvcs_store_is_used_where_it_fits(root: Path) -> None:
    place = prepare_as_dvc_does(root, 0.25)
    assert store_of(root).resolve() == place.resolve()


def test_a_store_of_dvcs_that_is_damaged_is_not_used(root: Path) -> None:
    place = prepare_as_dvc_does(root, 0.25)
    assert store_of(root).is_symlink()
    content = bytearray((place / "trainval.u8").read_bytes())
    content[-3] ^= 1
    (place / "trainval.u8").write_bytes(content)
    assert not store_of(root).is_symlink()


def test_a_store_of_dvcs_that_other_code_made_is_not_used(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as older:
        older.setattr(kept, "version", lambda library: "0.0")
        prepare_as_dvc_does(root, 0.25)
    assert not store_of(root).is_symlink()


def test_dvcs_store_made_anew_with_other_settings_is_used_no_longer(root: Path) -> None:
    prepare_as_dvc_does(root, 0.25)
    store_of(root)
    place = prepare_as_dvc_does(root, 0.5)
    store = store_of(root)
    assert (fraction_of(store), store.is_symlink()) == (0.25, False)
    assert fraction_of(place) == 0.5
    assert store_of(root, 0.5).resolve() == place.resolve()


def test_a_store_of_dvcs_that_is_gone_is_made_anew(root: Path) -> None:
    place = prepare_as_dvc_does(root, 0.25)
    store_of(root)
    shutil.rmtree(place)
    store = store_of(root)
    assert (fraction_of(store), store.is_symlink()) == (0.25, False)


@pytest.mark.parametrize("meta", ["{}", "{", "[]"])
def test_a_broken_store_is_made_anew(root: Path, meta: str) -> None:
    (store_of(root) / "meta.json").write_text(meta)
    assert fraction_of(store_of(root)) == 0.25


# A run outside DVC


def test_a_run_whose_tracking_fails_is_said_once_and_tracked_later(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    ps = settings(root)
    with monkeypatch.context() as dead:
        dead.setenv("MLFLOW_TRACKING_URI", NOWHERE)
        layout, place = workflow.run_alone(ps, RUN)
    assert capsys.readouterr().err.count("`finetune track` sends the rest later") == 1
    assert place == layout.run(RUN)
    sent = tracking.track(ps, Layout(root), silent)  # the study's own is not made yet
    assert (sent["runs"], sent["epochs"], sent["models"]) == (1, 1, 1)
    assert not any(tracking.track(ps, Layout(root), silent).values())


def test_the_start_up_of_a_run_outside_dvc_is_all_that_comes_before_its_training(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start_seconds(**began: float) -> float:
        return runs.read_json(workflow.run_alone(settings(root), RUN, **began)[1] / runs.COST)["start_seconds"]

    assert 1000 < start_seconds(began=time.monotonic() - 1000) < 1060
    now = time.monotonic
    monkeypatch.setattr(workflow, "time", SimpleNamespace(monotonic=lambda: now() - 1000))
    assert 1000 < start_seconds() < 1060


def test_a_run_interrupted_while_it_is_evaluated_is_not_trained_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ps = settings(root)

    def interrupted(*_: object) -> None:
        raise Interrupted(15)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(stages, "evaluate", interrupted)
        workflow.run_alone(ps, RUN)
    monkeypatch.setattr(stages, "fit", interrupted)
    layout, place = workflow.run_alone(ps, RUN)
    assert {file.name for file in place.iterdir()} == set(runs.FILES)
    assert (layout.evaluation(RUN) / runs.METRICS).is_file()
    assert not [path for path in (root / ".finetune" / "work").iterdir() if path.is_dir()]


# The study


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A clone in which nothing is pulled, of two data sets in data.dvc; the study lists one of them."""
    made = Checkout(tmp_path_factory.mktemp("study"))
    made.dvc("remote", "add", "-q", "-d", "sample", str(tmp_path_factory.mktemp("remote")))
    made.dvc("push", "-q", "data.dvc")
    shutil.rmtree(made.root / "data")
    shutil.rmtree(made.root / ".dvc" / "cache")
    content = made.params()
    content["study"] |= {"datasets": ["cifar10"], "strategies": ["same_lr", "from_scratch"]}
    content["training"]["epochs"] = 1
    made.write_params(content)
    return made


@pytest.mark.dvc
def test_study_run_goes_from_a_fresh_clone_to_the_registry(checkout: Checkout) -> None:
    output = checkout.finetune("study", "run")
    assert (checkout.root / "data" / "cub200").is_dir()
    assert (checkout.root / "report" / "report.html").is_file()
    assert "cifar10-classifier version 1 is " in output
    again = checkout.finetune("study", "run")
    assert "every stage is up to date" in again
    assert "has all 2 runs already, nothing to send" in again
    assert "(already registered)" in again


@pytest.mark.dvc
def test_a_side_run_leaves_the_studys_own_in_its_place(checkout: Checkout) -> None:
    words = ("run", "--dataset", "cifar10", "--strategy", "same_lr", "--set", "training.lr=1e-4")
    output = checkout.finetune(*words, MLFLOW_TRACKING_URI=NOWHERE, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert output.count("tracking failed") == 1
    assert "test top-1" in output
    assert "1 runs" in checkout.finetune("track")
    assert "has all 3 runs already" in checkout.finetune("track")
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{checkout.root / 'mlflow.db'}")
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    found = [run.data.tags for run in client.search_runs(ids, "tags.strategy = 'same_lr'")]
    assert sorted((tags["current"], tags.get("outside_dvc")) for tags in found) == [("false", "true"), ("true", None)]
    dvc_md5 = yaml.safe_load((checkout.root / "data.dvc").read_text())["outs"][0]["md5"]
    [data] = client.search_runs(ids, "tags.outside_dvc = 'true'")[0].inputs.dataset_inputs
    assert {tag.key: tag.value for tag in data.tags}["dvc.md5"] == dvc_md5
