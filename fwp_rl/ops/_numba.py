"""The fast weight scan as fused loops for the CPU, with the backward derived by hand.

One program takes one matrix S (one row of the batch, one head) through all steps while it stays in the first-level
cache. Each step reads and writes S once: the pass that adds the write of the step before (k u^T, still pending) also
gathers what the step needs from the new S. The backward is a sweep in reverse, in which only dS lives, and a sweep
forward, in which only S lives; no state is stored per step.

Vectors are explicit (`_simd`): a tile is 16 or 32 neighbouring columns of a row.
"""

import functools
import math
import os
import weakref
from collections.abc import Callable

import numpy as np
import torch  # before numba: the first to load OpenMP decides which copy both use
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

import numba  # isort: skip
from numba import njit, prange  # isort: skip
from fwp_rl.ops._delay import scan_in_moving_frame  # isort: skip
from fwp_rl.ops._jit import CALLED, KERNEL  # isort: skip

from fwp_rl.ops._simd import (  # isort: skip
    at,
    constant,
    fold_product,
    is_set,
    load,
    multiply,
    multiply_add,
    prefetch,
    size_of,
    store,
    total,
    totals,
    zeros,
)

if "NUMBA_THREADING_LAYER_PRIORITY" not in os.environ:
    # The threads of torch; a second pool would fight it over the cores.
    numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]

AHEAD = 2
"""Steps that prefetching looks ahead."""

CACHE_LINE = 64

LARGE_BYTES = 1 << 21
"""Of a result from which on its memory is used again: smaller ones the allocator itself keeps at hand."""
MOST_KEPT_BYTES = 1 << 28
"""Of all memory that waits to be used again."""

BLOCK_BYTES = 1 << 21
"""Of one tensor in a block of steps."""

SERIAL_BELOW = 2_000_000
"""Multiply-adds under which a second thread costs more than it brings (about 0.2 ms)."""


# ------------------------------------------------------------------------------------------------------- kernels
#
# A tensor reaches a kernel as (address, stride of time, of batch, of head) in bytes; its last axis is dense. `zero` is
# a tile of zeros and carries the type of all others; `scale` is a number and carries the type of all others. Loops
# over i, j and c that load tiles run in bytes, too.
#
# Decays that differ between the channels of a key, rows of S, have a fifth entry, the stride of channels. So they are
# another type, and kernels for them are compiled apart: those with one decay for all rows do not pay for it.


@njit(forceinline=True, **CALLED)
def _prefetch_rows(x, y, z, t, b, h, num_bytes):
    # Rows of one program lie too far apart in memory for the hardware to guess the next.
    for i in range(0, num_bytes, CACHE_LINE):
        prefetch(at(x, t, b, h) + i)
        prefetch(at(y, t, b, h) + i)
        prefetch(at(z, t, b, h) + i)


@njit(forceinline=True, **CALLED)
def _has_channels(decay):
    return len(decay) == 5


@njit(forceinline=True, **CALLED)
def fill(address, num_bytes, zero):
    step = size_of(zero)
    for i in range(0, num_bytes, step):
        store(address + i, zero)


@njit(forceinline=True, **CALLED)
def dot(x, y, num_bytes, zero):
    products = zero
    for i in range(0, num_bytes, size_of(zero)):
        products = multiply_add(load(zero, x + i), load(zero, y + i), products)
    return total(products)


