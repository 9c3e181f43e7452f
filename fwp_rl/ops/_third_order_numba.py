"""The third-order scan as fused loops for the CPU; the scheme is that of `_recurrent_numba`.

One program takes one row of the batch through all steps. F is a matrix whose rows belong to pairs (entity, relation);
`share` is 1 / V.
"""

import functools
from collections.abc import Callable

import torch  # before numba: the first to load OpenMP decides which copy both use
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

import numpy as np  # isort: skip
from numba import njit, prange  # isort: skip
from fwp_rl.ops._jit import FAST, KERNEL, NUMPY  # isort: skip
from fwp_rl.ops._numba import empty, number  # isort: skip
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
    write,
)
from fwp_rl.ops.recurrent_scan import NORM_EPSILON  # isort: skip


@njit(**NUMPY)
def _pairs(x, y, out):
    """out = x y^T, flat."""
    for i in range(x.size):
        for j in range(y.size):
            out[i * y.size + j] = x[i] * y[j]


@njit(**NUMPY)
def _pairs_gradients(x, y, d_out, d_x, d_y):
    for j in range(y.size):
        d_y[j] = 0
    for i in range(x.size):
        d = d_out[i * y.size : (i + 1) * y.size]
        d_x[i] = dot(d, y)
        for j in range(y.size):
            d_y[j] += x[i] * d[j]


@njit(**FAST)
def _write_and_bound(matrix, key, error, strength, written):
    """matrix += strength key error^T, scaled down to a norm of at most 1; returns the factor."""
    one = matrix.dtype.type(1)
    for j in range(error.size):
        written[j] = strength * error[j]
    write(matrix, key, written)
    squares = strength - strength
    for i in range(matrix.shape[0]):
        squares += dot(matrix[i], matrix[i])
    if not squares > one:
        return one
    factor = one / np.sqrt(squares)
    for i in range(matrix.shape[0]):
        for j in range(matrix.shape[1]):
            matrix[i, j] *= factor
    return factor


