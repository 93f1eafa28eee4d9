"""The C allocator's settings for training on a CPU."""

import ctypes
import sys

# <malloc.h> of glibc
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_MMAP_MAX = -4


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next step rather than give it back to the kernel.

    Every training step frees and asks for the same large tensors; fresh pages cost more than some layers do.
    Elsewhere than on Linux with glibc this does nothing.
    """
    _set((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1))


def keep_small_freed_memory() -> None:
    """The same for pieces of up to 32 MiB, such as photographs of 10 megapixels; larger ones are given back at once."""
    _set((_M_MMAP_THRESHOLD, 2**25), (_M_TRIM_THRESHOLD, 2**28))


def _set(*options: tuple[int, int]) -> None:
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        for option in options:
            mallopt(*option)
