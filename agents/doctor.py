"""What is installed, what works, and what does not: a block to paste into a bug report."""

import importlib.metadata
import os
import platform
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fwp_rl.ops import fast_weight_scan, recurrent_delta_scan, recurrent_scan, resolve_backend

_PACKAGES = (
    *("fwp-rl", "torch", "numpy", "numba", "triton", "gymnasium", "minigrid"),
    *("stable-baselines3", "sb3-contrib", "tensorboard", "safetensors"),
)
_TOLERANCE = 1e-4


def examine(root: Path = Path("runs")) -> tuple[str, bool]:
    """The report, and whether all is well. Nothing is left behind on the disk.

    :param root: Where runs would be written.
    """
    checks: dict[str, Callable[[], str]] = {
        "fast weights on the CPU": lambda: _scan(torch.device("cpu")),
        "recurrent ones on the CPU": lambda: _recurrent_scan(torch.device("cpu")),
        "fast weights on the GPU": lambda: _on_gpu(_scan),
        "recurrent ones on the GPU": lambda: _on_gpu(_recurrent_scan),
        "a step in MiniGrid, drawn": _minigrid,
        f"writing to {root}": lambda: _write(root),
    }
    lines = [
        f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads",
        *(f"{name:<26}{_version(name)}" for name in _PACKAGES),
    ]
    healthy = True
    for name, check in checks.items():
        try:
            answer = check()
        except Exception as error:  # whatever it is, the other checks are wanted, too
            healthy, answer = False, f"FAILED: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        lines.append(f"{name:<26}{answer}")
    return "\n".join(lines), healthy


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _scan(device: torch.device) -> str:
    torch.manual_seed(0)
    inputs = {
        "q": torch.randn(20, 2, 2, 16, device=device),
        "k": F.normalize(torch.randn(20, 2, 2, 16, device=device), dim=-1),
        "v": torch.randn(20, 2, 2, 16, device=device),
        "beta": torch.rand(20, 2, 2, device=device),
        "state": torch.randn(2, 2, 16, 16, device=device),
    }
    return _compare(fast_weight_scan, inputs, lambda: resolve_backend("auto", device))


def _recurrent_scan(device: torch.device) -> str:
    torch.manual_seed(0)
    inputs = {
        "projected": torch.randn(20, 2, 2, 49, device=device),
        "recurrent": 0.2 * torch.randn(2, 16, 49, device=device),
        "matrix": torch.randn(2, 2, 16, 16, device=device),
        "y": torch.randn(2, 2, 16, device=device),
    }

    def scan(matrix: Tensor, y: Tensor, **others: Any) -> tuple[Tensor, Tensor]:
        outputs, (matrix, _) = recurrent_delta_scan(state=(matrix, y), **others)
        return outputs, matrix

    return _compare(scan, inputs, lambda: recurrent_scan.resolve_backend("auto", device))


def _compare(scan: Callable[..., tuple[Tensor, Tensor]], inputs: dict[str, Tensor], choose: Callable[[], str]) -> str:
    """The backend that is chosen, and how far it is from the definition."""
    device = next(iter(inputs.values())).device
    starts = torch.rand(20, 2, device=device) < 0.1
    results = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for backend in ("auto", "reference"):
            leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
            y, state = scan(**leaves, episode_starts=starts, backend=backend)
            results.append([y, state, *torch.autograd.grad(y.square().sum() + state.sum(), list(leaves.values()))])
        chosen = choose()
    error = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*results, strict=True))
    if not error < _TOLERANCE:
        raise RuntimeError(f"the {chosen} backend is off by {error:.1e}")
    said = f"; {caught[0].message}" if caught else ""
    return f"{chosen}, off by {error:.0e}{said}"


def _on_gpu(scan: Callable[[torch.device], str]) -> str:
    if not torch.cuda.is_available():
        return "there is none"
    return f"{torch.cuda.get_device_name()}: {scan(torch.device('cuda'))}"


def _minigrid() -> str:
    import envs

    env = envs.make("fwp/MiniGrid-TMaze-v0", render_mode="rgb_array")
    try:
        env.reset(seed=0)
        env.step(env.action_space.sample())
        picture = env.render()
    finally:
        env.close()
    return f"works, {picture.shape[1]} x {picture.shape[0]} pixels"  # type: ignore[union-attr]  # an array


def _write(root: Path) -> str:
    folder = root
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"0")
    return "works"
