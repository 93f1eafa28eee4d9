"""What started this process and is to outlive it: the DVC whose stage it is, or `mlflow run`, and the `finetune study
run` above them.

None of them tells it when they end: DVC and MLflow pass no signal on, and nobody passes on a SIGKILL.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_STUDY = "FINETUNE_STUDY"  # in the environment: the process of `finetune study run`, and when that began
_SHELLS = {"sh", "bash", "dash", "zsh", "ksh", "ash", "fish"}


@dataclass(frozen=True)
class Starter:
    """Processes that this one works for."""

    parents: tuple[tuple[int, int], ...]  # this process and the shells above it, each with its parent
    study: tuple[int, str] | None  # process, when it began

    def gone(self) -> bool:
        return self.left() or (self.study is not None and not lives(*self.study))

    def left(self) -> bool:
        """Whether the parent is gone."""
        return any(_parent(pid) != parent for pid, parent in self.parents)

    def adopted(self) -> bool:
        """Whether the parent starts no stages, but took this process in when what does was gone, as init would."""
        if not self.parents:
            return False
        parent, stage = self.parents[-1][1], "DVC_STAGE" in os.environ
        if parent == 0:
            return stage  # where MLflow started a container, no `mlflow run` is in it
        try:
            if os.getsid(parent) != os.getsid(0):
                return True
        except OSError:
            return True
        return parent == 1 and stage and not _name(parent).startswith(("python", "dvc"))  # as DVC may, in a container


def find() -> Starter | None:
    """What started this process; None where it works for nobody."""
    pid, _, began = os.environ.get(_STUDY, "").partition(" ")
    starter = Starter(_parents(), (int(pid), began) if pid.isdecimal() else None)
    return starter if starter.parents or starter.study else None


def environment() -> dict[str, str]:
    """What tells processes below that they work for this one, a `finetune study run`."""
    return {_STUDY: f"{os.getpid()} {beginning(os.getpid())}"}


def _parents() -> tuple[tuple[int, int], ...]:
    """Up to DVC or MLflow. Both start what they run through a shell: bash and zsh become it, dash stays between."""
    stage = "DVC_STAGE" in os.environ
    if not stage and not {"MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"} <= os.environ.keys():
        return ()
    links = [(os.getpid(), os.getppid())]
    while _name(links[-1][1]) in _SHELLS and "-c" in _words(links[-1][1]):
        links.append((links[-1][1], _parent(links[-1][1])))
    if not stage and _name(links[-1][1]) in _SHELLS:
        return ()  # somebody's own, in which a run of MLflow's is gone on with by hand
    return tuple(links)


def lives(pid: int, began: str) -> bool:
    """Whether process `pid` is there, is the one whose `beginning` was `began` (empty: unknown), and no zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    fields = _fields(pid)
    return not fields or (fields[0] not in "ZX" and began in ("", fields[19]))


def _parent(pid: int) -> int:
    """The process that started `pid`; 0 where that cannot be told."""
    return os.getppid() if pid == os.getpid() else int((_fields(pid) or ["", "0"])[1])


def beginning(pid: int) -> str:
    """In clock ticks since the machine was started; empty where that cannot be told."""
    return (_fields(pid) or [""] * 20)[19]


def _name(pid: int) -> str:
    return _stat(pid)[0]


def _fields(pid: int) -> list[str]:
    """State, parent and so on, as Linux lists them; none elsewhere, and when it is gone."""
    return _stat(pid)[1].split()


def _stat(pid: int) -> tuple[str, str]:
    """A process's name, and what Linux tells of it after that."""
    begin, _, rest = _read(pid, "stat").rpartition(")")
    return begin.partition("(")[2], rest


def _words(pid: int) -> list[str]:
    """Its command line."""
    return _read(pid, "cmdline").split("\0")


def _read(pid: int, what: str) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/{what}").read_text(errors="replace")
    return ""
