"""Ending a training that is told to: by SIGTERM, Ctrl-C or SIGHUP, or because the DVC that started it is gone.

A run's state is saved only between the stretches in which it changes (a step, the end of an epoch): within `held`, a
signal waits for the end of the stretch. Elsewhere it takes effect at once, as `Interrupted`.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

PATIENCE = 6.0  # seconds from the signal in which the step must end and the checkpoint be saved
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_SHELLS = {"sh", "bash", "dash", "zsh", "ksh", "ash", "fish"}


class Interrupted(SystemExit):
    """The process is to end, with exit code 128 + the signal's number as shells have it (143, 130, 129)."""

    def __init__(self, number: int, torn: bool = False) -> None:
        """`torn`: what was under way did not end in time, so that the run's state is half changed."""
        super().__init__(128 + number)
        self.signal = signal.Signals(number).name
        self.torn = torn


class _Now:
    """What the process is about; there is one, as signals go to the process."""

    received: int | None = None
    held = False
    over = False
    parents: tuple[tuple[int, int], ...] = ()


@contextmanager
def handled() -> Iterator[None]:
    """Within, the signals that end a process raise `Interrupted` when it is safe; to be entered by the main thread.

    Signals that whoever started the process has it ignore (`nohup`, `&` in scripts) stay ignored.
    """
    before = {number: signal.getsignal(number) for number in _ENDING}
    ours = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    _Now.received, _Now.held, _Now.over = None, False, False
    alarm = signal.signal(signal.SIGALRM, _out_of_time)
    for number in ours:
        signal.signal(number, _receive)
    end_with_dvc()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if _Now.received is None:  # else the process is ending, and no second signal shall hinder it
            for number, old in (ours | {signal.SIGALRM: alarm}).items():
                signal.signal(number, old)


class held:
    """Within, the run's state changes: an interruption waits for the end, and for `PATIENCE` seconds at most."""

    def __init__(self, last: bool = False) -> None:
        """`last`: the process is ending already; nothing more is waited for."""
        self._last = last

    def __enter__(self) -> None:
        if not self._last:
            check()
        _Now.held = True

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        _Now.held = False
        if kind is None and not self._last:
            check()


@contextmanager
def finishing() -> Iterator[None]:
    """Within, the training is whole and about to end by itself: an interruption would only lose it."""
    _Now.over = True
    try:
        yield
    finally:
        _Now.over = False


def check() -> None:
    """Raise `Interrupted` if a signal waits, or DVC is gone."""
    if _Now.received is None and not all(_parent(pid) == parent for pid, parent in _Now.parents):
        _Now.received = signal.SIGTERM
    if _Now.received is not None:
        raise Interrupted(_Now.received)


def end_with_dvc() -> None:
    """Have this process end as by SIGTERM once the DVC that runs it as a stage is gone.

    DVC passes no signal on: its stage would work on unseen, beside whatever the next `dvc repro` starts.
    """
    if "DVC_STAGE" not in os.environ or _Now.parents:
        return
    # DVC starts a stage through a shell: bash and zsh become the stage's process, dash stays between the two.
    links = [(os.getpid(), os.getppid())]
    while _name(links[-1][1]) in _SHELLS:
        links.append((links[-1][1], _parent(links[-1][1])))
    _Now.parents = tuple(links)
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    while all(_parent(pid) == parent for pid, parent in _Now.parents):
        time.sleep(0.5)
    if _Now.received is None:
        os.kill(os.getpid(), signal.SIGTERM)


def _receive(number: int, _: FrameType | None) -> None:
    if _Now.received is not None:
        return  # it is ending already
    _Now.received = number
    if _Now.over:
        return
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    if not _Now.held:
        raise Interrupted(number)


def _out_of_time(*_: object) -> None:
    if _Now.held and _Now.received is not None:
        raise Interrupted(_Now.received, torn=True)


def _parent(pid: int) -> int:
    """The process that started `pid`; 0 where that cannot be told."""
    return os.getppid() if pid == os.getpid() else int((_stat(pid)[1].split() or ["", "0"])[1])


def _name(pid: int) -> str:
    return _stat(pid)[0]


def _stat(pid: int) -> tuple[str, str]:
    """A process's name, and what Linux tells of it after that; both empty elsewhere, and when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "", ""
    begin, _, rest = text.rpartition(")")
    return begin.partition("(")[2], rest
