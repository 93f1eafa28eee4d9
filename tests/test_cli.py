"""The command line: what is refused is one sentence and exit code 2; what is loaded before it is needed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from pydantic import TypeAdapter, ValidationError

import synthetic_study
from finetune import params, registry, runs
from finetune.cli import SEED, actions, cli
from finetune.params import Seed
from finetune.serving import Classifier
from finetune.study import Layout, Run
from tracked_study import image_file, write_run

SOURCE = Path(runs.__file__).parents[1]
HEAVY = {"dvc", "matplotlib", "mlflow", "numpy", "pandas", "pydantic", "scipy", "torch", "torchvision", "yaml"}
TRAIN = ("train", "--dataset", "cifar10", "--strategy", "same_lr", "--tracking", "off")


@pytest.fixture(autouse=True)
def _own_sigterm() -> Iterator[None]:
    """Each command sets a handler."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def folder(tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a params.yaml of a tiny study of CIFAR-10: three strategies, seeds 0 and 1."""
    tiny["study"]["datasets"] = ["cifar10"]
    tiny["datasets"] = {"cifar10": {}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tiny))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def inputs(folder: Path, toy_inputs: Path) -> Path:
    """The same, with a store and a backbone to train from."""
    shutil.copytree(toy_inputs / "prepared" / "toy", folder / "prepared" / "cifar10")
    shutil.copytree(toy_inputs / "models", folder / "models")
    return folder


@pytest.fixture
def compared(folder: Path) -> Path:
    """The same, with the study's runs, evaluations and comparison, written by hand."""
    for strategy in ("same_lr", "separate_lr", "from_scratch"):
        for seed in (0, 1):
            synthetic_study.write_run(folder, Run("cifar10", strategy, seed), "1100")
    said(finetune("compare"))
    return folder


def finetune(*words: str) -> Result:
    return CliRunner().invoke(cli, words, prog_name="finetune")


def said(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


def refusal(*words: str) -> str:
    """The one sentence with which a command line is refused."""
    result = finetune(*words)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert isinstance(result.exception, SystemExit)
    (line,) = result.stderr.splitlines()
    return line.removeprefix("finetune: ")


# What is loaded


def test_help_loads_nothing_that_takes_time() -> None:
    code = "import sys; sys.argv[1:] = ['--help']\nfrom finetune.__main__ import main\ntry:\n    main()\n"
    code += "except SystemExit:\n    print('loaded:', *{name.partition('.')[0] for name in sys.modules})"
    done = python("-c", code)
    shown, _, loaded = done.stdout.partition("loaded:")
    assert shown.startswith("Usage: finetune") and "train" in shown
    assert not HEAVY & set(loaded.split())


def test_without_a_command_the_commands_are_listed() -> None:
    for words in ((), ("study",)):
        result = finetune(*words)
        assert result.exit_code == 2
        assert "Commands:\n" in result.output


# Wrong command lines


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("trian",), "`finetune` has no command 'trian'; did you mean 'train'? known: backbone, calibrate, compare, "),
        (("study", "shwo"), "`finetune study` has no command 'shwo'; did you mean 'show'? known: new, run, show, use"),
        (("--paramz", "x"), "`finetune` has no option '--paramz'; known: --help, --version, -h"),
        (
            ("train", "--tracing", "off"),
            "`finetune train` has no option '--tracing'; did you mean '--tracking'? known: ",
        ),
        (("train", "--dataset", "cifar10"), "missing option '--strategy'; see `finetune train --help`"),
        (("predict",), "missing argument 'DATASET'; see `finetune predict --help`"),
        (("compare", "more"), "got unexpected extra argument (more); see `finetune compare --help`"),
        ((*TRAIN, "--device", "gpu"), "invalid value for '--device': 'gpu' is not one of 'auto', 'cpu', 'cuda'; see "),
        ((*TRAIN, "--seed", "-1"), "invalid value for '--seed': -1 is not in the range 0<=x<=9223372036854775807; "),
        ((*TRAIN, "--seed", "9" * 23), f"invalid value for '--seed': {'9' * 23} is not in the range 0<=x<="),
        (("evaluate", "cifar10", "same_lr", "x"), "invalid value for 'SEED': 'x' is not a valid integer; see "),
    ],
)
def test_a_wrong_command_line_is_one_sentence_with_what_is_right(words: tuple[str, ...], sentence: str) -> None:
    assert refusal(*words).startswith(sentence)


