"""`fast_weight_heads` on the CPU: all of it, forward or backward, in one compiled call.

One program takes one head of one row of the batch through all steps: it scales keys and queries and opens the gates,
scans, and normalises what was read, each of them a loop over time in the cache that the one before left warm. At a
single step, in a rollout, everything else (tensors, strides, calls) costs more than the arithmetic; so it is little.

Values are read where the projection left them, and gradients are written where its backward will look for them.

The matrix of a delay head stays where it is while keys and queries turn around it (`_delay`): they are turned as they
are scaled, their gradients are turned back, and so is the final state.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch  # before numba: the first to load OpenMP decides which copy both use
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

import numpy as np  # isort: skip
from numba import njit, prange  # isort: skip
from fwp_rl.ops._jit import CALLED, KERNEL  # isort: skip
from fwp_rl.ops._numba import (  # isort: skip
    dot,
    empty,
    fill,
    launch,
    number,
    rows,
    scan_forward,
    sweep_forward,
    sweep_in_reverse,
    tile_width,
)
from fwp_rl.ops._simd import at, constant, load, multiply, multiply_add, size_of, store, zeros  # isort: skip
from fwp_rl.ops._unit_numba import scale_vector, scale_vector_backward  # isort: skip
from fwp_rl.ops.fast_weight_heads import READ_EPSILON, UNIT_EPSILON  # isort: skip

GATES = 8
"""Numbers of a record that are no vectors; five are used, the others keep vectors aligned."""


# ------------------------------------------------------------------------------------------------------- kernels
#
# Tensors are dense and reach a kernel as addresses, `starts` as in `_numba`, which is where the sweeps are. `largest`
# carries the type of numbers.


@njit(forceinline=True, **CALLED)
def _columns(rows, first, each, sizes, gated, size):
    """What a head finds in rows `[T, B, P]` of a projection, or of its gradient: `each` columns, from `first` on."""
    _, batch, heads, K, V = sizes
    row = heads * (2 * K + V + 1 + gated) * size
    return rows + first * size, batch * row, row, each * size


@njit(forceinline=True, **CALLED)
def _projection(rows, sizes, gated, size):
    """Queries, keys, values, and the logits of strength and decay."""
    _, _, heads, K, V = sizes
    values, gates = 2 * heads * K, heads * (2 * K + V)
    return (
        _columns(rows, 0, K, sizes, gated, size),
        _columns(rows, heads * K, K, sizes, gated, size),
        _columns(rows, values, V, sizes, gated, size),
        _columns(rows, gates, 1, sizes, gated, size),
        _columns(rows, gates + heads, 1, sizes, gated, size),
    )


@njit(forceinline=True, **CALLED)
def _field(records, first, sizes, size):
    """What is in all records at `first`. A head's records of all steps lie side by side."""
    steps, _, heads, K, V = sizes
    record = (2 * (K + V) + GATES) * size
    return records + first * size, record, heads * steps * record, steps * record


@njit(forceinline=True, **CALLED)
def _fields(records, sizes, size):
    """What is kept of each step: unit queries and keys, outputs, errors, strength, decay, and the scales of three."""
    _, _, _, K, V = sizes
    outputs, gates = 2 * K, 2 * (K + V)
    return (
        _field(records, 0, sizes, size),
        _field(records, K, sizes, size),
        _field(records, outputs, sizes, size),
        _field(records, outputs + V, sizes, size),
        _field(records, gates, sizes, size),
        _field(records, gates + 1, sizes, size),
        _field(records, gates + 2, sizes, size),
        _field(records, gates + 3, sizes, size),
        _field(records, gates + 4, sizes, size),
    )


@njit(forceinline=True, **CALLED)
def _heads(rows, width, sizes, size):
    """Rows `[T, B, H * width]`."""
    _, batch, heads, _, _ = sizes
    return rows, batch * heads * width * size, heads * width * size, width * size


@njit(forceinline=True, **CALLED)
def _matrices(states, sizes, size):
    """States `[B, H, K, V]`."""
    _, _, heads, K, V = sizes
    return states, heads * K * V * size, K * V * size, 0


@njit(forceinline=True, **CALLED)
def _add(x, factor, y, target, num_bytes, zero):
    """target = x + factor y."""
    for i in range(0, num_bytes, size_of(zero)):
        store(target + i, multiply_add(factor, load(zero, y + i), load(zero, x + i)))