@njit(**CALLED)
def scan_forward(b, h, zero, q, k, v, beta, decay, starts, initial, state, outputs, errors, scale, erase, gated, sizes):
    """All steps of one matrix, which lives in `state`; e = v - S'^T k goes to `errors`."""
    steps, _, _, K, V = sizes
    channels = _has_channels(decay)
    minus = constant(scale, -1)
    size, step = size_of(scale), size_of(zero)
    row, column = V * size, K * size
    source, target = at(initial, b, h, 0), at(state, b, h, 0)
    k_t, e_t, beta_t = at(k, 0, b, h), at(errors, 0, b, h), scale
    pending = False
    for t in range(steps):
        k_before, e_before, beta_before = k_t, e_t, beta_t
        k_t, e_t = at(k, t, b, h), at(errors, t, b, h)
        q_t, v_t, y_t = at(q, t, b, h), at(v, t, b, h), at(outputs, t, b, h)
        decays_t = at(decay, t, b, h)
        beta_t, decay_t = load(scale, at(beta, t, b, h)), load(scale, decays_t)
        _prefetch_rows(q, k, k, t + AHEAD, b, h, column)
        _prefetch_rows(v, outputs, errors, t + AHEAD, b, h, row)
        if is_set(at(starts, t, b, 0)):
            fill(target, K * row, zero)
            source, pending = target, False
        changes = pending or gated  # else it is read only: half the time of a rollout's step
        kq = dot(k_t, q_t, column, zero)
        for c in range(0, row, step):
            u = multiply(beta_before, load(zero, e_before + c)) if pending else zero
            recalled, read = zero, zero
            for i in range(K):
                s = load(zero, source + i * row + c)
                if pending:
                    s = multiply_add(load(scale, k_before + i * size), u, s)
                if gated:
                    if channels:
                        decay_t = load(scale, decays_t + i * size)
                    s = multiply(decay_t, s)
                if changes:
                    store(target + i * row + c, s)
                recalled = multiply_add(load(scale, k_t + i * size), s, recalled)
                read = multiply_add(load(scale, q_t + i * size), s, read)
            e = load(zero, v_t + c)
            if erase:
                e = multiply_add(minus, recalled, e)
            store(e_t + c, e)
            store(y_t + c, multiply(scale, multiply_add(kq, multiply(beta_t, e), read)))
        source, pending = (target if changes else source), True
    for c in range(0, row, step):
        u = multiply(beta_t, load(zero, e_t + c))
        for i in range(K):
            s = multiply_add(load(scale, k_t + i * size), u, load(zero, source + i * row + c))
            store(target + i * row + c, s)


