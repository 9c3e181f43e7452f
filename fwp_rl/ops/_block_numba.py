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
from fwp_rl.ops._jit import CALLED, KERNEL  # isort: skip
from fwp_rl.ops._numba import number  # isort: skip
from fwp_rl.ops._simd import (  # isort: skip
    constant,
    is_set,
    load,
    multiply,
    multiply_add,
    rectified,
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


@njit(**CALLED)
def _linear(x, weight, bias, residual, y, rows, inputs, outputs, has_bias, has_residual, rectify, sums, like):
    """y = weight x [+ bias] [+ residual], [rectified], at least LANES of it; y is none of the others."""
    size, tile, one = size_of(like), zeros(like, LANES), constant(like, 1)
    row_bytes, step = inputs * size, LANES * size
    for first in range(0, outputs, LANES):
        # The last tile of outputs may be done twice, in part.
        column = min(first, outputs - LANES)
        w0 = weight + column * row_bytes
        w1, w2, w3, w4 = w0 + row_bytes, w0 + 2 * row_bytes, w0 + 3 * row_bytes, w0 + 4 * row_bytes
        w5, w6, w7 = w4 + row_bytes, w4 + 2 * row_bytes, w4 + 3 * row_bytes
        for row in range(rows):
            s0, s1, s2, s3, s4, s5, s6, s7 = tile, tile, tile, tile, tile, tile, tile, tile
            source, target = x + row * row_bytes, (row * outputs + column) * size
            for i in range(0, row_bytes, step):
                x_i = load(tile, source + i)
                s0, s1 = multiply_add(x_i, load(tile, w0 + i), s0), multiply_add(x_i, load(tile, w1 + i), s1)
                s2, s3 = multiply_add(x_i, load(tile, w2 + i), s2), multiply_add(x_i, load(tile, w3 + i), s3)
                s4, s5 = multiply_add(x_i, load(tile, w4 + i), s4), multiply_add(x_i, load(tile, w5 + i), s5)
                s6, s7 = multiply_add(x_i, load(tile, w6 + i), s6), multiply_add(x_i, load(tile, w7 + i), s7)
            store(sums, s0)
            store(sums + step, s1)
            store(sums + 2 * step, s2)
            store(sums + 3 * step, s3)
            store(sums + 4 * step, s4)
            store(sums + 5 * step, s5)
            store(sums + 6 * step, s6)
            store(sums + 7 * step, s7)
            result = totals(tile, sums)
            if has_bias:
                result = multiply_add(one, load(tile, bias + column * size), result)
            if has_residual:
                result = multiply_add(one, load(tile, residual + target), result)
            store(y + target, rectified(result) if rectify else result)


@njit(**CALLED)
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


@njit(forceinline=True, **CALLED)
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


@njit(**CALLED)
def _write_and_read(q, k, v, beta, decay, skip, before, after, y, erase, moves, K, V, like):
    """One step of one matrix: after = decay before + beta k (v - recalled)^T, y = after^T q + skip v.

    `moves` is 1 for a delay head: row i is then row i - 1 of `before`, and row 0 the last one with its sign turned.
    """
    size, tile, one = size_of(like), zeros(like, WIDE), constant(like, 1)
    row, step = V * size, WIDE * size
    above = moves * row
    last = (K - 1) * row
    kq = one - one
    for i in range(0, K * size, size):
        kq += load(like, k + i) * load(like, q + i)
    for c in range(0, row, step):
        recalled, read = tile, tile
        if moves:
            s = load(tile, before + last + c)
            recalled, read = multiply(-load(like, k), s), multiply(-load(like, q), s)
        for i in range(moves, K):
            s = load(tile, before + i * row - above + c)
            recalled = multiply_add(load(like, k + i * size), s, recalled)
            read = multiply_add(load(like, q + i * size), s, read)
        value = load(tile, v + c)
        error = value
        if erase:
            error = multiply_add(-decay, recalled, value)
        written = multiply(beta, error)
        store(y + c, multiply_add(skip, value, multiply_add(kq, written, multiply(decay, read))))
        if moves:
            kept = multiply(-decay, load(tile, before + last + c))
            store(after + c, multiply_add(load(like, k), written, kept))
        for i in range(moves, K):
            kept = multiply(decay, load(tile, before + i * row - above + c))
            store(after + i * row + c, multiply_add(load(like, k + i * size), written, kept))


@njit(**KERNEL)
def _step(x, weights, starts, before, after, result, scratch, sizes, options, like):
    norm, norm_bias, project, project_bias, skip, readout, ff_norm, ff_norm_bias, up, up_bias, down, down_bias = weights
    rows, width, heads, K, V, hidden, projection, delay_heads = sizes
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
            source, moves = before + program, 1 if head < delay_heads else 0
            if is_set(starts + row):
                source, moves = after + program, 0  # there is nothing to move, and no row is read once it is written
                for i in range(0, matrix, size):
                    store(source + i, zero)
            _write_and_read(
                units + head * K * size, units + (heads + head) * K * size, values + head * V * size, beta, decay,
                load(like, skip + head * size), source, after + program, reads + head * V * size, erase, moves, K, V,
                like,
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
    x: Tensor,
    weights: BlockWeights,
    state: Tensor,
    episode_starts: Tensor,
    erase: bool,
    largest_strength: float,
    delay_heads: int,
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
    sizes = rows, width, heads, K, V, hidden, projection, delay_heads
    _step(
        x.data_ptr(), tuple([weight.data_ptr() for weight in weights]), episode_starts.data_ptr(), state.data_ptr(),
        after.data_ptr(), result.data_ptr(), scratch.data_ptr(), sizes, options, number(1.0, dtype),
    )  # fmt: skip
    return result, after
