"""Compiling this project's kernels for a CPU: once, by the compiler that there is, with clear words where it fails."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from finetune import cpu_kernels, kernel_library
from finetune.errors import InputError

CXX = shlex.join(kernel_library.compiler()) if kernel_library.available() else ""
needs_compiler = pytest.mark.skipif(not kernel_library.available(), reason="no C++ compiler")


@pytest.fixture(autouse=True)
def _a_cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Without optimisation a compiler takes a third of the time.
    monkeypatch.setattr(kernel_library, "FLAGS", tuple(flag for flag in kernel_library.FLAGS if flag != "-O3"))


def load() -> None:
    cpu_kernels.load.__wrapped__()  # not what this process has loaded already


def libraries(folder: Path) -> list[Path]:
    return sorted((folder / "cache" / "finetune").glob("*.so"))


def program(folder: Path, code: str) -> Path:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{code}\n")
    path.chmod(0o755)
    return path


@needs_compiler
def test_they_are_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    monkeypatch.setenv("CXX", str(program(tmp_path, f'echo "$@" >> {log}; exec {CXX} "$@"')))
    load()
    load()
    asked = [line for line in log.read_text().splitlines() if "--version" not in line]
    assert len(asked) == 1
    assert "-march=native" in asked[0]
    assert {path.suffix for path in (tmp_path / "cache" / "finetune").iterdir()} == {".so", ".sha256"}
    assert len(libraries(tmp_path)) == 1


@needs_compiler
def test_another_compiler_or_other_arguments_of_it_compile_them_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load()
    monkeypatch.setenv("CXX", f"{CXX} -g")
    load()
    assert len(libraries(tmp_path)) == 2


@needs_compiler
def test_another_header_compiles_them_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load()
    header = tmp_path / "cpu_lanes.h"
    header.write_text("// other words\n")
    monkeypatch.setattr(kernel_library, "SOURCES", (*kernel_library.SOURCES[:-1], header))
    load()
    assert len(libraries(tmp_path)) == 2


@needs_compiler
def test_processes_at_once_do_not_see_each_others_halves(tmp_path: Path) -> None:
    code = "from finetune import cpu_kernels; cpu_kernels.load()"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    several = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(3)]
    assert [one.wait() for one in several] == [0, 0, 0]
    assert len(libraries(tmp_path)) == 1


def test_without_a_compiler_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert not kernel_library.available()
    with pytest.raises(InputError, match=r"cpu_kernels: native: no C\+\+ compiler on the PATH; install one .*g\+\+"):
        load()


def test_a_compiler_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O3")
    assert not kernel_library.available()
    with pytest.raises(InputError, match=r"CXX is no-such-compiler -O3, which is no program here; install one"):
        load()


def test_a_compiler_that_is_no_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "c++ '-g")
    assert not kernel_library.available()
    with pytest.raises(InputError, match=r"CXX is c\+\+ '-g, which is no command \(No closing quotation\)"):
        load()


def test_a_compiler_that_cannot_be_run_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = program(tmp_path, "")
    broken.write_bytes(b"\x7fELF")
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(InputError, match=r"/compiler: cannot be run \(Exec format error\); mend that, or install one"):
        load()


def test_without_a_home_the_cache_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("CXX", str(program(tmp_path, "true")))
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(InputError, match="no home folder for a cache of compiled kernels; name one in XDG_CACHE_HOME"):
        load()


def test_what_the_compiler_complains_of_is_passed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failing = program(tmp_path, "echo note >&2; echo 'x.cpp: error: no vectors' >&2; exit 1")
    monkeypatch.setenv("CXX", str(failing))
    with pytest.raises(InputError, match=r"failed \(x\.cpp: error: no vectors\); mend that, or install one"):
        load()
    assert list((tmp_path / "cache" / "finetune").iterdir()) == []


@needs_compiler
def test_a_library_that_was_cut_off_is_compiled_again(tmp_path: Path) -> None:
    load()
    (library,) = libraries(tmp_path)
    whole = library.read_bytes()
    (half := library.with_suffix(".half")).write_bytes(whole[: len(whole) // 2])
    half.replace(library)  # not into the file that this process has mapped
    load()
    assert libraries(tmp_path) == [library]
    assert len(library.read_bytes()) == len(whole)


@needs_compiler
def test_a_library_without_the_kernels_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    empty = f'while [ "$1" != -o ] && shift; do :; done; exec {CXX} -shared -x c++ /dev/null -o "${{2:-/dev/null}}"'
    monkeypatch.setenv("CXX", str(program(tmp_path, empty)))
    with pytest.raises(InputError, match=r"\.so: cannot be loaded \(.*undefined symbol: batchnorm_forward_float\)"):
        load()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("exit 0", r"made no library; mend that compiler, or install one"),
        ("exit 3", r"failed \(exit code 3\); mend that"),
        ("kill -9 $$", r"failed \(exit code -9\); mend that"),
        (r"printf 'error: \377\n' >&2; exit 1", "failed \\(error: \ufffd\\); mend that"),
    ],
)
def test_a_compiler_that_makes_nothing_is_named(
    code: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", str(program(tmp_path, f'[ "$1" = --version ] || {{ {code}; }}')))
    with pytest.raises(InputError, match=said):
        load()


def test_what_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(
        "CXX", str(program(tmp_path, 'while [ "$1" != -o ] && shift; do :; done; echo > "${2:-/dev/null}"'))
    )
    with pytest.raises(InputError, match=r"cpu_kernels-\w+\.so: cannot be loaded \(.*\); remove it, or install one"):
        load()


def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("CXX", str(program(tmp_path, "true")))
    with pytest.raises(InputError, match=r"file/finetune: cannot be written \(Not a directory\).*XDG_CACHE_HOME"):
        load()


def test_what_is_compiled_is_what_the_digest_is_of_and_what_dvc_watches() -> None:
    folder, wanted, seen = kernel_library.SOURCE.parent, [kernel_library.SOURCE.name], set()
    while wanted:
        seen.add(name := wanted.pop())
        wanted += {*re.findall(r'#include "(.+)"', (folder / name).read_text())} - seen
    assert {file.name for file in kernel_library.SOURCES} == seen
    stages = yaml.safe_load((Path(__file__).parents[1] / "dvc.yaml").read_text())["stages"]
    watched = {Path(path).name for path in stages["train"]["deps"] if path.endswith((".h", ".cpp"))}
    assert watched == seen
