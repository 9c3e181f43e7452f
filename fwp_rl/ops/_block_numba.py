"""One step of a fast-weight block on the CPU, as one compiled call: what a rollout does at every step.

The products are small (a few rows) and the operations many, so that calling them one by one costs more than computing
them. Rows of the batch share each weight that is loaded; products are sums along the inputs, where weights and inputs
are both dense.
"""

import functools

import torch  # before numba: the first to load OpenMP decides which copy both use
from torch import Tensor

import numpy as np  # isort: skip
from numba import njit  # isort: skip
import fwp_rl.ops._openmp  # noqa: F401  # isort: skip
from fwp_rl.ops._numba import number  # isort: skip
from fwp_rl.ops._simd import (  # isort: skip
    constant,
    is_set,
    load,
    multiply,
    multiply_add,
    size_of,
    splat,
    store,
    total,
    totals,
    zeros,
)
from fwp_rl.ops.block_step import BlockWeights  # isort: skip
from fwp_rl.ops.fast_weight_heads import READ_EPSILON, UNIT_EPSILON  # isort: skip

LANES = 8
"""Numbers of a tile."""
NORM_EPSILON = 1e-5
"""Of `torch.nn.LayerNorm`."""
WIDE = 16
"""Numbers of a tile of fast weights."""

# Everything is dense; a tensor reaches a kernel as its address. `like` is a number that carries the type of all others.
# Loops over tiles run in bytes.


@njit(forceinline=True)
def _sums_of_4_rows_and_2_columns(sums, x0, x1, x2, x3, w0, w1, num_bytes, tile):
    """The products of four rows of x with two of w, side by side in `sums`."""
    a0, a1, b0, b1, c0, c1, d0, d1 = tile, tile, tile, tile, tile, tile, tile, tile
    step = size_of(tile)
    for i in range(0, num_bytes, step):
        left, right = load(tile, w0 + i), load(tile, w1 + i)
        a, b, c, d = load(tile, x0 + i), load(tile, x1 + i), load(tile, x2 + i), load(tile, x3 + i)
        a0, a1 = multiply_add(a, left, a0), multiply_add(a, right, a1)
        b0, b1 = multiply_add(b, left, b0), multiply_add(b, right, b1)
        c0, c1 = multiply_add(c, left, c0), multiply_add(c, right, c1)
        d0, d1 = multiply_add(d, left, d0), multiply_add(d, right, d1)
    store(sums, a0)
    store(sums + step, a1)
    store(sums + 2 * step, b0)
    store(sums + 3 * step, b1)
    store(sums + 4 * step, c0)
    store(sums + 5 * step, c1)
    store(sums + 6 * step, d0)
    store(sums + 7 * step, d1)
    store(sums, totals(tile, sums))


