"""The scan of the recurrent delta net as Triton kernels: one launch forward, one backward.

The scheme is that of `_small_triton`. The slow weights of a head stay in registers, like its fast matrix. Their
gradient is one matrix product over all steps, after the backward kernel.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx

from fwp_rl.ops import _small_triton
from fwp_rl.ops._rnn_triton import sigmoid, tanh
from fwp_rl.ops._small_triton import outer, read, read_transposed, softmax, softmax_gradient, write_gradients

# ------------------------------------------------------------------------------------------------------------- kernels


@triton.jit
def _slow_weights(recurrent, rows, columns, K: tl.constexpr, V: tl.constexpr):
    """[K, V], [K, V], [V, V] and [V]: what makes q, k, v and b of tanh(y), by sums over the second or the first axis.

    So q and k come out as rows of the fast matrix, and v as its columns.
    """
    P: tl.constexpr = 2 * K + V + 1
    inside = (rows < K)[:, None] & (columns < V)[None, :]
    to_q = tl.load(recurrent + columns[None, :] * P + rows[:, None], inside, 0)
    to_k = tl.load(recurrent + columns[None, :] * P + K + rows[:, None], inside, 0)
    square = (columns < V)[:, None] & (columns < V)[None, :]
    to_v = tl.load(recurrent + columns[:, None] * P + 2 * K + columns[None, :], square, 0)
    to_b = tl.load(recurrent + columns * P + 2 * K + V, columns < V, 0)
    return to_q, to_k, to_v, to_b


@triton.jit(do_not_specialize=["T", "B", "H"])
def forward_kernel(
    projected,  # [T, B, H, P]
    recurrent,  # [H, V, P]
    initial,  # [B, H, K, V]
    initial_y,  # [B, H, V]
    starts,  # bool [T, B]
    outputs,  # [T, B, H, V]: written, like all that follow; the last four if KEEP
    final,  # [B, H, K, V]
    final_y,  # [B, H, V]
    slots,  # [T, B, H, 2 K + 1]: q, k and beta
    errors,  # [T, B, H, V]: v - S^T k
    feedback,  # [T, B, H, V]: tanh(y) of the step before
    checkpoints,  # [chunks, B, H, K, V]: S before the chunk
    T,
    B,
    H,
    K: tl.constexpr,
    V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    KEEP: tl.constexpr,
    CHUNK: tl.constexpr,
):
    P: tl.constexpr = 2 * K + V + 1
    program = tl.program_id(0).to(tl.int64)
    programs = B.to(tl.int64) * H
    b, h = program // H, program % H
    rows, columns = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    in_rows, in_columns = rows < K, columns < V
    at, inside = rows[:, None] * V + columns[None, :], in_rows[:, None] & in_columns[None, :]
    to_q, to_k, to_v, to_b = _slow_weights(recurrent + h * V * P, rows, columns, K, V)
    state = tl.load(initial + program * K * V + at, inside, 0)
    y = tl.load(initial_y + program * V + columns, in_columns, 0)
    for t in tl.range(T, disable_licm=True):
        step = t * programs + program
        if KEEP:  # noqa: SIM102 - one is known when the kernel is compiled, the other is not
            if t % CHUNK == 0:
                tl.store(checkpoints + ((t // CHUNK) * programs + program) * K * V + at, state, inside)
        start = tl.load(starts + t * B + b)
        state = tl.where(start, 0.0, state)
        squashed = tl.where(start, 0.0, tanh(y))
        slot = projected + step * P
        q = softmax(tl.load(slot + rows, in_rows, 0) + read_transposed(to_q, squashed), in_rows)
        k = softmax(tl.load(slot + K + rows, in_rows, 0) + read_transposed(to_k, squashed), in_rows)
        v = tl.load(slot + 2 * K + columns, in_columns, 0) + read(to_v, squashed)
        beta = sigmoid(tl.load(slot + 2 * K + V) + tl.sum(to_b * squashed, 0))
        error = v - read(state, k)
        state += outer(k, beta * error)
        y = read(state, q)
        tl.store(outputs + step * V + columns, y, in_columns)
        if KEEP:
            slot = slots + step * (2 * K + 1)
            tl.store(slot + rows, q, in_rows)
            tl.store(slot + K + rows, k, in_rows)
            tl.store(slot + 2 * K, beta)
            tl.store(errors + step * V + columns, error, in_columns)
            tl.store(feedback + step * V + columns, squashed, in_columns)
    tl.store(final + program * K * V + at, state, inside)
    tl.store(final_y + program * V + columns, y, in_columns)


@triton.jit(do_not_specialize=["T", "B", "H"])
def backward_kernel(
    recurrent,  # [H, V, P]
    starts,  # bool [T, B]
    slots,  # [T, B, H, 2 K + 1]; these four as the forward has left them
    errors,  # [T, B, H, V]
    feedback,  # [T, B, H, V]
    checkpoints,  # [chunks, B, H, K, V]
    d_outputs,  # [T, B, H, V]
    d_final,  # [B, H, K, V]
    d_final_y,  # [B, H, V]
    d_projected,  # [T, B, H, P]: written, like all that follow
    d_initial,  # [B, H, K, V]
    d_initial_y,  # [B, H, V]
    matrices,  # [B, H, CHUNK, K, V]: S before each step of a chunk
    T,
    B,
    H,
    K: tl.constexpr,
    V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    CHUNK: tl.constexpr,
):
    P: tl.constexpr = 2 * K + V + 1
    program = tl.program_id(0).to(tl.int64)
    programs = B.to(tl.int64) * H
    b, h = program // H, program % H
    rows, columns = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    in_rows, in_columns = rows < K, columns < V
    at, inside = rows[:, None] * V + columns[None, :], in_rows[:, None] & in_columns[None, :]
    to_q, to_k, to_v, to_b = _slow_weights(recurrent + h * V * P, rows, columns, K, V)
    matrices += program * CHUNK * K * V
    d_state = tl.load(d_final + program * K * V + at, inside, 0)
    d_y = tl.load(d_final_y + program * V + columns, in_columns, 0)
    chunks = (T + CHUNK - 1) // CHUNK
    for back in tl.range(chunks, disable_licm=True):
        chunk = chunks - 1 - back
        count = tl.minimum(T - chunk * CHUNK, CHUNK)
        state = tl.load(checkpoints + (chunk * programs + program) * K * V + at, inside, 0)
        for i in tl.range(count, disable_licm=True):
            t = chunk * CHUNK + i
            step = t * programs + program
            state = tl.where(tl.load(starts + t * B + b), 0.0, state)
            tl.store(matrices + i * K * V + at, state, inside)
            k = tl.load(slots + step * (2 * K + 1) + K + rows, in_rows, 0)
            beta = tl.load(slots + step * (2 * K + 1) + 2 * K)
            state += outer(k, beta * tl.load(errors + step * V + columns, in_columns, 0))
        tl.debug_barrier()
        for j in tl.range(count, disable_licm=True):
            i = count - 1 - j
            t = chunk * CHUNK + i
            step = t * programs + program
            state = tl.load(matrices + i * K * V + at, inside, 0)
            slot = slots + step * (2 * K + 1)
            q = tl.load(slot + rows, in_rows, 0)
            k = tl.load(slot + K + rows, in_rows, 0)
            beta = tl.load(slot + 2 * K)
            error = tl.load(errors + step * V + columns, in_columns, 0)
            d_y += tl.load(d_outputs + step * V + columns, in_columns, 0)
            d_q = softmax_gradient(q, read_transposed(state + outer(k, beta * error), d_y))
            d_state += outer(q, d_y)
            d_state, d_k, d_v, d_beta = write_gradients(state, d_state, k, beta, error)
            d_k = softmax_gradient(k, d_k)
            d_b = d_beta * beta * (1 - beta)
            d_slot = d_projected + step * P
            tl.store(d_slot + rows, d_q, in_rows)
            tl.store(d_slot + K + rows, d_k, in_rows)
            tl.store(d_slot + 2 * K + columns, d_v, in_columns)
            tl.store(d_slot + 2 * K + V, d_b)
            squashed = tl.load(feedback + step * V + columns, in_columns, 0)
            d_y = read(to_q, d_q) + read(to_k, d_k) + read_transposed(to_v, d_v) + to_b * d_b
            start = tl.load(starts + t * B + b)
            d_y = tl.where(start, 0.0, d_y * (1 - squashed * squashed))
            d_state = tl.where(start, 0.0, d_state)
        tl.debug_barrier()
    tl.store(d_initial + program * K * V + at, d_state, inside)
    tl.store(d_initial_y + program * V + columns, d_y, in_columns)


# ----------------------------------------------------------------------------------------------------------- operators


def constants(K: int, V: int) -> dict[str, int]:
    """Of both kernels."""
    return {"K": K, "V": V, "BLOCK_K": _small_triton.padded(K), "BLOCK_V": _small_triton.padded(V)}


@torch.library.custom_op("fwp_rl::recurrent_delta_scan", mutates_args=())
def _scan(
    projected: Tensor, recurrent: Tensor, matrix: Tensor, y: Tensor, episode_starts: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Outputs, final matrix and y; slots, errors, feedback and checkpoints, empty unless they are kept."""
    results = _results(projected, recurrent, matrix, y, episode_starts, keep)
    T, B, H, _ = projected.shape
    arguments = (projected, recurrent, matrix, y, episode_starts, *results)
    sizes = constants(*matrix.shape[-2:])
    _small_triton.launch(forward_kernel, arguments, (T, B, H), sizes | {"KEEP": keep})
    return results


