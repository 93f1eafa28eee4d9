"""This project's kernels for a CPU, cpu_kernels.cpp, as functions of tensors.

A machine's own C++ compiler compiles them when they are first wanted, for that machine's instructions, into the user's
cache; later processes load what lies there. Numbers do not depend on threads, but may on the compiler.
"""

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from finetune.errors import InputError
from finetune.processor import cpu_instructions

LANES = 8  # channels come in multiples of this

_SOURCE = Path(__file__).with_suffix(".cpp")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC")
_TYPES = {torch.float32: "float", torch.bfloat16: "bf16"}
_POINTER, _SIZE, _INT, _DOUBLE = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_double
_ARGUMENTS = {
    "batchnorm_forward": [*[_POINTER] * 2, *[_SIZE] * 2, *[_POINTER] * 4, _DOUBLE, _DOUBLE, _INT, _POINTER, _INT],
    "batchnorm_backward": [*[_POINTER] * 3, *[_SIZE] * 2, *[_POINTER] * 2, _INT, *[_POINTER] * 2, _INT],
}
_WANTS = "training.cpu_kernels: native"
_MEND = "install one (Debian: apt install g++), or set training.cpu_kernels: torch"


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
    return getattr(load(), f"{name}_{_TYPES[x.dtype]}")


@functools.cache
def load() -> ctypes.CDLL:
    """The kernels, compiled unless they are in the cache: `finetune` in $XDG_CACHE_HOME or ~/.cache.

    Raises:
        InputError: there is no C++ compiler, it fails, the cache cannot be written, or what lies there not be loaded.
    """
    file = _compiled(_compiler())
    try:
        library = ctypes.CDLL(str(file))
    except OSError as error:
        raise InputError(f"{_WANTS}: {file}: cannot be loaded ({error}); remove it, or {_MEND}") from None
    for name, arguments in _ARGUMENTS.items():
        for of in _TYPES.values():
            kernel = getattr(library, f"{name}_{of}")
            kernel.argtypes, kernel.restype = arguments, None
    return library


def available() -> bool:
    """Whether this machine has a C++ compiler; it may yet fail."""
    try:
        return bool(_compiler())
    except InputError:
        return False


def _compiler() -> list[str]:
    """The command that $CXX names, else c++, g++ or clang++."""
    named = shlex.split(os.environ.get("CXX", ""))
    for command in [named] if named else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    found = f"CXX is {shlex.join(named)}, which is no program here" if named else "no C++ compiler on the PATH"
    raise InputError(f"{_WANTS}: {found}; {_MEND}")


def compiler_version() -> str:
    """What the compiler says of itself first.

    Raises:
        InputError: there is none.
    """
    return next(iter(_version(_compiler()).splitlines()), "")


def _version(compiler: list[str]) -> str:
    return subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False).stdout


def _compiled(compiler: list[str]) -> Path:
    """The library's file."""
    source = _SOURCE.read_bytes()
    asked = "\0".join((*compiler, *_FLAGS, _version(compiler), cpu_instructions()))
    digest = hashlib.sha256(source + asked.encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune"
    library = folder / f"cpu_kernels-{digest}.so"
    if library.is_file():
        return library
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as aside:  # others may compile at the same time
            made = Path(aside) / library.name
            command = [*compiler, *_FLAGS, str(_SOURCE), "-o", str(made)]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode:
                lines = result.stderr.splitlines()
                said = next((line for line in lines if "error" in line), "".join(lines[:1]))
                raise InputError(f"{_WANTS}: `{shlex.join(command)}` failed ({said}); mend that, or {_MEND}")
            made.replace(library)
    except OSError as error:
        raise InputError(
            f"{error.filename or folder}: cannot be written ({error.strerror}), expected a folder for compiled "
            "kernels; mend its permissions or name another cache in XDG_CACHE_HOME"
        ) from None
    return library
