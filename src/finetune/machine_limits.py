"""What a training asks of a machine that cannot give it, as a sentence that names the settings to change."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._dynamo.exc import TorchDynamoException

from finetune.errors import InputError, reason
from finetune.recipe import TrainingParams

_CPU_LACKS_MEMORY = "can't allocate memory"  # in PyTorch's words


@contextmanager
def said(run: str, recipe: TrainingParams) -> Iterator[None]:
    """Within, too little memory, and torch.compile where it fails, are bad input.

    Raises:
        InputError: names the run or the setting.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise _too_large(run, "GPU", recipe, error) from None
    except TorchDynamoException as error:
        raise InputError(
            f"training.compile: {recipe.compile}: torch.compile failed on this machine ({reason(error)}); mend that, "
            "or set training.compile: none"
        ) from None
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or _CPU_LACKS_MEMORY in str(error):
            raise _too_large(run, "machine", recipe, error) from None
        raise


def _too_large(run: str, what: str, recipe: TrainingParams, error: Exception) -> InputError:
    return InputError(
        f"{run}: the {what} has too little memory for training.batch_size {recipe.batch_size} at {recipe.image_size} "
        f"px ({reason(error).partition('. ')[0]}); lower it and raise training.accumulation as much, or set "
        "training.activation_checkpointing: true"
    )
