"""What this machine's CPU is and can do."""

import os
import platform
from pathlib import Path


def cores() -> int:
    """How many this process may use, where that can be told: taskset and job schedulers leave it some of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """As Linux names it; elsewhere its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def cpu_has_bf16() -> bool:
    """Whether PyTorch has bf16 kernels for this CPU; without them it takes many times as long as float32.

    PyTorch says so of every AVX-512 CPU. One without instructions of its own for bf16 (AVX-512 BF16, AMX) may still be
    slower in it; `finetune calibrate` tells.
    """
    import torch

    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
