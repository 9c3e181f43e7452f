"""The least time that the arithmetic of the fast weight scan takes on this machine, measured.

A matrix S lives in the first-level cache, and the mathematics wants it read and written once for each step of each of
three sweeps, with this many fused multiply-adds for each of its numbers:

- forward, 3: the write S' + k u^T, what the next key recalls, what the query reads;
- backward in reverse, 4: the two writes of dS (q dy^T and k dv^T), the gradients of value and key that read it;
- backward forward again, 3: the write of S once more, the gradients of query and key that read it.

The loops here do just that: the same bytes, as many multiply-adds, threads and programs, with operands that stay in
registers. They have no decay, no vectors to load, nothing to sum across lanes and no step that waits for the one
before. Of the variants tried (tiles of 8 to 64 numbers, 1 to 4 of them at once) this is the fastest.
"""

from collections.abc import Callable

import torch  # before numba: the first to load OpenMP decides which copy both use

import numba  # isort: skip
import numpy as np  # isort: skip
from numba import njit, prange  # isort: skip
import fwp_rl.ops._jit  # noqa: F401 - starts numba's threads, keeps torch's  # isort: skip
from fwp_rl.ops._simd import load, multiply_add, size_of, store, zeros  # isort: skip

WIDTH = 8
"""Numbers of a tile: one register of AVX2."""


@njit(forceinline=True)
def _one_write(s, x, y):
    return multiply_add(x, y, s)


@njit(forceinline=True)
def _two_writes(s, x, y):
    return multiply_add(x, y, multiply_add(y, x, s))


def _sweep(write: Callable) -> Callable:
    @njit(parallel=True, nogil=True)
    def sweep(programs, steps, numbers, like):
        for _program in prange(programs):
            tile = zeros(like, WIDTH)
            step = size_of(tile)
            scratch = np.zeros(numbers * size_of(like) + 4 * step, np.uint8)
            matrix = np.int64(scratch.ctypes.data)
            matrix += -matrix % step
            x, y = load(tile, matrix), load(tile, matrix + step)
            even_x, even_y, odd_x, odd_y = tile, tile, tile, tile  # one chain of sums would wait for itself
            for _ in range(steps):
                for s in range(matrix, matrix + numbers * size_of(like), 2 * step):
                    even, odd = write(load(tile, s), x, y), write(load(tile, s + step), x, y)
                    store(s, even)
                    store(s + step, odd)
                    even_x, even_y = multiply_add(x, even, even_x), multiply_add(y, even, even_y)
                    odd_x, odd_y = multiply_add(x, odd, odd_x), multiply_add(y, odd, odd_y)
            store(matrix, multiply_add(even_x, even_y, multiply_add(odd_x, odd_y, tile)))  # else it is all removed

    return sweep


_three, _four = _sweep(_one_write), _sweep(_two_writes)


def floor(steps: int, programs: int, size: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """The floor of the forward, and of forward with backward, in float32 with as many threads as torch has now."""
    numbers, zero = size * size, np.float32(0)

    def forward() -> None:
        numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
        _three(programs, steps, numbers, zero)

    def both() -> None:
        forward()
        _four(programs, steps, numbers, zero)
        forward()

    return forward, both
