"""The recurrent fast-weight scans as fused loops for the CPU, with the backward pass through time derived by hand.

One program takes one head of one row of the batch through all steps; its matrices stay in the cache. What is fed back
cannot be computed in parallel over time, but it is small.

The forward pass stores a matrix every CHUNK steps, and at every step what was written. The backward pass goes through
the chunks in reverse: it first rebuilds the matrices of a chunk by writing again, then differentiates its steps. (To
undo the writes instead would lose more precision with every step.) Gradients of slow weights are one matrix product
over all steps at the end.
"""

import functools
from collections.abc import Callable

import torch  # before numba: the first to load OpenMP decides which copy both use
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

import numpy as np  # isort: skip
from numba import njit, prange  # isort: skip
from fwp_rl.ops._jit import CALLED, FAST, KERNEL  # isort: skip
from fwp_rl.ops._numba import empty  # isort: skip
from fwp_rl.ops._rnn_numba import sigmoid, tanh  # isort: skip
from fwp_rl.ops._small_numba import (  # isort: skip
    CHUNK,
    clear,
    clear_matrix,
    copy,
    copy_matrix,
    dot,
    gradient,
    launch,
    num_chunks,
    own_gradient,
    read,
    read_transposed,
    softmax,
    softmax_gradient,
    write,
)

# ------------------------------------------------------------------------------------------------------ the delta rule


@njit(forceinline=True, **CALLED)
def _delta(matrix, k, v, beta, error, written):
    """matrix += k written^T with written = beta error, error = v - matrix^T k."""
    read(matrix, k, error)
    for j in range(error.size):
        error[j] = v[j] - error[j]
    for j in range(error.size):
        written[j] = beta * error[j]
    write(matrix, k, written)


@njit(forceinline=True, **CALLED)
def _rebuild(before, matrix, k, beta, error, written):
    """matrix = before + beta k error^T."""
    for j in range(error.size):
        written[j] = beta * error[j]
    copy_matrix(before, matrix)
    write(matrix, k, written)


@njit(forceinline=True, **CALLED)
def _delta_gradients(before, d_matrix, q, k, beta, error, dy, d_q, d_k, d_v, written, d_written, erased):
    """Of y = matrix^T q with matrix = before + k written^T: d_q, d_k, d_v; returns that of beta.

    d_matrix turns from the gradient of the matrix (but for y) into that of `before`. The last three are scratch.
    """
    for j in range(error.size):
        written[j] = beta * error[j]
    read_transposed(before, dy, d_q)
    through_write = dot(written, dy)
    for i in range(k.size):
        d_q[i] += through_write * k[i]
    write(d_matrix, q, dy)
    read(d_matrix, k, d_written)
    read_transposed(d_matrix, written, d_k)
    for j in range(error.size):
        d_v[j] = beta * d_written[j]
    read_transposed(before, d_v, erased)
    for i in range(k.size):
        d_k[i] -= erased[i]
    for i in range(k.size):
        erased[i] = -k[i]
    write(d_matrix, erased, d_v)
    return dot(d_written, error)


# ----------------------------------------------------------------------------------------------------- recurrent delta


