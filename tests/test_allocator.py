"""glibc's heap in training: kept, and of huge pages."""

import subprocess
import sys
from pathlib import Path

import pytest

SMAPS = Path("/proc/self/smaps")

_HEAP = """
from finetune.allocator import keep_freed_memory
keep_freed_memory()
keep_freed_memory()
for line in open("/proc/self/smaps"):
    if line[0].isdigit() or line[0] in "abcdef":
        heap = line.rstrip().endswith("[heap]")
    elif heap and line.startswith(("Size:", "Rss:", "VmFlags:")):
        print(line.rstrip())
"""

_FAULTS = """
import resource
import ctypes
from finetune.allocator import keep_freed_memory
keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
def step():
    block = libc.malloc(2**28)
    ctypes.memset(block, 1, 2**28)
    libc.free(block)
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def printed(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(not SMAPS.exists(), reason="no /proc/self/smaps: not Linux")
def test_the_heap_is_advised_to_be_of_huge_pages_and_takes_no_memory_yet() -> None:
    size = resident = 0
    huge = []
    for line in printed(_HEAP).splitlines():
        name, *values = line.split()
        if name == "Size:":
            size = int(values[0]) * 1024
        elif name == "Rss:":
            resident += int(values[0]) * 1024
        elif "hg" in values:
            huge.append(size)
    assert sum(huge) == 2**33 - 2**21
    assert resident < 2**26


@pytest.mark.skipif(not SMAPS.exists(), reason="no /proc/self/smaps: not Linux")
def test_freed_memory_is_there_for_the_next_step() -> None:
    assert int(printed(_FAULTS)) < 20  # 256 MiB in fresh pages are 65,536 faults, or 128 huge ones
