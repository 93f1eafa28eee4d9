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
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never


def keep_small_freed_memory() -> None:
    """The same for pieces of up to 32 MiB, such as photographs of 10 megapixels; larger ones are given back at once."""
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, 2**25)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**28)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") else None  # musl has none
