"""This project's kernels for a CPU, cpu_kernels.cpp, as functions of tensors.

Numbers do not depend on threads, but may on the compiler.
"""

import ctypes
import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from finetune import kernel_library
from finetune.errors import InputError

LANES = 8  # channels come in multiples of this

_TYPES = {torch.float32: "float", torch.bfloat16: "bf16"}
_POINTER, _SIZE, _INT, _DOUBLE = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_double
_ARGUMENTS = {
    "batchnorm_forward": [*[_POINTER] * 2, *[_SIZE] * 2, *[_POINTER] * 4, _DOUBLE, _DOUBLE, _INT, _POINTER, _INT],
    "batchnorm_backward": [*[_POINTER] * 3, *[_SIZE] * 2, *[_POINTER] * 2, _INT, *[_POINTER] * 2, _INT],
}


class Kernels(NamedTuple):
    library: ctypes.CDLL
    compiler: str


def fit(x: Tensor) -> bool:
    """Whether the kernels take such a tensor: N x C x H x W in channels_last, float32 or bf16, on the CPU."""
    return (
        x.dim() == 4
        and x.device.type == "cpu"
        and x.dtype in _TYPES
        and x.shape[1] % LANES == 0
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def batchnorm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_variance: Tensor,
    momentum: float,
    eps: float,
    relu6: bool,
) -> tuple[Tensor, Tensor]:
    """BatchNorm by the statistics of the batch, which go into the running ones in place; with ReLU6 behind it or not.

    Args:
        x: `fit`, of at least two values per channel.
        weight, bias, running_mean, running_variance: C, float32.

    Returns:
        What comes out, like `x`, and what `batchnorm_backward` wants.
    """
    out, kept = torch.empty_like(x), torch.empty(4, x.shape[1], dtype=torch.float32)
    if not isinstance(x, FakeTensor):  # which has no values, only a shape
        _kernel("batchnorm_forward", x)(
            *(tensor.data_ptr() for tensor in (x, out)),
            *_rows(x),
            *(tensor.data_ptr() for tensor in (weight, bias, running_mean, running_variance)),
            momentum,
            eps,
            relu6,
            kept.data_ptr(),
            torch.get_num_threads(),
        )
    return out, kept


def batchnorm_backward(
    x: Tensor, gradient: Tensor, weight: Tensor, kept: Tensor, relu6: bool, in_place: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `batchnorm`: of x, of the weight and of the bias.

    Args:
        gradient: like `x`.
        in_place: the gradient of x takes the place of `gradient`.
    """
    of_x = gradient if in_place else torch.empty_like(x)
    of_weight, of_bias = torch.empty_like(weight), torch.empty_like(weight)
    _kernel("batchnorm_backward", x)(
        *(tensor.data_ptr() for tensor in (x, gradient, of_x)),
        *_rows(x),
        weight.data_ptr(),
        kept.data_ptr(),
        relu6,
        *(tensor.data_ptr() for tensor in (of_weight, of_bias)),
        torch.get_num_threads(),
    )
    return of_x, of_weight, of_bias


def _rows(x: Tensor) -> tuple[int, int]:
    """How many, and of how many values."""
    return x.numel() // x.shape[1], x.shape[1]


def _kernel(name: str, x: Tensor) -> Any:
    """The kernel for tensors of x's dtype."""
    return getattr(load().library, f"{name}_{_TYPES[x.dtype]}")


@functools.cache
def load() -> Kernels:
    """The kernels; compiled, the first time on a machine.

    Raises:
        InputError: as `kernel_library.built`, or the library cannot be loaded.
    """
    built = kernel_library.built()
    try:
        library = ctypes.CDLL(str(built.file))
    except OSError as error:
        raise InputError(
            f"{kernel_library.WANTED}: {built.file}: cannot be loaded ({error}); remove it, or {kernel_library.MEND}"
        ) from None
    for name, arguments in _ARGUMENTS.items():
        for of in _TYPES.values():
            kernel = getattr(library, f"{name}_{of}")
            kernel.argtypes, kernel.restype = arguments, None
    return Kernels(library, built.compiler)


def compiler_in_use() -> str | None:
    """Whose kernels this process has loaded, None for none: its bits may depend on it."""
    return load().compiler if load.cache_info().currsize else None
