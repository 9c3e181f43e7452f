"""Compile the CPU kernels of all memories for one dtype: `python tests/compile_kernels.py float64`.

The parallel processes of a test run would each compile all of them, since what one compiles is of use to the other only
once it is done.
"""

import sys

import torch

from fwp_rl import build_memory
from fwp_rl.registry import memory_configs


def main(dtype: torch.dtype) -> None:
    torch.set_num_threads(1)
    for name in memory_configs():
        memory = build_memory(name, input_size=16).to(dtype)
        inputs = torch.randn(20, 2, 16, dtype=dtype, requires_grad=True)
        starts = torch.zeros(20, 2, dtype=torch.bool)
        outputs, state = memory.scan(inputs, memory.initial_state(2), starts)
        outputs.sum().backward()
        with torch.no_grad():
            memory.scan(inputs[:1], state, starts[:1])


if __name__ == "__main__":
    main(getattr(torch, sys.argv[1]))
