"""The fast weight scan as Triton kernels for GPUs: one launch forward, one backward, and one for a single step.

One program takes one matrix S (one row of the batch, one head) through all steps, in chunks of 16, while S stays in
registers. The mathematics and its letters are in `docs/operator.md`. Starts are masks on pairs of steps, never a decay
of minus infinity; the unit lower triangular system of a chunk is inverted row by row, never by a series, which
diverges on near-identical keys (an agent that stands still). Every output has one writer: results are bitwise
reproducible. What is not a number in the inputs spreads over its chunk.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fwp_rl.ops import _reference

CHUNK = 16
SIZES = (16, 32, 64)
"""Of K and V; what lies between is padded."""
CHECK_TOLERANCE = 1e-4
"""Of the largest entry, for a kernel that is used for the first time."""


# ------------------------------------------------------------------------------------------------------- kernels
#
# K and V are the sizes of a head, BLOCK_K and BLOCK_V the powers of two that hold them. A tensor `x` comes with its
# strides of time, batch, head and last axis, x_t, x_b, x_h and x_d; what has none is dense: y and errors [T, B, H, V],
# inverses [chunks, B, H, CHUNK, CHUNK], the gradients like their tensors. In a chunk i is the later step, j the
# earlier one; [:, None] is i in pairs and j in their transpose.
#
# A delay head is computed in the frame in which its rows do not move: what has K for an axis is loaded and stored where
# P^turns takes it, with the sign that it has there. DELAYED compiles that in; the other heads of such a kernel have no
# turns.
#
# The loops over chunks keep what does not change where it is computed (`disable_licm`). Taken out of them, some seventy
# addresses in shared memory would each hold a register from the first chunk to the last, and spill.


@triton.jit
def _load(pointer, steps, x_t, columns, x_d, T, SIZE: tl.constexpr, dtype: tl.constexpr):
    """Rows of a chunk; zeros after the last step and right of the last column."""
    inside = (steps < T)[:, None] & (columns < SIZE)[None, :]
    offsets = steps.to(tl.int64)[:, None] * x_t + columns[None, :] * x_d
    return tl.load(pointer + offsets, mask=inside, other=0.0).to(dtype)


@triton.jit
def _store(pointer, steps, x_t, columns, x, T, SIZE: tl.constexpr):
    inside = (steps < T)[:, None] & (columns < SIZE)[None, :]
    tl.store(pointer + steps.to(tl.int64)[:, None] * x_t + columns[None, :], x, mask=inside)


@triton.jit
def _places(rows, turns, K: tl.constexpr, DELAYED: tl.constexpr):
    """Places to which P^turns takes the rows of a head, and whether their sign is turned there."""
    if DELAYED:
        places = (rows + turns).to(tl.uint32)
        return (places % K).to(tl.int32), places // K % 2 == 1
    else:
        return rows, False


@triton.jit
def _turn(x, turned, DELAYED: tl.constexpr):
    if DELAYED:
        return tl.where(turned, -x, x)
    else:
        return x


@triton.jit
def _load_keys(
    pointer, steps, x_t, rows, x_d, turns, T, K: tl.constexpr, DELAYED: tl.constexpr, dtype: tl.constexpr
):  # fmt: skip
    """Keys or queries of a chunk: P^-turns x."""
    if DELAYED:
        inside = (steps < T)[:, None] & (rows < K)[None, :]
        places, turned = _places(rows[None, :], turns[:, None], K, DELAYED)
        offsets = steps.to(tl.int64)[:, None] * x_t + places * x_d
        return _turn(tl.load(pointer + offsets, mask=inside, other=0.0).to(dtype), turned, DELAYED)
    else:
        return _load(pointer, steps, x_t, rows, x_d, T, K, dtype)


@triton.jit
def _store_keys(pointer, steps, x_t, rows, x, turns, T, K: tl.constexpr, DELAYED: tl.constexpr):
    """Stores P^turns x."""
    if DELAYED:
        inside = (steps < T)[:, None] & (rows < K)[None, :]
        places, turned = _places(rows[None, :], turns[:, None], K, DELAYED)
        tl.store(pointer + steps.to(tl.int64)[:, None] * x_t + places, _turn(x, turned, DELAYED), mask=inside)
    else:
        _store(pointer, steps, x_t, rows, x, T, K)


@triton.jit
def _load_steps(pointer, steps, x_t, T, other):
    return tl.load(pointer + steps.to(tl.int64) * x_t, mask=steps < T, other=other)


@triton.jit
def _load_state(pointer, rows, s_k, columns, s_v, K: tl.constexpr, V: tl.constexpr):
    inside = (rows < K)[:, None] & (columns < V)[None, :]
    return tl.load(pointer + rows[:, None] * s_k + columns[None, :] * s_v, mask=inside, other=0.0)


@triton.jit
def _store_final(pointer, rows, columns, state, turns, K: tl.constexpr, V: tl.constexpr, DELAYED: tl.constexpr):
    inside = (rows < K)[:, None] & (columns < V)[None, :]
    places, turned = _places(rows[:, None], turns, K, DELAYED)
    tl.store(pointer + places * V + columns[None, :], _turn(state, turned, DELAYED), mask=inside)


@triton.jit
def _dot(x, y, PRECISION: tl.constexpr):
    return tl.dot(x, y, input_precision=PRECISION, out_dtype=x.dtype)


@triton.jit
def _masks(
    log_decay, decay_t, starts, starts_t, steps, T, GATED: tl.constexpr, CHUNK: tl.constexpr, dtype: tl.constexpr
):  # fmt: skip
    """What the starts and decays of a chunk come to.

    The starts; how many there were up to and with each step, and in all; the sum of decays within the episode (b);
    what is left of the state at step i (d), of step j at the end (e), and of the state at the end without a start.
    """
    index = tl.arange(0, CHUNK)
    starts_c = _load_steps(starts, steps, starts_t, T, 0).to(tl.int32)
    episodes = tl.sum(tl.where(index[:, None] >= index[None, :], starts_c[None, :], 0), 1)
    last_episode = tl.sum(starts_c, 0)
    if GATED:
        decay_c = _load_steps(log_decay, steps, decay_t, T, 0.0).to(dtype)
        # Within episodes, where a start has no decay: a sum over all would let rounding errors cross starts.
        kept = (episodes[:, None] == episodes[None, :]) & (index[:, None] >= index[None, :]) & (starts_c == 0)[None, :]
        total = tl.sum(tl.where(kept, decay_c[None, :], 0.0), 1)
        last_total = tl.sum(tl.where(index == CHUNK - 1, total, 0.0), 0)
        # The mask goes inside the exponential: outside, it may overflow and infinity times zero is not a number.
        from_state = tl.exp(tl.where(episodes == 0, total, float("-inf")))
        to_end = tl.exp(tl.where(episodes == last_episode, last_total - total, float("-inf")))
        left = tl.exp(last_total)
    else:
        total = tl.zeros([CHUNK], dtype)
        from_state = tl.where(episodes == 0, 1.0, 0.0).to(dtype)
        to_end = tl.where(episodes == last_episode, 1.0, 0.0).to(dtype)
        left = 1.0
    return starts_c, episodes, last_episode, total, from_state, to_end, left


@triton.jit
def _pairs(episodes, total, GATED: tl.constexpr, TRANSPOSED: tl.constexpr, CHUNK: tl.constexpr, dtype: tl.constexpr):
    """D: what is left of step j at step i >= j, zero across a start; its transpose has j for rows."""
    index = tl.arange(0, CHUNK)
    if TRANSPOSED:
        kept = (index[:, None] <= index[None, :]) & (episodes[:, None] == episodes[None, :])
        between = total[None, :] - total[:, None]
    else:
        kept = (index[:, None] >= index[None, :]) & (episodes[:, None] == episodes[None, :])
        between = total[:, None] - total[None, :]
    if GATED:
        return tl.exp(tl.where(kept, between, float("-inf")))
    return tl.where(kept, 1.0, 0.0).to(dtype)


@triton.jit
def _fade(state, last_episode, left, GATED: tl.constexpr):
    """A start forgets what is not a number, too."""
    if GATED:
        state *= left
    return tl.where(last_episode == 0, state, 0.0)


@triton.jit
def _invert(system, CHUNK: tl.constexpr):
    """(I + system)^-1 of a strictly lower triangular system: row j, once final, is taken out of all rows below it."""
    index = tl.arange(0, CHUNK)
    inverse = tl.where(index[:, None] == index[None, :], 1.0, 0.0).to(system.dtype)
    for j in range(CHUNK - 1):
        column = tl.sum(tl.where(index[None, :] == j, system, 0.0), 1)
        row = tl.sum(tl.where(index[:, None] == j, inverse, 0.0), 0)
        inverse -= column[:, None] * row[None, :]
    return inverse


_RUN_TIME = ["T", "H", "beta_t", "beta_b", "beta_h", "decay_t", "decay_b", "decay_h", "starts_t", "starts_b"]
_RUN_TIME += ["delay_heads", "n_inner"]


@triton.jit(do_not_specialize=["B", *_RUN_TIME])
def forward_kernel(
    q, k, v, beta, log_decay, initial, starts, y, final, errors, inverses,
    q_t, q_b, q_h, q_d, k_t, k_b, k_h, k_d, v_t, v_b, v_h, v_d, beta_t, beta_b, beta_h, decay_t, decay_b, decay_h,
    initial_b, initial_h, initial_k, initial_v, starts_t, starts_b, T, B, H, delay_heads, n_inner,
    SCALE: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    CHUNK: tl.constexpr, DELTA: tl.constexpr, GATED: tl.constexpr, DELAYED: tl.constexpr, KEEP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Outputs and final state; if KEEP also, for the backward, err = v - S'^T k and the inverses of the chunks."""
    program = tl.program_id(0).to(tl.int64)
    b, h = program // H, program % H
    moving = (h < delay_heads).to(tl.int32)
    dtype: tl.constexpr = final.dtype.element_ty
    index = tl.arange(0, CHUNK)
    rows, columns = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    q += b * q_b + h * q_h
    k += b * k_b + h * k_h
    v += b * v_b + h * v_h
    beta += b * beta_b + h * beta_h
    starts += b * starts_b
    if GATED:
        log_decay += b * decay_b + h * decay_h
    y += program * V
    programs = B.to(tl.int64) * H
    if KEEP and DELTA:
        errors += program * V
        inverses += program * CHUNK * CHUNK
    state = _load_state(initial + b * initial_b + h * initial_h, rows, initial_k, columns, initial_v, K, V)

    for begin in tl.range(0, T, CHUNK, disable_licm=True):
        steps = begin + index
        turns = (steps // n_inner + 1) * moving
        q_c = _load_keys(q, steps, q_t, rows, q_d, turns, T, K, DELAYED, dtype)
        k_c = _load_keys(k, steps, k_t, rows, k_d, turns, T, K, DELAYED, dtype)
        v_c = _load(v, steps, v_t, columns, v_d, T, V, dtype)
        beta_c = _load_steps(beta, steps, beta_t, T, 0.0).to(dtype)
        _, episodes, last_episode, total, from_state, to_end, left = _masks(
            log_decay, decay_t, starts, starts_t, steps, T, GATED, CHUNK, dtype
        )
        pairs = _pairs(episodes, total, GATED, False, CHUNK, dtype)

        reached = (episodes == 0)[:, None]
        if DELTA:
            recalled = _dot(k_c, state, PRECISION)
            # What is not a number in the state must not get past a start, so it is taken out here and put back below.
            recalled = tl.where(reached & (recalled * 0.0 == 0.0), from_state[:, None] * recalled, 0.0)
            similar = pairs * _dot(k_c, tl.trans(k_c), PRECISION)
            similar = tl.where(index[:, None] > index[None, :], similar, 0.0)
            inverse = _invert(beta_c[:, None] * similar, CHUNK)
            u = _dot(inverse, beta_c[:, None] * (v_c - recalled), PRECISION)
            # u = beta err is the solution, refined once, and what the backward recomputes from err.
            error = v_c - recalled - _dot(similar, u, PRECISION)
            u = beta_c[:, None] * error
            if KEEP:
                _store(errors, steps, programs * V, columns, error, T, V)
                at = (begin // CHUNK) * programs * CHUNK * CHUNK
                tl.store(inverses + at + index[:, None] * CHUNK + index[None, :], inverse)
        else:
            u = beta_c[:, None] * v_c
        read = _dot(pairs * _dot(q_c, tl.trans(k_c), PRECISION), u, PRECISION)
        faded = _fade(state, last_episode, left, GATED) + _dot(tl.trans(to_end[:, None] * k_c), u, PRECISION)
        read += tl.where(reached, from_state[:, None] * _dot(q_c, state, PRECISION), 0.0)
        _store(y, steps, programs * V, columns, SCALE * read, T, V)
        state = faded

    _store_final(final + program * K * V, rows, columns, state, T // n_inner * moving, K, V, DELAYED)


@triton.jit(do_not_specialize=["B", *_RUN_TIME])
def backward_kernel(
    q, k, v, beta, log_decay, initial, starts, y, final, errors, inverses, grad_y, grad_final,
    grad_q, grad_k, grad_v, grad_beta, grad_decay, grad_initial,
    q_t, q_b, q_h, q_d, k_t, k_b, k_h, k_d, v_t, v_b, v_h, v_d, beta_t, beta_b, beta_h, decay_t, decay_b, decay_h,
    initial_b, initial_h, initial_k, initial_v, starts_t, starts_b, T, B, H, delay_heads, n_inner,
    SCALE: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    CHUNK: tl.constexpr, DELTA: tl.constexpr, GATED: tl.constexpr, DELAYED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Two sweeps: in reverse, where only G = dL/dS lives, then forward, where only S lives; no state is stored."""
    program = tl.program_id(0).to(tl.int64)
    b, h = program // H, program % H
    moving = (h < delay_heads).to(tl.int32)
    dtype: tl.constexpr = final.dtype.element_ty
    index = tl.arange(0, CHUNK)
    rows, columns = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    q += b * q_b + h * q_h
    k += b * k_b + h * k_h
    v += b * v_b + h * v_h
    beta += b * beta_b + h * beta_h
    starts += b * starts_b
    if GATED:
        log_decay += b * decay_b + h * decay_h
    programs = B.to(tl.int64) * H
    y_t = programs * V
    y += program * V
    grad_y += program * V
    grad_q += program * K
    grad_k += program * K
    grad_v += program * V
    grad_beta += program
    if DELTA:
        errors += program * V
        inverses += program * CHUNK * CHUNK
    if GATED:
        grad_decay += program
    inside = (rows < K)[:, None] & (columns < V)[None, :]
    dense = rows[:, None] * V + columns[None, :]
    chunks = tl.cdiv(T, CHUNK)

    fade = tl.zeros([], dtype)  # <dL/dS, S>: what the decays of all steps up to here share
    if grad_final is None:
        gradient = tl.zeros([BLOCK_K, BLOCK_V], dtype)
    else:
        places, turned = _places(rows[:, None], T // n_inner * moving, K, DELAYED)
        moved = places * V + columns[None, :]
        gradient = tl.load(grad_final + program * K * V + moved, mask=inside, other=0.0)
        if GATED:
            fade = tl.sum(tl.sum(gradient * tl.load(final + program * K * V + moved, mask=inside, other=0.0), 1), 0)
        gradient = _turn(gradient, turned, DELAYED)
    for chunk in tl.range(chunks - 1, -1, -1, disable_licm=True):
        steps = chunk * CHUNK + index
        turns = (steps // n_inner + 1) * moving
        beta_c = _load_steps(beta, steps, beta_t, T, 0.0).to(dtype)
        starts_c, episodes, last_episode, total, from_state, to_end, left = _masks(
            log_decay, decay_t, starts, starts_t, steps, T, GATED, CHUNK, dtype
        )
        q_c = _load_keys(q, steps, q_t, rows, q_d, turns, T, K, DELAYED, dtype)
        k_c = _load_keys(k, steps, k_t, rows, k_d, turns, T, K, DELAYED, dtype)
        grad_y_c = _load(grad_y, steps, y_t, columns, 1, T, V, dtype)
        if DELTA:
            error = _load(errors, steps, y_t, columns, 1, T, V, dtype)
        else:
            error = _load(v, steps, v_t, columns, v_d, T, V, dtype)

        grad_u = to_end[:, None] * _dot(k_c, gradient, PRECISION)
        read = _pairs(episodes, total, GATED, True, CHUNK, dtype) * _dot(k_c, tl.trans(q_c), PRECISION)
        grad_u += SCALE * _dot(read, grad_y_c, PRECISION)
        if DELTA:
            at = chunk * programs * CHUNK * CHUNK
            transposed = tl.load(inverses + at + index[None, :] * CHUNK + index[:, None])
            grad_u = _dot(transposed, grad_u, PRECISION)
        tl.store(grad_beta + steps.to(tl.int64) * programs, tl.sum(grad_u * error, 1), mask=steps < T)
        grad_v_c = beta_c[:, None] * grad_u
        _store(grad_v, steps, y_t, columns, grad_v_c, T, V)
        earlier = _fade(gradient, last_episode, left, GATED)
        earlier += _dot(tl.trans((SCALE * from_state)[:, None] * q_c), grad_y_c, PRECISION)
        if DELTA:
            earlier -= _dot(tl.trans(from_state[:, None] * k_c), grad_v_c, PRECISION)
        grad_k_c = to_end[:, None] * _dot(beta_c[:, None] * error, tl.trans(gradient), PRECISION)
        _store(grad_k, steps, programs * K, rows, grad_k_c, T, K)
        if GATED:
            y_c = _load(y, steps, y_t, columns, 1, T, V, dtype)
            v_c = _load(v, steps, v_t, columns, v_d, T, V, dtype)
            change = tl.sum(y_c * grad_y_c - v_c * grad_v_c, 1)
            later = (index[:, None] <= index[None, :]) & (episodes[:, None] == episodes[None, :])
            grad_decay_c = tl.sum(tl.where(later, change[None, :], 0.0), 1)
            grad_decay_c += tl.where(episodes == last_episode, fade, 0.0)
            grad_decay_c = tl.where(starts_c == 0, grad_decay_c, 0.0)
            tl.store(grad_decay + steps.to(tl.int64) * programs, grad_decay_c, mask=steps < T)
            fade = tl.sum(tl.where(episodes == 0, change, 0.0), 0) + tl.where(last_episode == 0, fade, 0.0)
        gradient = earlier
    tl.store(grad_initial + program * K * V + dense, gradient, mask=inside)

    tl.debug_barrier()  # the second sweep reads what other threads of this program wrote in the first
    state = _load_state(initial + b * initial_b + h * initial_h, rows, initial_k, columns, initial_v, K, V)
    for begin in tl.range(0, T, CHUNK, disable_licm=True):
        steps = begin + index
        turns = (steps // n_inner + 1) * moving
        beta_c = _load_steps(beta, steps, beta_t, T, 0.0).to(dtype)
        _, episodes, last_episode, total, from_state, to_end, left = _masks(
            log_decay, decay_t, starts, starts_t, steps, T, GATED, CHUNK, dtype
        )
        pairs = _pairs(episodes, total, GATED, False, CHUNK, dtype)
        reached = (episodes == 0)[:, None]
        q_c = _load_keys(q, steps, q_t, rows, q_d, turns, T, K, DELAYED, dtype)
        k_c = _load_keys(k, steps, k_t, rows, k_d, turns, T, K, DELAYED, dtype)
        grad_y_c = _load(grad_y, steps, y_t, columns, 1, T, V, dtype)
        if DELTA:
            u = beta_c[:, None] * _load(errors, steps, y_t, columns, 1, T, V, dtype)
        else:
            u = beta_c[:, None] * _load(v, steps, v_t, columns, v_d, T, V, dtype)

        faded = _fade(state, last_episode, left, GATED) + _dot(tl.trans(to_end[:, None] * k_c), u, PRECISION)
        reading = SCALE * pairs * _dot(grad_y_c, tl.trans(u), PRECISION)
        grad_q_c = tl.where(reached, (SCALE * from_state)[:, None] * _dot(grad_y_c, tl.trans(state), PRECISION), 0.0)
        grad_q_c += _dot(reading, k_c, PRECISION)
        _store_keys(grad_q, steps, programs * K, rows, grad_q_c, turns, T, K, DELAYED)
        grad_k_c = _load(grad_k, steps, programs * K, rows, 1, T, K, dtype)
        grad_k_c += _dot(tl.trans(reading), q_c, PRECISION)
        if DELTA:
            grad_v_c = _load(grad_v, steps, y_t, columns, 1, T, V, dtype)
            erasing = pairs * _dot(grad_v_c, tl.trans(u), PRECISION)
            erasing = tl.where(index[:, None] > index[None, :], erasing, 0.0)
            grad_k_c -= _dot(erasing + tl.trans(erasing), k_c, PRECISION)
            erased = from_state[:, None] * _dot(grad_v_c, tl.trans(state), PRECISION)
            grad_k_c -= tl.where(reached, erased, 0.0)
        if DELAYED:
            tl.debug_barrier()  # until then, what other threads read may lie where this one writes
        _store_keys(grad_k, steps, programs * K, rows, grad_k_c, turns, T, K, DELAYED)
        state = faded


@triton.jit(do_not_specialize=["H", *_RUN_TIME[2:]])
def step_kernel(
    q, k, v, beta, log_decay, initial, starts, y, final,
    q_b, q_h, q_d, k_b, k_h, k_d, v_b, v_h, v_d, beta_b, beta_h, decay_b, decay_h,
    initial_b, initial_h, initial_k, initial_v, starts_b, H, delay_heads,
    SCALE: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    DELTA: tl.constexpr, GATED: tl.constexpr, DELAYED: tl.constexpr,
):  # fmt: skip
    """One step of all programs, as in the definition."""
    program = tl.program_id(0).to(tl.int64)
    b, h = program // H, program % H
    moving = (h < delay_heads).to(tl.int32)
    dtype: tl.constexpr = final.dtype.element_ty
    rows, columns = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    places, turned = _places(rows, moving, K, DELAYED)
    q_c = tl.load(q + b * q_b + h * q_h + places * q_d, mask=rows < K, other=0.0).to(dtype)
    k_c = tl.load(k + b * k_b + h * k_h + places * k_d, mask=rows < K, other=0.0).to(dtype)
    q_c, k_c = _turn(q_c, turned, DELAYED), _turn(k_c, turned, DELAYED)
    v_c = tl.load(v + b * v_b + h * v_h + columns * v_d, mask=columns < V, other=0.0).to(dtype)
    beta_c = tl.load(beta + b * beta_b + h * beta_h).to(dtype)
    state = _load_state(initial + b * initial_b + h * initial_h, rows, initial_k, columns, initial_v, K, V)
    if GATED:
        state *= tl.exp(tl.load(log_decay + b * decay_b + h * decay_h).to(dtype))
    state = tl.where(tl.load(starts + b * starts_b), 0.0, state)
    if DELTA:
        v_c -= tl.sum(state * k_c[:, None], 0)
    state += k_c[:, None] * (beta_c * v_c)[None, :]
    tl.store(y + program * V + columns, SCALE * tl.sum(state * q_c[:, None], 0), mask=columns < V)
    _store_final(final + program * K * V, rows, columns, state, moving, K, V, DELAYED)


# ---------------------------------------------------------------------------------------------------------- launches


class Launch(NamedTuple):
    """How a kernel is compiled."""

    num_warps: int
    precision: str
    """Of the products of matrices; all three keep the accuracy of float32, in other registers."""


def launch(kernel: str, block_k: int, block_v: int, architecture: str, delayed: bool) -> Launch:
    """The one table of launch parameters, from the registers that `benchmarks.fast_weight_kernels` counts.

    The same for both dtypes of inputs: they are widened as they are loaded. With products of tf32, the backward spills
    if heads are large or delayed.
    """
    size = max(block_k, block_v)
    if architecture.startswith("gfx"):  # 64 threads in a warp, and products of float32 in hardware
        return Launch({16: 1, 32: 2, 64: 4}[size], "ieee")
    narrow = kernel == "backward" and (size == 64 or delayed)
    return Launch({16: 1, 32: 4, 64: 8}[size], "bf16x6" if narrow else "tf32x3")


WITHOUT_WARP_GROUPS = {"DISABLE_MMA_V3": "1", "DISABLE_MMA_V5": "1"}
"""Products by warps, not by groups of four, which need tiles of 64 rows.

The assembler that Triton below 3.9 ships for Hopper miscompiles them, and they gain nothing: the kernels wait for
memory. Triton reads this while it compiles.
"""
_compiling = threading.Lock()


@contextlib.contextmanager
def _prepared(x: Tensor) -> Iterator[None]:
    """The device of `x`, for compilers and launches."""
    if not x.is_cuda:
        yield
        return
    with _compiling, torch.cuda.device_of(x):
        before = {name: os.environ.get(name) for name in WITHOUT_WARP_GROUPS}
        os.environ.update(WITHOUT_WARP_GROUPS)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def unsupported(key_size: int, value_size: int, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why the kernels cannot take these sizes and this state; None if they can."""
    for name, size in (("K", key_size), ("V", value_size)):
        if size > SIZES[-1]:
            return f"registers hold heads up to {name} = {SIZES[-1]}, the nearest supported size; got {name} = {size}"
    if dtype != torch.float32 and device.type != "cpu":
        return f"the kernels compute in float32, the state is {dtype}"
    return None


def is_interpreted() -> bool:
    """Whether Triton interprets kernels, which takes tensors on the CPU: TRITON_INTERPRET=1 at import."""
    return not isinstance(forward_kernel, triton.JITFunction)


def check_against_reference(
    device: torch.device, rule: str, gated: bool, key_size: int, value_size: int, scale: float, delayed: bool
) -> None:
    """Raises if the kernels, as compiled for this device, compute something else than the definition.

    With delay heads they do so for more than 2K moves, after which every row is back with its sign.
    """
    T, B, H, delay_heads, n_inner = 2 * CHUNK + 5, 2, 2, 0, 1
    if delayed:
        T, delay_heads, n_inner = 2 * max(T, 2 * key_size + 5), 1, 2
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    starts = torch.zeros(T, B, dtype=torch.bool, device=device)
    starts[[3, CHUNK, CHUNK + 9], [0, 1, 0]] = True
    k = random(T, B, H, key_size)
    inputs = {
        "q": random(T, B, H, key_size),
        "k": k / k.norm(dim=-1, keepdim=True),
        "v": random(T, B, H, value_size),
        "beta": random(T, B, H).sigmoid(),
        "log_decay": -random(T, B, H).square() if gated else None,
        "state": random(B, H, key_size, value_size),
    }
    weights = random(T, B, H, value_size), random(B, H, key_size, value_size)
    results = []
    for implementation in (scan, _reference.scan):
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            leaves = {name: x if x is None else x.clone().requires_grad_() for name, x in inputs.items()}
            y, final = implementation(*leaves.values(), starts, rule, scale, delay_heads, n_inner)
            wanted = {name: x for name, x in leaves.items() if x is not None}
            gradients = torch.autograd.grad([y, final], list(wanted.values()), weights)
            step = {name: x if x is None or name == "state" else x[:1] for name, x in inputs.items()}
            step_y, step_final = implementation(*step.values(), starts[:1], rule, scale, delay_heads, 1)
        names = ["outputs", "final state", *(f"gradient of {name}" for name in wanted), "one step", "state after it"]
        results.append(dict(zip(names, (y, final, *gradients, step_y, step_final), strict=True)))
    for name, expected in results[1].items():
        error = ((results[0][name] - expected).abs().max() / expected.abs().max()).item()
        if not error <= CHECK_TOLERANCE:
            raise RuntimeError(
                f"triton kernels are off by {error:.1e} in the {name} (K = {key_size}, V = {value_size})"
            )


def _options(kernel: str, block_k: int, block_v: int, device: torch.device, delayed: bool) -> dict:
    if is_interpreted():
        return {"PRECISION": "ieee"} if kernel != "step" else {}
    chosen = launch(kernel, block_k, block_v, _architecture(device), delayed)
    options = {"num_warps": chosen.num_warps, "num_stages": 1, "enable_fp_fusion": True}
    return options | {"PRECISION": chosen.precision} if kernel != "step" else options


def _architecture(device: torch.device) -> str:
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def blocks(key_size: int, value_size: int) -> tuple[int, int]:
    """Powers of two that hold a head, neither below half of the other: of flatter ones every warp holds too much."""
    needed = [triton.next_power_of_2(size) for size in (key_size, value_size)]
    least = max(SIZES[0], max(needed) // 2)
    return max(needed[0], least), max(needed[1], least)


# -------------------------------------------------------------------------------------------------------- operators


def scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    episode_starts: Tensor,
    rule: str,
    scale: float,
    delay_heads: int,
    n_inner: int,
) -> tuple[Tensor, Tensor]:
    """One launch, and one in the backward; inputs may be half precision, all else has the dtype of the state."""
    inputs = (q, k, v, beta, state) if log_decay is None else (q, k, v, beta, state, log_decay)
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    delta = rule == "delta"
    y, final, _, _ = _scan(q, k, v, beta, log_decay, state, episode_starts, delta, scale, delay_heads, n_inner, keep)
    return y, final


@torch.library.custom_op("fwp_rl::fast_weight_scan", mutates_args=())
def _scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    initial: Tensor,
    starts: Tensor,
    delta: bool,
    scale: float,
    delay_heads: int,
    n_inner: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    T, B, H, K = q.shape
    V = v.shape[-1]
    y, final, errors, inverses = _empty_results(q, v, initial, delta, keep)
    (block_k, block_v), delayed = blocks(K, V), delay_heads > 0
    options = {"SCALE": scale, "K": K, "V": V, "BLOCK_K": block_k, "BLOCK_V": block_v}
    options |= {"DELTA": delta, "GATED": log_decay is not None, "DELAYED": delayed}
    decay_strides = (0, 0, 0) if log_decay is None else log_decay.stride()
    with _prepared(q):
        if T == 1 and not keep:
            step_kernel[(B * H,)](
                q, k, v, beta, log_decay, initial, starts, y, final,
                *q.stride()[1:], *k.stride()[1:], *v.stride()[1:], *beta.stride()[1:], *decay_strides[1:],
                *initial.stride(), starts.stride(1), H, delay_heads,
                **options, **_options("step", block_k, block_v, q.device, delayed),
            )  # fmt: skip
        else:
            forward_kernel[(B * H,)](
                q, k, v, beta, log_decay, initial, starts, y, final, errors, inverses,
                *_strides(q, k, v, beta, decay_strides, initial, starts), T, B, H, delay_heads, n_inner,
                CHUNK=CHUNK, KEEP=keep, **options, **_options("forward", block_k, block_v, q.device, delayed),
            )  # fmt: skip
    return y, final, errors, inverses


@_scan.register_fake
def _(q, k, v, beta, log_decay, initial, starts, delta, scale, delay_heads, n_inner, keep):
    return _empty_results(q, v, initial, delta, keep)


@torch.library.custom_op("fwp_rl::fast_weight_scan_backward", mutates_args=())
def _scan_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    initial: Tensor,
    starts: Tensor,
    y: Tensor,
    final: Tensor,
    errors: Tensor,
    inverses: Tensor,
    grad_y: Tensor,
    grad_final: Tensor | None,
    delta: bool,
    scale: float,
    delay_heads: int,
    n_inner: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    T, B, H, K = q.shape
    V = v.shape[-1]
    gradients = _empty_gradients(q, k, v, beta, log_decay, initial)
    (block_k, block_v), delayed = blocks(K, V), delay_heads > 0
    decay_strides = (0, 0, 0) if log_decay is None else log_decay.stride()
    with _prepared(q):
        backward_kernel[(B * H,)](
            q, k, v, beta, log_decay, initial, starts, y, final, errors, inverses,
            grad_y.contiguous(), None if grad_final is None else grad_final.contiguous(), *gradients,
            *_strides(q, k, v, beta, decay_strides, initial, starts), T, B, H, delay_heads, n_inner,
            SCALE=scale, K=K, V=V, BLOCK_K=block_k, BLOCK_V=block_v, CHUNK=CHUNK, DELTA=delta,
            GATED=log_decay is not None, DELAYED=delayed, **_options("backward", block_k, block_v, q.device, delayed),
        )  # fmt: skip
    return gradients


@_scan_backward.register_fake
def _(
    q, k, v, beta, log_decay, initial, starts, y, final, errors, inverses, grad_y, grad_final,
    delta, scale, delay_heads, n_inner,
):  # fmt: skip
    return _empty_gradients(q, k, v, beta, log_decay, initial)


def _save(ctx, inputs, output):
    *tensors, ctx.delta, ctx.scale, ctx.delay_heads, ctx.n_inner, _ = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad_y, grad_final, *_):
    q, k, v, beta, log_decay, *_, y, _, _, _ = ctx.saved_tensors
    grad_y = torch.zeros_like(y) if grad_y is None else grad_y
    numbers = ctx.delta, ctx.scale, ctx.delay_heads, ctx.n_inner
    gradients = _scan_backward(*ctx.saved_tensors, grad_y, grad_final, *numbers)
    *narrow, decay, initial = gradients
    q, k, v, beta = (x.to(of.dtype) for x, of in zip(narrow, (q, k, v, beta), strict=True))
    return q, k, v, beta, None if log_decay is None else decay.to(log_decay.dtype), initial, *[None] * 6


torch.library.register_autograd(_scan, _differentiate, setup_context=_save)


def _empty_results(q: Tensor, v: Tensor, initial: Tensor, delta: bool, keep: bool) -> tuple[Tensor, ...]:
    T, B, H, _ = q.shape
    kept = keep and delta
    return (
        initial.new_empty(v.shape),
        initial.new_empty(initial.shape),
        initial.new_empty(v.shape if kept else (0,)),
        initial.new_empty(((T + CHUNK - 1) // CHUNK, B, H, CHUNK, CHUNK) if kept else (0,)),
    )


def _empty_gradients(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, initial: Tensor
) -> tuple[Tensor, ...]:
    shapes = [x.shape for x in (q, k, v, beta)] + [(0,) if log_decay is None else log_decay.shape, initial.shape]
    return tuple(initial.new_empty(shape) for shape in shapes)


def _strides(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay_strides: tuple[int, ...], initial: Tensor, starts: Tensor
) -> tuple[int, ...]:
    return (
        *q.stride(), *k.stride(), *v.stride(), *beta.stride(), *decay_strides, *initial.stride(), *starts.stride()
    )  # fmt: skip