def test_the_command_line_and_the_file_take_the_same_seeds() -> None:
    assert SEED.min is not None and SEED.max is not None
    of_the_file = TypeAdapter(Seed)
    assert [of_the_file.validate_python(seed) for seed in (SEED.min, SEED.max)] == [SEED.min, SEED.max]
    for seed in (SEED.min - 1, SEED.max + 1):
        with pytest.raises(ValidationError):
            of_the_file.validate_python(seed)


# Wrong names and files


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("prepare", "cifar"), "data set 'cifar' has no entry under datasets in params.yaml; did you mean 'cifar10'? "),
        (("prepare", "mnist", "--set", "datasets.mnist={}"), "data set 'mnist' of params.yaml has no reader "),
        (("plan", "same"), "strategy 'same' has no entry under strategies in params.yaml; did you mean 'same_lr'? "),
        (("evaluate", "cifar10", "slow", "0"), "strategy 'slow' has no entry under strategies in params.yaml; known: "),
        (("study", "show", "--params", "absent.yaml"), "absent.yaml: no such file; run this in the repository's root"),
        (("study", "show", "--params", "."), ".: cannot be read (Is a directory); name a file with --params"),
        (
            ("study", "show", "--set", "training.epoch=3"),
            "params.yaml: training.epoch is not a known key of training; ",
        ),
        (("study", "show", "--set", "study.seeds=[-1]"), "params.yaml: study.seeds[0]: found -1 (integer), expected: "),
        (("evaluate", "cifar10", "same_lr", "0"), "runs/cifar10/same_lr/0/run.json: no such file; make it with `dvc "),
        (TRAIN, "prepared/cifar10: no store here; make it with `dvc repro -s prepare@cifar10`"),
        (
            ("compare",),
            "6 of the 6 runs that the study lists are missing or not evaluated (the first: no runs/cifar10/",
        ),
        (("report",), "comparison/comparison.json: no such file; make it with `dvc repro`"),
        (("register",), "comparison/comparison.json: no such file; make it with `dvc repro`"),
    ],
)
def test_a_wrong_name_or_a_missing_file_is_one_sentence(folder: Path, words: tuple[str, ...], sentence: str) -> None:
    assert refusal(*words).startswith(sentence)


def test_a_listed_data_set_without_a_reader_is_refused_with_those_that_have_one(folder: Path) -> None:
    message = refusal("study", "show", "--set", "study.datasets=[cifar10, cifar1]", "--set", "datasets.cifar1={}")
    assert message.startswith("data set 'cifar1' of params.yaml has no reader src/finetune/datasets/cifar1.py; ")
    assert "known: cars196, cifar10, cifar100, cub200, food101; " in message
    assert message.endswith("add reader: class_folders")


def test_a_listed_strategy_without_a_plan_is_refused_with_the_plans(folder: Path) -> None:
    message = refusal("study", "show", "--set", "strategies.same_lr.plan=sane_lr")
    assert message.startswith("params.yaml: strategies.same_lr: there is no plan 'sane_lr'; did you mean 'same_lr'?")


# Damaged files of our own


@pytest.mark.parametrize("text", ["{}", '{"format": 1}', "[]", '{"format": 1, "digest": "d", "classes": ["a"]}'])
def test_a_damaged_store_is_refused_before_anything_is_trained(inputs: Path, text: str) -> None:
    (inputs / "prepared" / "cifar10" / "meta.json").write_text(text)
    message = refusal(*TRAIN)
    assert message.startswith("prepared/cifar10")
    assert "`dvc repro -" in message and "prepare@cifar10`" in message
    assert not (inputs / "runs").exists()
    assert not list(inputs.rglob("*.pt"))


