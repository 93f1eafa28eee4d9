"""The run folder: whole files or none, exact reading back."""

import contextlib
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from finetune import runs
from finetune.errors import InputError
from finetune.study import Run
from synthetic_study import write_run


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def folder_of(root: Path, **files: str) -> Path:
    root.mkdir(parents=True)
    for name, text in files.items():
        (root / name).write_text(text)
    return root


def content(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


# Reading


def test_a_finished_run_is_read_back(tmp_path: Path) -> None:
    write_run(tmp_path, Run("toy", "same_lr", 0), "1100", 0.5, key="abc-0")
    found = runs.read(tmp_path / "runs" / "toy" / "same_lr" / "0")
    assert found.run["run_key"] == "abc-0"
    assert found.metrics["val"]["acc"] == 0.5
    assert [row["epoch"] for row in found.curves] == [1, 2]
    assert found.curves[1]["lr/all"] == 1e-3
    assert [(row["phase"], row["tensor"], row["numel"]) for row in found.audit] == [
        ("0", "features.0.0.weight", "864"),
        ("0", "features.0.1.weight", "32"),
        ("0", "features.0.1.bias", "32"),
        ("0", "classifier.1.weight", "3840"),
        ("0", "features.0.1.running_mean", "32"),
    ]


@pytest.mark.parametrize("name", runs.FILES)
def test_a_run_that_lacks_a_file_is_refused_naming_it(tmp_path: Path, name: str) -> None:
    write_run(tmp_path, Run("toy", "same_lr", 0), "1100")
    folder = tmp_path / "runs" / "toy" / "same_lr" / "0"
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"{folder / name}: no such file.*dvc repro"):
        runs.read(folder)


def test_json_that_is_damaged_is_refused_naming_it(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text('{"half": ')
    with pytest.raises(InputError, match=f"{path}: not valid JSON"):
        runs.read_json(path)


@pytest.mark.parametrize(
    ("place", "mend"),
    [
        ("prepared/cub200/meta.json", "make it again with `dvc repro -f -s prepare@cub200`"),
        ("runs/toy/same_lr/0/run.json", "make it again with `dvc repro -f -s train@toy-same_lr-0`"),
        ("evaluations/toy/same_lr/0/metrics.json", "make it again with `dvc repro -f -s evaluate@toy-same_lr-0`"),
        ("comparison/comparison.json", "make it again with `dvc repro -f -s compare`"),
        ("elsewhere.json", "make it again with `dvc repro`"),
    ],
)
@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[]", "found a list, expected a mapping"),
        ("{", "not valid JSON"),
        ('{"wanted": ' + 100_000 * "[" + 100_000 * "]" + "}", "not valid JSON"),
        ('{"other": {}}', "lacks 'wanted', so it is damaged or of another version"),
    ],
)
def test_a_damaged_file_is_named_with_the_stage_that_makes_it_again(
    tmp_path: Path, place: str, mend: str, text: str, found: str
) -> None:
    path = tmp_path / place
    runs.write_text(path, text)
    with pytest.raises(InputError) as caught:
        runs.read_json(path)["wanted"]
    assert str(caught.value) == f"{path}: {found}; {mend}"


def test_a_damaged_file_made_outside_dvc_is_to_be_deleted(tmp_path: Path) -> None:
    path = tmp_path / ".finetune" / "runs" / "f00d" / "runs" / "toy" / "same_lr" / "0" / "run.json"
    runs.write_text(path, "[]")
    with pytest.raises(InputError, match=f"delete {path.parent} and repeat what made it"):
        runs.read_json(path)


def test_a_key_is_missed_at_any_depth_and_what_is_there_is_a_plain_mapping(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    runs.write_json(path, {"test": {"acc": 0.5}, "of": [{"a": 1}]})
    found = runs.read_json(path)
    assert found == {"test": {"acc": 0.5}, "of": [{"a": 1}]}
    assert "val" not in found and found.get("val") is None
    for section, key in ((found["test"], "loss"), (found["of"][0], "b")):
        with pytest.raises(InputError, match=f"{path}: lacks '{key}'"):
            section[key]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"epoch\n1\n", "lacks 'val/acc'"),
        (b"val/acc\nhigh\n", "holds what is no number"),
        (b"", "holds no row"),
        (b"epoch,val/acc\n", "holds no row"),
        (b"epoch,val/acc\n1,0.5\n2,0.", "is cut off"),
        (b"epoch,val/acc\n1,0.5\n2\n", "is cut off"),
        (b"val/acc\n1,2\n", "is cut off"),
        (b'val/acc\n"1', "not valid CSV"),
        (b"val/acc\n\xff\n", "not valid CSV"),
    ],
)
def test_a_damaged_table_is_refused_naming_it(tmp_path: Path, text: bytes, found: str) -> None:
    path = tmp_path / "curves.csv"
    path.write_bytes(text)
    with pytest.raises(InputError, match=f"{path}: {found}.*make it again with `dvc repro`"):
        runs.read_curves(path)[0]["val/acc"]


