"""What this machine's CPU is and can do."""

import os
import platform
from pathlib import Path


def cores() -> int:
    """How many this process may use, where that can be told: taskset and job schedulers leave it some of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """As Linux names it; elsewhere its architecture."""
    return _said("model name") or platform.machine()


def cpu_instructions() -> str:
    """Which sets of instructions it has, as Linux names them; elsewhere its architecture."""
    return _said("flags") or _said("Features") or platform.machine()


def _said(key: str) -> str | None:
    """What Linux says of the first processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)


def cpu_has_bf16() -> bool:
    """Whether this CPU has instructions for bf16 and PyTorch has kernels that use them; float32 is faster without.

    PyTorch has bf16 kernels for every CPU with AVX-512; those of one with neither AVX-512 BF16 nor AMX are slower than
    float32 (docs/performance.md).
    """
    import torch

    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    bare = torch.cpu._is_avx512_supported() and not torch.cpu._is_amx_tile_supported()
    return not bare or bool(torch.cpu._is_avx512_bf16_supported())