@njit(forceinline=True, **CALLED)
def _multiple(factor, source, target, num_bytes, like):
    """target = factor source; any number of bytes."""
    tile = zeros(like, 8)
    whole = num_bytes - num_bytes % size_of(tile)
    for i in range(0, whole, size_of(tile)):
        store(target + i, multiply(factor, load(tile, source + i)))
    for i in range(whole, num_bytes, size_of(like)):
        store(target + i, factor * load(like, source + i))


@njit(**CALLED)
def _turn(source, target, n, K, row, like):
    """target = P^-n source, of K rows of so many bytes; n may be negative."""
    sign = constant(like, 1)
    n %= 2 * K
    if n >= K:
        n -= K
        sign = -sign
    _multiple(sign, source + n * row, target, (K - n) * row, like)
    _multiple(-sign, source, target + (K - n) * row, n * row, like)


@njit(**CALLED)
def _head_forward(
    b, h, zero, scratch, projected, skip, records, y, initial, final, starts, largest, erase, gated, sizes, delay
):  # fmt: skip
    """`scratch` holds a vector and a matrix, for a delay head; `delay` is how many there are, and the inner steps."""
    steps, _, _, K, V = sizes
    delay_heads, n_inner = delay
    moves = h < delay_heads
    size, one = size_of(largest), constant(largest, 1)
    unit_epsilon, read_epsilon = constant(largest, UNIT_EPSILON), constant(largest, READ_EPSILON * V)
    q, k, v, strength_logit, decay_logit = _projection(projected, sizes, gated, size)
    unit_q, unit_k, outputs, errors, beta, decay, q_scale, k_scale, y_scale = _fields(records, sizes, size)
    final = _matrices(final, sizes, size)
    vector, matrix = scratch, final
    if moves:
        matrix = scratch + K * size, 0, 0, 0
    for t in range(steps):
        if moves:
            turns = t // n_inner + 1
            store(at(q_scale, t, b, h), scale_vector(at(q, t, b, h), vector, K, unit_epsilon, one))
            _turn(vector, at(unit_q, t, b, h), turns, K, size, largest)
            store(at(k_scale, t, b, h), scale_vector(at(k, t, b, h), vector, K, unit_epsilon, one))
            _turn(vector, at(unit_k, t, b, h), turns, K, size, largest)
        else:
            store(at(q_scale, t, b, h), scale_vector(at(q, t, b, h), at(unit_q, t, b, h), K, unit_epsilon, one))
            store(at(k_scale, t, b, h), scale_vector(at(k, t, b, h), at(unit_k, t, b, h), K, unit_epsilon, one))
        store(at(beta, t, b, h), largest / (one + np.exp(-load(largest, at(strength_logit, t, b, h)))))
        if gated:  # exp(-softplus(d)) = sigmoid(-d)
            store(at(decay, t, b, h), one / (one + np.exp(load(largest, at(decay_logit, t, b, h)))))
    scan_forward(
        b, h, zero, unit_q, unit_k, v, beta, decay, starts, _matrices(initial, sizes, size), matrix, outputs, errors,
        one, erase, gated, sizes,
    )  # fmt: skip
    if moves:
        _turn(matrix[0], at(final, b, h, 0), -(steps // n_inner), K, V * size, largest)
    length, y = constant(largest, np.sqrt(V)), _heads(y, V, sizes, size)
    skip_h = load(largest, skip + h * size)
    for t in range(steps):
        y_t = at(y, t, b, h)
        _add(at(outputs, t, b, h), skip_h, at(v, t, b, h), y_t, V * size, zero)
        store(at(y_scale, t, b, h), scale_vector(y_t, y_t, V, read_epsilon, length))


@njit(**CALLED)
def _head_backward(
    b, h, zero, narrow, scratch, projected, skip, records, y, initial, final, starts, dy, dfinal, dprojected, dskip,
    dstate, largest, erase, gated, sizes, delay,
):  # fmt: skip
    """Every gradient is first written to the place of its logit or vector, then scaled there."""
    steps, _, heads, K, V = sizes
    delay_heads, n_inner = delay
    moves = h < delay_heads
    size, one = size_of(largest), constant(largest, 1)
    _, _, v, _, decay_logit = _projection(projected, sizes, gated, size)
    dq, dk, dv, dstrength, ddecay = _projection(dprojected, sizes, gated, size)
    unit_q, unit_k, outputs, errors, beta, decay, q_scale, k_scale, y_scale = _fields(records, sizes, size)
    initial, dstate = _matrices(initial, sizes, size), _matrices(dstate, sizes, size)
    final, dfinal = _matrices(final, sizes, size), _matrices(dfinal, sizes, size)
    matrix, partials = scratch, scratch + K * V * size
    doutputs = partials + K * size_of(narrow), V * size, 0, 0
    vector = doutputs[0] + steps * V * size
    if moves and dfinal[0] != 0:
        turned, row = vector + K * size, V * size
        _turn(at(dfinal, b, h, 0), turned, steps // n_inner, K, row, largest)
        _turn(at(final, b, h, 0), turned + K * row, steps // n_inner, K, row, largest)
        dfinal, final = (turned, 0, 0, 0), (turned + K * row, 0, 0, 0)
    if dy == 0:
        fill(doutputs[0], steps * V * size, zero)
    else:
        length, y, dy = constant(largest, np.sqrt(V)), _heads(y, V, sizes, size), _heads(dy, V, sizes, size)
        for t in range(steps):
            scale = load(largest, at(y_scale, t, b, h))
            scale_vector_backward(at(y, t, b, h), scale, at(dy, t, b, h), at(doutputs, t, b, h), V, length)
    sweep_in_reverse(
        b, h, zero, narrow, partials, unit_q, unit_k, v, beta, decay, starts, outputs, errors, doutputs,
        final, dfinal, dk, dv, dstrength, ddecay, dstate, one, erase, gated, sizes,
    )  # fmt: skip
    sweep_forward(
        b, h, zero, matrix, unit_k, beta, decay, starts, initial, errors, doutputs, dq, dk, dv, ddecay,
        one, erase, gated, sizes,
    )  # fmt: skip
    skip_h, dskip_h = load(largest, skip + h * size), one - one
    for t in range(steps):
        doutputs_t, v_t, dv_t = at(doutputs, t, b, h), at(v, t, b, h), at(dv, t, b, h)
        dskip_h += dot(doutputs_t, v_t, V * size, zero)
        _add(dv_t, skip_h, doutputs_t, dv_t, V * size, zero)
        at_q, at_k, at_strength = at(dq, t, b, h), at(dk, t, b, h), at(dstrength, t, b, h)
        scale_q, scale_k = load(largest, at(q_scale, t, b, h)), load(largest, at(k_scale, t, b, h))
        if moves:
            turns = t // n_inner + 1
            scale_vector_backward(at(unit_q, t, b, h), scale_q, at_q, vector, K, one)
            _turn(vector, at_q, -turns, K, size, largest)
            scale_vector_backward(at(unit_k, t, b, h), scale_k, at_k, vector, K, one)
            _turn(vector, at_k, -turns, K, size, largest)
        else:
            scale_vector_backward(at(unit_q, t, b, h), scale_q, at_q, at_q, K, one)
            scale_vector_backward(at(unit_k, t, b, h), scale_k, at_k, at_k, K, one)
        strength = load(largest, at(beta, t, b, h))
        store(at_strength, load(largest, at_strength) * strength * (one - strength / largest))
        if gated:  # Not 1 - decay: that cancels where memory is long.
            at_decay, logit = at(ddecay, t, b, h), load(largest, at(decay_logit, t, b, h))
            store(at_decay, -load(largest, at_decay) / (one + np.exp(-logit)))
    store(dskip + (b * heads + h) * size, dskip_h)


@functools.cache
def _forward_kernel(WIDTH: int, PARALLEL: bool) -> Callable:
    """In tiles of WIDTH columns."""

    @njit(parallel=PARALLEL, **KERNEL)
    def forward(projected, skip, records, y, initial, final, starts, largest, erase, gated, sizes, delay):
        heads, K, V = sizes[2:]
        for program in prange(sizes[1] * heads):
            b = program // heads
            h = program - b * heads
            # Allocated in each program, since that is most often the memory that the one before left in the cache.
            scratch = np.empty((K * (V + 1) if h < delay[0] else 1) * size_of(largest), np.uint8)
            _head_forward(
                b, h, zeros(largest, WIDTH), np.int64(scratch.ctypes.data), projected, skip, records, y, initial,
                final, starts, largest, erase, gated, sizes, delay,
            )  # fmt: skip
        return PARALLEL  # the cache tells kernels apart by what they close over

    return forward


@functools.cache
def _backward_kernel(WIDTH: int, LANES: int, PARALLEL: bool) -> Callable:
    @njit(parallel=PARALLEL, **KERNEL)
    def backward(
        projected, skip, records, y, initial, final, dy, dfinal, dprojected, dskip, dstate, starts, largest, erase,
        gated, sizes, delay,
    ):  # fmt: skip
        steps, _, heads, K, V = sizes
        for program in prange(sizes[1] * heads):
            b = program // heads
            h = program - b * heads
            scratch = np.empty((K * (3 * V + LANES + 1) + steps * V) * size_of(largest), np.uint8)
            _head_backward(
                b, h, zeros(largest, WIDTH), zeros(largest, LANES), np.int64(scratch.ctypes.data), projected, skip,
                records, y, initial, final, starts, dy, dfinal, dprojected, dskip, dstate, largest, erase, gated, sizes,
                delay,
            )  # fmt: skip
        return PARALLEL

    return backward


# ------------------------------------------------------------------------------------------------------ from torch


def heads(
    projected: Float[Tensor, "T B P"],
    skip: Float[Tensor, " H"],
    state: Float[Tensor, "B H K V"],
    episode_starts: Bool[Tensor, "T B"],
    rule: str,
    gated: bool,
    largest_strength: float,
    delay_heads: int,
    n_inner: int,
) -> tuple[Float[Tensor, "T B Y"], Float[Tensor, "B H K V"]]:
    """See `fast_weight_heads`; all of one dtype, K and V multiples of 16, T at least 1."""
    options = rule, gated, largest_strength, (delay_heads, n_inner)
    projected, state = projected.contiguous(), state.contiguous()
    if torch.is_grad_enabled() and any(x.requires_grad for x in (projected, skip, state)):
        y, final = _FastWeightHeads.apply(projected, skip, state, episode_starts, *options)
    else:
        y, final, _ = _forward(projected, skip, state, episode_starts, *options)
    return y, final


def _forward(
    projected: Tensor,
    skip: Tensor,
    state: Tensor,
    starts: Tensor,
    rule: str,
    gated: bool,
    largest: float,
    delay: tuple[int, int],
) -> tuple[Tensor, Tensor, Tensor]:
    """y, final state, and the records, which the backward needs."""
    time, batch, _ = projected.shape
    _, n_heads, K, V = state.shape
    dtype = projected.dtype
    y, final = empty((time, batch, n_heads * V), dtype), empty(state.shape, dtype)
    records = empty((batch * n_heads * time * (2 * (K + V) + GATES),), dtype)
    sizes = time, batch, n_heads, K, V
    arguments = (
        projected.data_ptr(), skip.data_ptr(), records.data_ptr(), y.data_ptr(), state.data_ptr(), final.data_ptr(),
        rows(starts), number(largest, dtype), rule == "delta", gated, sizes, delay,
    )  # fmt: skip
    launch(functools.partial(_forward_kernel, tile_width(K, V, dtype)), time * batch * n_heads * K * V, *arguments)
    return y, final, records


class _FastWeightHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, projected: Tensor, skip: Tensor, state: Tensor, starts: Tensor, *options: Any
    ) -> tuple[Tensor, Tensor]:
        y, final, records = _forward(projected, skip, state, starts, *options)
        ctx.save_for_backward(projected, skip, state, starts, y, final, records)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
        projected, skip, state, starts, y, final, records = ctx.saved_tensors
        rule, gated, largest, delay = ctx.options
        time, batch, _ = projected.shape
        _, n_heads, K, V = state.shape
        dtype = projected.dtype
        dprojected, dstate = empty(projected.shape, dtype), empty(state.shape, dtype)
        dskip = empty((batch, n_heads), dtype)
        dy, dfinal = (None if x is None else x.contiguous() for x in (dy, dfinal))
        addresses = [
            0 if x is None else x.data_ptr()
            for x in (projected, skip, records, y, state, final, dy, dfinal, dprojected, dskip, dstate)
        ]
        kernel = functools.partial(_backward_kernel, tile_width(K, V, dtype), 32 // projected.element_size())
        launch(
            kernel, 3 * time * batch * n_heads * K * V, *addresses, rows(starts), number(largest, dtype),
            rule == "delta", gated, (time, batch, n_heads, K, V), delay,
        )  # fmt: skip
        return dprojected, dskip.sum(0), dstate, None, *[None] * 4
