"""data.dvc: which archives DVC tracks, and by which hash."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from finetune.errors import InputError

NAME = "data.dvc"


def outs(root: Path) -> dict[str, dict[str, Any]]:
    """The entries under `outs` by their path; none where there is no data.dvc at `root`.

    Raises:
        InputError: the file is not as DVC writes it.
    """
    file = root / NAME
    if not file.is_file():
        return {}
    try:
        return {str(out["path"]): out for out in yaml.safe_load(file.read_text(encoding="utf-8"))["outs"]}
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        raise InputError(
            f"{file}: found no list of outs with a path each, which `dvc repro` needs too; bring it back with "
            f"`git checkout {NAME}`"
        ) from None


def folder_md5(root: Path, dataset: str, archives: Mapping[str, str]) -> str | None:
    """The hash by which data.dvc knows the folder of a data set, `<32 hex digits>.dir`.

    Args:
        archives: file name -> md5 of the archives that were read.

    Returns:
        None where data.dvc does not list the folder, or by now tracks other archives in it.
    """
    out = outs(root).get(f"data/{dataset}", {})
    # As DVC hashes a folder. One that holds more files than the archives cannot be compared.
    listed = [{"md5": archives[name], "relpath": name} for name in sorted(archives)]
    own = hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"
    found = out.get("md5")
    return found if found == own or out.get("nfiles") != len(archives) else None