def test_a_missing_value_in_the_curves_is_nan(tmp_path: Path) -> None:
    runs.write_csv(tmp_path / "curves.csv", [{"epoch": 1, "val/acc": None}])
    (row,) = runs.read_curves(tmp_path / "curves.csv")
    assert row["epoch"] == 1
    assert math.isnan(row["val/acc"])


# Writing


def test_floats_survive_a_csv_exactly(tmp_path: Path) -> None:
    values = [0.1 + 0.2, 1 / 3, 1e-300, 12345678.9]
    runs.write_csv(tmp_path / "curves.csv", [{"x": value} for value in values])
    assert [row["x"] for row in runs.read_curves(tmp_path / "curves.csv")] == values


def test_a_csv_has_the_rows_keys_for_header_and_plain_line_ends(tmp_path: Path) -> None:
    runs.write_csv(tmp_path / "a.csv", [{"epoch": 1, "lr/all": None}, {"epoch": 2, "lr/all": 0.5}])
    assert (tmp_path / "a.csv").read_bytes() == b"epoch,lr/all\n1,\n2,0.5\n"


def test_writing_makes_folders_and_leaves_nothing_else(tmp_path: Path) -> None:
    runs.write_json(tmp_path / "new" / "a.json", {"a": 1})
    runs.write_csv(tmp_path / "new" / "a.csv", [{"a": 1}])
    assert names_in(tmp_path / "new") == ["a.csv", "a.json"]


def test_a_failed_write_names_the_file_and_leaves_the_old_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    runs.write_json(path, {"old": 1})

    def full_disk(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space") as failed:
        runs.write_json(path, {"new": 2})
    assert failed.value.filename == str(path)
    assert runs.read_json(path) == {"old": 1}
    assert names_in(tmp_path) == ["a.json"]


# Moving into place


def test_a_finished_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "place", a="old", gone="old")
    aside = folder_of(tmp_path / "aside", a="new", b="new")
    runs.move_into_place(aside, place)
    assert content(place) == {"a": "new", "b": "new"}
    assert names_in(tmp_path) == ["place"]


def test_the_parents_of_the_place_are_made(tmp_path: Path) -> None:
    aside = folder_of(tmp_path / "aside", a="new")
    runs.move_into_place(aside, tmp_path / "runs" / "toy" / "same_lr" / "0")
    assert content(tmp_path / "runs" / "toy" / "same_lr" / "0") == {"a": "new"}


def test_a_folder_moves_in_from_another_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, aside = folder_of(tmp_path / "place", a="old"), folder_of(tmp_path / "aside", a="new")
    rename = Path.rename

    def within_a_file_system(self: Path, target: Path) -> Path:
        if target == place and self == aside:
            raise OSError(18, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", within_a_file_system)
    runs.move_into_place(aside, place)
    assert content(place) == {"a": "new"}
    assert names_in(tmp_path) == ["place"]


def test_an_interrupted_move_never_leaves_half_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = folder_of(tmp_path / "place", a="old", b="old")
    aside = folder_of(tmp_path / "aside", a="new", b="new")

    def killed_midway(folder: Path, *args: Any, **kwargs: Any) -> None:
        (Path(folder) / "a").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed_midway)
    with pytest.raises(KeyboardInterrupt):
        runs.move_into_place(aside, place)
    assert not place.exists() or content(place) in ({"a": "old", "b": "old"}, {"a": "new", "b": "new"})


@pytest.mark.parametrize("elsewhere", [False, True], ids=["the same file system", "another file system"])
def test_a_move_killed_at_any_of_its_steps_is_ended_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    steps = 0

    def counted(module: Any, name: str, budget: int) -> None:
        real = getattr(module, name)

        def step(*args: Any, **options: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps > budget:
                raise KeyboardInterrupt
            if elsewhere and name == "rename" and (args[0].name, args[1].name) == ("aside", "place"):
                raise OSError(18, "Invalid cross-device link")
            return real(*args, **options)

        patch.setattr(module, name, step)

    for budget in range(20):
        root, steps = tmp_path / str(budget), 0
        place, aside = folder_of(root / "place", a="old"), folder_of(root / "aside", a="new", b="new")
        with pytest.MonkeyPatch.context() as patch:
            for module, name in ((Path, "rename"), (shutil, "rmtree"), (shutil, "copytree"), (Path, "mkdir")):
                counted(module, name, budget)
            with contextlib.suppress(KeyboardInterrupt):
                runs.move_into_place(aside, place)
        whole = {"a": "new", "b": "new"}
        assert not place.exists() or content(place) in ({"a": "old"}, whole)
        assert (aside.exists() and content(aside) == whole) or content(place) == whole
        if aside.exists():
            runs.move_into_place(aside, place)
            assert [name for name in names_in(root) if name != ".aside.moved"] == ["place"]
        assert content(place) == whole
        if steps <= budget:
            return
    pytest.fail("the move never ended")
