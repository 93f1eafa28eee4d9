"""A few values of a YAML file changed where they stand; every other character stays as it is."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from finetune.errors import InputError
from finetune.params_file import Loader


def put(path: Path, section: str, values: Mapping[str, str | int]) -> None:
    """Set keys of a section at the top level of `path`: those that are there in their place, others at its beginning.

    Comments, order, indentation, line ends and the file's mode stay; a last line gets the end that it lacks; a
    symlink's target is what changes. Atomic.

    Raises:
        InputError: the file cannot be written, or other values than these would change with them.
    """
    text = path.read_bytes().decode("utf-8")
    expected = _content(text)
    expected[section] = {**(expected.get(section) or {}), **values}
    try:
        changed = _changed(text, section, values)
        alone = _content(changed) == expected
    except yaml.YAMLError:
        alone = False
    if not alone:
        wanted = ", ".join(f"{key}: {value}" for key, value in values.items())
        raise InputError(
            f"{path}: found no place where {section} can be changed and nothing else, as where values are shared by & "
            f"and * or the file ends in '...'; it is left as it was, write {wanted} under {section} by hand"
        )
    target = path.resolve()
    aside = target.with_name(f".{target.name}.aside")
    try:
        aside.write_bytes(changed.encode("utf-8"))
        shutil.copymode(target, aside)
        aside.replace(target)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); make it writable") from None
    finally:
        aside.unlink(missing_ok=True)


def _content(text: str) -> Any:
    """What it says; what anchors share, each place has by itself."""
    return _unshared(yaml.load(text, Loader=Loader))


def _unshared(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unshared(one) for key, one in value.items()}
    return [_unshared(one) for one in value] if isinstance(value, list) else value


def _changed(text: str, section: str, values: Mapping[str, str | int]) -> str:
    end_of_line = "\r\n" if "\r\n" in text else "\n"
    root = yaml.compose(text, Loader=Loader)
    assert isinstance(root, yaml.MappingNode)
    found = next(((key, value) for key, value in root.value if key.value == section), None)
    if not text.endswith("\n"):
        text += end_of_line
    if found is None:
        return text + end_of_line.join([f"{section}:", *_lines(values, 2), ""])
    key, node = found
    if node.start_mark.index < key.end_mark.index:  # an alias of what stands above
        return text
    line_end = text.index("\n", key.end_mark.index) + 1
    if not isinstance(node, yaml.MappingNode):  # nothing, or a null
        lines = "".join(line + end_of_line for line in _lines(values, 2))
        return _spliced(text, [(key.end_mark.index, node.end_mark.index, ":"), (line_end, line_end, lines)])
    own = {one.value: value for one, value in node.value}
    edits = [
        (own[name].start_mark.index, own[name].end_mark.index, str(value))
        for name, value in values.items()
        if name in own
    ]
    more = {name: value for name, value in values.items() if name not in own}
    if more and node.flow_style:
        at = text.index("{", key.end_mark.index) + 1
        listed = ", ".join(f"{name}: {value}" for name, value in more.items())
        edits.append((at, at, f"{listed}, " if own else listed))
    elif more:
        indent = node.value[0][0].start_mark.column
        edits.append((line_end, line_end, "".join(line + end_of_line for line in _lines(more, indent))))
    return _spliced(text, edits)


def _lines(values: Mapping[str, str | int], indent: int) -> list[str]:
    return [f"{' ' * indent}{name}: {value}" for name, value in values.items()]


def _spliced(text: str, edits: list[tuple[int, int, str]]) -> str:
    """`text` with (from, to, instead) put in."""
    for start, end, instead in sorted(edits, reverse=True):
        text = text[:start] + instead + text[end:]
    return text
