"""The self-referential scan as Triton kernels: one launch forward, one backward.

The scheme is that of `_small_triton`. `base` is the learned initial matrix W_0 and `state` the difference D that is
carried; W = W_0 + D. The M = V + 2 K + 4 columns of all are the blocks y, k, q, b of the outputs, in this order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx

from fwp_rl.ops import _small_triton
from fwp_rl.ops._rnn_triton import sigmoid
from fwp_rl.ops._small_triton import outer, read, read_transposed, softmax, softmax_gradient

# ------------------------------------------------------------------------------------------------------------- kernels


@triton.jit
def _cut(x, columns, rows, first):
    """Rows of the columns from `first` on."""
    return tl.sum(tl.where(columns[None, :] == first + rows[:, None], x[None, :], 0.0), 1)


@triton.jit
def _place(x, columns, rows, first, inside):
    """Columns of which those from `first` on are the rows."""
    here = (columns[None, :] == first + rows[:, None]) & inside[:, None]
    return tl.sum(tl.where(here, x[:, None], 0.0), 0)


@triton.jit
def _blocks(columns, K: tl.constexpr, V: tl.constexpr):
    """The block of every column: 0 for y, 1 for k, 2 for q and 3 for b."""
    return (columns >= V).to(tl.int32) + (columns >= V + K).to(tl.int32) + (columns >= V + 2 * K).to(tl.int32)


@triton.jit(do_not_specialize=["T", "B", "H"])
def forward_kernel(
    x,  # [T, B, H, K]
    base,  # [H, K, M]
    initial,  # [B, H, K, M]
    starts,  # bool [T, B]
    outputs,  # [T, B, H, V]: written, like all that follow; the last four if KEEP
    final,  # [B, H, K, M]
    addresses,  # [T, B, H, 2, K]: k and q
    rates,  # [T, B, H, 4]
    errors,  # [T, B, H, M]: W^T (q - k)
    checkpoints,  # [chunks, B, H, K, M]: D before the chunk
    T,
    B,
    H,
    K: tl.constexpr,
    V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    KEEP: tl.constexpr,
    CHUNK: tl.constexpr,
):
    M: tl.constexpr = V + 2 * K + 4
    program = tl.program_id(0).to(tl.int64)
    programs = B.to(tl.int64) * H
    b, h = program // H, program % H
    rows, columns, index = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_M), tl.arange(0, 4)
    in_rows, in_columns, block = rows < K, columns < M, _blocks(columns, K, V)
    at, inside = rows[:, None] * M + columns[None, :], in_rows[:, None] & in_columns[None, :]
    initial_matrix = tl.load(base + h * K * M + at, inside, 0)
    state = tl.load(initial + program * K * M + at, inside, 0)
    for t in tl.range(T, disable_licm=True):
        step = t * programs + program
        if KEEP:  # noqa: SIM102 - one is known when the kernel is compiled, the other is not
            if t % CHUNK == 0:
                tl.store(checkpoints + ((t // CHUNK) * programs + program) * K * M + at, state, inside)
        state = tl.where(tl.load(starts + t * B + b), 0.0, state)
        matrix = initial_matrix + state
        made = read(matrix, tl.load(x + step * K + rows, in_rows, 0))
        tl.store(outputs + step * V + columns, made, columns < V)
        k = softmax(_cut(made, columns, rows, V), in_rows)
        q = softmax(_cut(made, columns, rows, V + K), in_rows)
        rate = sigmoid(_cut(made, columns, index, V + 2 * K))
        error = read(matrix, q - k)
        state += outer(k, _cut(rate, index, block, 0) * error)
        if KEEP:
            tl.store(addresses + step * 2 * K + rows, k, in_rows)
            tl.store(addresses + step * 2 * K + K + rows, q, in_rows)
            tl.store(rates + step * 4 + index, rate)
            tl.store(errors + step * M + columns, error, in_columns)
    tl.store(final + program * K * M + at, state, inside)


@triton.jit(do_not_specialize=["T", "B", "H"])
def backward_kernel(
    x,  # [T, B, H, K]
    base,  # [H, K, M]
    starts,  # bool [T, B]
    addresses,  # [T, B, H, 2, K]; these four as the forward has left them
    rates,  # [T, B, H, 4]
    errors,  # [T, B, H, M]
    checkpoints,  # [chunks, B, H, K, M]
    d_outputs,  # [T, B, H, V]
    d_final,  # [B, H, K, M]
    d_x,  # [T, B, H, K]: written, like all that follow
    d_base,  # [B, H, K, M]: by way of the reads of each row
    d_initial,  # [B, H, K, M]
    matrices,  # [B, H, CHUNK, K, M]: W before each step of a chunk
    T,
    B,
    H,
    K: tl.constexpr,
    V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    CHUNK: tl.constexpr,
):
    M: tl.constexpr = V + 2 * K + 4
    program = tl.program_id(0).to(tl.int64)
    programs = B.to(tl.int64) * H
    b, h = program // H, program % H
    rows, columns, index = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_M), tl.arange(0, 4)
    in_rows, in_columns, block = rows < K, columns < M, _blocks(columns, K, V)
    at, inside = rows[:, None] * M + columns[None, :], in_rows[:, None] & in_columns[None, :]
    matrices += program * CHUNK * K * M
    d_state = tl.load(d_final + program * K * M + at, inside, 0)
    # Reads differentiate by W = W_0 + D: what they add to the gradient of D, they add to that of W_0, too.
    d_initial_matrix = -d_state
    chunks = (T + CHUNK - 1) // CHUNK
    for back in tl.range(chunks, disable_licm=True):
        chunk = chunks - 1 - back
        count = tl.minimum(T - chunk * CHUNK, CHUNK)
        initial_matrix = tl.load(base + h * K * M + at, inside, 0)
        state = tl.load(checkpoints + (chunk * programs + program) * K * M + at, inside, 0)
        for i in tl.range(count, disable_licm=True):
            t = chunk * CHUNK + i
            step = t * programs + program
            state = tl.where(tl.load(starts + t * B + b), 0.0, state)
            tl.store(matrices + i * K * M + at, initial_matrix + state, inside)
            written = tl.load(errors + step * M + columns, in_columns, 0) * tl.load(rates + step * 4 + block)
            state += outer(tl.load(addresses + step * 2 * K + rows, in_rows, 0), written)
        tl.debug_barrier()
        for j in tl.range(count, disable_licm=True):
            i = count - 1 - j
            t = chunk * CHUNK + i
            step = t * programs + program
            matrix = tl.load(matrices + i * K * M + at, inside, 0)
            k = tl.load(addresses + step * 2 * K + rows, in_rows, 0)
            q = tl.load(addresses + step * 2 * K + K + rows, in_rows, 0)
            error = tl.load(errors + step * M + columns, in_columns, 0)
            rate_of_column = tl.load(rates + step * 4 + block)
            # the write: W + k (rate error)^T
            d_written = read(d_state, k)
            d_k = read_transposed(d_state, rate_of_column * error)
            d_rate = tl.sum(tl.where(block[None, :] == index[:, None], (d_written * error)[None, :], 0.0), 1)
            # error = W^T (q - k)
            d_error = rate_of_column * d_written
            d_q = read_transposed(matrix, d_error)
            d_state += outer(q - k, d_error)
            d_k = softmax_gradient(k, d_k - d_q)
            d_q = softmax_gradient(q, d_q)
            # what was read: W^T x
            rate = tl.load(rates + step * 4 + index)
            d_made = tl.load(d_outputs + step * V + columns, columns < V, 0)
            d_made += _place(d_k, columns, rows, V, in_rows) + _place(d_q, columns, rows, V + K, in_rows)
            d_made += _place(d_rate * rate * (1 - rate), columns, index, V + 2 * K, index < 4)
            tl.store(d_x + step * K + rows, read_transposed(matrix, d_made), in_rows)
            d_state += outer(tl.load(x + step * K + rows, in_rows, 0), d_made)
            start = tl.load(starts + t * B + b)
            d_initial_matrix += tl.where(start, d_state, 0.0)
            d_state = tl.where(start, 0.0, d_state)
        tl.debug_barrier()
    tl.store(d_base + program * K * M + at, d_initial_matrix + d_state, inside)
    tl.store(d_initial + program * K * M + at, d_state, inside)


# ----------------------------------------------------------------------------------------------------------- operators


def constants(K: int, V: int) -> dict[str, int]:
    """Of both kernels."""
    return {"K": K, "V": V, "BLOCK_K": _small_triton.padded(K), "BLOCK_M": _small_triton.padded(V + 2 * K + 4)}


@torch.library.custom_op("fwp_rl::self_referential_scan", mutates_args=())
def _scan(
    x: Tensor, base: Tensor, difference: Tensor, episode_starts: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Outputs and the final difference; addresses, rates, errors and checkpoints, empty unless they are kept."""
    results = _results(x, base, difference, episode_starts, keep)
    T, B, H, K = x.shape
    arguments = (x, base, difference, episode_starts, *results)
    sizes = constants(K, results[0].shape[-1])
    _small_triton.launch(forward_kernel, arguments, (T, B, H), sizes | {"KEEP": keep})
    return results


