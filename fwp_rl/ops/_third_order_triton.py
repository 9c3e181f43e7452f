"""The third-order scan as Triton kernels: one launch forward, one backward.

The scheme is that of `_small_triton`, with one program for each row of the batch. The rows of F belong to pairs of an
entity and a relation. A chain of N reads goes over N + 1 places; the first is the query, and the last the output.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx

from fwp_rl.ops import _small_triton
from fwp_rl.ops._small_triton import outer, read, read_transposed, write_gradients
from fwp_rl.ops.recurrent_scan import NORM_EPSILON

# ------------------------------------------------------------------------------------------------------------- kernels


@triton.jit
def _pairs(x, y):
    """All products of two vectors, flat."""
    return tl.reshape(outer(x, y), [x.shape[0] * y.shape[0]])


@triton.jit
def _pairs_gradients(x, y, d_pairs):
    d_pairs = tl.reshape(d_pairs, [x.shape[0], y.shape[0]])
    return read_transposed(d_pairs, y), read(d_pairs, x)


@triton.jit
def _bound(matrix):
    """The factor that keeps the norm of a matrix at 1 or below."""
    squares = tl.sum(tl.sum(matrix * matrix, 1), 0)
    return 1 / tl.sqrt(tl.where(squares > 1, squares, 1.0))


@triton.jit(do_not_specialize=["T", "B"])
def forward_kernel(
    entity,  # [T, B, V], like v and query
    relation,  # [T, B, R]
    v,
    beta,  # [T, B]
    query,
    relations,  # [T, B, N, R]
    initial,  # [B, V R, V]
    starts,  # bool [T, B]
    outputs,  # [T, B, V]: written, like all that follow; the last four if KEEP
    final,  # [B, V R, V]
    errors,  # [T, B, V]: v - F^T k
    places,  # [T, B, N + 1, V]
    scales,  # [T, B, N]: one over the deviation of each read
    checkpoints,  # [chunks, B, V R, V]: F before the chunk
    T,
    B,
    N: tl.constexpr,
    R: tl.constexpr,
    V: tl.constexpr,
    EPSILON: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    KEEP: tl.constexpr,
    CHUNK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    programs = B.to(tl.int64)
    pair, entities, kinds = tl.arange(0, BLOCK_E * BLOCK_R), tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_R)
    columns = tl.arange(0, BLOCK_V)
    in_entities, in_kinds, in_columns = entities < V, kinds < R, columns < V
    at = ((pair // BLOCK_R) * R + pair % BLOCK_R)[:, None] * V + columns[None, :]
    inside = ((pair // BLOCK_R < V) & (pair % BLOCK_R < R))[:, None] & in_columns[None, :]
    state = tl.load(initial + program * V * R * V + at, inside, 0)
    for t in tl.range(T, disable_licm=True):
        step = t * programs + program
        if KEEP:  # noqa: SIM102 - one is known when the kernel is compiled, the other is not
            if t % CHUNK == 0:
                tl.store(checkpoints + ((t // CHUNK) * programs + program) * V * R * V + at, state, inside)
        state = tl.where(tl.load(starts + step), 0.0, state)
        k = _pairs(
            tl.load(entity + step * V + entities, in_entities, 0), tl.load(relation + step * R + kinds, in_kinds, 0)
        )
        error = tl.load(v + step * V + columns, in_columns, 0) - read(state, k)
        state += outer(k, tl.load(beta + step) / V * error)
        state *= _bound(state)
        place = tl.load(query + step * V + columns, in_columns, 0)
        for n in range(N):
            if KEEP:
                tl.store(places + (step * (N + 1) + n) * V + columns, place, in_columns)
            place = read(state, _pairs(place, tl.load(relations + (step * N + n) * R + kinds, in_kinds, 0)))
            place = tl.where(in_columns, place - tl.sum(place, 0) / V, 0.0)
            scale = 1 / tl.sqrt(tl.sum(place * place, 0) / V + EPSILON)
            place *= scale
            if KEEP:
                tl.store(scales + step * N + n, scale)
        tl.store(outputs + step * V + columns, place, in_columns)
        if KEEP:
            tl.store(places + (step * (N + 1) + N) * V + columns, place, in_columns)
            tl.store(errors + step * V + columns, error, in_columns)
    tl.store(final + program * V * R * V + at, state, inside)


@triton.jit(do_not_specialize=["T", "B"])
def backward_kernel(
    entity,  # [T, B, V]
    relation,  # [T, B, R]
    beta,  # [T, B]
    relations,  # [T, B, N, R]
    starts,  # bool [T, B]
    errors,  # [T, B, V]; these four as the forward has left them
    places,  # [T, B, N + 1, V]
    scales,  # [T, B, N]
    checkpoints,  # [chunks, B, V R, V]
    d_outputs,  # [T, B, V]
    d_final,  # [B, V R, V]
    d_entity,  # [T, B, V], like d_v and d_query: written, like all that follow
    d_relation,  # [T, B, R]
    d_v,
    d_beta,  # [T, B]
    d_query,
    d_relations,  # [T, B, N, R]
    d_initial,  # [B, V R, V]
    matrices,  # [B, CHUNK, V R, V]: F before each step of a chunk
    T,
    B,
    N: tl.constexpr,
    R: tl.constexpr,
    V: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    CHUNK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    programs = B.to(tl.int64)
    pair, entities, kinds = tl.arange(0, BLOCK_E * BLOCK_R), tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_R)
    columns = tl.arange(0, BLOCK_V)
    in_entities, in_kinds, in_columns = entities < V, kinds < R, columns < V
    at = ((pair // BLOCK_R) * R + pair % BLOCK_R)[:, None] * V + columns[None, :]
    inside = ((pair // BLOCK_R < V) & (pair % BLOCK_R < R))[:, None] & in_columns[None, :]
    matrices += program * CHUNK * V * R * V
    d_state = tl.load(d_final + program * V * R * V + at, inside, 0)
    chunks = (T + CHUNK - 1) // CHUNK
    for back in tl.range(chunks, disable_licm=True):
        chunk = chunks - 1 - back
        count = tl.minimum(T - chunk * CHUNK, CHUNK)
        state = tl.load(checkpoints + (chunk * programs + program) * V * R * V + at, inside, 0)
        for i in tl.range(count, disable_licm=True):
            step = (chunk * CHUNK + i) * programs + program
            state = tl.where(tl.load(starts + step), 0.0, state)
            tl.store(matrices + i * V * R * V + at, state, inside)
            subject = tl.load(entity + step * V + entities, in_entities, 0)
            error = tl.load(errors + step * V + columns, in_columns, 0)
            k = _pairs(subject, tl.load(relation + step * R + kinds, in_kinds, 0))
            state += outer(k, tl.load(beta + step) / V * error)
            state *= _bound(state)
        tl.debug_barrier()
        for j in tl.range(count, disable_licm=True):
            i = count - 1 - j
            step = (chunk * CHUNK + i) * programs + program
            before = tl.load(matrices + i * V * R * V + at, inside, 0)
            subject = tl.load(entity + step * V + entities, in_entities, 0)
            kind = tl.load(relation + step * R + kinds, in_kinds, 0)
            strength = tl.load(beta + step) / V
            error = tl.load(errors + step * V + columns, in_columns, 0)
            k = _pairs(subject, kind)
            after = before + outer(k, strength * error)
            factor = _bound(after)
            after *= factor
            # the reads, last first
            d_place = tl.load(d_outputs + step * V + columns, in_columns, 0)
            for back_n in range(N):
                n = N - 1 - back_n
                place = tl.load(places + (step * (N + 1) + n + 1) * V + columns, in_columns, 0)
                d_read = d_place - tl.sum(d_place, 0) / V - place * (tl.sum(d_place * place, 0) / V)
                d_read = tl.where(in_columns, d_read * tl.load(scales + step * N + n), 0.0)
                place = tl.load(places + (step * (N + 1) + n) * V + entities, in_entities, 0)
                kind_n = tl.load(relations + (step * N + n) * R + kinds, in_kinds, 0)
                d_state += outer(_pairs(place, kind_n), d_read)
                d_place, d_kind = _pairs_gradients(place, kind_n, read_transposed(after, d_read))
                tl.store(d_relations + (step * N + n) * R + kinds, d_kind, in_kinds)
            tl.store(d_query + step * V + columns, d_place, in_columns)
            # the bound
            along = tl.sum(tl.sum(d_state * after, 1), 0)
            d_state = factor * (d_state - tl.where(factor < 1, along, 0.0) * after)
            # the write
            d_state, d_k, d_v_t, d_strength = write_gradients(before, d_state, k, strength, error)
            d_subject, d_kind = _pairs_gradients(subject, kind, d_k)
            tl.store(d_entity + step * V + entities, d_subject, in_entities)
            tl.store(d_relation + step * R + kinds, d_kind, in_kinds)
            tl.store(d_v + step * V + columns, d_v_t, in_columns)
            tl.store(d_beta + step, d_strength / V)
            d_state = tl.where(tl.load(starts + step), 0.0, d_state)
        tl.debug_barrier()
    tl.store(d_initial + program * V * R * V + at, d_state, inside)


# ----------------------------------------------------------------------------------------------------------- operators


def constants(N: int, R: int, V: int) -> dict[str, int]:
    """Of both kernels."""
    blocks = {
        "BLOCK_E": _small_triton.padded(V),
        "BLOCK_R": _small_triton.padded(R),
        "BLOCK_V": _small_triton.padded(V),
    }
    return {"N": N, "R": R, "V": V} | blocks


@torch.library.custom_op("fwp_rl::third_order_scan", mutates_args=())
def _scan(
    entity: Tensor,
    relation: Tensor,
    v: Tensor,
    beta: Tensor,
    query: Tensor,
    relations: Tensor,
    matrix: Tensor,
    episode_starts: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Outputs and the final F; errors, places, scales and checkpoints, empty unless they are kept."""
    arguments = (entity, relation, v, beta, query, relations, matrix, episode_starts)
    results = _results(*arguments, keep)
    T, B, N, R = relations.shape
    options = constants(N, R, v.shape[-1]) | {"EPSILON": NORM_EPSILON, "KEEP": keep}
    _small_triton.launch(forward_kernel, (*arguments, *results), (T, B), options)
    return results