@njit(**CALLED)
def sweep_in_reverse(
    b, h, zero, narrow, partials, q, k, v, beta, decay, starts, outputs, errors, doutputs, final, dfinal, dk, dv,
    dbeta, ddecay, dstate, scale, erase, gated, sizes,
):  # fmt: skip
    """dS, which lives in `dstate`; all of dv and dbeta; of dk the part dS u.

    dS_t = scale q dy^T + decay' (dS' - k' dv'^T), where ' is the step after.

    The gradient of the decay needs no states: with inner = <dS, S> after the last step, <dS_t, S_t> and <dS'_t, S'_t>
    differ by v . dv, and the step before adds y . dy. That of decays of channels is left to `sweep_decays`.
    """
    steps, _, _, K, V = sizes
    channels = _has_channels(decay)
    one, minus = constant(scale, 1), constant(scale, -1)
    size, step, lanes = size_of(scale), size_of(zero), size_of(narrow)
    row, column = V * size, K * size
    gradient = at(dstate, b, h, 0)
    fill(partials, K * lanes, narrow)
    inner = one - one
    if dfinal[0] == 0:
        fill(gradient, K * row, zero)
    else:
        for i in range(0, K * row, step):
            store(gradient + i, load(zero, at(dfinal, b, h, 0) + i))
        inner = dot(gradient, at(final, b, h, 0), K * row, zero)
    k_t, dv_t, decay_t = at(k, steps - 1, b, h), at(dv, steps - 1, b, h), one
    decays_t = at(decay, steps - 1, b, h)
    pending = False
    for t in range(steps - 1, -1, -1):
        k_after, dv_after, decay_after, decays_after = k_t, dv_t, decay_t, decays_t
        k_t, q_t, dk_t = at(k, t, b, h), at(q, t, b, h), at(dk, t, b, h)
        dv_t, dy_t, e_t = at(dv, t, b, h), at(doutputs, t, b, h), at(errors, t, b, h)
        decays_t = at(decay, t, b, h)
        beta_t, decay_t = load(scale, at(beta, t, b, h)), load(scale, decays_t)
        _prefetch_rows(q, k, dk, t - AHEAD, b, h, column)
        _prefetch_rows(doutputs, errors, dv, t - AHEAD, b, h, row)
        if gated:
            _prefetch_rows(v, outputs, outputs, t - AHEAD, b, h, row)
        if not pending:
            k_after = k_t
        strength = zero
        for c in range(0, row, step):
            erased = multiply(minus, load(zero, dv_after + c)) if pending and erase else zero
            dy = multiply(scale, load(zero, dy_t + c))
            e = load(zero, e_t + c)
            u = multiply(beta_t, e)
            du = zero
            for i in range(K):
                g = multiply_add(load(scale, k_after + i * size), erased, load(zero, gradient + i * row + c))
                if gated:
                    if channels and pending:
                        decay_after = load(scale, decays_after + i * size)
                    g = multiply(decay_after, g)
                g = multiply_add(load(scale, q_t + i * size), dy, g)
                store(gradient + i * row + c, g)
                du = multiply_add(load(scale, k_t + i * size), g, du)
                store(partials + i * lanes, fold_product(g, u, load(narrow, partials + i * lanes)))
            store(dv_t + c, multiply(beta_t, du))
            strength = multiply_add(du, e, strength)
        store(at(dbeta, t, b, h), total(strength))
        for i in range(0, K * lanes, lanes * (lanes // size)):
            store(dk_t + i // (lanes // size), totals(narrow, partials + i))
        fill(partials, K * lanes, narrow)
        start = is_set(at(starts, t, b, 0))
        if gated and not channels:
            inner += dot(at(outputs, t, b, h), dy_t, row, zero) - dot(at(v, t, b, h), dv_t, row, zero)
            if start:
                inner = one - one
            store(at(ddecay, t, b, h), inner)
        if start:
            fill(gradient, K * row, zero)
        pending = not start
    if pending:
        for c in range(0, row, step):
            erased = multiply(minus, load(zero, dv_t + c)) if erase else zero
            for i in range(K):
                g = multiply_add(load(scale, k_t + i * size), erased, load(zero, gradient + i * row + c))
                if gated:
                    if channels:
                        decay_t = load(scale, decays_t + i * size)
                    g = multiply(decay_t, g)
                store(gradient + i * row + c, g)


@njit(**CALLED)
def sweep_forward(
    b, h, zero, matrix, k, beta, decay, starts, initial, errors, doutputs, dq, dk, dv, ddecay, scale, erase, gated,
    sizes,
):  # fmt: skip
    """All of dq = scale S dy, and of dk the part -S' dv; S^T, whose rows are columns of S, lives in `matrix`.

    For decays of channels k (dS u + S' dv) goes to `ddecay`.
    """
    steps, _, _, K, V = sizes
    channels = _has_channels(decay)
    one, minus = constant(scale, 1), constant(scale, -1)
    size, step = size_of(scale), size_of(zero)
    row, column = V * size, K * size
    for i in range(K):
        for j in range(V):
            store(matrix + j * column + i * size, load(scale, at(initial, b, h, 0) + i * row + j * size))
    k_t, e_t, beta_t = at(k, 0, b, h), at(errors, 0, b, h), scale
    pending = False
    for t in range(steps):
        k_before, e_before, beta_before = k_t, e_t, beta_t
        k_t, dq_t, dk_t = at(k, t, b, h), at(dq, t, b, h), at(dk, t, b, h)
        e_t, dv_t, dy_t = at(errors, t, b, h), at(dv, t, b, h), at(doutputs, t, b, h)
        decays_t = at(decay, t, b, h)
        beta_t, decay_t = load(scale, at(beta, t, b, h)), load(scale, decays_t)
        _prefetch_rows(k, dk, dq, t + AHEAD, b, h, column)
        _prefetch_rows(doutputs, errors, dv, t + AHEAD, b, h, row)
        if is_set(at(starts, t, b, 0)):
            fill(matrix, V * column, zero)
            pending = False
        if not pending:
            e_before = e_t
        u_dy = beta_t * dot(e_t, dy_t, row, zero)
        for c in range(0, column, step):
            key = multiply(beta_before, load(zero, k_before + c)) if pending else zero
            decays = load(zero, decays_t + c) if channels else zero
            read, erased = zero, zero
            for j in range(V):
                s = multiply_add(load(scale, e_before + j * size), key, load(zero, matrix + j * column + c))
                if gated:
                    s = multiply(decays, s) if channels else multiply(decay_t, s)
                store(matrix + j * column + c, s)
                read = multiply_add(load(scale, dy_t + j * size), s, read)
                erased = multiply_add(load(scale, dv_t + j * size), s, erased)
            store(dq_t + c, multiply(scale, multiply_add(u_dy, load(zero, k_t + c), read)))
            if channels:
                written = load(zero, dk_t + c)
                both = multiply_add(one, erased, written) if erase else written
                store(at(ddecay, t, b, h) + c, multiply(load(zero, k_t + c), both))
            if erase:
                store(dk_t + c, multiply_add(minus, erased, load(zero, dk_t + c)))
        pending = True


@njit(**CALLED)
def sweep_decays(b, h, zero, inner, q, starts, final, dfinal, dq, ddecay, scale, sizes):
    """The gradients of the decays of channels, in place of what `sweep_forward` left there.

    As in `sweep_in_reverse`, row by row: inner = <dS, S> after the last step, <dS_t, S_t> and <dS'_t, S'_t> differ by
    k (dS u + S' dv), and the step before adds q dq. It lives in `inner` `[K]`.
    """
    steps, _, _, K, V = sizes
    minus = constant(scale, -1)
    size, step = size_of(scale), size_of(zero)
    row, column = V * size, K * size
    fill(inner, column, zero)
    if dfinal[0] != 0:
        for i in range(K):
            product = dot(at(dfinal, b, h, 0) + i * row, at(final, b, h, 0) + i * row, row, zero)
            store(inner + i * size, product)
    for t in range(steps - 1, -1, -1):
        q_t, dq_t, ddecay_t = at(q, t, b, h), at(dq, t, b, h), at(ddecay, t, b, h)
        start = is_set(at(starts, t, b, 0))
        for c in range(0, column, step):
            product = multiply_add(load(zero, q_t + c), load(zero, dq_t + c), load(zero, inner + c))
            product = zero if start else multiply_add(minus, load(zero, ddecay_t + c), product)
            store(inner + c, product)
            store(ddecay_t + c, product)


@functools.cache
def forward_kernel(WIDTH: int, PARALLEL: bool) -> Callable:
    """The scan in tiles of WIDTH columns; K and V are multiples of it."""

    @njit(parallel=PARALLEL, **KERNEL)
    def forward(q, k, v, beta, decay, starts, initial, state, outputs, errors, scale, erase, gated, sizes):
        heads = sizes[2]
        for program in prange(sizes[1] * heads):
            b = program // heads
            h = program - b * heads
            scan_forward(
                b, h, zeros(scale, WIDTH), q, k, v, beta, decay, starts, initial, state, outputs, errors,
                scale, erase, gated, sizes,
            )  # fmt: skip
        return PARALLEL  # the cache tells kernels apart by what they close over

    return forward


@functools.cache
def backward_kernel(WIDTH: int, LANES: int, PARALLEL: bool) -> Callable:
    """The gradients; `dfinal` may be without address: nobody used the final state."""

    @njit(parallel=PARALLEL, **KERNEL)
    def backward(
        q, k, v, beta, decay, starts, initial, outputs, errors, doutputs, final, dfinal, dq, dk, dv, dbeta, ddecay,
        dstate, scale, erase, gated, sizes,
    ):  # fmt: skip
        heads, K, V = sizes[2:]
        for program in prange(sizes[1] * heads):
            b = program // heads
            h = program - b * heads
            zero, narrow = zeros(scale, WIDTH), zeros(scale, LANES)
            scratch = np.empty(K * (V + LANES) * size_of(scale), np.uint8)
            matrix = np.int64(scratch.ctypes.data)
            partials = matrix + K * V * size_of(scale)
            sweep_in_reverse(
                b, h, zero, narrow, partials, q, k, v, beta, decay, starts, outputs, errors, doutputs, final,
                dfinal, dk, dv, dbeta, ddecay, dstate, scale, erase, gated, sizes,
            )  # fmt: skip
            sweep_forward(
                b, h, zero, matrix, k, beta, decay, starts, initial, errors, doutputs, dq, dk, dv, ddecay,
                scale, erase, gated, sizes,
            )  # fmt: skip
            if _has_channels(decay):
                sweep_decays(b, h, zero, partials, q, starts, final, dfinal, dq, ddecay, scale, sizes)
        return PARALLEL

    return backward


# ------------------------------------------------------------------------------------------------------ from torch


def scan(
    q: Float[Tensor, "T B H K"],
    k: Float[Tensor, "T B H K"],
    v: Float[Tensor, "T B H V"],
    beta: Float[Tensor, "T B H"],
    log_decay: Float[Tensor, "T B H"] | Float[Tensor, "T B H K"] | None,
    state: Float[Tensor, "B H K V"],
    episode_starts: Bool[Tensor, "T B"],
    rule: str,
    scale: float,
    delay_heads: int = 0,
    n_inner: int = 1,
) -> tuple[Float[Tensor, "T B H V"], Float[Tensor, "B H K V"]]:
    """Pads K and V to whole tiles, and saves for a backward only if there will be one."""
    if delay_heads:
        arguments = (q, k, v, beta, log_decay, state, episode_starts, rule, scale, delay_heads, n_inner)
        return scan_in_moving_frame(scan, *arguments)
    K, V = state.shape[-2:]
    key_padding, value_padding = -K % 16, -V % 16
    if key_padding or value_padding:
        q, k = functional.pad(q, (0, key_padding)), functional.pad(k, (0, key_padding))
        v = functional.pad(v, (0, value_padding))
        state = functional.pad(state, (0, value_padding, 0, key_padding))
        if log_decay is not None and log_decay.ndim == 4:
            log_decay = functional.pad(log_decay, (0, key_padding))
    gated, decay = log_decay is not None, beta if log_decay is None else log_decay
    tensors = (_dense(q), _dense(k), _dense(v), beta, decay, state)
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        outputs, state = FastWeightScan.apply(*tensors, episode_starts, rule, gated, scale)
    else:
        *tensors, state = tensors
        if gated:
            tensors[-1] = _dense(decay.exp())
        outputs, states, _ = forward(*tensors, state, episode_starts, rule, gated, scale, save=False)
        state = states[-1]
    if key_padding or value_padding:
        return outputs[..., :V], state[..., :K, :V]
    return outputs, state


class FastWeightScan(torch.autograd.Function):
    """The kernels as one differentiable function."""

    @staticmethod
    def forward(ctx: FunctionCtx, q, k, v, beta, log_decay, state, episode_starts, rule, gated, scale):
        decay = _dense(log_decay.exp()) if gated else beta
        outputs, states, errors = forward(q, k, v, beta, decay, state, episode_starts, rule, gated, scale, save=True)
        ctx.save_for_backward(q, k, v, beta, decay, episode_starts, outputs, errors, *states)
        ctx.options = rule, gated, scale
        ctx.set_materialize_grads(False)
        return outputs, states[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, doutputs, dfinal):
        q, k, v, beta, decay, episode_starts, outputs, errors, *states = ctx.saved_tensors
        doutputs = torch.zeros_like(errors) if doutputs is None else _dense(doutputs)
        gradients = [empty(x.shape, x.dtype) for x in (q, k, v, beta)]
        gated = ctx.options[1]
        dlog_decay = empty(decay.shape, decay.dtype) if gated else None
        dstate = backward(
            q, k, v, beta, decay, episode_starts, outputs, errors, states, doutputs, dfinal, *gradients, dlog_decay,
            *ctx.options,
        )  # fmt: skip
        return *gradients, dlog_decay, dstate, None, None, None, None


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    decay: Tensor,
    state: Tensor,
    episode_starts: Tensor,
    rule: str,
    gated: bool,
    scale: float,
    *,
    save: bool,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Outputs, the states before and after each block of steps, errors v - S'^T k.

    The errors and all states but the last are kept only if they are to be saved for `backward`.
    Without gradient; K and V are multiples of 16, last axes are dense. `decay` is read only if gated.
    """
    *sizes, V = *q.shape, v.shape[-1]
    outputs = empty(v.shape, v.dtype)
    errors = empty(v.shape if save else (1, *v.shape[1:]), v.dtype)
    states = [state.contiguous()]
    for begin, end in block_borders(q, v):
        before, after = states[-1], empty(state.shape, v.dtype)
        states = [*states, after] if save else [after]
        error_rows = rows(errors, begin if save else 0)
        if not save:  # nobody will look at them again: all steps share the memory of one
            error_rows = (error_rows[0], 0, *error_rows[2:])
        arguments = (
            *(rows(x, begin) for x in (q, k, v, beta)), _decay_rows(decay, begin), rows(episode_starts, begin),
            rows(before), rows(after), rows(outputs, begin), error_rows, number(scale, v.dtype), rule == "delta", gated,
            (end - begin, *sizes[1:], V),
        )  # fmt: skip
        kernel = functools.partial(forward_kernel, tile_width(sizes[-1], V, v.dtype))
        launch(kernel, (end - begin) * q[0].numel() * V, *arguments)
    return outputs, states, errors


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    decay: Tensor,
    episode_starts: Tensor,
    outputs: Tensor,
    errors: Tensor,
    states: list[Tensor],
    doutputs: Tensor,
    dfinal: Tensor | None,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    dbeta: Tensor,
    dlog_decay: Tensor | None,
    rule: str,
    gated: bool,
    scale: float,
) -> Tensor:
    """Fills dq to dlog_decay, whose last axes are dense, and returns the gradient of the initial state."""
    sizes, V = q.shape[1:], v.shape[-1]
    dstate = None if dfinal is None else dfinal.contiguous()
    dlog_decay = dbeta if dlog_decay is None else dlog_decay
    for index, (begin, end) in reversed(list(enumerate(block_borders(q, v)))):
        dfinal, dstate = dstate, empty(states[0].shape, q.dtype)
        arguments = [*(rows(x, begin) for x in (q, k, v, beta)), _decay_rows(decay, begin)]
        arguments += [rows(episode_starts, begin), rows(states[index])]
        arguments += [rows(x, begin) for x in (outputs, errors, doutputs)] + [rows(states[index + 1]), rows(dfinal)]
        arguments += [rows(x, begin) for x in (dq, dk, dv, dbeta, dlog_decay)] + [rows(dstate)]
        arguments += [number(scale, q.dtype), rule == "delta", gated, (end - begin, *sizes, V)]
        kernel = functools.partial(backward_kernel, tile_width(sizes[-1], V, q.dtype), 32 // q.element_size())
        launch(kernel, 3 * (end - begin) * q[0].numel() * V, *arguments)
    return dstate


def block_borders(q: Tensor, v: Tensor) -> list[tuple[int, int]]:
    """Where blocks of steps begin and end: what a block reads and writes stays in the cache between two programs."""
    time, row_bytes = q.shape[0], max(q[0].numel(), v[0].numel()) * q.element_size()
    length = max(16, BLOCK_BYTES // max(1, row_bytes))
    return [(begin, min(begin + length, time)) for begin in range(0, time, length)]


_unused: dict[int, list[np.ndarray]] = {}
"""Memory of large results that are gone, by its size in bytes."""


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """As `torch.empty`, but large ones take memory that was used before.

    Fresh memory has to be cleared by the system, page by page, which costs as much as the kernels. It comes from numpy,
    which asks for huge pages.
    """
    kind = np.float32 if dtype == torch.float32 else np.float64
    size = math.prod(shape) * np.dtype(kind).itemsize
    if size < LARGE_BYTES:
        return torch.from_numpy(np.empty(shape, kind))
    unused = _unused.get(size)
    memory = unused.pop() if unused else np.empty(size, np.uint8)
    array = memory.view(kind).reshape(shape)
    weakref.finalize(array, _keep, memory).atexit = False
    return torch.from_numpy(array)


def _keep(memory: np.ndarray) -> None:
    kept = sum(size * len(arrays) for size, arrays in list(_unused.items()))
    if kept + memory.nbytes > MOST_KEPT_BYTES:
        _unused.clear()
    _unused.setdefault(memory.nbytes, []).append(memory)


def number(value: float, dtype: torch.dtype) -> np.floating:
    """A number of that type, for a kernel."""
    return np.float32(value) if dtype == torch.float32 else np.float64(value)


def tile_width(K: int, V: int, dtype: torch.dtype) -> int:
    """Columns of a tile: four registers of AVX2, if the matrix has as many."""
    return 32 if K % 32 == 0 and V % 32 == 0 and dtype == torch.float32 else 16


def _dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def rows(x: Tensor | None, step: int = 0) -> tuple[int, int, int, int]:
    """Address (of a step) and the first three strides in bytes; no tensor is at 0."""
    if x is None:
        return 0, 0, 0, 0
    size, strides = x.element_size(), x.stride()
    return (
        x.data_ptr() + step * strides[0] * size,
        strides[0] * size,
        strides[1] * size,
        strides[2] * size if len(strides) > 2 else 0,
    )


def _decay_rows(decay: Tensor, step: int) -> tuple[int, ...]:
    """The same, and for decays of channels their stride."""
    return rows(decay, step) + ((decay.element_size(),) if decay.ndim == 4 else ())


def launch(kernel: Callable[[bool], Callable], work: int, *arguments: object) -> None:
    """Run `kernel(False)`, or with enough to do `kernel(True)` on as many threads as torch uses now.

    Two kernels, since one that runs in parallel takes two to three times as long to compile.
    :param work: Multiply-adds.
    """
    n_threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    if work < SERIAL_BELOW or n_threads == 1:
        kernel(False)(*arguments)
        return
    others = numba.get_num_threads()
    numba.set_num_threads(n_threads)
    try:
        kernel(True)(*arguments)
    finally:
        numba.set_num_threads(others)


@njit(parallel=True, cache=True)
def _probe(n):
    result = 0.0
    for i in prange(n):
        result += total(zeros(1.0, 16)) + i
    return result


def compile_probe() -> None:
    """Raise what stands in the way of compiling and running kernels."""
    if _probe(3) != 3.0:
        raise RuntimeError("a compiled loop over 0, 1, 2 does not add up to 3")
