"""What a training asks of a machine that cannot give it, as a sentence that names the settings to change."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor.exc import CppCompileError, GPUTooOldForTriton, TritonMissing

from finetune.errors import InputError, complaint, reason
from finetune.recipe import TrainingParams

_CPU_LACKS_MEMORY = re.compile(r"can't allocate memory: ([^.]*)")  # in PyTorch's words


@contextmanager
def said(run: str, recipe: TrainingParams) -> Iterator[None]:
    """Within, too little memory, and torch.compile without a compiler that serves it, are bad input.

    Raises:
        InputError: names the run or the setting.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise _too_large(run, "GPU", recipe, reason(error).partition(". ")[0]) from None
    except MemoryError as error:
        raise _too_large(run, "machine", recipe, reason(error)) from None
    except (BackendCompilerFailed, GPUTooOldForTriton, TritonMissing) as error:
        raise InputError(
            f"training.compile: {recipe.compile}: torch.compile failed on this machine ({_words_of(error)}); mend "
            "that, or set training.compile: none"
        ) from None
    except RuntimeError as error:
        if found := _CPU_LACKS_MEMORY.search(str(error)):
            raise _too_large(run, "machine", recipe, found[1]) from None
        raise


def _too_large(run: str, what: str, recipe: TrainingParams, why: str) -> InputError:
    return InputError(
        f"{run}: the {what} has too little memory for training.batch_size {recipe.batch_size} at {recipe.image_size} "
        f"px ({why}); lower it and raise training.accumulation as much, or set training.activation_checkpointing: true"
    )


def _words_of(error: Exception) -> str:
    """What the compiler said; torch.compile wraps it."""
    inner = getattr(error, "inner_exception", error)
    return complaint(inner.output if isinstance(inner, CppCompileError) else "") or reason(inner)