@_scan.register_fake
def _results(
    x: Tensor, base: Tensor, difference: Tensor, episode_starts: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    T, B, H, K = x.shape
    M = base.shape[-1]
    kept = T if keep else 0
    return (
        x.new_empty(T, B, H, M - 2 * K - 4),
        x.new_empty(B, H, K, M),
        x.new_empty(kept, B, H, 2, K),
        x.new_empty(kept, B, H, 4),
        x.new_empty(kept, B, H, M),
        x.new_empty(_small_triton.num_chunks(kept), B, H, K, M),
    )


@torch.library.custom_op("fwp_rl::self_referential_scan_backward", mutates_args=())
def _scan_backward(
    x: Tensor,
    base: Tensor,
    episode_starts: Tensor,
    addresses: Tensor,
    rates: Tensor,
    errors: Tensor,
    checkpoints: Tensor,
    d_outputs: Tensor,
    d_difference: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of x, of base for each row of the batch, and of the initial difference."""
    arguments = (x, base, episode_starts, addresses, rates, errors, checkpoints, d_outputs, d_difference)
    results = _gradients(*arguments)
    T, B, H, K = x.shape
    matrices = x.new_empty(B, H, _small_triton.CHUNK, K, base.shape[-1])
    sizes = constants(K, d_outputs.shape[-1])
    _small_triton.launch(backward_kernel, (*arguments, *results, matrices), (T, B, H), sizes)
    return results


@_scan_backward.register_fake
def _gradients(
    x: Tensor,
    base: Tensor,
    episode_starts: Tensor,
    addresses: Tensor,
    rates: Tensor,
    errors: Tensor,
    checkpoints: Tensor,
    d_outputs: Tensor,
    d_difference: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(d_difference.shape), x.new_empty(d_difference.shape)


def _save(ctx: FunctionCtx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    x, base, _, episode_starts, _ = inputs
    outputs, *saved = output
    ctx.save_for_backward(x, base, episode_starts, outputs, *saved)
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)


def _backward(ctx: FunctionCtx, *incoming: Tensor | None) -> tuple[Tensor | None, ...]:
    x, base, episode_starts, outputs, difference, *saved = ctx.saved_tensors
    incoming = _small_triton.gradients(incoming[:2], (outputs, difference))
    d_x, d_bases, d_difference = _scan_backward(x, base, episode_starts, *saved, *incoming)
    return d_x, d_bases.sum(0), d_difference, None, None


_scan.register_autograd(_backward, setup_context=_save)


def self_referential_scan(x: Tensor, base: Tensor, difference: Tensor, episode_starts: Tensor) -> tuple[Tensor, Tensor]:
    """See `_recurrent_reference.self_referential_scan`."""
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, base, difference))
    outputs, difference, *_ = _scan(x, base, difference, episode_starts, keep)
    return outputs, difference
