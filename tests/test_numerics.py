"""No code that decides a training's numbers changes without the question whether a checkpoint may outlive it."""

import json

import pytest

import numerics
from finetune import study
from numerics import digest, digest_of_cpp, digests

ASKED = """
the numerics of training may have changed: raise NUMERICS_VERSION if they did (NATIVE_NUMERICS_VERSION if those of
`cpu_kernels: native` alone did), then record the new digest. Both are in src/finetune/study.py; `python
tests/numerics.py` records.
changed, new or gone: {}
"""
SOURCE = '''
"""A module."""
import torch

def half(x):
    """Half of it."""
    return x / 2  # exact
'''


def test_what_decides_the_numbers_is_what_was_recorded_with_their_version() -> None:
    recorded, found = json.loads(numerics.RECORD.read_text()), digests()
    # A plan of one's own is not recorded; DVC and the fingerprint know it by its name.
    own = {path for path in found.keys() - recorded["modules"].keys() if "/strategies/" in path}
    moved = {path for path, _ in found.items() ^ recorded["modules"].items()} - own
    assert not moved, ASKED.format(", ".join(sorted(moved)))
    assert recorded["version"] == study.NUMERICS_VERSION, "record: python tests/numerics.py"


def test_what_makes_gradients_is_among_them() -> None:
    names = ("cpu_gradients", "lean_backward", "depthwise_kernels", "recomputation", "mixing", "averaging", "training")
    expected = {f"src/finetune/{name}.py" for name in (*names, "native_layers", "strategies/bss")}
    assert expected | {"src/finetune/cpu_kernels.cpp"} <= set(numerics.modules())


def test_comments_docstrings_and_layout_do_not_count() -> None:
    other = SOURCE.replace("A module", "Another").replace("# exact", "").replace("Half of it.", "It, halved.")
    assert digest(other.replace("return x / 2", "return (\n        x / 2\n    )")) == digest(SOURCE)


@pytest.mark.parametrize(("old", "new"), [("x / 2", "x / 3"), ("x / 2", "x * 2"), ("half(x)", "half(x, y=0)")])
def test_code_does(old: str, new: str) -> None:
    assert digest(SOURCE.replace(old, new)) != digest(SOURCE)


def test_in_cpp_comments_and_layout_do_not_count_and_code_does() -> None:
    source = "int half(int x) {  // of it\n    return x / 2;\n}\n"
    assert digest_of_cpp(source.replace("of it", "halved").replace("    ", "\n\t")) == digest_of_cpp(source)
    assert digest_of_cpp(source.replace("x / 2", "x / 3")) != digest_of_cpp(source)


def test_a_text_that_is_no_docstring_does() -> None:
    assert digest('x = "one"') != digest('x = "two"')
