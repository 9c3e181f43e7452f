"""What a measurement was taken on."""

import datetime
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import re

import torch

PACKAGES = ("torch", "numba", "numpy", "gymnasium", "minigrid", "stable-baselines3", "sb3-contrib")


def describe_machine() -> str:
    """One line: processor, threads, versions, date."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return (
        f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; {platform.system()}, "
        f"Python {platform.python_version()}, {versions}; {datetime.date.today().isoformat()}"
    )


def describe_gpu() -> str:
    """One line: the GPU, and the versions of what only matters there."""
    import triton

    name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    packages = [f"triton {triton.__version__}", f"CUDA or ROCm {torch.version.cuda or torch.version.hip}"]
    packages.append(f"cuDNN {torch.backends.cudnn.version()}")
    if importlib.util.find_spec("fla"):
        packages.append(f"flash-linear-attention {importlib.metadata.version('flash-linear-attention')}")
    return f"{name} (sm_{major}{minor}, driver {_driver()}), {', '.join(packages)}"


def _driver() -> str:
    file = pathlib.Path("/proc/driver/nvidia/version")
    found = re.search(r"\d+\.\d[\d.]*", file.read_text()) if file.exists() else None
    return found[0] if found else "unknown"


def _processor() -> str:
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
