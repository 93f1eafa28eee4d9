"""Values of params.yaml are changed where they stand; every other character stays."""

from pathlib import Path

import pytest
import yaml

from finetune.errors import InputError
from finetune.params_edit import put

STUDIES = Path(__file__).parents[1] / "studies"
VALUES: dict[str, str | int] = {"precision": "bf16", "threads": 2}


def edited(folder: Path, text: str, values: dict[str, str | int] = VALUES) -> str:
    file = folder / "params.yaml"
    file.write_bytes(text.encode())
    put(file, "training", values)
    assert [path.name for path in folder.iterdir()] == ["params.yaml"]
    return file.read_bytes().decode()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "a: 1\ntraining:\n    threads: 8   # of one\n    precision: 'fp32' # why\n\n# The data.\nb: [1,\n  2]\n",
            "a: 1\ntraining:\n    threads: 2   # of one\n    precision: bf16 # why\n\n# The data.\nb: [1,\n  2]\n",
        ),
        (
            "training: # here\n  # Pixels.\n  image_size: 32\n\n# A data set's own.\ndatasets:\n  - x\n  -   y\n",
            "training: # here\n  precision: bf16\n  threads: 2\n  # Pixels.\n  image_size: 32\n\n"
            "# A data set's own.\ndatasets:\n  - x\n  -   y\n",
        ),
        (
            "# top\n---\ntraining: {precision: fp32,   # why\n  lr: 1e-3}\nb: ~\n",
            "# top\n---\ntraining: {threads: 2, precision: bf16,   # why\n  lr: 1e-3}\nb: ~\n",
        ),
        ("training: {}\nb: 1\n", "training: {precision: bf16, threads: 2}\nb: 1\n"),
        ("training: # none\nb: 1\n", "training: # none\n  precision: bf16\n  threads: 2\nb: 1\n"),
        ("training: ~\nb: 1\n", "training:\n  precision: bf16\n  threads: 2\nb: 1\n"),
        ("b: 1\ntraining:", "b: 1\ntraining:\n  precision: bf16\n  threads: 2\n"),
        ("b: 1", "b: 1\ntraining:\n  precision: bf16\n  threads: 2\n"),
        ("training:\r\n  threads: 1\r\nb: é\r\n", "training:\r\n  precision: bf16\r\n  threads: 2\r\nb: é\r\n"),
    ],
    ids=["in place", "missing", "flow", "empty flow", "nothing", "null", "at the end", "no section", "CRLF"],
)
def test_nothing_else_changes(tmp_path: Path, before: str, after: str) -> None:
    assert edited(tmp_path, before) == after


@pytest.mark.parametrize("study", ["sample", "parity", "catalogue", "seed-report", "gpu-cub200"])
def test_of_each_study_at_hand_only_lines_of_these_keys_change(study: str, tmp_path: Path) -> None:
    before, values = (STUDIES / f"{study}.yaml").read_text(), {"precision": "tf32", "threads": 97}
    after = edited(tmp_path, before, values)
    changed = {*before.splitlines()} ^ {*after.splitlines()}
    assert changed
    assert all(line.strip().startswith(("precision:", "threads:")) for line in changed)
    assert yaml.safe_load(after)["training"].items() >= values.items()


@pytest.mark.parametrize(
    "text",
    [
        "training: &own {threads: 1}\nother: *own\n",
        "other: &own {threads: 1}\ntraining: *own\n",
        "training: {threads: &n 1}\nother: {threads: *n}\n",
        "{b: 1}\n",
    ],
    ids=["shared", "alias", "value", "a root that is no block"],
)
def test_where_more_would_change_the_file_is_left_and_the_values_are_told(tmp_path: Path, text: str) -> None:
    with pytest.raises(
        InputError, match=r"params\.yaml: found no place .* write precision: bf16, threads: 2 under training"
    ):
        edited(tmp_path, text)
    assert (tmp_path / "params.yaml").read_text() == text


def test_a_link_and_the_mode_stay(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    there = tmp_path / "there" / "own.yaml"
    there.write_text("training: {threads: 1}\n")
    there.chmod(0o664)
    link = tmp_path / "params.yaml"
    link.symlink_to(there)
    put(link, "training", {"threads": 2})
    assert link.is_symlink() and there.read_text() == "training: {threads: 2}\n"
    assert there.stat().st_mode & 0o777 == 0o664


@pytest.mark.parametrize("at", ["write_bytes", "replace"])
def test_what_cannot_be_written_is_one_sentence_and_the_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def refused(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    file = tmp_path / "params.yaml"
    file.write_text("training: {threads: 1}\n")
    monkeypatch.setattr(Path, at, refused)
    with pytest.raises(
        InputError, match=r"params\.yaml: cannot be written \(Read-only file system\); make it writable"
    ):
        put(file, "training", {"threads": 2})
    assert file.read_text() == "training: {threads: 1}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]
