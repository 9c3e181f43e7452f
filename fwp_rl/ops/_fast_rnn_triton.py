"""The scan of the recurrent nets with fast recurrent weights as Triton kernels: one launch forward, one backward.

The scheme is that of `_small_triton`. The G matrices of a head are one tensor in registers, `[G, V, V]`; three are
padded to four.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx

from fwp_rl.ops import _small_triton
from fwp_rl.ops._rnn_triton import sigmoid
from fwp_rl.ops._small_triton import outer, read, read_transposed, softmax, softmax_gradient, write_gradients

# ------------------------------------------------------------------------------------------------------------- kernels


@triton.jit
def _pick(gates, gate, index: tl.constexpr):
    """One of [G, V]."""
    return tl.sum(tl.where(gate[:, None] == index, gates, 0.0), 0)


@triton.jit(do_not_specialize=["T", "B", "H"])
def forward_kernel(
    k,  # [T, B, H, G, V], like v and z
    v,
    beta,  # [T, B, H, G]
    z,
    initial,  # [B, H, G, V, V]
    initial_y,  # [B, H, V], like the cell
    initial_c,
    starts,  # bool [T, B]
    outputs,  # [T, B, H, V]: written, like all that follow; the last five if KEEP
    final,  # [B, H, G, V, V]
    final_y,  # [B, H, V], like the cell
    final_c,
    queries,  # [T, B, H, V]: softmax(y) of the step before
    errors,  # [T, B, H, G, V]: v - R^T k
    gates,  # [T, B, H, G, V]: activations
    cells,  # [T, B, H, V]: c before the step; not written for G = 1, like gates
    checkpoints,  # [chunks, B, H, G, V, V]: R before the chunk
    T,
    B,
    H,
    G: tl.constexpr,
    V: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    KEEP: tl.constexpr,
    CHUNK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    programs = B.to(tl.int64) * H
    b = program // H
    gate, rows, columns = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    in_gates, in_rows, in_columns = gate < G, rows < V, columns < V
    at = gate[:, None, None] * V * V + rows[None, :, None] * V + columns[None, None, :]
    inside = in_gates[:, None, None] & in_rows[None, :, None] & in_columns[None, None, :]
    at_rows, inside_rows = gate[:, None] * V + rows[None, :], in_gates[:, None] & in_rows[None, :]
    at_columns, inside_columns = gate[:, None] * V + columns[None, :], in_gates[:, None] & in_columns[None, :]
    state = tl.load(initial + program * G * V * V + at, inside, 0)
    y = tl.load(initial_y + program * V + columns, in_columns, 0)
    c = tl.load(initial_c + program * V + columns, in_columns, 0)
    for t in tl.range(T, disable_licm=True):
        step = t * programs + program
        if KEEP:  # noqa: SIM102 - one is known when the kernel is compiled, the other is not
            if t % CHUNK == 0:
                tl.store(checkpoints + ((t // CHUNK) * programs + program) * G * V * V + at, state, inside)
        start = tl.load(starts + t * B + b)
        state, y, c = tl.where(start, 0.0, state), tl.where(start, 0.0, y), tl.where(start, 0.0, c)
        query = softmax(y, in_columns)
        k_t = tl.load(k + step * G * V + at_rows, inside_rows, 0)
        error = tl.load(v + step * G * V + at_columns, inside_columns, 0) - read(state, k_t)
        state += outer(k_t, tl.load(beta + step * G + gate, in_gates, 0)[:, None] * error)
        a = tl.load(z + step * G * V + at_columns, inside_columns, 0) + read(state, query[None, :])
        if KEEP:
            tl.store(queries + step * V + columns, query, in_columns)
            tl.store(errors + step * G * V + at_columns, error, inside_columns)
        if G == 1:
            y = tl.sum(a, 0)
        else:
            a = tl.where(gate[:, None] == 1, a, sigmoid(a))
            if KEEP:
                tl.store(gates + step * G * V + at_columns, a, inside_columns)
                tl.store(cells + step * V + columns, c, in_columns)
            c += _pick(a, gate, 0) * (_pick(a, gate, 1) - c)
            y = _pick(a, gate, 2) * c
        tl.store(outputs + step * V + columns, y, in_columns)
    tl.store(final + program * G * V * V + at, state, inside)
    tl.store(final_y + program * V + columns, y, in_columns)
    tl.store(final_c + program * V + columns, c, in_columns)


@triton.jit(do_not_specialize=["T", "B", "H"])
def backward_kernel(
    k,  # [T, B, H, G, V]
    beta,  # [T, B, H, G]
    starts,  # bool [T, B]
    queries,  # [T, B, H, V]; these five as the forward has left them
    errors,  # [T, B, H, G, V]
    gates,  # [T, B, H, G, V]
    cells,  # [T, B, H, V]
    checkpoints,  # [chunks, B, H, G, V, V]
    d_outputs,  # [T, B, H, V]
    d_final,  # [B, H, G, V, V]
    d_final_y,  # [B, H, V], like the cell
    d_final_c,
    d_k,  # [T, B, H, G, V], like d_v and d_z: written, like all that follow
    d_v,
    d_beta,  # [T, B, H, G]
    d_z,
    d_initial,  # [B, H, G, V, V]
    d_initial_y,  # [B, H, V], like the cell
    d_initial_c,
    matrices,  # [B, H, CHUNK, G, V, V]: R before each step of a chunk
    T,
    B,
    H,
    G: tl.constexpr,
    V: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    CHUNK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    programs = B.to(tl.int64) * H
    b = program // H
    gate, rows, columns = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    in_gates, in_rows, in_columns = gate < G, rows < V, columns < V
    at = gate[:, None, None] * V * V + rows[None, :, None] * V + columns[None, None, :]
    inside = in_gates[:, None, None] & in_rows[None, :, None] & in_columns[None, None, :]
    at_rows, inside_rows = gate[:, None] * V + rows[None, :], in_gates[:, None] & in_rows[None, :]
    at_columns, inside_columns = gate[:, None] * V + columns[None, :], in_gates[:, None] & in_columns[None, :]
    matrices += program * CHUNK * G * V * V
    d_state = tl.load(d_final + program * G * V * V + at, inside, 0)
    d_y = tl.load(d_final_y + program * V + columns, in_columns, 0)
    d_c = tl.load(d_final_c + program * V + columns, in_columns, 0)
    chunks = (T + CHUNK - 1) // CHUNK
    for back in tl.range(chunks, disable_licm=True):
        chunk = chunks - 1 - back
        count = tl.minimum(T - chunk * CHUNK, CHUNK)
        state = tl.load(checkpoints + (chunk * programs + program) * G * V * V + at, inside, 0)
        for i in tl.range(count, disable_licm=True):
            t = chunk * CHUNK + i
            step = t * programs + program
            state = tl.where(tl.load(starts + t * B + b), 0.0, state)
            tl.store(matrices + i * G * V * V + at, state, inside)
            written = tl.load(errors + step * G * V + at_columns, inside_columns, 0)
            written *= tl.load(beta + step * G + gate, in_gates, 0)[:, None]
            state += outer(tl.load(k + step * G * V + at_rows, inside_rows, 0), written)
        tl.debug_barrier()
        for j in tl.range(count, disable_licm=True):
            i = count - 1 - j
            t = chunk * CHUNK + i
            step = t * programs + program
            d_y += tl.load(d_outputs + step * V + columns, in_columns, 0)
            if G == 1:
                d_a = d_y[None, :]
            else:
                a = tl.load(gates + step * G * V + at_columns, inside_columns, 0)
                c = tl.load(cells + step * V + columns, in_columns, 0)
                gate_i, change, gate_o = _pick(a, gate, 0), _pick(a, gate, 1) - c, _pick(a, gate, 2)
                d_c += d_y * gate_o
                d_i = d_c * change * gate_i * (1 - gate_i)
                d_o = d_y * (c + gate_i * change) * gate_o * (1 - gate_o)
                # The fourth gate, which is padding, gets d_o too: its keys are zero, and it reaches nothing.
                d_a = tl.where(gate[:, None] == 1, (d_c * gate_i)[None, :], d_o[None, :])
                d_a = tl.where(gate[:, None] == 0, d_i[None, :], d_a)
                d_c *= 1 - gate_i
            tl.store(d_z + step * G * V + at_columns, d_a, inside_columns)
            state = tl.load(matrices + i * G * V * V + at, inside, 0)
            k_t = tl.load(k + step * G * V + at_rows, inside_rows, 0)
            beta_t = tl.load(beta + step * G + gate, in_gates, 0)
            error = tl.load(errors + step * G * V + at_columns, inside_columns, 0)
            query = tl.load(queries + step * V + rows, in_rows, 0)
            d_query = tl.sum(read_transposed(state + outer(k_t, beta_t[:, None] * error), d_a), 0)
            d_state += outer(query[None, :], d_a)
            d_state, d_k_t, d_v_t, d_beta_t = write_gradients(state, d_state, k_t, beta_t[:, None], error)
            tl.store(d_k + step * G * V + at_rows, d_k_t, inside_rows)
            tl.store(d_v + step * G * V + at_columns, d_v_t, inside_columns)
            tl.store(d_beta + step * G + gate, d_beta_t, in_gates)
            start = tl.load(starts + t * B + b)
            d_y = tl.where(start, 0.0, softmax_gradient(query, d_query))
            d_c = tl.where(start, 0.0, d_c)
            d_state = tl.where(start, 0.0, d_state)
        tl.debug_barrier()
    tl.store(d_initial + program * G * V * V + at, d_state, inside)
    tl.store(d_initial_y + program * V + columns, d_y, in_columns)
    tl.store(d_initial_c + program * V + columns, d_c, in_columns)


# ----------------------------------------------------------------------------------------------------------- operators


def constants(G: int, V: int) -> dict[str, int]:
    """Of both kernels."""
    block = _small_triton.padded(V)
    return {"G": G, "V": V, "BLOCK_G": _small_triton.padded(G), "BLOCK_K": block, "BLOCK_V": block}


@torch.library.custom_op("fwp_rl::fast_rnn_scan", mutates_args=())
def _scan(
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    z: Tensor,
    matrices: Tensor,
    y: Tensor,
    c: Tensor,
    episode_starts: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Outputs, final matrices, y and c; queries, errors, gates, cells and checkpoints, empty unless they are kept."""
    arguments = (k, v, beta, z, matrices, y, c, episode_starts)
    results = _results(*arguments, keep)
    T, B, H, G, V = z.shape
    _small_triton.launch(forward_kernel, (*arguments, *results), (T, B, H), constants(G, V) | {"KEEP": keep})
    return results


