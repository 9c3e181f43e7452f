"""Small matrices and vectors that stay in the first-level cache: what the recurrent fast-weight kernels are made of.

Arrays are dense, of any size: whole tiles first, then number by number. They become a part of the kernels,
whose cache numba does not renew when this file changes: delete it (`__pycache__`).
"""

from collections.abc import Callable

import torch  # before numba: the first to load OpenMP decides which copy both use
from torch import Tensor

import numpy as np  # isort: skip
from llvmlite import ir  # isort: skip
from numba import njit, types  # isort: skip
from numba.extending import intrinsic  # isort: skip
from fwp_rl.ops._jit import FAST, NUMPY  # isort: skip
from fwp_rl.ops import _numba  # isort: skip
from fwp_rl.ops._simd import load, multiply_add, size_of, store, total, zeros  # isort: skip

# Loops over a matrix are not inlined: kernels would be no faster, but take a third longer to compile.

CHUNK = 16
"""Steps from one stored matrix to the next: the backward pass rebuilds those between, one chunk at a time."""
NARROW, WIDE = 8, 32
"""Numbers of a tile."""


@intrinsic
def _address(typing, array):
    def generate(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return types.int64(array), generate


@njit(**NUMPY)
def read(matrix, x, out):
    """out = matrix^T x."""
    rows, columns = matrix.shape
    like = matrix[0, 0]
    wide, narrow, size = zeros(like, WIDE), zeros(like, NARROW), size_of(like)
    m, x_, out_, row = _address(matrix), _address(x), _address(out), columns * size_of(like)
    j = 0
    while j + WIDE <= columns:
        sums = wide
        for i in range(rows):
            sums = multiply_add(load(like, x_ + i * size), load(wide, m + i * row + j * size), sums)
        store(out_ + j * size, sums)
        j += WIDE
    while j < columns and columns >= NARROW:
        j = min(j, columns - NARROW)  # the last tile may do a part of the one before it once more
        few = narrow
        for i in range(rows):
            few = multiply_add(load(like, x_ + i * size), load(narrow, m + i * row + j * size), few)
        store(out_ + j * size, few)
        j += NARROW
    while j < columns:
        one = like - like
        for i in range(rows):
            one += x[i] * matrix[i, j]
        out[j] = one
        j += 1


@njit(forceinline=True, **NUMPY)
def dot(x, y):
    """Sum of x y."""
    like = x[0]
    narrow, size, count = zeros(like, NARROW), size_of(like), x.size
    x_, y_ = _address(x), _address(y)
    products = narrow
    j = 0
    while j + NARROW <= count:
        products = multiply_add(load(narrow, x_ + j * size), load(narrow, y_ + j * size), products)
        j += NARROW
    result = total(products)
    while j < count:
        result += x[j] * y[j]
        j += 1
    return result


@njit(**NUMPY)
def read_transposed(matrix, y, out):
    """out = matrix y."""
    for i in range(matrix.shape[0]):
        out[i] = dot(matrix[i], y)


@njit(**NUMPY)
def write(matrix, x, y):
    """matrix += x y^T."""
    rows, columns = matrix.shape
    like = matrix[0, 0]
    narrow, size = zeros(like, NARROW), size_of(like)
    m, y_, row = _address(matrix), _address(y), columns * size_of(like)
    whole = columns - columns % NARROW
    for i in range(rows):
        number = x[i]
        for j in range(0, whole, NARROW):
            place = m + i * row + j * size
            store(place, multiply_add(number, load(narrow, y_ + j * size), load(narrow, place)))
        for j in range(whole, columns):
            matrix[i, j] += number * y[j]


@njit(forceinline=True, **NUMPY)
def copy(source, target):
    """target = source; vectors."""
    for j in range(source.size):
        target[j] = source[j]


@njit(**NUMPY)
def copy_matrix(source, target):
    """target = source; matrices."""
    for i in range(source.shape[0]):
        copy(source[i], target[i])


@njit(forceinline=True, **NUMPY)
def clear(x):
    """x = 0; a vector."""
    for j in range(x.size):
        x[j] = 0


@njit(**NUMPY)
def clear_matrix(x):
    """x = 0; a matrix."""
    for i in range(x.shape[0]):
        clear(x[i])


@njit(**FAST)
def softmax(x):
    """In place."""
    largest, together = x[0], x[0] - x[0]
    for j in range(x.size):
        largest = x[j] if x[j] > largest else largest
    for j in range(x.size):
        x[j] = np.exp(x[j] - largest)
    for j in range(x.size):
        together += x[j]
    for j in range(x.size):
        x[j] /= together


@njit(**FAST)
def softmax_gradient(y, dy, dx):
    """dx from y = softmax(x) and dy; dx may be dy."""
    mean = dot(y, dy)
    for j in range(y.size):
        dx[j] = y[j] * (dy[j] - mean)


def num_chunks(num_steps: int) -> int:
    """Chunks of `num_steps` steps."""
    return -(-num_steps // CHUNK)


def launch(
    kernel: Callable[[bool], Callable],
    work: int,
    batch_size: int,
    n_heads: int,
    tensors: tuple[Tensor, ...],
    *options: object,
) -> None:
    """Run one program for each head of each row; `work`: multiply-adds of one program."""
    arrays = tuple(tensor.detach().numpy() for tensor in tensors)
    _numba.launch(kernel, work * batch_size * n_heads, batch_size, n_heads, arrays, *options)


def gradient(incoming: Tensor | None, like: Tensor) -> Tensor:
    """What came in, dense; zeros if nothing did."""
    return torch.zeros(like.shape, dtype=like.dtype) if incoming is None else incoming.contiguous()


def own_gradient(incoming: Tensor | None, like: Tensor) -> Tensor:
    """A copy of it: the kernel carries the gradient of the state in it, and autograd owns the one that came in."""
    if incoming is None:
        return torch.zeros(like.shape, dtype=like.dtype)
    return incoming.clone(memory_format=torch.contiguous_format)