@njit(nogil=True)
def _linear(x, weight, bias, residual, y, rows, inputs, outputs, has_bias, has_residual, rectify, scratch, like):
    """y = weight x [+ bias] [+ residual], [rectified]; y is none of the others."""
    size, tile, zero = size_of(like), zeros(like, LANES), constant(like, 0)
    row_bytes = inputs * size
    for column in range(0, outputs, 2):
        # The last column and the last rows may be done twice.
        next_column = min(column + 1, outputs - 1)
        for row in range(0, rows, 4):
            r1, r2, r3 = min(row + 1, rows - 1), min(row + 2, rows - 1), min(row + 3, rows - 1)
            _sums_of_4_rows_and_2_columns(
                scratch, x + row * row_bytes, x + r1 * row_bytes, x + r2 * row_bytes, x + r3 * row_bytes,
                weight + column * row_bytes, weight + next_column * row_bytes, row_bytes, tile,
            )  # fmt: skip
            for i in range(8):
                r, c = min(row + i // 2, rows - 1), next_column if i % 2 else column
                result = load(like, scratch + i * size)
                if has_bias:
                    result += load(like, bias + c * size)
                if has_residual:
                    result += load(like, residual + (r * outputs + c) * size)
                if rectify:
                    result = result if not result < zero else zero  # keeps NaN
                store(y + (r * outputs + c) * size, result)


@njit(nogil=True)
def _layer_norm(x, weight, bias, y, rows, width, share, epsilon, like):
    size, tile, one = size_of(like), zeros(like, LANES), constant(like, 1)
    row_bytes, step = width * size, LANES * size
    for row in range(rows):
        source, target = x + row * row_bytes, y + row * row_bytes
        sums, squares = tile, tile
        for i in range(0, row_bytes, step):
            sums = multiply_add(one, load(tile, source + i), sums)
        shift = splat(-total(sums) * share, tile)
        for i in range(0, row_bytes, step):
            centred = multiply_add(one, load(tile, source + i), shift)
            squares = multiply_add(centred, centred, squares)
        scale = one / np.sqrt(total(squares) * share + epsilon)
        for i in range(0, row_bytes, step):
            normed = multiply(scale, multiply_add(one, load(tile, source + i), shift))
            store(target + i, multiply_add(normed, load(tile, weight + i), load(tile, bias + i)))


@njit(forceinline=True)
def _scale_to(x, y, vectors, num, epsilon, length, like):
    """Vectors of `num` numbers side by side, scaled to `length`."""
    size, tile = size_of(like), zeros(like, LANES)
    num_bytes, step = num * size, LANES * size
    for i in range(0, vectors * num_bytes, num_bytes):
        squares = tile
        for j in range(i, i + num_bytes, step):
            squares = multiply_add(load(tile, x + j), load(tile, x + j), squares)
        factor = length / np.sqrt(total(squares) + epsilon)
        for j in range(i, i + num_bytes, step):
            store(y + j, multiply(factor, load(tile, x + j)))


@njit(nogil=True)
def _write_and_read(q, k, v, beta, decay, skip, before, after, y, erase, K, V, like):
    """One step of one matrix: after = decay before + beta k (v - recalled)^T, y = after^T q + skip v."""
    size, tile, one = size_of(like), zeros(like, WIDE), constant(like, 1)
    row, step = V * size, WIDE * size
    kq = one - one
    for i in range(0, K * size, size):
        kq += load(like, k + i) * load(like, q + i)
    for c in range(0, row, step):
        recalled, read = tile, tile
        for i in range(K):
            s = load(tile, before + i * row + c)
            recalled = multiply_add(load(like, k + i * size), s, recalled)
            read = multiply_add(load(like, q + i * size), s, read)
        value = load(tile, v + c)
        error = value
        if erase:
            error = multiply_add(-decay, recalled, value)
        written = multiply(beta, error)
        store(y + c, multiply_add(skip, value, multiply_add(kq, written, multiply(decay, read))))
        for i in range(K):
            kept = multiply(decay, load(tile, before + i * row + c))
            store(after + i * row + c, multiply_add(load(like, k + i * size), written, kept))


@njit(cache=True, nogil=True)
def _step(x, weights, starts, before, after, result, scratch, sizes, options, like):
    norm, norm_bias, project, project_bias, skip, readout, ff_norm, ff_norm_bias, up, up_bias, down, down_bias = weights
    rows, width, heads, K, V, hidden, projection = sizes
    erase, gated, largest, share, norm_epsilon, unit_epsilon, read_epsilon, read_length = options
    size, one, zero = size_of(like), constant(like, 1), constant(like, 0)
    sums = scratch
    normed = sums + LANES * LANES * size
    projected = normed + rows * width * size
    stream = projected + rows * projection * size
    unfolded = stream + rows * width * size
    units = unfolded + rows * hidden * size
    reads = units + 2 * heads * K * size
    y = reads + heads * V * size

    _layer_norm(x, norm, norm_bias, normed, rows, width, share, norm_epsilon, like)
    _linear(normed, project, project_bias, x, projected, rows, width, projection, True, False, False, sums, like)
    matrix = K * V * size
    for row in range(rows):
        p = projected + row * projection * size
        values = p + 2 * heads * K * size
        gates = values + heads * V * size
        _scale_to(p, units, 2 * heads, K, unit_epsilon, one, like)
        for head in range(heads):
            beta = largest / (one + np.exp(-load(like, gates + head * size)))
            decay = one
            if gated:  # exp(-softplus(d)) = sigmoid(-d)
                decay = one / (one + np.exp(load(like, gates + (heads + head) * size)))
            program = (row * heads + head) * matrix
            source = before + program
            if is_set(starts + row):
                source = after + program
                for i in range(0, matrix, size):
                    store(source + i, zero)
            _write_and_read(
                units + head * K * size, units + (heads + head) * K * size, values + head * V * size, beta, decay,
                load(like, skip + head * size), source, after + program, reads + head * V * size, erase, K, V, like,
            )  # fmt: skip
        _scale_to(reads, y + row * heads * V * size, heads, V, read_epsilon, read_length, like)
    _linear(y, readout, readout, x, stream, rows, heads * V, width, False, True, False, sums, like)
    _layer_norm(stream, ff_norm, ff_norm_bias, normed, rows, width, share, norm_epsilon, like)
    _linear(normed, up, up_bias, x, unfolded, rows, width, hidden, True, False, True, sums, like)
    _linear(unfolded, down, down_bias, stream, result, rows, hidden, width, True, True, False, sums, like)


@functools.cache
def _options(erase: bool, gated: bool, largest_strength: float, width: int, V: int, dtype: torch.dtype) -> tuple:
    numbers = largest_strength, 1 / width, NORM_EPSILON, UNIT_EPSILON, READ_EPSILON * V, V**0.5
    return erase, gated, *(number(x, dtype) for x in numbers)


def step(
    x: Tensor, weights: BlockWeights, state: Tensor, episode_starts: Tensor, erase: bool, largest_strength: float
) -> tuple[Tensor, Tensor]:
    """See `fwp_rl.ops.block_step`: all of one dtype; W, K and the feed-forward width are multiples of 8, V of 16."""
    x, state, episode_starts = x.contiguous(), state.contiguous(), episode_starts.contiguous()
    rows, width = x.shape
    _, heads, K, V = state.shape
    projection, hidden, dtype = len(weights.project), len(weights.up), x.dtype
    gated = projection == heads * (2 * K + V + 2)
    result, after = torch.empty_like(x), torch.empty_like(state)
    scratch = torch.empty(
        LANES * LANES + rows * (2 * width + projection + hidden + heads * V) + heads * (2 * K + V), dtype=dtype
    )
    options = _options(erase, gated, largest_strength, width, V, dtype)
    _step(
        x.data_ptr(), tuple([weight.data_ptr() for weight in weights]), episode_starts.data_ptr(), state.data_ptr(),
        after.data_ptr(), result.data_ptr(), scratch.data_ptr(), (rows, width, heads, K, V, hidden, projection),
        options, number(1.0, dtype),
    )  # fmt: skip
    return result, after
