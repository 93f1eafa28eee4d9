"""What a machine cannot give is said with the settings to change; a bug stays what it is."""

import inspect
from importlib import import_module

import pytest
import torch
from torch._dynamo.exc import TorchRuntimeError
from torch._inductor.exc import CppCompileError, InductorError, TritonMissing

from finetune.errors import InputError
from finetune.machine_limits import said
from finetune.params import TrainingParams

RECIPE = TrainingParams(batch_size=9, image_size=32, compile="default")
LOWER = "; lower it and raise training.accumulation as much, or set training.activation_checkpointing: true"


def sentence_of(error: Exception) -> str:
    with pytest.raises(InputError) as refused, said("toy/same_lr/0", RECIPE):
        raise error
    return str(refused.value)


@pytest.mark.parametrize(
    ("error", "what", "why"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "GPU", "CUDA out of memory"),
        (MemoryError("Unable to allocate 28 GiB"), "machine", "Unable to allocate 28 GiB"),
        (MemoryError(), "machine", "MemoryError"),
    ],
    ids=repr,
)
def test_too_little_memory(error: Exception, what: str, why: str) -> None:
    lacking = f"toy/same_lr/0: the {what} has too little memory for training.batch_size 9 at 32 px ({why})"
    assert sentence_of(error) == lacking + LOWER


def test_too_little_memory_in_pytorchs_own_words() -> None:
    with pytest.raises(InputError) as refused, said("toy/same_lr/0", RECIPE):
        torch.empty(2**60, dtype=torch.uint8)
    assert f"(you tried to allocate {2**60} bytes){LOWER}" in str(refused.value)


def test_torch_compile_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("torch._inductor.config").cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(InputError) as refused, said("toy/same_lr/0", RECIPE):
        torch.compile(lambda x: x + 1)(torch.ones(2))
    assert str(refused.value).startswith(
        "training.compile: default: torch.compile failed on this machine (No working C++ compiler found"
    )
    assert str(refused.value).endswith("); mend that, or set training.compile: none")


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (CppCompileError(["g++"], "a note\nx.cpp: error: no vectors\nmore"), "x.cpp: error: no vectors"),
        (CppCompileError(["g++"], "killed"), "C++ compile error"),
        (TritonMissing(None), "Cannot find a working triton installation"),
    ],
    ids=repr,
)
def test_what_a_compiler_complains_of_is_passed_on(error: Exception, why: str) -> None:
    wrapped = InductorError(error, inspect.currentframe())
    assert f"failed on this machine ({why}" in sentence_of(wrapped)
    assert "\n" not in sentence_of(wrapped)


@pytest.mark.parametrize("error", [RuntimeError("a bug"), TorchRuntimeError("of shapes"), ValueError()], ids=repr)
def test_a_bug_stays_one(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, said("toy/same_lr/0", RECIPE):
        raise error
    assert raised.value is error
