"""DVC below this process, with a stand-in: how it is ended, paused and kept from being left behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import zc.lockfile

from finetune import dvc_process
from finetune.errors import InputError
from waiting import until

SOURCE = str(Path(dvc_process.__file__).parents[1])
# Says when it is ready and when it gets SIGINT, and then ends.
DVC = """
import pathlib, signal, sys, time
name, seconds = sys.argv[1], float(sys.argv[2])
signal.signal(signal.SIGINT, lambda *_: pathlib.Path(f"{name}.interrupted").touch() or sys.exit(130))
pathlib.Path(f"{name}.began").touch()
time.sleep(seconds)
pathlib.Path(f"{name}.ended").touch()
"""


@pytest.fixture
def dvc(tmp_path: Path) -> list[str]:
    script = tmp_path / "dvc.py"
    script.write_text(DVC)
    return [sys.executable, str(script)]


def outer(root: Path, code: str) -> subprocess.Popen[str]:
    """A process that runs `code` in the folder `root`; SIGTERM unwinds it as an exit."""
    head = """
        import os, signal, sys
        from pathlib import Path
        from finetune import dvc_process
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        root = Path.cwd()
        environment = dict(os.environ)
    """
    environment = os.environ | {"PYTHONPATH": SOURCE}
    command = [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(code)]
    return subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True)


def test_what_does_not_end_when_it_is_told_to_is_killed_and_what_began_since_is_not(
    dvc: list[str], tmp_path: Path
) -> None:
    deaf = tmp_path / "deaf.py"
    deaf.write_text(
        "import pathlib, signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "pathlib.Path('deaf.began').touch()\ntime.sleep(30)"
    )
    first = dvc_process.start([sys.executable, str(deaf)], tmp_path, os.environ)
    until((tmp_path / "deaf.began").exists)
    dvc_process.interrupt_with_patience(0.5)
    later = dvc_process.start([*dvc, "later", "2"], tmp_path, os.environ)
    assert first.wait(10) == -signal.SIGKILL
    assert later.wait(10) == 0
    for process in (first, later):
        dvc_process.ended(process)


WITHIN_SECONDS = "dvc_process.PATIENCE = 0.5\n"
AT_WORST = """
from finetune import interruption, last_resort
last_resort.WARNING, last_resort.LIMIT = 0.5, 1.0
with interruption.handled(): """


@pytest.mark.parametrize("way", [WITHIN_SECONDS, AT_WORST], ids=["within seconds", "at worst"])
def test_the_one_dvc_of_a_process_that_ends_is_killed_where_it_does_not_end(way: str, tmp_path: Path) -> None:
    deaf = tmp_path / "deaf.py"
    deaf.write_text(
        "import os, pathlib, signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "pathlib.Path('part').write_text(str(os.getpid()))\npathlib.Path('part').rename('deaf.pid')\ntime.sleep(30)"
    )
    run = f"dvc_process.run([sys.executable, {str(deaf)!r}], root, environment)"
    process = outer(tmp_path, way + run)
    until((tmp_path / "deaf.pid").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 143
    number = int((tmp_path / "deaf.pid").read_text())
    until(lambda: not psutil.pid_exists(number) or psutil.Process(number).status() == psutil.STATUS_ZOMBIE)


def test_that_another_dvc_holds_the_lock_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    dvc_process.say_if_locked(tmp_path, said.append)
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    held = zc.lockfile.LockFile(str(tmp_path / ".dvc" / "tmp" / "lock"))  # as DVC does
    assert said == []
    dvc_process.say_if_locked(tmp_path, said.append)
    (line,) = said
    assert line.startswith("another DVC command is at work here and holds")
    held.close()
    dvc_process.say_if_locked(tmp_path, said.append)
    assert len(said) == 1


def test_what_has_ended_by_itself_does_not_keep_the_others_from_being_interrupted(
    dvc: list[str], tmp_path: Path
) -> None:
    started = [dvc_process.start([*dvc, name, "0"], tmp_path, os.environ) for name in ("a", "b")]
    for process in started:
        process.wait()  # and not yet given to `ended`
    started.append(dvc_process.start([*dvc, "last", "30"], tmp_path, os.environ))
    until((tmp_path / "last.began").exists)
    dvc_process.interrupt()
    assert [process.wait(10) for process in started] == [0, 0, 130]
    for process in started:
        dvc_process.ended(process)


def test_what_it_says_and_its_exit_code_are_given_back(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; print('a'); sys.exit(3)"]
    done = dvc_process.run(command, tmp_path, os.environ, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (3, "a\n")


def test_dvc_is_interrupted_and_waited_for_where_this_process_is_told_to_end(dvc: list[str], tmp_path: Path) -> None:
    process = outer(tmp_path, f"dvc_process.run([*{dvc!r}, 'one', '30'], root, environment)")
    until((tmp_path / "one.began").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 143
    assert (tmp_path / "one.interrupted").exists()


def test_a_dvc_that_is_being_started_as_this_process_is_told_to_end_is_ended_too(
    dvc: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[subprocess.Popen[str]] = []
    start = subprocess.Popen

    def told(*given: Any, **more: Any) -> subprocess.Popen[str]:
        begun.append(start(*given, **more))
        until((tmp_path / "one.began").exists)
        os.kill(os.getpid(), signal.SIGINT)
        return begun[0]

    monkeypatch.setattr(subprocess, "Popen", told)
    with pytest.raises(KeyboardInterrupt):
        dvc_process.run([*dvc, "one", "30"], tmp_path, os.environ)
    assert begun[0].poll() == 130
    assert (tmp_path / "one.interrupted").exists()


def test_a_second_ctrl_c_does_not_leave_a_dvc_that_heeds_none(tmp_path: Path) -> None:
    deaf = (
        "import signal, time, pathlib; signal.signal(2, signal.SIG_IGN); pathlib.Path('began').touch(); time.sleep(60)"
    )
    code = f"dvc_process.PATIENCE = 2.0\ndvc_process.run([sys.executable, '-c', {deaf!r}], root, environment)"
    process = outer(tmp_path, code)
    until((tmp_path / "began").exists)
    [below] = psutil.Process(process.pid).children()
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    process.communicate(timeout=20)
    assert not psutil.wait_procs([below], timeout=5)[1]


def test_where_ctrl_c_is_ignored_dvc_still_ends_when_told(dvc: list[str], tmp_path: Path) -> None:
    code = f"""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a script's shell has it for `make study &`
        with dvc_process.alone(root, print):
            dvc_process.run([*{dvc!r}, 'one', '30'], root, environment)
    """
    script = tmp_path / "dvc.py"
    script.write_text(DVC.replace("signal.signal(", "signal.getsignal(2) == signal.SIG_IGN or signal.signal("))
    process = outer(tmp_path, code)
    until((tmp_path / "one.began").exists)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None and not (tmp_path / "one.interrupted").exists()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 143
    assert (tmp_path / "one.interrupted").exists()


def stopped(dvc: list[str], root: Path, seconds: float) -> subprocess.Popen[str]:
    """A process that Ctrl-Z has stopped, with a DVC below it that takes so long."""
    code = f"""
        with dvc_process.alone(root, print):
            dvc_process.run([*{dvc!r}, 'one', '{seconds}'], root, environment)
    """
    process = outer(root, code)
    until((root / "one.began").exists)
    [below] = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGTSTP)
    for each in (below, psutil.Process(process.pid)):
        until(lambda each=each: each.status() == psutil.STATUS_STOPPED)
    return process


def test_ctrl_z_stops_dvc_too_until_it_goes_on(dvc: list[str], tmp_path: Path) -> None:
    process = stopped(dvc, tmp_path, 3)
    process.send_signal(signal.SIGCONT)
    assert process.wait(10) == 0
    assert (tmp_path / "one.ended").exists()


def test_what_is_told_to_end_while_it_stands_still_lets_dvc_go_on_to_its_end(dvc: list[str], tmp_path: Path) -> None:
    process = stopped(dvc, tmp_path, 30)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    assert process.wait(10) == 143
    assert (tmp_path / "one.interrupted").exists()


# One at a time


def test_a_second_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dvc_process, "PATIENCE", 0.3)
    said: list[str] = []
    with (
        dvc_process.alone(tmp_path, said.append),
        pytest.raises(InputError, match="another `finetune study run` or `study use` is at work here"),
        dvc_process.alone(tmp_path, said.append),
    ):
        pytest.fail("two at once")
    assert len(said) == 1
    with dvc_process.alone(tmp_path, said.append):
        pass
    assert len(said) == 1


def test_one_waits_for_the_dvc_that_a_killed_one_has_left(dvc: list[str], tmp_path: Path) -> None:
    code = f"""
        with dvc_process.alone(root, print):
            dvc_process.run([*{dvc!r}, 'one', '1.5'], root, environment)
    """
    process = outer(tmp_path, code)
    until((tmp_path / "one.began").exists)
    process.kill()
    process.wait()
    said: list[str] = []
    with dvc_process.alone(tmp_path, said.append):
        assert (tmp_path / "one.ended").exists()
    assert len(said) == 1


def test_the_signals_are_as_before_afterwards(tmp_path: Path) -> None:
    numbers = (signal.SIGINT, signal.SIGTSTP)
    before = [signal.getsignal(number) for number in numbers]
    with dvc_process.alone(tmp_path, print):
        assert [signal.getsignal(number) for number in numbers] != before
    assert [signal.getsignal(number) for number in numbers] == before