@pytest.mark.parametrize("text", ["{}", "[]"])
@pytest.mark.parametrize("command", [("evaluate", "cifar10", "same_lr", "1"), ("compare",)])
def test_a_damaged_run_is_named_with_the_stage_that_makes_it_again(
    compared: Path, command: tuple[str, ...], text: str
) -> None:
    (compared / "runs" / "cifar10" / "same_lr" / "1" / "run.json").write_text(text)
    message = refusal(*command)
    assert message.startswith("runs/cifar10/same_lr/1/run.json: ")
    assert message.endswith("make it again with `dvc repro -f -s train@cifar10-same_lr-1`")


@pytest.mark.parametrize("text", ["{}", "[]", '{"study": {}, "datasets": {"cifar10": {}}}'])
@pytest.mark.parametrize("command", ["report", "register"])
def test_a_damaged_comparison_is_named_with_the_stage_that_makes_it_again(
    compared: Path, command: str, text: str
) -> None:
    (compared / "comparison" / "comparison.json").write_text(text)
    message = refusal(command)
    assert message.startswith("comparison/comparison.json: ")
    assert message.endswith("make it again with `dvc repro -f -s compare`")
    assert not (compared / "report").exists()


# What the system refuses


def test_what_the_system_refuses_is_one_sentence_with_the_file(folder: Path) -> None:
    (folder / "plans").write_text("in the way")
    assert refusal("plan", "same_lr") == "plans: File exists"


def test_a_full_disk_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs, "write_json", full)
    assert refusal("plan", "same_lr") == "No space left on device; make room, then repeat the command"


def test_an_error_of_our_own_keeps_its_traceback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: Any) -> None:
        raise OSError("no errno: not the system's word")

    monkeypatch.setattr(runs, "write_json", wrong)
    assert isinstance(finetune("plan", "same_lr").exception, OSError)


def test_a_reader_that_closes_the_pipe_is_no_error(folder: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = python("-m", "finetune", "study", "show", stdout=write_end)
    os.close(write_end)
    assert done.stderr == ""


def test_the_process_itself_ends_with_two_and_no_traceback(folder: Path) -> None:
    done = python("-m", "finetune", "prepare", "cifar11")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("finetune: data set 'cifar11' has no entry under datasets in params.yaml; ")
    assert done.stderr.count("\n") == 1


# Another study than the comparison's


def test_a_report_of_another_study_than_the_comparison_is_refused(compared: Path) -> None:
    message = refusal("report", "--set", "study.strategies=[same_lr, separate_lr]")
    assert "compares strategies same_lr, separate_lr, from_scratch, but the study has same_lr, separate_lr" in message
    assert not (compared / "report").exists()


def test_registering_a_data_set_that_the_comparison_lacks_is_refused(compared: Path) -> None:
    message = refusal("register", "--set", "study.datasets=[cifar10, food101]", "--set", "datasets.food101={}")
    assert message == "the comparison has no food101; make it with `dvc repro`"
    assert not (compared / "mlflow.db").exists()


# What works


def test_study_show_lists_the_runs_and_how_far_they_are(folder: Path) -> None:
    synthetic_study.write_run(folder, Run("cifar10", "same_lr", 0), "1100")
    synthetic_study.write_run(folder, Run("cifar10", "same_lr", 1), "1100")
    shutil.rmtree(folder / "evaluations" / "cifar10" / "same_lr" / "1")
    lines = said(finetune("study", "show")).splitlines()
    assert lines[0] == "study tiny, edition any: 6 runs"
    assert [tuple(line.split(maxsplit=1)) for line in lines[1:4]] == [
        ("cifar10/same_lr/0", "evaluated"),
        ("cifar10/same_lr/1", "trained"),
        ("cifar10/separate_lr/0", "to do"),
    ]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ((), ()),
        (("",), ()),
        ((" training.lr=1e-3  training.epochs=5 ",), ("training.lr=1e-3", "training.epochs=5")),
        (
            ("strategies.surgical.blocks=[14, 15] training.epochs=5",),
            ("strategies.surgical.blocks=[14, 15]", "training.epochs=5"),
        ),
        (("a=1", "b=2"), ("a=1", "b=2")),
        (("nonsense",), ("nonsense",)),
    ],
)
def test_a_parameter_of_mlflow_run_has_several_overrides(texts: tuple[str, ...], words: tuple[str, ...]) -> None:
    assert actions._several(texts) == words


