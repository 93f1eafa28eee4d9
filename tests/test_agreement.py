"""A study whose strategies and recipes exclude each other is refused by whatever would begin with it."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from finetune import agreement, params, resolved, workflow
from finetune.cli import cli
from finetune.errors import InputError
from finetune.params import Params
from finetune.study import Layout

SENTENCE = "params.yaml: strategies.last_layer on cifar10: bn: train is for BatchNorm layers of what is trained"


@pytest.fixture
def bad(tiny: dict[str, Any]) -> dict[str, Any]:
    """A study whose last cell cannot be trained."""
    tiny["study"] |= {"datasets": ["cifar10"], "strategies": ["same_lr", "last_layer"]}
    tiny["datasets"], tiny["strategies"] = {"cifar10": {}}, {"same_lr": {}, "last_layer": {"training": {"bn": "train"}}}
    return tiny


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Params]:
    """The studies that were worked out."""
    made: list[Params] = []
    plain = resolved.check_strategies

    def noting(params: Params) -> None:
        made.append(params)
        plain(params)

    monkeypatch.setattr(resolved, "check_strategies", noting)
    return made


@pytest.mark.parametrize("training", [{"device": "cuda"}, {"device": "cpu"}, {"device": "auto", "threads": 64}])
def test_make_study_refuses_before_anything_is_brought(
    tmp_path: Path, bad: dict[str, Any], monkeypatch: pytest.MonkeyPatch, training: dict[str, Any]
) -> None:
    """Also on a GPU, and where one job has all the cores."""
    bad["training"] |= training
    monkeypatch.setattr(workflow, "_dvc", lambda *words, cwd: pytest.fail(f"dvc {words}"))
    with pytest.raises(InputError, match=f"^{SENTENCE}"):
        workflow.run_study(params.parse(bad), Layout(tmp_path), lambda _: None)


LAST = ["--dataset", "cifar10", "--strategy", "last_layer"]


@pytest.mark.parametrize(
    "command",
    [
        ["study", "show"],
        ["study", "run"],
        ["study", "use", "bad"],
        ["plan", "same_lr"],
        ["train", *LAST, "--seed", "0"],
        ["run", *LAST],
    ],
    ids=" ".join,
)
def test_commands_refuse_it(
    tmp_path: Path, bad: dict[str, Any], monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """Stage plan also for a strategy that is right by itself, as DVC would train that first."""
    monkeypatch.setattr(workflow, "_dvc", lambda *words, cwd: pytest.fail(f"dvc {words}"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").mkdir()
    for file in ("params.yaml", "studies/bad.yaml"):
        (tmp_path / file).write_text(yaml.safe_dump(bad))
    result = CliRunner().invoke(cli, command, prog_name="finetune")
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.startswith(f"finetune: {SENTENCE}")
    assert not (tmp_path / "plans").exists()


def test_one_run_is_asked_for_by_itself_and_not_at_all_where_its_study_has_passed(
    tmp_path: Path, bad: dict[str, Any], asked: list[Params]
) -> None:
    one = params.parse(bad)
    agreement.check_run(one, tmp_path, "cifar10", "same_lr")  # the study's other strategy is not
    with pytest.raises(InputError, match=f"^{SENTENCE}"):
        agreement.check_run(one, tmp_path, "cifar10", "last_layer")
    assert [each.study.strategies for each in asked] == [("same_lr",), ("last_layer",)]
    right = params.parse(bad | {"strategies": {"same_lr": {}, "last_layer": {}}})
    agreement.check(right, tmp_path)
    agreement.check_run(right, tmp_path, "cifar10", "last_layer")
    assert len(asked) == 3


def test_a_run_that_its_study_does_not_list_has_not_passed_with_it(tmp_path: Path, bad: dict[str, Any]) -> None:
    bad["study"]["strategies"] = ["same_lr"]
    one = params.parse(bad)
    agreement.check(one, tmp_path)
    with pytest.raises(InputError, match=f"^{SENTENCE}"):
        agreement.check_run(one, tmp_path, "cifar10", "last_layer")


def test_a_run_that_is_not_listed_may_have_overrides_that_exclude_each_other(
    tmp_path: Path, tiny: dict[str, Any]
) -> None:
    tiny["datasets"] = {"cifar10": {"training": {"epochs": 2}}}
    tiny["study"] |= {"datasets": ["cifar10"], "strategies": ["same_lr"]}
    tiny["training"]["epochs"] = 4
    tiny["strategies"] = {"same_lr": {}, "late": {"plan": "same_lr", "training": {"freeze_epochs": 3}}}
    with pytest.raises(InputError, match=r"<cifar10, late>: freeze_epochs is 3 but epochs is 2"):
        agreement.check_run(params.parse(tiny), tmp_path, "cifar10", "late")


def test_what_a_plan_says_of_its_options_names_the_variant(tmp_path: Path, tiny: dict[str, Any]) -> None:
    tiny["study"]["strategies"] = ["same_lr", "steep"]
    tiny["strategies"] = {"same_lr": {}, "steep": {"plan": "layer_decay", "decay": 1.5}}
    with pytest.raises(InputError, match=r"^params.yaml: strategies.steep: layer_decay: decay: found 1.5, expected"):
        agreement.check(params.parse(tiny), tmp_path)


def test_what_has_passed_is_not_worked_out_again(tmp_path: Path, tiny: dict[str, Any], asked: list[Params]) -> None:
    one = params.parse(tiny)
    for _ in range(2):
        agreement.check(one, tmp_path)
    assert asked == [one]


def test_other_settings_or_other_code_are_worked_out(
    tmp_path: Path, tiny: dict[str, Any], asked: list[Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    agreement.check(params.parse(tiny), tmp_path)
    tiny["training"]["bn"] = "train"
    agreement.check(params.parse(tiny), tmp_path)
    assert len(asked) == 2
    for name in ("model", "recipe", "resolved"):
        (tmp_path / f"{name}.py").write_text("# another")
    monkeypatch.setattr(agreement, "_CODE", tmp_path)
    agreement.check(params.parse(tiny), tmp_path)
    assert len(asked) == 3


def test_what_was_refused_is_refused_again(tmp_path: Path, bad: dict[str, Any]) -> None:
    for _ in range(2):
        with pytest.raises(InputError, match=SENTENCE):
            agreement.check(params.parse(bad), tmp_path)


def test_where_nothing_can_be_noted_it_is_checked_all_the_same(
    tmp_path: Path, tiny: dict[str, Any], bad: dict[str, Any]
) -> None:
    (tmp_path / ".finetune").write_text("in the way")
    agreement.check(params.parse({**tiny, "strategies": {"same_lr": {}, "last_layer": {}}}), tmp_path)
    with pytest.raises(InputError, match=SENTENCE):
        agreement.check(params.parse(bad), tmp_path)


STUDIES = [path for path in Path(__file__).parents[1].glob("studies/*.yaml") if not path.stem.endswith(".data")]


@pytest.mark.parametrize("study", sorted(STUDIES), ids=lambda path: path.stem)
def test_the_studies_agree(study: Path, tmp_path: Path) -> None:
    agreement.check(params.load(study), tmp_path)
