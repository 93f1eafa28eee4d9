"""Whether what stands in params.yaml or data.dvc is kept elsewhere too: in git's last commit, or under studies/."""

import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from finetune.errors import InputError

_OF_DVC = {"size", "nfiles", "hash"}  # what DVC adds to an out by itself


def require_git(root: Path) -> None:
    """Raise InputError unless git is installed and `root` lies in a work tree of it."""
    try:
        inside = _git(root, "rev-parse", "--is-inside-work-tree")
    except FileNotFoundError:
        raise InputError("git is not installed here, and it tells edits from what is kept; install it") from None
    if inside.returncode or inside.stdout.strip() != b"true":
        said = " ".join(inside.stderr.decode().split())
        raise InputError(
            f"{root.resolve()}: is no git work tree ({said}), which tells edits from what is kept; run this in a "
            "clone, or `git init` and commit first"
        )


def refuse_edits(file: Path, studies: Iterable[Path]) -> None:
    """Raise InputError unless params.yaml or data.dvc is as in git's last commit, as one of `studies`, or not there.

    Of equal content are params that differ in study.name alone, as long as one of the others has that name, and data
    files that differ in what DVC adds by itself.
    """
    if not file.exists():
        return
    shown = _git(file.parent, "cat-file", "--filters", f"HEAD:./{file.name}")
    kept = [path.read_bytes() for path in studies if path.is_file()]
    kept += [] if shown.returncode else [shown.stdout]
    found = file.read_bytes()
    if found in kept or any(same_data(found, other) for other in kept):
        return
    name, rest = _without_name(found)
    others = [_without_name(other) for other in kept]
    if rest and name in [other for other, _ in others] and rest in [other for _, other in others]:
        return
    raise InputError(
        f"{file.name}: has edits that neither git's last commit nor a file under studies/ has; keep them with "
        f"`git commit` or `finetune study new NAME`, or drop them with `git checkout {file.name}`, then repeat the "
        "command"
    )


def same_data(one: bytes, other: bytes) -> bool:
    """Whether two data.dvc differ at most in what DVC adds by itself; comments count."""
    content = _without_sizes(one)
    return content is not None and content == _without_sizes(other)


def name_in(params: bytes) -> tuple[str, int, int]:
    """The text of a params file, and where in it the value of study.name begins and ends.

    Raises:
        ValueError: it has none.
        yaml.YAMLError: it is no YAML.
    """
    text = params.decode()
    node = yaml.compose(text, yaml.SafeLoader)
    for key in ("study", "name"):
        entries = node.value if isinstance(node, yaml.MappingNode) else []
        node = next((value for found, value in entries if found.value == key), None)
    if node is None:
        raise ValueError("no study.name")
    return text, node.start_mark.index, node.end_mark.index


def _without_name(params: bytes) -> tuple[str, str]:
    """study.name, and the rest; of what is no params file, nothing."""
    try:
        text, start, end = name_in(params)
    except (ValueError, yaml.YAMLError):
        return "", ""
    return text[start:end].strip("'\""), f"{text[:start]}\0{text[end:]}"


def _without_sizes(data: bytes) -> Any:
    try:
        content = yaml.safe_load(data)
        outs = [{key: value for key, value in out.items() if key not in _OF_DVC} for out in content.pop("outs")]
        return content, outs, [line for line in data.decode().splitlines() if "#" in line]
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError):
        return None


def _git(root: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", *words], cwd=root, capture_output=True, check=False)