@_scan.register_fake
def _results(
    entity: Tensor,
    relation: Tensor,
    v: Tensor,
    beta: Tensor,
    query: Tensor,
    relations: Tensor,
    matrix: Tensor,
    episode_starts: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    T, B, N, _ = relations.shape
    V = v.shape[-1]
    kept = T if keep else 0
    return (
        v.new_empty(T, B, V),
        v.new_empty(matrix.shape),
        v.new_empty(kept, B, V),
        v.new_empty(kept, B, N + 1, V),
        v.new_empty(kept, B, N),
        v.new_empty(_small_triton.num_chunks(kept), *matrix.shape),
    )


@torch.library.custom_op("fwp_rl::third_order_scan_backward", mutates_args=())
def _scan_backward(
    entity: Tensor,
    relation: Tensor,
    beta: Tensor,
    relations: Tensor,
    episode_starts: Tensor,
    errors: Tensor,
    places: Tensor,
    scales: Tensor,
    checkpoints: Tensor,
    d_outputs: Tensor,
    d_matrix: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of all arguments of the forward."""
    saved = (entity, relation, beta, relations, episode_starts, errors, places, scales, checkpoints)
    results = _gradients(*saved, d_outputs, d_matrix)
    T, B, N, R = relations.shape
    matrices = d_matrix.new_empty(B, _small_triton.CHUNK, *d_matrix.shape[1:])
    arguments = (*saved, d_outputs, d_matrix, *results, matrices)
    _small_triton.launch(backward_kernel, arguments, (T, B), constants(N, R, errors.shape[-1]))
    return results


@_scan_backward.register_fake
def _gradients(
    entity: Tensor,
    relation: Tensor,
    beta: Tensor,
    relations: Tensor,
    episode_starts: Tensor,
    errors: Tensor,
    places: Tensor,
    scales: Tensor,
    checkpoints: Tensor,
    d_outputs: Tensor,
    d_matrix: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    like = (entity, relation, entity, beta, entity, relations, d_matrix)
    return tuple(x.new_empty(x.shape) for x in like)


def _save(ctx: FunctionCtx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    entity, relation, _, beta, _, relations, _, episode_starts, _ = inputs
    ctx.save_for_backward(entity, relation, beta, relations, episode_starts, *output[1:])
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)


def _backward(ctx: FunctionCtx, *incoming: Tensor | None) -> tuple[Tensor | None, ...]:
    entity, relation, beta, relations, episode_starts, final, *kept = ctx.saved_tensors
    incoming = _small_triton.gradients(incoming[:2], (entity, final))
    return *_scan_backward(entity, relation, beta, relations, episode_starts, *kept, *incoming), None, None


_scan.register_autograd(_backward, setup_context=_save)


def third_order_scan(*tensors: Tensor) -> tuple[Tensor, Tensor]:
    """See `_recurrent_reference.third_order_scan`."""
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    outputs, matrix, *_ = _scan(*tensors, keep)
    return outputs, matrix
