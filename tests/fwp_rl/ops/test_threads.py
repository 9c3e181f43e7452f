"""The threads of torch, which numba would take away."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from fwp_rl import build_memory
memory = build_memory(sys.argv[1], 16)
inputs, starts = torch.randn(3, 2, 16), torch.zeros(3, 2, dtype=torch.bool)
memory.scan(inputs, memory.initial_state(2), starts)[0].sum().backward()
with torch.no_grad():
    memory.step(inputs[0], memory.initial_state(2), starts[0])
assert torch.get_num_threads() == 1, f"torch now uses {torch.get_num_threads()} threads"
"""


@pytest.mark.parametrize("memory", ["delta", "lstm"])
def test_the_first_use_of_a_kernel_leaves_them_alone(memory: str) -> None:
    """Catches numba starting its threads before `_jit` has noted torch's: with one core busy elsewhere, every small
    operation would then wait for a second thread, and training be ten times slower. In a process of its own, since
    threads are started once.
    """
    subprocess.run([sys.executable, "-c", SCRIPT, memory], check=True, timeout=120, env=_without_thread_settings())


def _without_thread_settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")}
