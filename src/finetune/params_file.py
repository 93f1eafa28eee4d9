"""params.yaml as text: read it, override keys of it, and say in one sentence what is wrong with it."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from finetune.errors import InputError, suggest

NAME = r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"  # what may become a folder, a word of DVC's, a filter of MLflow's

_KINDS = {str: "text", bool: "true or false", int: "integer", float: "number", list: "list", dict: "section"}
_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text; put quotes around it",
    "list_type": "a list, as [a, b]",
    "tuple_type": "a list, as [a, b]",
    "dict_type": "a section, as {{name: …}}",
    "invalid_key": "text; put quotes around it",
    "too_short": "a list of {min_length} or more",
    "too_long": "a list of {max_length} or fewer",
    "string_pattern_mismatch": "a name of letters, digits, '.', '_' and '-' that begins with none of '.' and '-'",
    "literal_error": "one of {expected}",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of at most {le}",
}


class _Twice(yaml.YAMLError):
    """A key of a mapping comes again."""


class Loader(yaml.SafeLoader):
    """PyYAML reads 1e-3 as text (YAML 1.1) and takes the last of equal keys; DVC does neither, nor do we."""

    yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}  # noqa: RUF012

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            name, line = (key.tag, str(key.value)), key.start_mark.line + 1
            if name in lines:
                raise _Twice(f"key '{key.value}' in line {line} stands in line {lines[name]} already; keep one of them")
            lines[name] = line
        return node


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read(path: Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The content of the YAML file `path`; `overrides` are `dotted.key=value` texts, put over it in turn.

    Raises:
        InputError: the file cannot be read, is not YAML or no mapping, or an override is not KEY=VALUE.
    """
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; run this in the repository's root, or name the file with --params"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name a file with --params") from None
    except _Twice as error:
        raise InputError(f"{path}: {error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}; mend that line") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: found {found(raw)}, expected a mapping with the sections study, datasets, …")
    for text in overrides:
        _override(raw, text)
    return raw


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` put over `base`, section by section; an empty section (null) overrides nothing."""
    merged = dict(base)
    for key, value in over.items():
        if isinstance(merged.get(key), Mapping) and (value is None or isinstance(value, Mapping)):
            merged[key] = merge(merged[key], value or {})
        else:
            merged[key] = value
    return merged


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys with their values: {"training": {"lr": 1}} -> ("training.lr", 1)."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def sentence(origin: str, where: tuple[str, ...], error: ValidationError, model: type[BaseModel]) -> str:
    """What pydantic found wrong first, for the user of the file `origin`.

    Args:
        where: the keys that lead to what `model` validated.
    """
    first = error.errors()[0]
    kind, loc, value = first["type"], [*where, *first["loc"]], first["input"]
    if kind == "missing" and isinstance(loc[-1], int):  # a list of fixed length, too short
        return f"{origin}: {_dotted(loc[:-1])}: found {found(value)}, expected more entries; add them"
    if kind == "missing":
        return f"{origin}: {_dotted(loc)} is missing; add it"
    if kind == "extra_forbidden":
        known = suggest(str(loc[-1]), _model_at(model, first["loc"][:-1]).model_fields)
        return f"{origin}: {_dotted(loc)} is not a known key of {_dotted(loc[:-1]) or 'the top level'}; {known}"
    if kind == "value_error":
        return f"{origin}: {_dotted(loc)}: {first['msg'].removeprefix('Value error, ')}"
    if loc[-1] == "[key]":
        loc = loc[:-2]
    if kind in _EXPECTED:
        expected = _EXPECTED[kind].format(**first.get("ctx", {}))
    elif kind == "model_type":
        expected = f"a section with keys of {', '.join(_model_at(model, first['loc']).model_fields)}"
    else:
        expected = first["msg"]
    return f"{origin}: {_dotted(loc)}: found {found(value)}, expected: {expected}"


def found(value: Any) -> str:
    """A value of a YAML file and what it is."""
    return "nothing (null)" if value is None else f"{value!r} ({_KINDS.get(type(value), type(value).__name__)})"


def _sections(node: Any) -> list[str]:
    return [name for name, value in node.items() if isinstance(value, dict | None)] if isinstance(node, dict) else []


def _override(raw: dict[str, Any], text: str) -> None:
    key, sep, value = text.partition("=")
    if not sep or not key.strip():
        raise InputError(f"override '{text}': expected KEY=VALUE, for example training.lr=1e-3")
    *sections, leaf = key.strip().split(".")
    node: Any = raw
    for section in sections:
        if not isinstance(node, dict) or (section in node and not isinstance(node[section], dict | None)):
            raise InputError(
                f"override '{text}': {section} is not a section of params.yaml; {suggest(section, _sections(node))}"
            )
        node[section] = node.get(section) or {}
        node = node[section]
    try:
        node[leaf] = yaml.load(value, Loader=Loader)
    except yaml.YAMLError:
        raise InputError(f"override '{text}': '{value}' is not a YAML value; quote it") from None


def _dotted(loc: Iterable[int | str]) -> str:
    """training.lr, study.seeds[0]"""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")


def _model_at(model: type[BaseModel], loc: Iterable[int | str]) -> type[BaseModel]:
    """The model of the section that `loc` leads to."""
    for part in loc:
        field = model.model_fields.get(str(part))
        if field is None:
            continue  # a name inside a dict of sections
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), model)
    return model
