"""The library of this project's kernels for a CPU: compiled by the machine's own C++ compiler when first wanted.

It lies in the user's cache, by a name that tells source, compiler and the CPU's instructions, so that each has its own.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import InputError, complaint
from finetune.processor import cpu_instructions

SOURCE = Path(__file__).with_name("cpu_kernels.cpp")
SOURCES = SOURCE, *sorted(SOURCE.parent.glob("cpu_*.h"))
_SUM = ".sha256"  # ends the name of the file that has a library's SHA-256
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC")
WANTED = "training.cpu_kernels: native"
MEND = "install one (Debian: apt install g++), or set training.cpu_kernels: torch"


@dataclass(frozen=True)
class Built:
    file: Path
    compiler: str  # as it names itself and its version


def available() -> bool:
    """Whether this machine has a C++ compiler; it may yet fail."""
    try:
        return bool(compiler())
    except InputError:
        return False


def compiler() -> list[str]:
    """The command that $CXX names, else c++, g++ or clang++.

    Raises:
        InputError: there is none.
    """
    asked = os.environ.get("CXX", "")
    try:
        named = shlex.split(asked)
    except ValueError as error:
        raise InputError(f"{WANTED}: CXX is {asked}, which is no command ({error}); mend or unset it") from None
    for command in [named] if named else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    found = f"CXX is {asked}, which is no program here" if named else "no C++ compiler on the PATH"
    raise InputError(f"{WANTED}: {found}; {MEND}")


def built() -> Built:
    """The library, compiled unless it is in the cache: `finetune` in $XDG_CACHE_HOME or ~/.cache.

    Raises:
        InputError: there is no compiler (one is needed, too, to tell whether what lies there is its), it fails, or the
            cache cannot be written.
    """
    command = compiler()
    version = next(iter(_run([*command, "--version"]).stdout.splitlines()), "")
    asked = "\0".join((*command, *FLAGS, version, cpu_instructions()))
    sources = b"\0".join(file.read_bytes() for file in SOURCES)
    digest = hashlib.sha256(sources + asked.encode()).hexdigest()[:16]
    folder = _cache() / "finetune"
    file = folder / f"cpu_kernels-{digest}.so"
    if not _is_whole(file):
        print(f"compiling the kernels for this CPU, once: {file}", flush=True)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as aside:  # others may compile at the same time
                made = _compile(command, Path(aside) / file.name)
                (noted := made.with_suffix(_SUM)).write_text(_sum(made), encoding="ascii")
                made.replace(file)
                noted.replace(file.with_suffix(_SUM))
        except OSError as error:
            raise InputError(
                f"{error.filename or folder}: cannot be written ({error.strerror}), expected a folder for compiled "
                "kernels; mend its permissions or name another cache in XDG_CACHE_HOME"
            ) from None
    return Built(file, version)


def _is_whole(file: Path) -> bool:
    """Whether a library is there as it was made: the dynamic linker dies of one that is cut off."""
    try:
        return _sum(file) == file.with_suffix(_SUM).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return False


def _sum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _cache() -> Path:
    named = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(named) if named else Path.home() / ".cache"
    except RuntimeError:  # no HOME, and no such user
        found = "no home folder for a cache of compiled kernels"
        raise InputError(f"{WANTED}: {found}; name one in XDG_CACHE_HOME") from None


def _compile(command: list[str], file: Path) -> Path:
    whole = [*command, *FLAGS, str(SOURCE), "-o", str(file)]
    result = _run(whole)
    if result.returncode:
        first = next(iter(result.stderr.splitlines()), "")
        said = complaint(result.stderr) or first or f"exit code {result.returncode}"
        raise InputError(f"{WANTED}: `{shlex.join(whole)}` failed ({said}); mend that, or {MEND}")
    if not file.is_file():
        raise InputError(f"{WANTED}: `{shlex.join(whole)}` made no library; mend that compiler, or {MEND}")
    return file


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise InputError(f"{WANTED}: {command[0]}: cannot be run ({error.strerror}); mend that, or {MEND}") from None
