"""What a measurement was taken on."""

import datetime
import importlib.metadata
import os
import pathlib
import platform

import torch

PACKAGES = ("torch", "numba", "numpy", "gymnasium", "minigrid", "stable-baselines3", "sb3-contrib")


def describe_machine() -> str:
    """One line: processor, threads, versions, date."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return (
        f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; {platform.system()}, "
        f"Python {platform.python_version()}, {versions}; {datetime.date.today().isoformat()}"
    )


def _processor() -> str:
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