@_scan.register_fake
def _results(
    projected: Tensor, recurrent: Tensor, matrix: Tensor, y: Tensor, episode_starts: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    T, B, H, _ = projected.shape
    K, V = matrix.shape[-2:]
    kept = T if keep else 0
    return (
        y.new_empty(T, B, H, V),
        y.new_empty(B, H, K, V),
        y.new_empty(B, H, V),
        y.new_empty(kept, B, H, 2 * K + 1),
        y.new_empty(kept, B, H, V),
        y.new_empty(kept, B, H, V),
        y.new_empty(_small_triton.num_chunks(kept), B, H, K, V),
    )


@torch.library.custom_op("fwp_rl::recurrent_delta_scan_backward", mutates_args=())
def _scan_backward(
    recurrent: Tensor,
    episode_starts: Tensor,
    slots: Tensor,
    errors: Tensor,
    feedback: Tensor,
    checkpoints: Tensor,
    d_outputs: Tensor,
    d_matrix: Tensor,
    d_y: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of projected, and of the initial matrix and y."""
    saved = (recurrent, episode_starts, slots, errors, feedback, checkpoints, d_outputs, d_matrix, d_y)
    results = _gradients(*saved)
    T, B, H, _ = slots.shape
    K, V = checkpoints.shape[-2:]
    matrices = slots.new_empty(B, H, _small_triton.CHUNK, K, V)
    _small_triton.launch(backward_kernel, (*saved, *results, matrices), (T, B, H), constants(K, V))
    return results


@_scan_backward.register_fake
def _gradients(
    recurrent: Tensor,
    episode_starts: Tensor,
    slots: Tensor,
    errors: Tensor,
    feedback: Tensor,
    checkpoints: Tensor,
    d_outputs: Tensor,
    d_matrix: Tensor,
    d_y: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        slots.new_empty(*slots.shape[:-1], recurrent.shape[-1]),
        slots.new_empty(d_matrix.shape),
        slots.new_empty(d_y.shape),
    )


def _save(ctx: FunctionCtx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    _, recurrent, _, _, episode_starts, _ = inputs
    ctx.save_for_backward(recurrent, episode_starts, *output[1:])
    ctx.mark_non_differentiable(*output[3:])
    ctx.set_materialize_grads(False)


def _backward(ctx: FunctionCtx, *incoming: Tensor | None) -> tuple[Tensor | None, ...]:
    recurrent, episode_starts, final, final_y, *saved = ctx.saved_tensors
    _, errors, feedback, _ = saved
    incoming = _small_triton.gradients(incoming[:3], (errors, final, final_y))
    d_projected, d_matrix, d_y = _scan_backward(recurrent, episode_starts, *saved, *incoming)
    with torch.autocast(errors.device.type, enabled=False):
        # heads first: [H, V, T B] @ [H, T B, P]
        d_recurrent = feedback.flatten(0, 1).permute(1, 2, 0) @ d_projected.flatten(0, 1).transpose(0, 1)
    return d_projected, d_recurrent, d_matrix, d_y, None, None


_scan.register_autograd(_backward, setup_context=_save)


def recurrent_delta_scan(
    projected: Tensor, recurrent: Tensor, matrix: Tensor, y: Tensor, episode_starts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `_recurrent_reference.recurrent_delta_scan`."""
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in (projected, recurrent, matrix, y))
    outputs, matrix, y, *_ = _scan(projected, recurrent, matrix, y, episode_starts, keep)
    return outputs, matrix, y
