"""The self-referential scan as fused loops for the CPU; the scheme is that of `_recurrent_numba`.

`base` is the learned initial matrix W_0, `matrix` is W = W_0 + D, and D is what the state carries. The columns of all
three are the blocks y, k, q, b of the outputs, in this order.
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
from fwp_rl.ops._rnn_numba import sigmoid  # isort: skip
from fwp_rl.ops._small_numba import (  # isort: skip
    CHUNK,
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


@njit(forceinline=True, **CALLED)
def _scale_blocks(rates, x, out, V, K):
    """out = x, each of the four blocks times its rate."""
    for j in range(V):
        out[j] = rates[0] * x[j]
    for j in range(V, V + K):
        out[j] = rates[1] * x[j]
    for j in range(V + K, V + 2 * K):
        out[j] = rates[2] * x[j]
    for j in range(V + 2 * K, V + 2 * K + 4):
        out[j] = rates[3] * x[j]


@njit(**FAST)
def _forward_program(b, h, x, base, starts, differences, reads, errors, checkpoints, outputs, save):
    T, K, V = x.shape[0], x.shape[3], outputs.shape[3]
    difference = differences[b, h]
    matrix, written, direction = np.empty_like(difference), np.empty_like(difference[0]), np.empty_like(x[0, 0, 0])
    for i in range(K):
        for j in range(written.size):
            matrix[i, j] = base[h, i, j] + difference[i, j]
    for t in range(T):
        s = t if save else 0
        if starts[t, b]:
            clear_matrix(difference)
            copy_matrix(base[h], matrix)
        if save and t % CHUNK == 0:
            copy_matrix(matrix, checkpoints[t // CHUNK, b, h])
        r, error = reads[s, b, h], errors[s, b, h]
        y, k, q, rates = r[:V], r[V : V + K], r[V + K : V + 2 * K], r[V + 2 * K :]
        read(matrix, x[t, b, h], r)
        copy(y, outputs[t, b, h])
        softmax(k)
        softmax(q)
        for j in range(4):
            rates[j] = sigmoid(rates[j])
        for i in range(K):
            direction[i] = q[i] - k[i]
        read(matrix, direction, error)
        _scale_blocks(rates, error, written, V, K)
        write(matrix, k, written)
        write(difference, k, written)


@njit(**FAST)
def _backward_program(b, h, x, base, starts, reads, errors, checkpoints, d_outputs, d_differences, d_bases, d_x):
    """d_bases gets the gradient of W_0 by way of all reads."""
    T, K, V = x.shape[0], x.shape[3], d_outputs.shape[3]
    d_matrix, d_base = d_differences[b, h], d_bases[b, h]
    before = np.empty((CHUNK, K, d_matrix.shape[1]), d_matrix.dtype)
    written, d_written = np.empty_like(d_matrix[0]), np.empty_like(d_matrix[0])
    d_read, direction, d_direction = np.empty_like(written), np.empty_like(x[0, 0, 0]), np.empty_like(x[0, 0, 0])
    # Reads differentiate by W = W_0 + D: what they add to the gradient of D, they add to that of W_0, too.
    for i in range(K):
        for j in range(written.size):
            d_base[i, j] = -d_matrix[i, j]
    for chunk in range(checkpoints.shape[0] - 1, -1, -1):
        first, end = chunk * CHUNK, min(T, (chunk + 1) * CHUNK)
        copy_matrix(checkpoints[chunk, b, h], before[0])
        for t in range(first + 1, end):
            if starts[t, b]:
                copy_matrix(base[h], before[t - first])
            else:
                r = reads[t - 1, b, h]
                copy_matrix(before[t - first - 1], before[t - first])
                _scale_blocks(r[V + 2 * K :], errors[t - 1, b, h], written, V, K)
                write(before[t - first], r[V : V + K], written)
        for t in range(end - 1, first - 1, -1):
            matrix, r, error, d_output = before[t - first], reads[t, b, h], errors[t, b, h], d_outputs[t, b, h]
            k, q, rates = r[V : V + K], r[V + K : V + 2 * K], r[V + 2 * K :]
            d_y, d_k, d_q, d_rates = d_read[:V], d_read[V : V + K], d_read[V + K : V + 2 * K], d_read[V + 2 * K :]
            copy(d_output, d_y)
            # the write: matrix + k written^T
            _scale_blocks(rates, error, written, V, K)
            read(d_matrix, k, d_written)
            read_transposed(d_matrix, written, d_k)
            d_rates[0] = dot(d_written[:V], error[:V])
            d_rates[1] = dot(d_written[V : V + K], error[V : V + K])
            d_rates[2] = dot(d_written[V + K : V + 2 * K], error[V + K : V + 2 * K])
            d_rates[3] = dot(d_written[V + 2 * K :], error[V + 2 * K :])
            # error = matrix^T (q - k); from here on `written` is its gradient
            _scale_blocks(rates, d_written, written, V, K)
            for i in range(K):
                direction[i] = q[i] - k[i]
            read_transposed(matrix, written, d_direction)
            write(d_matrix, direction, written)
            for i in range(K):
                d_q[i] = d_direction[i]
                d_k[i] -= d_direction[i]
            # what was read: matrix^T x
            softmax_gradient(k, d_k, d_k)
            softmax_gradient(q, d_q, d_q)
            for j in range(4):
                d_rates[j] *= rates[j] * (rates.dtype.type(1) - rates[j])
            read_transposed(matrix, d_read, d_x[t, b, h])
            write(d_matrix, x[t, b, h], d_read)
            if starts[t, b]:
                for i in range(K):
                    for j in range(written.size):
                        d_base[i, j] += d_matrix[i, j]
                clear_matrix(d_matrix)
    for i in range(K):
        for j in range(written.size):
            d_base[i, j] += d_matrix[i, j]


@functools.cache
def _forward(PARALLEL: bool) -> Callable:
    @njit(parallel=PARALLEL, **KERNEL)
    def forward(batch_size, n_heads, arrays, save):
        for program in prange(batch_size * n_heads):
            _forward_program(program // n_heads, program % n_heads, *arrays, save)
        return PARALLEL  # the cache tells kernels apart by what they close over

    return forward


@functools.cache
def _backward(PARALLEL: bool) -> Callable:
    @njit(parallel=PARALLEL, **KERNEL)
    def backward(batch_size, n_heads, arrays):
        for program in prange(batch_size * n_heads):
            _backward_program(program // n_heads, program % n_heads, *arrays)
        return PARALLEL  # the cache tells kernels apart by what they close over

    return backward


def _run(x: Tensor, base: Tensor, difference: Tensor, episode_starts: Tensor, save: bool) -> tuple[Tensor, ...]:
    """Outputs, the final difference, and what the backward needs."""
    T, B, H, K = x.shape
    M = base.shape[-1]
    difference, steps = difference.clone(), T if save else 1
    outputs = empty((T, B, H, M - 2 * K - 4), x.dtype)
    reads, errors = (empty((steps, B, H, M), x.dtype) for _ in range(2))
    checkpoints = empty((num_chunks(T) if save else 0, B, H, K, M), x.dtype)
    arrays = (x, base, episode_starts, difference, reads, errors, checkpoints, outputs)
    launch(_forward, 4 * T * K * M, B, H, arrays, save)
    return outputs, difference, reads, errors, checkpoints


class _SelfReferential(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, base: Tensor, difference: Tensor, episode_starts: Tensor
    ) -> tuple[Tensor, Tensor]:
        outputs, difference, *saved = _run(x, base, difference, episode_starts, save=True)
        ctx.save_for_backward(x, base, episode_starts, *saved)
        ctx.set_materialize_grads(False)
        return outputs, difference

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_outputs: Tensor | None, d_difference: Tensor | None) -> tuple[Tensor | None, ...]:
        x, base, episode_starts, reads, errors, checkpoints = ctx.saved_tensors
        T, B, H, K = x.shape
        M = base.shape[-1]
        d_outputs = gradient(d_outputs, reads[..., : M - 2 * K - 4])
        d_difference = own_gradient(d_difference, checkpoints[0])
        d_bases, d_x = torch.empty_like(d_difference), empty(x.shape, x.dtype)
        arrays = (x, base, episode_starts, reads, errors, checkpoints, d_outputs, d_difference, d_bases, d_x)
        launch(_backward, 8 * T * K * M, B, H, arrays)
        return d_x, d_bases.sum(0), d_difference, None


def self_referential_scan(x: Tensor, base: Tensor, difference: Tensor, episode_starts: Tensor) -> tuple[Tensor, Tensor]:
    """See `_recurrent_reference.self_referential_scan`."""
    tensors = [tensor.contiguous() for tensor in (x, base, difference, episode_starts)]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return _SelfReferential.apply(*tensors)
    return _run(*tensors, save=False)[:2]
