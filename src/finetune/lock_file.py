"""dvc.lock, and its mend: DVC writes it in place, so that whatever ends DVC in that second leaves half of it."""

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from finetune.errors import InputError

NAME = "dvc.lock"
_DAMAGED = Path(".finetune", "dvc.lock.damaged")
_QUIET = 2.0  # seconds without a change, after which nobody is writing it
_MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")
_CONFLICT = re.compile(rb"^<<<<<<< ", re.MULTILINE)
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C, where PyYAML has it


def mend(root: Path, say: Callable[[str], None]) -> None:
    """Where DVC cannot read dvc.lock, put back the one last committed, or remove it where git has none that is whole.

    Stages that are done are found again: in DVC's run cache, or finished in their work areas.

    Raises:
        InputError: git left a merge conflict in it, whose other side would be lost.
    """
    file = root / NAME
    content = _read(file)
    if content is not None and _CONFLICT.search(content):
        raise InputError(
            f"{NAME}: has a merge conflict; resolve it, for example with `git checkout --ours {NAME}`, then repeat: "
            "stages that are done come from DVC's run cache"
        )
    while (found := fault(content)) is not None:
        time.sleep(_QUIET)
        before, content = content, _read(file)
        if content == before:
            break
    else:
        return
    (root / _DAMAGED).parent.mkdir(exist_ok=True)
    file.replace(root / _DAMAGED)
    committed = _committed(root)
    whole = committed is not None and fault(committed) is None
    if committed is not None and whole:
        part = file.with_name(f".{NAME}.part")
        part.write_bytes(committed)
        part.replace(file)
    done = "the last committed one is put back" if whole else "git has none that is whole, so there is none now"
    say(
        f"{NAME}: {found}, as is left where DVC ends while it writes it; {done}, and this one is kept as {_DAMAGED}; "
        "stages that are done come from DVC's run cache"
    )


def fault(content: bytes | None) -> str | None:
    """What keeps DVC from reading a dvc.lock of this content; None if nothing does. No file (None) is none."""
    if content is None:
        return None
    try:
        lock = yaml.load(content, _Loader)
    except (yaml.YAMLError, UnicodeDecodeError):
        return "is not valid YAML"
    if not isinstance(lock, dict) or lock.get("schema") != "2.0" or not isinstance(lock.get("stages", {}), dict):
        return "is no list of stages"
    torn = next((name for name, stage in lock.get("stages", {}).items() if not _whole(stage)), None)
    return None if torn is None else f"breaks off in stage {torn}"


def _whole(stage: Any) -> bool:
    try:
        files = [*stage.get("deps", []), *stage.get("outs", [])]
        values = [stage["cmd"], *(value for file in files for value in (file["path"], *file.values()))]
        hashes = [file["md5"] for file in files if "md5" in file]
        params = stage.get("params", {}).values()
    except (AttributeError, KeyError, TypeError):
        return False
    return (
        None not in values
        and all(isinstance(md5, str) and _MD5.fullmatch(md5) for md5 in hashes)
        and all(isinstance(value, dict) for value in params)
    )


def _read(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


def _committed(root: Path) -> bytes | None:
    try:
        return subprocess.run(["git", "show", f"HEAD:./{NAME}"], cwd=root, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
