"""Where MLflow's tracking store is, and how to open it."""

import importlib
import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from finetune.errors import InputError
from finetune.imports import uncollected

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SETTINGS = {  # defaults: what the user's environment sets stays
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds; MLflow's own 120 with 7 retries would hold a training up
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "GIT_PYTHON_REFRESH": "quiet",
}

_SQLITE = "sqlite:///"
_REFILL = "repeat the command: MLflow makes a new one, and `finetune track` sends the study's runs to it"


def workspace(root: Path) -> Path:
    """The repository that `root` belongs to: DVC's temporary experiments run in its `.dvc/tmp/exps/…`."""
    for parent in root.parents:
        if parent.name == "tmp" and parent.parent.name == ".dvc":
            return parent.parent.parent
    return root


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI, else the SQLite database of the repository at `root` (absolute)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _own_database(root)


def _own_database(root: Path) -> str:
    return f"{_SQLITE}{workspace(root) / 'mlflow.db'}"


def attached_run_id() -> str | None:
    """The run that `mlflow run` made for this process; a DVC stage is one run of many and never takes it over."""
    return None if "DVC_STAGE" in os.environ else os.environ.get("MLFLOW_RUN_ID")


def connect(root: Path) -> "tuple[MlflowClient, str]":
    """A client of the tracking store and the store's address. A database is created once, under a lock.

    Raises whatever MLflow raises where the store cannot be reached; see `reported`.

    Raises:
        InputError: the database is none, or MLflow cannot take the address here.
    """
    open_client = import_client(root)
    uri = tracking_uri(root)
    _check_database(uri)
    with store_lock(root):
        if uri == _own_database(root):
            _create(Path(uri.removeprefix(_SQLITE)))
        try:
            client = open_client(uri)
            client.search_experiments(max_results=1)
        except ImportError as error:  # of a database's driver
            raise _refused(uri, error, "install that, or set MLFLOW_TRACKING_URI to another") from None
        except ValueError as error:  # such as a host that is none
            raise _refused(uri, error, "set MLFLOW_TRACKING_URI to another") from None
    return client, uri


def _refused(uri: str, error: Exception, mend: str) -> InputError:
    return InputError(f"MLflow at {redacted(uri)}: {one_line(error)}; {mend}, and repeat the command")


def import_client(root: Path) -> "type[MlflowClient]":
    """MLflow's client, with what it needs for the store of the repository at `root`; nothing is opened."""
    # Before the first import of mlflow, which reads some of these then.
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    with uncollected():
        from mlflow import MlflowClient

        if tracking_uri(root).startswith(_SQLITE):  # else it would be imported as the client is made, and collected
            importlib.import_module("mlflow.store.tracking.sqlalchemy_workspace_store")
    for chatter in ("alembic", "urllib3", "mlflow.store.db"):  # what they tell, whoever meets the exception tells
        logging.getLogger(chatter).setLevel(logging.CRITICAL)
    return MlflowClient


@contextmanager
def reported(root: Path) -> Iterator[None]:
    """Turn what MLflow raises into an InputError that names the store."""
    import_client(root)  # with our settings, whatever else imports of MLflow comes first
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:  # requests' errors are OSErrors
        uri = tracking_uri(root)
        if isinstance(_cause(error), sqlite3.Error):
            mend = f"mend that, or move the file away and {_REFILL}"
        elif uri.startswith(_SQLITE):
            mend = "mend that and repeat the command"
        else:
            mend = "start that server, or set MLFLOW_TRACKING_URI to another, and repeat the command"
        raise InputError(f"MLflow at {redacted(uri)}: {one_line(error)}; {mend}") from None


def one_line(error: BaseException) -> str:
    """An exception as a short piece of a sentence, without SQL and without anybody's password."""
    error = _cause(error)
    text = redacted(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:199]}…"


def _cause(error: BaseException) -> BaseException:
    """What the database itself said, where it was one: SQLAlchemy adds the statement, MLflow quotes both."""
    cause: BaseException | None = error
    while cause is not None:
        if (said := getattr(cause, "orig", None)) is not None:
            return said
        cause = cause.__cause__
    return error


def redacted(text: str) -> str:
    """The same without the user and password of the addresses in it."""
    return re.sub(r"://[^/\s]*@", "://***@", text)


def _create(database: Path) -> None:
    """Make the database whole or not at all: one whose making was cut short no MLflow opens again."""
    if database.is_file() and database.stat().st_size:
        return
    from mlflow import MlflowClient

    part = database.with_name(f"{database.name}.part")
    for left in database.parent.glob(f"{part.name}*"):
        left.unlink()
    MlflowClient(f"{_SQLITE}{part}").search_experiments(max_results=1)
    with suppress(FileExistsError):  # a server has made one meanwhile
        os.link(part, database)
    part.unlink()


def _check_database(uri: str) -> None:
    """At once: MLflow tries a file that is no database again and again, for minutes."""
    if not uri.startswith(_SQLITE):
        return
    path = Path(uri.removeprefix(_SQLITE))
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            if file.read(16) != b"SQLite format 3\0":
                raise InputError(f"{path}: is no SQLite database; move the file away and {_REFILL}")


def store_lock(root: Path) -> AbstractContextManager[object]:
    """Within, this process alone makes what the store lacks; nothing, where a server sees to that, as processes would
    wait in turn for one that does not answer."""
    if tracking_uri(root).startswith(("http://", "https://")):
        return nullcontext()
    # Of four processes that create a database at once, three fail.
    place = workspace(root) / ".finetune"
    place.mkdir(parents=True, exist_ok=True)
    return FileLock(place / "mlflow.lock", timeout=120)
