"""Small matrices in the registers of a program: what the recurrent fast-weight kernels for GPUs are made of.

The scheme is that of `_recurrent_numba`: one program takes one head of one row of the batch through all steps. The
forward pass stores a matrix every CHUNK steps, and at every step what was written. The backward pass goes through the
chunks in reverse: it first rebuilds the matrices of a chunk, into memory of its own that is small enough for the cache,
then differentiates its steps. A barrier of the program's threads lies between the two, since another thread may read
what one has written. Programs share nothing, and nothing is added up in the order of arrival: results are bitwise
reproducible.

There is one matrix and one vector in every product, so that all are sums of products in full precision, and none goes
through tensor cores. A matrix is `[..., K, V]`; matrices and vectors are padded with zeros to powers of two.
"""

import math
from collections.abc import Iterable

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 16
"""Steps from one stored matrix to the next."""
NUMBERS_OF_THREAD, LARGEST_WARPS = 16, 16
"""So many of one matrix, as far as there are warps: the backward kernels hold several such matrices."""
LARGEST_MATRIX = 2**14
"""In numbers, padded: with twice as many, all registers of a multiprocessor would spill."""


@triton.jit
def read(matrix, x):
    """matrix^T x."""
    return tl.sum(matrix * tl.expand_dims(x, -1), -2)


@triton.jit
def read_transposed(matrix, y):
    """Matrix y."""
    return tl.sum(matrix * tl.expand_dims(y, -2), -1)


@triton.jit
def outer(x, y):
    """x y^T."""
    return tl.expand_dims(x, -1) * tl.expand_dims(y, -2)


@triton.jit
def softmax(x, inside):
    """Of one vector; zero in the padding."""
    x = tl.where(inside, x, float("-inf"))
    x = tl.exp(x - tl.max(x, 0))
    return x / tl.sum(x, 0)


@triton.jit
def softmax_gradient(y, dy):
    """dx from y = softmax(x) and dy."""
    return y * (dy - tl.sum(y * dy, 0))


@triton.jit
def write_gradients(before, d_matrix, k, beta, error):
    """Of before + beta k error^T with error = v - before^T k: those of before, k, v and beta."""
    d_written = read(d_matrix, k)
    d_v = beta * d_written
    d_k = read_transposed(d_matrix, beta * error) - read_transposed(before, d_v)
    return d_matrix - outer(k, d_v), d_k, d_v, tl.sum(d_written * error, -1)


def padded(size: int) -> int:
    """The power of two that holds `size` numbers."""
    return triton.next_power_of_2(size)


def num_warps(constants: dict[str, int], warp_size: int) -> int:
    """Warps of a program."""
    return min(LARGEST_WARPS, max(1, numbers(constants) // (NUMBERS_OF_THREAD * warp_size)))


def unsupported(constants: dict[str, int]) -> str | None:
    """Why there is no kernel of these sizes; None if there is."""
    if numbers(constants) <= LARGEST_MATRIX:
        return None
    return f"registers hold matrices of up to {LARGEST_MATRIX} numbers, padded; got {numbers(constants)}"


def numbers(constants: dict[str, int]) -> int:
    """Of the matrix of a program, padded: it has the axes BLOCK_..."""
    return math.prod(size for name, size in constants.items() if name.startswith("BLOCK_"))


def launch(
    kernel: triton.JITFunction, tensors: Iterable[Tensor], sizes: tuple[int, ...], constants: dict[str, int]
) -> None:
    """Run one program for each head of each row; `sizes` are T, B and, where there are heads, H."""
    first, *others = (tensor.contiguous() for tensor in tensors)
    with torch.cuda.device_of(first):
        kernel[(math.prod(sizes[1:]),)](
            first,
            *others,
            *sizes,
            **constants,
            CHUNK=CHUNK,
            num_warps=num_warps(constants, 32 if torch.version.hip is None else 64),
            num_stages=1,
            enable_fp_fusion=True,
        )


def num_chunks(num_steps: int) -> int:
    """Chunks of `num_steps` steps."""
    return -(-num_steps // CHUNK)


def gradients(incoming: Iterable[Tensor | None], like: Iterable[Tensor]) -> list[Tensor]:
    """What came in; zeros where nothing did."""
    return [torch.zeros_like(x) if d is None else d for d, x in zip(incoming, like, strict=True)]
