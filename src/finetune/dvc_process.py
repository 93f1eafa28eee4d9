"""DVC as processes below this one, none of which outlasts it for long.

Each is in a session of its own and gets SIGINT when this process is told to end: then its stage saves, and DVC ends
because the stage has failed. SIGTERM and SIGHUP end DVC in whatever it is at, be it the writing of dvc.lock, and never
reach the stage. Where this process is killed the stages see it themselves: `interruption.end_with_starter`.
"""

import fcntl
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from finetune import starter
from finetune.errors import InputError
from finetune.interruption import at_worst
from finetune.unsignalled import communicated, signals_later

_ANOTHER = "another `finetune study run` or `study use`"
PATIENCE = 15.0  # seconds in which a stage that is told to end has saved


class _Now:
    """What this process has below it."""

    under_way: set[subprocess.Popen[str]] = set()  # noqa: RUF012
    locks: tuple[int, ...] = ()


def start(
    command: Sequence[str],
    root: Path,
    environment: Mapping[str, str],
    stdout: int | None = None,
    stderr: int | None = None,
) -> subprocess.Popen[str]:
    """Start DVC; to be given to `ended` when it has."""
    with signals_later():
        process = subprocess.Popen(
            command,
            cwd=root,
            env={**environment, **starter.environment()},
            stdout=stdout,
            stderr=stderr,
            text=True,
            start_new_session=True,
            pass_fds=_Now.locks,
        )
        _Now.under_way.add(process)
    return process


def ended(process: subprocess.Popen[str]) -> None:
    _Now.under_way.discard(process)


def run(
    command: Sequence[str],
    root: Path,
    environment: Mapping[str, str],
    stdout: int | None = None,
    stderr: int | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run DVC to its end; without pipes (subprocess.PIPE) its output is the user's.

    Whatever unwinds this process interrupts it; what has not ended `PATIENCE` seconds later is killed.
    """
    others = set(_Now.under_way)
    try:
        with at_worst(lambda: _kill(*_Now.under_way - others)):
            try:
                process = start(command, root, environment, stdout, stderr)
                out, err = communicated(process)
            except BaseException:
                with signals_later(dropped=True):  # a second Ctrl-C would leave it to itself
                    interrupt()
                    _end_in_time(_Now.under_way - others)  # a signal may have kept it from being named here
                raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)
    finally:
        _kill(*(process for process in _Now.under_way - others if process.poll() is None))
        _Now.under_way.intersection_update(others)


def _end_in_time(told: Collection[subprocess.Popen[str]]) -> None:
    """Kill those that do not end, such as a DVC that waits for another's lock."""
    until = time.monotonic() + PATIENCE
    for process in told:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            _kill(process)


def interrupt(number: int = signal.SIGINT) -> None:
    """Send a signal, such as Ctrl-C's, to every DVC that is under way and to the stage beneath it."""
    for process in tuple(_Now.under_way):
        with suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(process.pid, number)


def interrupt_with_patience(patience: float = PATIENCE) -> None:
    """Interrupt, and kill what does not end in so many seconds, such as a DVC that waits for another's lock."""
    told = set(_Now.under_way)
    interrupt()

    def kill() -> None:
        for process in told & _Now.under_way:  # not what was started since
            _kill(process)

    if told:
        timer = threading.Timer(patience, kill)
        timer.daemon = True
        timer.start()


def _kill(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(process.pid, signal.SIGKILL)


def say_if_locked(root: Path, say: Callable[[str], None]) -> None:
    """Tell that a DVC which is not ours holds DVC's lock, for which ours would wait without a word."""
    path = root / ".dvc" / "tmp" / "lock"
    try:
        lock = os.open(path, os.O_RDWR)
    except OSError:  # nobody has ever held it
        return
    try:
        if not _take(lock):
            say(f"another DVC command is at work here and holds {path}; waiting for its end")
    finally:
        os.close(lock)


@contextmanager
def alone(root: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Within, no other process of `root` is here, nor any DVC that one has left behind; waits a little for their end.

    What the shell has this process do, the DVCs do as well: Ctrl-Z stops them, too. Where it has Ctrl-C ignored (`&` in
    a script), they do not ignore it: it is how they are told to end.

    Raises:
        InputError: another is at work.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTSTP)}
    with locked(root, say) as lock:
        try:
            _Now.locks = (lock,)  # DVC holds it, too, until it ends; its stages do not
            if before[signal.SIGINT] == signal.SIG_IGN:
                signal.signal(signal.SIGINT, lambda *_: None)  # unlike SIG_IGN it is not inherited
            if before[signal.SIGTSTP] != signal.SIG_IGN:
                signal.signal(signal.SIGTSTP, _pause)
            yield
        finally:
            _Now.locks = ()
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def locked(root: Path, say: Callable[[str], None]) -> Iterator[int]:
    """Within, no other process of `root` changes what stages read; waits a little for its end.

    Raises:
        InputError: another is at work.
    """
    path = root / ".finetune" / "study.lock"
    path.parent.mkdir(exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _take(lock):
            say(f"{_ANOTHER} is at work here, or about to end; waiting {PATIENCE:.0f} s for that")
        until = time.monotonic() + PATIENCE
        while not _take(lock):
            if time.monotonic() > until:
                raise InputError(f"{_ANOTHER} is at work here; wait for its end, or stop it first")
            time.sleep(0.1)
        yield lock
    finally:
        os.close(lock)


def _take(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _pause(_: int, __: FrameType | None) -> None:
    interrupt(signal.SIGSTOP)
    try:
        os.kill(os.getpid(), signal.SIGSTOP)  # until SIGCONT
    finally:  # also where it is then told to end: what stands still could not
        interrupt(signal.SIGCONT)
