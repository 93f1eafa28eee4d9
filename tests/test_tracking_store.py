import os
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from filelock import FileLock
from mlflow.exceptions import MlflowException

from finetune import tracking_store
from finetune.errors import InputError
from tracked_study import move_home

CONNECT = "import pathlib, sys; from finetune.tracking_store import connect; connect(pathlib.Path(sys.argv[1]))"


def test_the_store_is_a_database_at_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_store.tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"


def test_temporary_experiments_of_dvc_share_the_repositorys_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    inside = tmp_path / ".dvc" / "tmp" / "exps" / "standalone" / "abc"
    assert tracking_store.tracking_uri(inside) == f"sqlite:///{tmp_path}/mlflow.db"


def test_the_users_server_is_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_store.tracking_uri(tmp_path) == "http://127.0.0.1:5000"


def test_the_users_timeouts_are_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = move_home(monkeypatch, tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    tracking_store.connect(home)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"


def test_two_processes_create_the_store_at_once(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    environment["PYTHONPATH"] = str(Path(tracking_store.__file__).parents[1])
    started = [
        subprocess.Popen([sys.executable, "-c", CONNECT, str(tmp_path)], env=environment, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    outcomes = [(process.communicate()[1].decode(), process.returncode) for process in started]
    assert outcomes == [("", 0), ("", 0)]


def test_what_opening_the_store_needs_is_imported_before_and_nothing_is_opened(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from finetune.tracking_store import connect, import_client
        root = Path(sys.argv[1])
        import_client(root)
        assert not list(root.iterdir())
        before = set(sys.modules)
        connect(root)
        late = [name for name in sys.modules if name not in before]
        assert not [name for name in late if name.startswith(("mlflow.store.tracking", "sqlalchemy.orm"))], late
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    source = str(Path(tracking_store.__file__).parents[1])
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    subprocess.run(command, env=environment | {"PYTHONPATH": source}, check=True)


def test_a_database_whose_making_is_cut_short_is_made_again(tmp_path: Path) -> None:
    killed = """
        import os
        def link(path, target):
            path.write_bytes(path.read_bytes()[:5000])  # half of it
            os._exit(9)
        os.link = link
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    environment["PYTHONPATH"] = str(Path(tracking_store.__file__).parents[1])

    def connect(first: str = "") -> int:
        code = textwrap.dedent(first) + "\n" + CONNECT
        return subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=False).returncode

    assert connect(killed) == 9
    assert not (tmp_path / "mlflow.db").exists()
    assert connect() == 0
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("select name from experiments").fetchall() == [("Default",)]
    assert not list(tmp_path.glob("mlflow.db.part*"))


def test_a_dvc_stage_never_takes_over_the_run_of_mlflow_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "abc")
    monkeypatch.delenv("DVC_STAGE", raising=False)
    assert tracking_store.attached_run_id() == "abc"
    monkeypatch.setenv("DVC_STAGE", "train@toy-same_lr-0")
    assert tracking_store.attached_run_id() is None


def test_an_unreachable_store_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = move_home(monkeypatch, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match=r"^MLflow at http://127\.0\.0\.1:9: .*; start that server"):  # noqa: SIM117
        with tracking_store.reported(home):
            tracking_store.connect(home)


def test_processes_that_wait_for_a_server_do_not_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = move_home(monkeypatch, tmp_path)
    (home / ".finetune").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with FileLock(home / ".finetune" / "mlflow.lock"), pytest.raises(MlflowException, match="127"):
        tracking_store.connect(home)


def test_a_password_is_never_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = move_home(monkeypatch, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError) as caught, tracking_store.reported(home):
        tracking_store.connect(home)
    assert str(caught.value).startswith("MLflow at http://***@127.0.0.1:9: ")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://me:secret@host:5000/path", "http://***@host:5000/path"),
        ("see https://me:p@ss@host.", "see https://***@host."),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
    ],
)
def test_user_and_password_are_left_out_of_addresses(text: str, expected: str) -> None:
    assert tracking_store.redacted(text) == expected


def test_a_file_that_is_no_database_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = move_home(monkeypatch, tmp_path)
    (home / "mlflow.db").write_text("no database " * 1000)
    began = time.monotonic()
    with pytest.raises(InputError, match=rf"^{home}/mlflow\.db: is no SQLite database; move the file away"):  # noqa: SIM117
        with tracking_store.reported(home):
            tracking_store.connect(home)
    assert time.monotonic() - began < 5


def test_a_request_that_a_sound_database_refuses_leaves_the_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = move_home(monkeypatch, tmp_path)
    with pytest.raises(InputError, match=r"mlflow\.db: .*no-such-run.*; mend that and repeat the command$"):  # noqa: SIM117
        with tracking_store.reported(home):
            tracking_store.connect(home)[0].get_run("no-such-run")


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("http://[::1", "Invalid IPv6 URL; set MLFLOW_TRACKING_URI to another"),
        ("mysql://user:secret@127.0.0.1:1/x", "No module named 'MySQLdb'; install that, or set MLFLOW_TRACKING_URI"),
    ],
)
def test_an_address_that_mlflow_cannot_take_is_one_sentence(
    uri: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError) as caught, tracking_store.reported(tmp_path):
        tracking_store.connect(tmp_path)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_bug_stays_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^theirs$"), tracking_store.reported(tmp_path):
        raise ValueError("theirs")


def test_a_damaged_database_is_one_sentence_without_sql(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = move_home(monkeypatch, tmp_path)
    content = (home / "mlflow.db").read_bytes()
    (home / "mlflow.db").write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with pytest.raises(InputError) as caught, tracking_store.reported(home):
        tracking_store.connect(home)
    assert str(caught.value).startswith(f"MLflow at sqlite:///{home}/mlflow.db: database disk image is malformed; ")
    assert "move the file away" in str(caught.value)


def test_a_long_reason_is_cut() -> None:
    assert len(tracking_store.one_line(ValueError("word " * 100))) == 200
    assert tracking_store.one_line(ValueError("two\n  lines")) == "two lines"