def test_another_file_and_overrides_are_read(folder: Path) -> None:
    (folder / "params.yaml").rename(folder / "other.yaml")
    words = ("--params", "other.yaml", "--set", "study.seeds=[7]", "--set", "study.name=mine")
    lines = said(finetune("study", "show", *words)).splitlines()
    assert lines[0] == "study mine, edition any: 3 runs"
    assert lines[1].split()[0] == "cifar10/same_lr/7"


def test_the_largest_seed_trains_and_is_evaluated(inputs: Path) -> None:
    assert SEED.max is not None
    seed = str(SEED.max)
    assert said(finetune(*TRAIN, "--seed", seed, "--set", "training.epochs=1")).endswith(f"same_lr/{seed}: finished\n")
    said(finetune("evaluate", "cifar10", "same_lr", seed))
    test = runs.read_json(inputs / "evaluations" / "cifar10" / "same_lr" / seed / "metrics.json")["test"]
    assert test["images"] == 12


def test_compare_prints_the_table_and_report_its_place(compared: Path) -> None:
    assert "separate_lr" in said(finetune("compare"))
    assert said(finetune("report")) == "report/report.md\n"
    assert (compared / "report" / "report.html").is_file()


# Prediction


@pytest.fixture
def champion(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """A registry whose every model is one run's; returns what it was asked for."""
    asked = []
    run = Run("cifar10", "same_lr", 0)
    write_run(folder, params.load(folder / "params.yaml"), run)
    classifier = Classifier(Layout(folder).run(run))

    def look_up(dataset: str, alias: str) -> registry.Registered:
        asked.append((dataset, alias))
        return registry.Registered("cifar10-classifier", "3", classifier)

    monkeypatch.setattr(registry, "champion", look_up)
    for i in (0, 1):
        (folder / f"{i}.png").write_bytes(image_file(i))
    return asked


def test_predict_prints_a_line_per_image_with_labels_by_probability(champion: list[tuple[str, str]]) -> None:
    lines = said(finetune("predict", "cifar10", "0.png", "1.png", "--top", "2")).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["0.png", "1.png"]
    for line in lines:
        first, second = (float(answer.split()[1]) for answer in line.partition(": ")[2].split(", "))
        assert 100 >= first >= second >= 0
    assert champion == [("cifar10", "champion")]


def test_predict_takes_another_alias_and_prints_json(champion: list[tuple[str, str]]) -> None:
    output = said(finetune("predict", "cifar10", "0.png", "--alias", "best", "--top", "3", "--json"))
    answer = json.loads(output)
    assert (answer["image"], answer["model"]) == ("0.png", "cifar10-classifier/3")
    assert sorted(entry["label"] for entry in answer["top"]) == ["ant", "bee", "cat"]
    assert sum(entry["probability"] for entry in answer["top"]) == pytest.approx(1, abs=1e-5)
    assert champion == [("cifar10", "best")]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("cifar10", "absent.png"), "absent.png: No such file or directory; name an image file"),
        (("cifar10", "."), ".: Is a directory; name an image file"),
        (("cifar10", "params.yaml"), "params.yaml: "),
        (("cub200", "0.png"), "data set 'cub200' has no entry under datasets in params.yaml; known: cifar10"),
        (("cifar10", "0.png", "--top", "0"), "invalid value for '--top': 0 is not in the range x>=1; see "),
    ],
)
def test_what_cannot_be_predicted_is_one_sentence(
    champion: list[tuple[str, str]], words: tuple[str, ...], sentence: str
) -> None:
    assert refusal("predict", *words).startswith(sentence)


def python(*words: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(SOURCE)}
    return subprocess.run(
        [sys.executable, *words], stdout=stdout, stderr=subprocess.PIPE, text=True, env=env, check=False
    )
