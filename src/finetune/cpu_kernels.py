"""This project's kernels for a CPU, cpu_kernels.cpp, as functions of tensors.

Numbers do not depend on threads, but may on the compiler.
"""

import ctypes
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from finetune import kernel_library
from finetune.errors import InputError

LANES = 8  # channels come in multiples of this

_TYPES = {torch.float32: "float", torch.bfloat16: "bf16"}
_POINTER, _SIZE, _INT, _DOUBLE = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_double
_ARGUMENTS = {
    "batchnorm_forward": [*[_POINTER] * 2, *[_SIZE] * 2, _POINTER, _INT, _INT],
    "batchnorm_backward": [*[_POINTER] * 3, *[_SIZE] * 2, _POINTER, _INT, *[_POINTER] * 2, _INT],
    "middle_forward": [*[_POINTER] * 7, _INT],
    "middle_backward": [*[_POINTER] * 11, _INT],
}
_VIEWS: list[Any] = [*[_POINTER] * 2, *[_SIZE] * 2, *[_POINTER] * 3, _INT]


class Norm(NamedTuple):
    """A BatchNorm layer; its tensors have C values in float32."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_variance: Tensor
    momentum: float = 0.1
    eps: float = 1e-5


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


def batchnorm(x: Tensor, norm: Norm, relu6: bool) -> tuple[Tensor, Tensor]:
    """BatchNorm by the statistics of the batch, which go into the running ones in place; with ReLU6 behind it or not.

    Args:
        x: `fit`, of at least two values per channel.

    Returns:
        What comes out, like `x`, and what `batchnorm_backward` wants.
    """
    out, kept = torch.empty_like(x), _room_to_keep(x)
    if not isinstance(x, FakeTensor):  # which has no values, only a shape
        arguments = *_rows(x), _Norm.of(norm, kept), relu6
        _call("batchnorm_forward", x, x, out, *arguments)
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
    arguments = *_rows(x), _Norm.of_weight(weight, kept), relu6, of_weight, of_bias
    _call("batchnorm_backward", x, x, gradient, of_x, *arguments)
    return of_x, of_weight, of_bias


class Middle(NamedTuple):
    """What `middle` makes."""

    out: Tensor
    convolved: Tensor  # like `out`, before the second BatchNorm
    kept: tuple[Tensor, Tensor]  # of the layers


def middle(x: Tensor, taps: Tensor, stride: int, first: Norm, second: Norm) -> Middle:
    """The middle of an inverted residual: BatchNorm and ReLU6, a depthwise convolution, BatchNorm and ReLU6.

    By the statistics of the batch, which go into the running ones in place. The convolution takes the first ReLU6's
    output in float32, whatever the dtype of `x`, and so are its taps.

    Args:
        x: `fit`; `x` and `out` have at least two values per channel.
        taps: C x 1 x 3 x 3, float32.
        stride: 1 or 2; there is a pixel of zeros around the input.
    """
    images, channels, *size = x.shape
    height, width = ((side - 1) // stride + 1 for side in size)
    out = torch.empty((images, channels, height, width), dtype=x.dtype, memory_format=torch.channels_last)
    made = Middle(out, torch.empty_like(out), (_room_to_keep(x), _room_to_keep(x)))
    if not isinstance(x, FakeTensor):
        layers = _Norm.of(first, made.kept[0]), _Norm.of(second, made.kept[1])
        _call("middle_forward", x, x, made.convolved, out, _Maps.of(x, stride), *layers, _by_tap(taps))
    return made


def middle_backward(
    x: Tensor,
    taps: Tensor,
    stride: int,
    weights: Sequence[Tensor],
    convolved: Tensor,
    kept: Sequence[Tensor],
    gradient: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `middle`: of x, of the taps, and of the first and the second BatchNorm, weight and bias: 2 x C.

    Args:
        weights: of the two BatchNorm layers.
        convolved, kept: as `middle` has made them.
        gradient: like `convolved`.
    """
    of_x, of_first, of_second = torch.empty_like(x), *(torch.empty(2, len(taps)) for _ in range(2))
    layers = tuple(map(_Norm.of_weight, weights, kept))
    by_tap = _by_tap(taps)
    of_taps = torch.empty_like(by_tap)
    found = of_taps, of_first, of_second
    _call("middle_backward", x, x, convolved, gradient, of_x, _Maps.of(x, stride), *layers, by_tap, *found)
    return of_x, torch.empty_like(taps).copy_(of_taps.t().view(taps.shape)), of_first, of_second


