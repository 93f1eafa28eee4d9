"""`finetune data show`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from finetune.cli import cli


@pytest.fixture
def folder(tmp_path: Path, tiny: dict[str, Any], toy_inputs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a params.yaml of a tiny study of CIFAR-10 and its store."""
    tiny["study"]["datasets"] = ["cifar10"]
    tiny["datasets"] = {"cifar10": {}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tiny))
    shutil.copytree(toy_inputs / "prepared" / "toy", tmp_path / "prepared" / "cifar10")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def show(*words: str) -> Result:
    return CliRunner().invoke(cli, ["data", "show", *words])


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_facts_are_printed_and_the_sheet_is_written(folder: Path) -> None:
    result = show("cifar10")
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.output.splitlines()]
    assert ["green", "9", "3", "4", "16"] in rows
    assert ["train", "27", "9", "32", "32", "1"] in rows
    assert result.output.splitlines()[-1] == "sheets/cifar10: sheet.png, facts.json"
    assert files(folder / "sheets" / "cifar10") == ["facts.json", "sheet.png"]


def test_json_is_all_that_is_printed(folder: Path) -> None:
    result = show("cifar10", "--json", "--augmented", "--out", "elsewhere")
    assert json.loads(result.output) == json.loads((folder / "elsewhere" / "facts.json").read_text())
    assert json.loads(result.output)["title"] == "CIFAR-10"
    assert files(folder / "elsewhere") == ["augmented.png", "facts.json", "sheet.png"]


def test_with_set_the_folder_of_dvc_is_left_as_it_is(folder: Path) -> None:
    show("cifar10", "--augmented")
    place = folder / "sheets" / "cifar10"
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    result = show("cifar10", "--set", "datasets.cifar10.fraction=0.3")
    assert "  trainings take 9 of the training images (fraction 0.3)" in result.output.splitlines()
    last = "sheets/cifar10: left as it is, as --set was given; --out FOLDER writes sheet.png, facts.json"
    assert result.output.splitlines()[-1] == last
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    result = show("cifar10", "--set", "datasets.cifar10.fraction=0.3", "--json")
    assert json.loads(result.stdout)["trained_on"] == 9
    assert result.stderr.splitlines()[-1] == last


def test_with_set_and_out_all_is_written(folder: Path) -> None:
    show("cifar10", "--set", "datasets.cifar10.fraction=0.3", "--out", "elsewhere")
    assert json.loads((folder / "elsewhere" / "facts.json").read_text())["fraction"] == 0.3
    assert not (folder / "sheets").exists()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("cifar11", "data set 'cifar11' has no entry under datasets in params.yaml; did you mean 'cifar10'?"),
        ("cifar10", "prepared/cifar10: no store here; make it with `dvc repro -s prepare@cifar10`"),
    ],
)
def test_what_cannot_be_shown_is_one_sentence(folder: Path, name: str, sentence: str) -> None:
    shutil.rmtree(folder / "prepared")
    result = show(name)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"finetune: {sentence}")
    assert not (folder / "sheets").exists()