@njit(**FAST)
def _forward_program(
    b, entity, relation, v, beta, query, relations, starts, matrices, errors, normed, scales, checkpoints, outputs,
    epsilon, share, save,
):  # fmt: skip
    T, V, N = v.shape[0], v.shape[2], relations.shape[2]
    matrix = matrices[b]
    one = matrix.dtype.type(1)
    key, written = np.empty_like(matrix[:, 0]), np.empty_like(matrix[0])
    for t in range(T):
        s = t if save else 0
        if starts[t, b]:
            clear_matrix(matrix)
        if save and t % CHUNK == 0:
            copy_matrix(matrix, checkpoints[t // CHUNK, b])
        error, value = errors[s, b], v[t, b]
        _pairs(entity[t, b], relation[t, b], key)
        read(matrix, key, error)
        for j in range(V):
            error[j] = value[j] - error[j]
        _write_and_bound(matrix, key, error, beta[t, b] * share, written)
        x = query[t, b]
        for n in range(N):
            y = normed[s, b, n]
            _pairs(x, relations[t, b, n], key)
            read(matrix, key, y)
            mean = share - share
            for j in range(V):
                mean += y[j] * share
            for j in range(V):
                y[j] -= mean
            scale = one / np.sqrt(dot(y, y) * share + epsilon)
            for j in range(V):
                y[j] *= scale
            scales[s, b, n] = scale
            x = y
        copy(x, outputs[t, b])


@njit(**FAST)
def _backward_program(
    b, entity, relation, beta, query, relations, starts, errors, normed, scales, checkpoints, d_outputs, d_matrices,
    d_entity, d_relation, d_v, d_beta, d_query, d_relations, share,
):  # fmt: skip
    T, V, N = errors.shape[0], errors.shape[2], relations.shape[2]
    d_matrix = d_matrices[b]
    before = np.empty((CHUNK, d_matrix.shape[0], V), d_matrix.dtype)
    after, pairs, row = np.empty_like(d_matrix), d_matrix[:, 0], d_matrix[0]
    key, d_key, erased = np.empty_like(pairs), np.empty_like(pairs), np.empty_like(pairs)
    written, d_read, d_x = np.empty_like(row), np.empty_like(row), np.empty_like(row)
    for chunk in range(checkpoints.shape[0] - 1, -1, -1):
        first, end = chunk * CHUNK, min(T, (chunk + 1) * CHUNK)
        copy_matrix(checkpoints[chunk, b], before[0])
        for t in range(first + 1, end):
            if starts[t, b]:
                clear_matrix(before[t - first])
            else:
                copy_matrix(before[t - first - 1], before[t - first])
                _pairs(entity[t - 1, b], relation[t - 1, b], key)
                _write_and_bound(before[t - first], key, errors[t - 1, b], beta[t - 1, b] * share, written)
        for t in range(end - 1, first - 1, -1):
            error, strength = errors[t, b], beta[t, b] * share
            copy_matrix(before[t - first], after)
            _pairs(entity[t, b], relation[t, b], key)
            factor = _write_and_bound(after, key, error, strength, written)
            # the reads, last first
            copy(d_outputs[t, b], d_x)
            for n in range(N - 1, -1, -1):
                y, scale = normed[t, b, n], scales[t, b, n]
                mean, along = share - share, dot(d_x, y) * share
                for j in range(V):
                    mean += d_x[j] * share
                for j in range(V):
                    d_read[j] = scale * (d_x[j] - mean - y[j] * along)
                x = normed[t, b, n - 1] if n else query[t, b]
                _pairs(x, relations[t, b, n], key)
                write(d_matrix, key, d_read)
                read_transposed(after, d_read, d_key)
                _pairs_gradients(x, relations[t, b, n], d_key, d_x, d_relations[t, b, n])
            copy(d_x, d_query[t, b])
            # the bound
            if factor < 1:
                inner = share - share
                for i in range(key.size):
                    inner += dot(d_matrix[i], after[i])
                for i in range(key.size):
                    for j in range(V):
                        d_matrix[i, j] = factor * (d_matrix[i, j] - inner * after[i, j])
            # the write
            d_value = d_v[t, b]
            _pairs(entity[t, b], relation[t, b], key)
            read(d_matrix, key, d_read)
            read_transposed(d_matrix, written, d_key)
            d_beta[t, b] = dot(d_read, error) * share
            for j in range(V):
                d_value[j] = strength * d_read[j]
            read_transposed(before[t - first], d_value, erased)
            for i in range(key.size):
                d_key[i] -= erased[i]
            _pairs_gradients(entity[t, b], relation[t, b], d_key, d_entity[t, b], d_relation[t, b])
            if starts[t, b]:
                clear_matrix(d_matrix)
            else:
                for i in range(key.size):
                    key[i] = -key[i]
                write(d_matrix, key, d_value)


@functools.cache
def _forward(PARALLEL: bool) -> Callable:
    @njit(parallel=PARALLEL, **KERNEL)
    def forward(batch_size, n_heads, arrays, epsilon, share, save):
        for program in prange(batch_size * n_heads):
            _forward_program(np.int64(program), *arrays, epsilon, share, save)
        return PARALLEL  # the cache tells kernels apart by what they close over

    return forward


@functools.cache
def _backward(PARALLEL: bool) -> Callable:
    @njit(parallel=PARALLEL, **KERNEL)
    def backward(batch_size, n_heads, arrays, share):
        for program in prange(batch_size * n_heads):
            _backward_program(np.int64(program), *arrays, share)
        return PARALLEL  # the cache tells kernels apart by what they close over

    return backward


def _run(*tensors: Tensor, save: bool) -> tuple[Tensor, ...]:
    """Outputs, the final F, and what the backward needs."""
    *inputs, matrix, episode_starts = tensors
    T, B, V = inputs[2].shape
    N, rows = inputs[5].shape[2], matrix.shape[1]
    matrix, steps = matrix.clone(), T if save else 1
    errors, normed, scales, outputs = (
        empty(shape, matrix.dtype) for shape in ((steps, B, V), (steps, B, N, V), (steps, B, N), (T, B, V))
    )
    checkpoints = empty((num_chunks(T) if save else 0, B, rows, V), matrix.dtype)
    arrays = (*inputs, episode_starts, matrix, errors, normed, scales, checkpoints, outputs)
    options = number(NORM_EPSILON, matrix.dtype), number(1 / V, matrix.dtype), save
    launch(_forward, (4 + N) * T * rows * V, B, 1, arrays, *options)
    return outputs, matrix, errors, normed, scales, checkpoints


class _ThirdOrder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        outputs, matrix, *saved = _run(*tensors, save=True)
        entity, relation, _, beta, query, relations, _, episode_starts = tensors
        ctx.save_for_backward(entity, relation, beta, query, relations, episode_starts, *saved)
        ctx.set_materialize_grads(False)
        return outputs, matrix

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_outputs: Tensor | None, d_matrix: Tensor | None) -> tuple[Tensor | None, ...]:
        entity, relation, beta, query, relations, _, errors, *_, checkpoints = saved = ctx.saved_tensors
        T, B, N, _ = relations.shape
        d_outputs, d_matrix = gradient(d_outputs, errors), own_gradient(d_matrix, checkpoints[0])
        gradients = [empty(x.shape, x.dtype) for x in (entity, relation, errors, beta, query, relations)]
        arrays = (*saved, d_outputs, d_matrix, *gradients)
        work = (10 + 3 * N) * T * d_matrix[0].numel()
        launch(_backward, work, B, 1, arrays, number(1 / errors.shape[-1], errors.dtype))
        return *gradients, d_matrix, None


def third_order_scan(*tensors: Tensor) -> tuple[Tensor, Tensor]:
    """See `_recurrent_reference.third_order_scan`."""
    tensors = tuple(x.contiguous() for x in tensors)
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return _ThirdOrder.apply(*tensors)
    return _run(*tensors, save=False)[:2]