def views(pixels: np.ndarray, wanted: np.ndarray, mean: Tensor, deviation: Tensor) -> Tensor:
    """Parts of images, resized, mirrored and normalised: N x size x size x 3 in float32, each a line of pixels.

    Args:
        pixels: uint8, flat: images of height x width x 3.
        wanted: int64, N x 12: an image's offset into the pixels, height, width; the top and left of its part, black
            where that is beyond the image; for the way down and the way across, how many pixels it has, how many are
            made of them in all, and which of these comes first in the view; whether it is mirrored left to right.
        mean, deviation: float32, of the values of a line: size x 3.
    """
    wanted, size = np.ascontiguousarray(wanted, np.int64), len(mean) // 3
    out = torch.empty(len(wanted), size, size, 3)
    places = pixels.ctypes.data, wanted.ctypes.data, len(wanted), size
    load().library.views(*places, *(tensor.data_ptr() for tensor in (mean, deviation, out)), torch.get_num_threads())
    return out


class _Norm(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in ("weight", "bias", "running_mean", "running_variance", "kept")),
        ("momentum", _DOUBLE),
        ("eps", _DOUBLE),
    )

    @classmethod
    def of(cls, norm: Norm, kept: Tensor) -> "_Norm":
        *tensors, momentum, eps = norm
        return cls(*(tensor.data_ptr() for tensor in (*tensors, kept)), momentum, eps)

    @classmethod
    def of_weight(cls, weight: Tensor, kept: Tensor) -> "_Norm":
        return cls(weight=weight.data_ptr(), kept=kept.data_ptr())


class _Maps(ctypes.Structure):
    _fields_ = tuple((name, _SIZE) for name in ("images", "height", "width", "channels", "stride"))

    @classmethod
    def of(cls, x: Tensor, stride: int) -> "_Maps":
        images, channels, height, width = x.shape
        return cls(images, height, width, channels, stride)


def _room_to_keep(x: Tensor) -> Tensor:
    return torch.empty(4, x.shape[1], dtype=torch.float32)


def _by_tap(taps: Tensor) -> Tensor:
    """C x 1 x 3 x 3 -> 9 x C."""
    return taps.reshape(len(taps), 9).t().contiguous()


def _rows(x: Tensor) -> tuple[int, int]:
    """How many, and of how many values."""
    return x.numel() // x.shape[1], x.shape[1]


def _call(name: str, like: Tensor, *arguments: Tensor | ctypes.Structure | int) -> None:
    """Call the kernel for tensors of such a dtype."""
    kernel = getattr(load().library, f"{name}_{_TYPES[like.dtype]}")
    kernel(*map(_passed, arguments), torch.get_num_threads())


def _passed(argument: Tensor | ctypes.Structure | int) -> Any:
    if isinstance(argument, Tensor):
        return argument.data_ptr()
    return ctypes.byref(argument) if isinstance(argument, ctypes.Structure) else argument


@functools.cache
def load() -> Kernels:
    """The kernels; compiled, the first time on a machine.

    Raises:
        InputError: as `kernel_library.built`, or the library cannot be loaded.
    """
    built = kernel_library.built()
    kernels = {f"{name}_{of}": arguments for name, arguments in _ARGUMENTS.items() for of in _TYPES.values()}
    try:
        library = ctypes.CDLL(str(built.file))
        for name, arguments in (kernels | {"views": _VIEWS}).items():
            kernel = getattr(library, name)
            kernel.argtypes, kernel.restype = arguments, None
    except (OSError, AttributeError) as error:
        raise InputError(
            f"{kernel_library.WANTED}: {built.file}: cannot be loaded ({error}); remove it, or {kernel_library.MEND}"
        ) from None
    return Kernels(library, built.compiler)


def compiler_in_use() -> str | None:
    """Whose kernels this process has loaded, None for none: its bits may depend on it."""
    return load().compiler if load.cache_info().currsize else None