@njit(**FAST)
def _recurrent_delta_forward_program(
    b, h, projected, recurrent, starts, matrices, carried, slots, errors, feedback, checkpoints, outputs, save
):
    T, K, V = projected.shape[0], matrices.shape[2], matrices.shape[3]
    matrix, y = matrices[b, h], carried[b, h]
    written = np.empty_like(y)
    for t in range(T):
        s = t if save else 0
        if starts[t, b]:
            clear_matrix(matrix)
            clear(y)
        if save and t % CHUNK == 0:
            copy_matrix(matrix, checkpoints[t // CHUNK, b, h])
        squashed, slot, inputs = feedback[s, b, h], slots[s, b, h], projected[t, b, h]
        for j in range(V):
            squashed[j] = tanh(y[j])
        read(recurrent[h], squashed, slot)
        for j in range(slot.size):
            slot[j] += inputs[j]
        q, k, v = slot[:K], slot[K : 2 * K], slot[2 * K : 2 * K + V]
        softmax(q)
        softmax(k)
        slot[2 * K + V] = sigmoid(slot[2 * K + V])
        _delta(matrix, k, v, slot[2 * K + V], errors[s, b, h], written)
        read(matrix, q, y)
        copy(y, outputs[t, b, h])


@njit(**FAST)
def _recurrent_delta_backward_program(
    b, h, recurrent, starts, slots, errors, feedback, checkpoints, d_outputs, d_matrices, d_carried, d_projected
):
    T, K, V = slots.shape[0], d_matrices.shape[2], d_matrices.shape[3]
    d_matrix, d_y = d_matrices[b, h], d_carried[b, h]
    before = np.empty((CHUNK, K, V), d_y.dtype)
    written, d_written, erased = np.empty_like(d_y), np.empty_like(d_y), np.empty(K, d_y.dtype)
    one = d_y.dtype.type(1)
    for chunk in range(checkpoints.shape[0] - 1, -1, -1):
        first, end = chunk * CHUNK, min(T, (chunk + 1) * CHUNK)
        copy_matrix(checkpoints[chunk, b, h], before[0])
        for t in range(first + 1, end):
            slot = slots[t - 1, b, h]
            if starts[t, b]:
                clear_matrix(before[t - first])
            else:
                k, beta = slot[K : 2 * K], slot[2 * K + V]
                _rebuild(before[t - first - 1], before[t - first], k, beta, errors[t - 1, b, h], written)
        for t in range(end - 1, first - 1, -1):
            slot, d_slot, d_output = slots[t, b, h], d_projected[t, b, h], d_outputs[t, b, h]
            q, k, beta = slot[:K], slot[K : 2 * K], slot[2 * K + V]
            d_q, d_k, d_v = d_slot[:K], d_slot[K : 2 * K], d_slot[2 * K : 2 * K + V]
            for j in range(V):
                d_y[j] += d_output[j]
            d_beta = _delta_gradients(
                before[t - first], d_matrix, q, k, beta, errors[t, b, h], d_y, d_q, d_k, d_v, written, d_written, erased
            )
            softmax_gradient(q, d_q, d_q)
            softmax_gradient(k, d_k, d_k)
            d_slot[2 * K + V] = d_beta * beta * (one - beta)
            if starts[t, b]:
                clear_matrix(d_matrix)
                clear(d_y)
            else:
                squashed = feedback[t, b, h]
                read_transposed(recurrent[h], d_slot, d_y)
                for j in range(V):
                    d_y[j] *= one - squashed[j] * squashed[j]


@functools.cache
def _recurrent_delta_forward(PARALLEL: bool) -> Callable:
    @njit(parallel=PARALLEL, **KERNEL)
    def forward(batch_size, n_heads, arrays, save):
        for program in prange(batch_size * n_heads):
            _recurrent_delta_forward_program(program // n_heads, program % n_heads, *arrays, save)
        return PARALLEL  # the cache tells kernels apart by what they close over

    return forward


@functools.cache
def _recurrent_delta_backward(PARALLEL: bool) -> Callable:
    @njit(parallel=PARALLEL, **KERNEL)
    def backward(batch_size, n_heads, arrays):
        for program in prange(batch_size * n_heads):
            _recurrent_delta_backward_program(program // n_heads, program % n_heads, *arrays)
        return PARALLEL  # the cache tells kernels apart by what they close over

    return backward


def _recurrent_delta(
    projected: Tensor, recurrent: Tensor, matrix: Tensor, y: Tensor, episode_starts: Tensor, save: bool
) -> tuple[Tensor, ...]:
    """Outputs, final matrix and y, and what the backward needs."""
    T, B, H, P = projected.shape
    K, V = matrix.shape[-2:]
    matrix, y, steps = matrix.clone(), y.clone(), T if save else 1
    slots, errors, feedback, outputs = (
        empty(shape, y.dtype) for shape in ((steps, B, H, P), (steps, B, H, V), (steps, B, H, V), (T, B, H, V))
    )
    checkpoints = empty((num_chunks(T) if save else 0, B, H, K, V), y.dtype)
    arrays = (projected, recurrent, episode_starts, matrix, y, slots, errors, feedback, checkpoints, outputs)
    launch(_recurrent_delta_forward, T * V * (P + 3 * K), B, H, arrays, save)
    return outputs, matrix, y, slots, errors, feedback, checkpoints


class _RecurrentDelta(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, projected: Tensor, recurrent: Tensor, matrix: Tensor, y: Tensor, episode_starts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        outputs, matrix, y, *saved = _recurrent_delta(projected, recurrent, matrix, y, episode_starts, save=True)
        ctx.save_for_backward(recurrent, episode_starts, *saved)
        ctx.set_materialize_grads(False)
        return outputs, matrix, y

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, d_outputs: Tensor | None, d_matrix: Tensor | None, d_y: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        recurrent, episode_starts, slots, errors, feedback, checkpoints = ctx.saved_tensors
        T, B, H, P = slots.shape
        K, V = checkpoints.shape[-2:]
        d_outputs = gradient(d_outputs, errors)
        d_matrix, d_y = own_gradient(d_matrix, checkpoints[0]), own_gradient(d_y, errors[0])
        d_projected = empty(slots.shape, slots.dtype)
        arrays = (recurrent, episode_starts, slots, errors, feedback, checkpoints)
        arrays += (d_outputs, d_matrix, d_y, d_projected)
        launch(_recurrent_delta_backward, T * V * (P + 8 * K), B, H, arrays)
        # heads first: [H, V, T B] @ [H, T B, P]
        d_recurrent = feedback.flatten(0, 1).permute(1, 2, 0) @ d_projected.flatten(0, 1).transpose(0, 1)
        return d_projected, d_recurrent, d_matrix, d_y, None


def recurrent_delta_scan(
    projected: Tensor, recurrent: Tensor, matrix: Tensor, y: Tensor, episode_starts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `_recurrent_reference.recurrent_delta_scan`."""
    tensors = [x.contiguous() for x in (projected, recurrent, matrix, y, episode_starts)]
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return _RecurrentDelta.apply(*tensors)
    return _recurrent_delta(*tensors, save=False)[:3]


# ------------------------------------------------------------------------------------------------------------ fast rnn


@njit(forceinline=True, **CALLED)
def _gate(gates, c, y):
    """The activations of the gates i, u, o, in place; c and y of the step."""
    for j in range(y.size):
        gates[0, j] = sigmoid(gates[0, j])
    for j in range(y.size):
        gates[2, j] = sigmoid(gates[2, j])
    for j in range(y.size):
        c[j] += gates[0, j] * (gates[1, j] - c[j])
    for j in range(y.size):
        y[j] = gates[2, j] * c[j]


@njit(forceinline=True, **CALLED)
def _gate_gradients(gates, c_before, d_y, d_c, d_gates):
    """Of the gates before their activations; d_c turns into the gradient of c_before."""
    one = gates.dtype.type(1)
    for j in range(d_y.size):
        i, u, o = gates[0, j], gates[1, j], gates[2, j]
        c = c_before[j] + i * (u - c_before[j])
        d_c[j] += d_y[j] * o
        d_gates[2, j] = d_y[j] * c * o * (one - o)
        d_gates[1, j] = d_c[j] * i
        d_gates[0, j] = d_c[j] * (u - c_before[j]) * i * (one - i)
        d_c[j] *= one - i


@njit(**FAST)
def _fast_rnn_forward_program(
    b, h, k, v, beta, z, starts, matrices, carried, cells, queries, errors, gates, cells_before, checkpoints, outputs,
    save,
):  # fmt: skip
    T, G = z.shape[0], z.shape[3]
    y, c = carried[b, h], cells[b, h]
    written = np.empty_like(y)
    for t in range(T):
        s = t if save else 0
        if starts[t, b]:
            for g in range(G):
                clear_matrix(matrices[b, h, g])
            clear(y)
            clear(c)
        query, gate = queries[s, b, h], gates[s, b, h]
        copy(y, query)
        softmax(query)
        copy(c, cells_before[s, b, h])
        for g in range(G):
            matrix, inputs = matrices[b, h, g], z[t, b, h, g]
            if save and t % CHUNK == 0:
                copy_matrix(matrix, checkpoints[t // CHUNK, b, h, g])
            _delta(matrix, k[t, b, h, g], v[t, b, h, g], beta[t, b, h, g], errors[s, b, h, g], written)
            read(matrix, query, gate[g])
            for j in range(y.size):
                gate[g, j] += inputs[j]
        if G == 1:
            copy(gate[0], y)
        else:
            _gate(gate, c, y)
        copy(y, outputs[t, b, h])


@njit(**FAST)
def _fast_rnn_backward_program(
    b, h, k, beta, starts, queries, errors, gates, cells_before, checkpoints, d_outputs, d_matrices, d_carried, d_cells,
    d_k, d_v, d_beta, d_z,
):  # fmt: skip
    T, G, V = d_z.shape[0], d_z.shape[3], d_z.shape[4]
    d_y, d_c = d_carried[b, h], d_cells[b, h]
    before = np.empty((G, CHUNK, V, V), d_y.dtype)
    written, d_written, erased = np.empty_like(d_y), np.empty_like(d_y), np.empty_like(d_y)
    d_query, d_query_of_one = np.empty_like(d_y), np.empty_like(d_y)
    for chunk in range(checkpoints.shape[0] - 1, -1, -1):
        first, end = chunk * CHUNK, min(T, (chunk + 1) * CHUNK)
        for g in range(G):
            copy_matrix(checkpoints[chunk, b, h, g], before[g, 0])
            for t in range(first + 1, end):
                s = t - first
                if starts[t, b]:
                    clear_matrix(before[g, s])
                else:
                    _rebuild(
                        before[g, s - 1], before[g, s], k[t - 1, b, h, g], beta[t - 1, b, h, g], errors[t - 1, b, h, g],
                        written,
                    )  # fmt: skip
        for t in range(end - 1, first - 1, -1):
            d_output, d_gate = d_outputs[t, b, h], d_z[t, b, h]
            for j in range(V):
                d_y[j] += d_output[j]
            if G == 1:
                copy(d_y, d_gate[0])
            else:
                _gate_gradients(gates[t, b, h], cells_before[t, b, h], d_y, d_c, d_gate)
            clear(d_query)
            for g in range(G):
                d_beta[t, b, h, g] = _delta_gradients(
                    before[g, t - first], d_matrices[b, h, g], queries[t, b, h], k[t, b, h, g], beta[t, b, h, g],
                    errors[t, b, h, g], d_gate[g], d_query_of_one, d_k[t, b, h, g], d_v[t, b, h, g],
                    written, d_written, erased,
                )  # fmt: skip
                for j in range(V):
                    d_query[j] += d_query_of_one[j]
            softmax_gradient(queries[t, b, h], d_query, d_y)
            if starts[t, b]:
                for g in range(G):
                    clear_matrix(d_matrices[b, h, g])
                clear(d_y)
                clear(d_c)


@functools.cache
def _fast_rnn_forward(PARALLEL: bool) -> Callable:
    @njit(parallel=PARALLEL, **KERNEL)
    def forward(batch_size, n_heads, arrays, save):
        for program in prange(batch_size * n_heads):
            _fast_rnn_forward_program(program // n_heads, program % n_heads, *arrays, save)
        return PARALLEL  # the cache tells kernels apart by what they close over

    return forward


@functools.cache
def _fast_rnn_backward(PARALLEL: bool) -> Callable:
    @njit(parallel=PARALLEL, **KERNEL)
    def backward(batch_size, n_heads, arrays):
        for program in prange(batch_size * n_heads):
            _fast_rnn_backward_program(program // n_heads, program % n_heads, *arrays)
        return PARALLEL  # the cache tells kernels apart by what they close over

    return backward


def _fast_rnn(
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    z: Tensor,
    matrices: Tensor,
    y: Tensor,
    c: Tensor,
    episode_starts: Tensor,
    save: bool,
) -> tuple[Tensor, ...]:
    """Outputs, final matrices, y and c, and what the backward needs."""
    T, B, H, G, V = z.shape
    matrices, y, c, steps = matrices.clone(), y.clone(), c.clone(), T if save else 1
    per_head, per_gate = (steps, B, H, V), (steps, B, H, G, V)
    queries, errors, gates, cells_before, outputs = (
        empty(shape, y.dtype) for shape in (per_head, per_gate, per_gate, per_head, (T, B, H, V))
    )
    checkpoints = empty((num_chunks(T) if save else 0, B, H, G, V, V), y.dtype)
    arrays = (k, v, beta, z, episode_starts, matrices, y, c)
    arrays += (queries, errors, gates, cells_before, checkpoints, outputs)
    launch(_fast_rnn_forward, 3 * T * G * V * V, B, H, arrays, save)
    return outputs, matrices, y, c, queries, errors, gates, cells_before, checkpoints


class _FastRnn(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        k: Tensor,
        v: Tensor,
        beta: Tensor,
        z: Tensor,
        matrices: Tensor,
        y: Tensor,
        c: Tensor,
        episode_starts: Tensor,
    ) -> tuple[Tensor, ...]:
        outputs, matrices, y, c, *saved = _fast_rnn(k, v, beta, z, matrices, y, c, episode_starts, save=True)
        ctx.save_for_backward(k, beta, episode_starts, *saved)
        ctx.set_materialize_grads(False)
        return outputs, matrices, y, c

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, d_outputs: Tensor | None, d_matrices: Tensor | None, d_y: Tensor | None, d_c: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        k, beta, episode_starts, queries, errors, gates, cells_before, checkpoints = ctx.saved_tensors
        T, B, H, G, V = errors.shape
        d_outputs, d_matrices = gradient(d_outputs, queries), own_gradient(d_matrices, checkpoints[0])
        d_y, d_c = own_gradient(d_y, queries[0]), own_gradient(d_c, queries[0])
        d_k, d_v, d_beta, d_z = (empty(x.shape, x.dtype) for x in (k, errors, beta, errors))
        arrays = (k, beta, episode_starts, queries, errors, gates, cells_before, checkpoints)
        arrays += (d_outputs, d_matrices, d_y, d_c, d_k, d_v, d_beta, d_z)
        launch(_fast_rnn_backward, 8 * T * G * V * V, B, H, arrays)
        return d_k, d_v, d_beta, d_z, d_matrices, d_y, d_c, None


def fast_rnn_scan(
    k: Tensor, v: Tensor, beta: Tensor, z: Tensor, matrices: Tensor, y: Tensor, c: Tensor, episode_starts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `_recurrent_reference.fast_rnn_scan`."""
    tensors = [x.contiguous() for x in (k, v, beta, z, matrices, y, c, episode_starts)]
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return _FastRnn.apply(*tensors)
    return _fast_rnn(*tensors, save=False)[:4]
