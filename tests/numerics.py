"""What decides a training's numbers, file by file, as SHA-256 of its code without comments and docstrings.

    python tests/numerics.py

records it beside study.NUMERICS_VERSION in numerics.json.
"""

import ast
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
RECORD = Path(__file__).with_suffix(".json")
CPP = ".cpp", ".h"


def modules() -> list[str]:
    """The code that dvc.yaml names for stage train, and the plans, of which it has notes."""
    named = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["train"]["deps"]
    plans = (path.relative_to(ROOT).as_posix() for path in (ROOT / "src/finetune/strategies").glob("*.py"))
    return sorted({path for path in named if path.endswith((".py", *CPP))} | set(plans))


def digests() -> dict[str, str]:
    of = {".py": digest, **dict.fromkeys(CPP, digest_of_cpp)}
    return {path: of[Path(path).suffix]((ROOT / path).read_text()) for path in modules()}


def digest_of_cpp(source: str) -> str:
    """Of its words; comments are of the kind that ends with the line."""
    words = re.sub("//.*", "", source).split()
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]


def digest(source: str) -> str:
    return hashlib.sha256(json.dumps(_plain(ast.parse(source))).encode()).hexdigest()[:16]


def _plain(node: Any) -> Any:
    """A syntax tree as lists, without docstrings and what is empty, which Python's versions have differently."""
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    return [type(node).__name__, *([name, _plain(value)] for name, value in _fields(node))]


def _fields(node: ast.AST) -> Iterator[tuple[str, Any]]:
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            value = value[ast.get_docstring(node, clean=False) is not None :]  # noqa: PLW2901
        if value is not None and value != []:
            yield name, value


def main() -> None:
    sys.path.insert(0, str(ROOT / "src"))
    from finetune.study import NUMERICS_VERSION

    RECORD.write_text(json.dumps({"version": NUMERICS_VERSION, "modules": digests()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
