"""The C allocator's settings for training on a CPU."""

import ctypes
import sys
from functools import cache

# <malloc.h> of glibc
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_MMAP_MAX = -4

_MADV_HUGEPAGE = 14  # <sys/mman.h> of Linux
_HUGE_PAGE = 2**21  # bytes
_HEAP = 2**33  # bytes; address space alone


@cache  # once is enough for a process
def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next step rather than give it back to the kernel, and in huge pages.

    Every training step frees and asks for the same large tensors; fresh pages cost more than some layers do. Huge pages
    are what the kernel gives where /sys/kernel/mm/transparent_hugepage/enabled says `madvise` or `always`.
    Elsewhere than on Linux with glibc this does nothing.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never
        _ask_for_huge_pages(libc)


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


def _ask_for_huge_pages(libc: ctypes.CDLL) -> None:
    """Grow the heap at once, by pages that take no memory while nothing touches them, and advise the kernel of them."""
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    start = libc.malloc(_HEAP)
    if start is None:  # the process may not have so much
        return
    libc.free(start)
    aligned = -(-start // _HUGE_PAGE) * _HUGE_PAGE
    libc.madvise(aligned, _HEAP - _HUGE_PAGE, _MADV_HUGEPAGE)
