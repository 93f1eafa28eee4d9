"""samples/dvc-remote, which is in git and holds the sample's archives alone: nothing of a user's is pushed there.

An out goes to the remote that it names, and DVC keeps that name when an out's hash becomes another.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from finetune.errors import InputError

NAME = "sample"
_FOLDER = Path("samples", "dvc-remote")


def check(root: Path, file: Path) -> None:
    """Raise InputError where an out of `file`, a data.dvc, names the samples' remote but is none of theirs.

    A file that is absent or not as DVC writes it passes: whoever reads it says so.
    """
    try:
        outs = yaml.safe_load(file.read_text(encoding="utf-8"))["outs"]
        strays = {str(out["path"]): out.get("md5") for out in outs if _is_stray(root, out)}
    except (FileNotFoundError, yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError):
        return
    if strays:
        listed = ", ".join(f"{path} ({md5 or 'no hash yet'})" for path, md5 in strays.items())
        raise InputError(
            f"{file.relative_to(root).as_posix()}: {listed}: has `remote: {NAME}`, though {_FOLDER.as_posix()} does "
            f"not hold this version, so `dvc push` would write it into samples/, which is in git; delete the line "
            f"`remote: {NAME}` of that out, then repeat the command"
        )


def without_strays(root: Path, data: bytes) -> bytes:
    """A data.dvc in which only the samples' own outs name their remote; what is no data.dvc, as it is."""
    try:
        text = data.decode()
        node = yaml.compose(text, yaml.SafeLoader)
        outs = yaml.safe_load(text)["outs"]
        entries = node.value if isinstance(node, yaml.MappingNode) else []
        nodes = next((value for key, value in entries if key.value == "outs")).value
        strays = [mapping.value for mapping, out in zip(nodes, outs, strict=True) if _is_stray(root, out)]
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError, ValueError, StopIteration):
        return data
    for pairs in reversed(strays):  # so that the places before stay right
        at = next(i for i, (key, _) in enumerate(pairs) if key.value == "remote")
        if at + 1 < len(pairs):
            begin, end = pairs[at][0].start_mark.index, pairs[at + 1][0].start_mark.index
        else:
            begin, end = pairs[at - 1][1].end_mark.index, pairs[at][1].end_mark.index
        text = text[:begin] + text[end:]
    return text.encode()


def _is_stray(root: Path, out: Mapping[str, Any]) -> bool:
    remote, md5 = root / _FOLDER, str(out.get("md5") or "")
    if out.get("remote") != NAME or not remote.is_dir():
        return False
    return not (remote / "files" / "md5" / md5[:2] / md5[2:]).is_file()
