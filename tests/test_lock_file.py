"""A dvc.lock that DVC could not read is found and mended, and any other left alone."""

import random
import subprocess
import threading
import time
from pathlib import Path

import pytest

from finetune import lock_file
from finetune.errors import InputError

MD5 = "0123456789abcdef0123456789abcdef"
ENTRY = f"""  {{name}}:
    cmd: python -m finetune {{name}}
    deps:
    - path: data/a
      hash: md5
      md5: {MD5}.dir
      size: 12
      nfiles: 1
    params:
      params.yaml:
        datasets.a: {{{{}}}}
        training.lr:
    outs:
    - path: out/{{name}}
      hash: md5
      md5: {MD5}
      size: 3
"""
HEAD = "schema: '2.0'\nstages:\n"
OLD = HEAD + ENTRY.format(name="prepare@a")
NEW = OLD + ENTRY.format(name="train@a-b-0")


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_file, "_QUIET", 0.2)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository in which OLD is committed."""
    (tmp_path / "dvc.lock").write_text(OLD)
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    return tmp_path


def git(root: Path, *words: str) -> None:
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *words], cwd=root, check=True)


def commit(root: Path) -> None:
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "state")


def mended(root: Path) -> list[str]:
    said: list[str] = []
    lock_file.mend(root, said.append)
    return said


@pytest.mark.parametrize("content", [OLD, NEW, HEAD.replace("stages:\n", "")])
def test_what_dvc_can_read_is_left_alone_at_once(content: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "dvc.lock").write_text(content)
    monkeypatch.setattr(lock_file.time, "sleep", lambda _: pytest.fail("waited"))
    assert mended(root) == []
    assert (root / "dvc.lock").read_text() == content


def test_a_merge_conflict_is_left_to_whoever_merges(root: Path) -> None:
    conflict = OLD + "<<<<<<< HEAD\n" + NEW + "=======\n>>>>>>> other\n"
    (root / "dvc.lock").write_text(conflict)
    with pytest.raises(InputError, match=r"^dvc\.lock: has a merge conflict; resolve it, .*, then repeat"):
        mended(root)
    assert (root / "dvc.lock").read_text() == conflict


def test_without_a_lock_there_is_nothing_to_mend(root: Path) -> None:
    (root / "dvc.lock").unlink()
    assert mended(root) == []
    assert not (root / "dvc.lock").exists()


@pytest.mark.parametrize(
    ("left", "found"),
    [
        ("", "is no list of stages"),
        ("schema: '2.0", "is not valid YAML"),
        (OLD + "  train@a-b-0:\n    cmd: x\n    de", "is not valid YAML"),
        (OLD + "  train@a-b-0:\n    cmd:", "breaks off in stage train@a-b-0"),
        (NEW.removesuffix("89abcdef\n      size: 3\n"), "breaks off in stage train@a-b-0"),
    ],
)
def test_what_is_torn_is_replaced_by_the_last_committed_one(left: str, found: str, root: Path) -> None:
    (root / "dvc.lock").write_text(left)
    assert mended(root) == [
        f"dvc.lock: {found}, as is left where DVC ends while it writes it; the last committed one is put back, and "
        "this one is kept as .finetune/dvc.lock.damaged; stages that are done come from DVC's run cache"
    ]
    assert (root / "dvc.lock").read_text() == OLD
    assert (root / ".finetune" / "dvc.lock.damaged").read_text() == left


def test_in_a_folder_below_the_repositorys_root_its_own_is_put_back(root: Path) -> None:
    below = root / "below"
    below.mkdir()
    (below / "dvc.lock").write_text(NEW)
    commit(root)
    (below / "dvc.lock").write_text(NEW[:-40])
    mended(below)
    assert (below / "dvc.lock").read_text() == NEW


@pytest.mark.parametrize("committed", [None, NEW[:-30]], ids=["none", "torn, too"])
def test_without_a_whole_one_in_git_it_is_removed(committed: str | None, root: Path) -> None:
    git(root, "rm", "-q", "dvc.lock")
    if committed is not None:
        (root / "dvc.lock").write_text(committed)
    git(root, "commit", "-q", "-a", "--allow-empty", "-m", "state")
    if committed is not None:
        commit(root)
    (root / "dvc.lock").write_text(OLD[:-20])
    [line] = mended(root)
    assert "git has none that is whole, so there is none now" in line
    assert not (root / "dvc.lock").exists()


def test_without_git_it_is_removed(tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_text(OLD[:-20])
    [line] = mended(tmp_path)
    assert "git has none that is whole" in line
    assert not (tmp_path / "dvc.lock").exists()


def test_one_that_is_being_written_is_waited_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_file, "_QUIET", 1.0)
    file = root / "dvc.lock"
    torn = [NEW[:-left] for left in (45, 40, 35, 30)]
    assert all(lock_file.fault(content.encode()) for content in torn)
    file.write_text(torn[0])

    def write() -> None:
        for content in (*torn[1:], NEW):
            time.sleep(0.1)
            file.write_text(content)

    writer = threading.Thread(target=write)
    writer.start()
    assert mended(root) == []
    writer.join()
    assert file.read_text() == NEW


def test_whatever_is_taken_for_whole_dvc_can_read() -> None:
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from ruamel.yaml import YAML

    places = [*range(len(HEAD) + 30), *random.Random(0).sample(range(len(NEW)), 200)]
    passed = [NEW[:place] for place in places if lock_file.fault(NEW[:place].encode()) is None]
    assert 2 <= len(passed) < len(places) / 2
    for content in passed:
        COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe").load(content))
