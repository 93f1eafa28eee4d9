"""studies/: whole params files with their data.dvc; puts one in place where nothing is lost, and starts new ones."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from finetune import data_file, data_version, datasets, dvc_process, edits, sample_remote
from finetune.errors import InputError, suggest
from finetune.params_file import NAME

Say = Callable[[str], None]

PARAMS = "params.yaml"
_DATA = ".data.yaml"  # not .dvc: DVC collects every file of that name


def names(root: Path) -> list[str]:
    """The studies under studies/, sorted."""
    files = (root / "studies").glob("*.yaml")
    return sorted(file.stem for file in files if not file.name.endswith(_DATA))


def file_of(root: Path, name: str) -> Path:
    """The params file of study `name`.

    Raises:
        InputError: there is no such study.
    """
    known = names(root)
    if not known:
        raise InputError("studies/: found no study there; run this in the repository's root")
    if name not in known:
        raise InputError(f"studies/{name}.yaml: no such study; {suggest(name, known)}")
    return root / "studies" / f"{name}.yaml"


def use(root: Path, name: str, say: Say = print) -> None:
    """Put study `name` at params.yaml, its data.dvc, if it has one, at data.dvc, and what that lists in data/.

    Stopped at any point, the same call goes on from there.

    Raises:
        InputError: there is no such study; params.yaml, data.dvc or a file in data/ is kept nowhere else; a list of
            data would have `dvc push` write into samples/; or another one, or a study, is at work here.
    """
    study = file_of(root, name)
    data, data_dvc = study.with_name(f"{name}{_DATA}"), root / data_file.NAME
    edits.require_git(root)
    with _alone(root), dvc_process.locked(root, say):  # beside no `study run`, whose stages read params.yaml anew
        edits.refuse_edits(root / PARAMS, [file_of(root, known) for known in names(root)])
        if not data.is_file():
            _put(study, root / PARAMS)
            say(f"study {name}: params.yaml is in place; data.dvc stays, for there is no studies/{data.name}")
            say("next: `make study`")
            return
        sample_remote.check(root, data_dvc)
        sample_remote.check(root, data)
        edits.refuse_edits(data_dvc, sorted(data.parent.glob(f"*{_DATA}")))
        outs = _outs(data)
        change = data_version.change(root, outs, say)
        if not (data_dvc.is_file() and edits.same_data(data_dvc.read_bytes(), data.read_bytes())):
            _put(data, data_dvc)
        _put(study, root / PARAMS)
        placed = data_version.make(root, outs, change, say)
    ways = ((placed.right, "as it was"), (placed.brought, "brought"), (placed.missing, "missing"))
    came = [f"{', '.join(Path(path).name for path in paths)} {how}" for paths, how in ways if paths]
    say(f"study {name}: params.yaml and data.dvc are in place; in data/: {'; '.join(came)}")
    say(f"next: {_bring(placed.missing, _edition(study))}`make study`")


def new(root: Path, name: str, origin: str | None = None, say: Say = print) -> None:
    """Write studies/NAME.yaml and its data.dvc: the ones in place, or those of study `origin`.

    Outs that are not the samples' lose `remote: sample`.

    Raises:
        InputError: the name is taken or cannot be one, there is no `origin`, or its params file has no study.name.
    """
    if not re.fullmatch(NAME, name) or f"{name}.yaml".endswith(_DATA):
        raise InputError(
            f"'{name}' cannot be a study's name; choose one of letters, digits, '.', '_' and '-' that begins with none "
            "of '.' and '-' and does not end in .data"
        )
    source = file_of(root, origin) if origin else root / PARAMS
    data = root / "studies" / f"{origin}{_DATA}"
    data = data if origin and data.is_file() else root / data_file.NAME
    study, own_data = root / "studies" / f"{name}.yaml", root / "studies" / f"{name}{_DATA}"
    text = _renamed(source, name)
    content = sample_remote.without_strays(root, data.read_bytes()) if data.is_file() else None
    # The data file is written first: one without its study that is as it would be now is what a stopped call left.
    if study.exists() or (own_data.exists() and own_data.read_bytes() != content):
        there = study if study.exists() else own_data
        raise InputError(f"studies/{there.name}: is there already and was left as it is; choose another name")
    study.parent.mkdir(exist_ok=True)
    if content is not None:
        _write(own_data, content)
    _write(study, text.encode())
    written = [f"studies/{file.name}" for file in (study, own_data) if file.is_file()]
    sources = [file.relative_to(root).as_posix() for file in (source, data) if file.is_file()]
    say(f"{' and '.join(written)}: written, from {' and '.join(sources)}")
    say(f"next: edit, then `finetune study use {name}`")


def _renamed(params: Path, name: str) -> str:
    """The text of a params file under another study.name."""
    try:
        text, start, end = edits.name_in(params.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"{params}: no such file; run this in the repository's root, or name a study with --from"
        ) from None
    except (ValueError, yaml.YAMLError):
        raise InputError(f"{params}: found no study.name to replace; add it") from None
    plain = re.match("[A-Za-z_]", name) and yaml.safe_load(name) == name
    return text[:start] + (name if plain else json.dumps(name)) + text[end:]


def _outs(data: Path) -> dict[str, dict[str, Any]]:
    try:
        return {str(out["path"]): dict(out) for out in yaml.safe_load(data.read_text(encoding="utf-8"))["outs"]}
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError):
        raise InputError(
            f"studies/{data.name}: found no list of outs with a path each, as data.dvc has it; mend it"
        ) from None


def _edition(study: Path) -> str:
    section = (yaml.safe_load(study.read_bytes()) or {}).get("study") or {}
    return str(section.get("edition", "official"))


def _bring(missing: list[str], edition: str) -> str:
    known = [name for path in missing if (name := Path(path).name) in datasets.names()]
    own = [path for path in missing if Path(path).name not in known]
    whence = " --edition reduced --from FOLDER" if edition == "reduced" else ""  # it has no links
    ways = [f"`finetune fetch {' '.join(known)}{whence}`"] if known else []
    ways += [f"`dvc pull {' '.join(own)}`"] if own else []
    return "".join(f"{way}, " for way in ways)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    (root / ".finetune").mkdir(exist_ok=True)
    try:
        with FileLock(root / ".finetune" / "study-use.lock", timeout=0):
            yield
    except Timeout:
        raise InputError("another `finetune study use` is at work here; wait for it, then repeat the command") from None


def _put(source: Path, target: Path) -> None:
    _write(target, source.read_bytes())


def _write(target: Path, content: bytes) -> None:
    """Whole or not at all."""
    part = target.with_name(f".{target.name}.part")
    part.write_bytes(content)
    if target.exists():
        shutil.copymode(target, part)
    part.replace(target)