@_scan.register_fake
def _results(
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    z: Tensor,
    matrices: Tensor,
    y: Tensor,
    c: Tensor,
    episode_starts: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    T, B, H, G, V = z.shape
    kept = T if keep else 0
    gated = kept if G > 1 else 0
    return (
        y.new_empty(T, B, H, V),
        y.new_empty(B, H, G, V, V),
        y.new_empty(B, H, V),
        y.new_empty(B, H, V),
        y.new_empty(kept, B, H, V),
        y.new_empty(kept, B, H, G, V),
        y.new_empty(gated, B, H, G, V),
        y.new_empty(gated, B, H, V),
        y.new_empty(_small_triton.num_chunks(kept), B, H, G, V, V),
    )


@torch.library.custom_op("fwp_rl::fast_rnn_scan_backward", mutates_args=())
def _scan_backward(
    k: Tensor,
    beta: Tensor,
    episode_starts: Tensor,
    queries: Tensor,
    errors: Tensor,
    gates: Tensor,
    cells: Tensor,
    checkpoints: Tensor,
    d_outputs: Tensor,
    d_matrices: Tensor,
    d_y: Tensor,
    d_c: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of k, v, beta, z, and of the initial matrices, y and c."""
    saved = (k, beta, episode_starts, queries, errors, gates, cells, checkpoints)
    incoming = (d_outputs, d_matrices, d_y, d_c)
    results = _gradients(*saved, *incoming)
    T, B, H, G, V = k.shape
    matrices = k.new_empty(B, H, _small_triton.CHUNK, G, V, V)
    _small_triton.launch(backward_kernel, (*saved, *incoming, *results, matrices), (T, B, H), constants(G, V))
    return results


@_scan_backward.register_fake
def _gradients(
    k: Tensor,
    beta: Tensor,
    episode_starts: Tensor,
    queries: Tensor,
    errors: Tensor,
    gates: Tensor,
    cells: Tensor,
    checkpoints: Tensor,
    d_outputs: Tensor,
    d_matrices: Tensor,
    d_y: Tensor,
    d_c: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    like = (k, k, beta, k, d_matrices, d_y, d_c)
    return tuple(x.new_empty(x.shape) for x in like)


def _save(ctx: FunctionCtx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    k, _, beta, *_, episode_starts, _ = inputs
    ctx.save_for_backward(k, beta, episode_starts, *output[1:])
    ctx.mark_non_differentiable(*output[4:])
    ctx.set_materialize_grads(False)


def _backward(ctx: FunctionCtx, *incoming: Tensor | None) -> tuple[Tensor | None, ...]:
    k, beta, episode_starts, *final, queries, errors, gates, cells, checkpoints = ctx.saved_tensors
    incoming = _small_triton.gradients(incoming[:4], (queries, *final))
    saved = (k, beta, episode_starts, queries, errors, gates, cells, checkpoints)
    return *_scan_backward(*saved, *incoming), None, None


_scan.register_autograd(_backward, setup_context=_save)


def fast_rnn_scan(
    k: Tensor, v: Tensor, beta: Tensor, z: Tensor, matrices: Tensor, y: Tensor, c: Tensor, episode_starts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `_recurrent_reference.fast_rnn_scan`."""
    leaves = (k, v, beta, z, matrices, y, c)
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in leaves)
    outputs, matrices, y, c, *_ = _scan(*leaves, episode_starts, keep)
    return outputs, matrices, y, c
