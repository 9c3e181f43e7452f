"""The fast weight scan as fused loops for the CPU, with the backward derived by hand.

One program takes one matrix S (one row of the batch, one head) through all steps while it stays in the first-level
cache. Each step reads and writes S once: the pass that adds the write of the step before (k u^T, still pending) also
gathers what the step needs from the new S. The backward is a sweep in reverse, in which only dS lives, and a sweep
forward, in which only S lives; no state is stored per step.

Vectors are explicit. `Tile` is one SIMD value of 16 or 32 numbers; compilers do not find these loops by themselves.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator

import numpy as np
import torch  # before numba: the first to load OpenMP decides which copy both use
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

from llvmlite import ir  # isort: skip
import numba  # isort: skip
from numba import njit, prange, types  # isort: skip
from numba.extending import intrinsic, models, register_model  # isort: skip

AHEAD = 2
"""Steps that prefetching looks ahead."""

CACHE_LINE = 64

SERIAL_BELOW = 2_000_000
"""Multiply-adds under which a second thread costs more than it brings (about 0.2 ms)."""


# ------------------------------------------------------------------------------------- SIMD values inside numba


class Tile(types.Type):
    """`width` numbers of type `dtype` in SIMD registers."""

    def __init__(self, dtype: types.Float, width: int) -> None:
        super().__init__(name=f"Tile({dtype}, {width})")
        self.dtype, self.width = dtype, width


@register_model(Tile)
class TileModel(models.PrimitiveModel):
    def __init__(self, manager, tile):
        element = ir.FloatType() if tile.dtype == types.float32 else ir.DoubleType()
        super().__init__(manager, tile, ir.VectorType(element, tile.width))


def _pointer(context, builder, address, pointee):
    return builder.inttoptr(address, context.get_value_type(pointee).as_pointer())


def _shuffle(builder, x, y, lanes):
    lanes = list(lanes)
    return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes))


def _splat(builder, number, vector):
    undefined = ir.Constant(vector, ir.Undefined)
    lane = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
    return _shuffle(builder, lane, undefined, [0] * vector.count)


def _fmuladd(builder, tile):
    kind, element = ("f32", ir.FloatType()) if tile.dtype == types.float32 else ("f64", ir.DoubleType())
    vector = ir.VectorType(element, tile.width)
    name = f"llvm.fmuladd.v{tile.width}{kind}"
    return builder.module.declare_intrinsic(name, fnty=ir.FunctionType(vector, [vector] * 3))


@intrinsic(prefer_literal=True)
def zeros(typing, number, width):
    """A tile of zeros with the type of `number`."""
    tile = Tile(number, width.literal_value)

    def generate(context, builder, signature, args):
        return ir.Constant(context.get_value_type(tile), None)

    return tile(number, width), generate


@intrinsic
def load(typing, like, address):
    """The tile (or number) at `address`, of the type of `like`."""

    def generate(context, builder, signature, args):
        align = (like.dtype if isinstance(like, Tile) else like).bitwidth // 8
        return builder.load(_pointer(context, builder, args[1], like), align=align)

    return like(like, address), generate


@intrinsic
def store(typing, address, value):
    """Write a tile or a number to `address`."""

    def generate(context, builder, signature, args):
        align = (value.dtype if isinstance(value, Tile) else value).bitwidth // 8
        builder.store(args[1], _pointer(context, builder, args[0], value), align=align)
        return context.get_dummy_value()

    return types.void(address, value), generate


@intrinsic
def multiply_add(typing, x, y, z):
    """x * y + z; x may be a number."""

    def generate(context, builder, signature, args):
        left, right, addend = args
        vector = right.type
        if not isinstance(x, Tile):
            left = _splat(builder, left, vector)
        return builder.call(_fmuladd(builder, y), [left, right, addend])

    return y(x, y, z), generate


@intrinsic
def multiply(typing, x, y):
    """x * y; x may be a number."""

    def generate(context, builder, signature, args):
        left = args[0] if isinstance(x, Tile) else _splat(builder, args[0], args[1].type)
        return builder.fmul(left, args[1])

    return y(x, y), generate


@intrinsic
def total(typing, tile):
    """The sum of the numbers of a tile."""

    def generate(context, builder, signature, args):
        number = context.get_value_type(tile.dtype)
        kind = "f32" if tile.dtype == types.float32 else "f64"
        function = builder.module.declare_intrinsic(
            f"llvm.vector.reduce.fadd.v{tile.width}{kind}", fnty=ir.FunctionType(number, [number, args[0].type])
        )
        return builder.call(function, [ir.Constant(number, -0.0), args[0]], fastmath=("reassoc",))

    return tile.dtype(tile), generate


@intrinsic(prefer_literal=True)
def constant(typing, like, value):
    """`value` in the type of `like`."""

    def generate(context, builder, signature, args):
        return ir.Constant(context.get_value_type(like), value.literal_value)

    return like(like, value), generate


@intrinsic
def at(typing, tensor, t, b, h):
    """The address of `tensor[t, b, h]`."""

    def generate(context, builder, signature, args):
        address, *strides = (builder.extract_value(args[0], i) for i in range(4))
        for stride, index in zip(strides, args[1:], strict=True):
            address = builder.add(address, builder.mul(stride, index))
        return address

    return types.int64(tensor, types.int64, types.int64, types.int64), generate


@intrinsic
def size_of(typing, value):
    """Bytes of a number or a tile."""
    bits = value.dtype.bitwidth * value.width if isinstance(value, Tile) else value.bitwidth

    def generate(context, builder, signature, args):
        return ir.Constant(ir.IntType(64), bits // 8)

    return types.int64(value), generate


@intrinsic
def prefetch(typing, address):
    """Ask for the cache line at `address`, which may be anything."""

    def generate(context, builder, signature, args):
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = builder.module.declare_intrinsic(
            "llvm.prefetch.p0", fnty=ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        )
        constants = [ir.Constant(flag, value) for value in (0, 3, 1)]  # to read, keep it close, data
        builder.call(function, [builder.inttoptr(args[0], byte), *constants])
        return context.get_dummy_value()

    return types.void(address), generate


@intrinsic
def fold_product(typing, x, y, addend):
    """x * y folded to the narrower tile `addend`, plus `addend`."""

    def generate(context, builder, signature, args):
        left, right, result = args
        function = _fmuladd(builder, addend)
        for first in range(0, x.width, addend.width):
            lanes = range(first, first + addend.width)
            result = builder.call(function, [_shuffle(builder, z, z, lanes) for z in (left, right)] + [result])
        return result

    return addend(x, y, addend), generate


@intrinsic
def totals(typing, like, address):
    """The sums of as many tiles as a tile is wide, stored one after the other at `address`."""

    def generate(context, builder, signature, args):
        n = like.width
        pointer = _pointer(context, builder, args[1], like)
        index = [ir.Constant(ir.IntType(64), i) for i in range(n)]
        tiles = [builder.load(builder.gep(pointer, [i]), align=like.dtype.bitwidth // 8) for i in index]
        # Two tiles become one of half sums, lanes of the second where the bit is set: n tiles become one of n sums.
        bit = n // 2
        while bit:
            pairs = zip(tiles[:bit], tiles[bit:], strict=True)
            own = [lane + n if lane & bit else lane for lane in range(n)]
            other = [(lane ^ bit) + (n if lane & bit else 0) for lane in range(n)]
            tiles = [builder.fadd(_shuffle(builder, x, y, own), _shuffle(builder, x, y, other)) for x, y in pairs]
            bit //= 2
        return tiles[0]

    return like(like, address), generate


@intrinsic
def is_set(typing, address):
    """Whether the bool at `address` is true."""

    def generate(context, builder, signature, args):
        byte = builder.load(builder.inttoptr(args[0], ir.IntType(8).as_pointer()))
        return builder.icmp_unsigned("!=", byte, ir.Constant(ir.IntType(8), 0))

    return types.boolean(address), generate


# ------------------------------------------------------------------------------------------------------- kernels
#
# A tensor reaches a kernel as (address, stride of time, of batch, of head) in bytes; its last axis is dense. `zero` is
# a tile of zeros and carries the type of all others; `scale` is a number and carries the type of all others. Loops
# over i, j and c that load tiles run in bytes, too.


@njit
def _prefetch_rows(x, y, z, t, b, h, num_bytes):
    # Rows of one program lie too far apart in memory for the hardware to guess the next.
    for i in range(0, num_bytes, CACHE_LINE):
        prefetch(at(x, t, b, h) + i)
        prefetch(at(y, t, b, h) + i)
        prefetch(at(z, t, b, h) + i)


@njit
def _fill(address, num_bytes, zero):
    step = size_of(zero)
    for i in range(0, num_bytes, step):
        store(address + i, zero)


@njit
def _dot(x, y, num_bytes, zero):
    products = zero
    for i in range(0, num_bytes, size_of(zero)):
        products = multiply_add(load(zero, x + i), load(zero, y + i), products)
    return total(products)


@njit(nogil=True)
def _scan_forward(b, h, zero, q, k, v, beta, decay, starts, initial, state, outputs, errors, scale, erase, gated, sizes):
    """All steps of one matrix, which lives in `state`; e = v - S'^T k goes to `errors`."""
    steps, batch, heads, K, V = sizes
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
        beta_t, decay_t = load(scale, at(beta, t, b, h)), load(scale, at(decay, t, b, h))
        _prefetch_rows(q, k, k, t + AHEAD, b, h, column)
        _prefetch_rows(v, outputs, errors, t + AHEAD, b, h, row)
        if is_set(at(starts, t, b, 0)):
            _fill(target, K * row, zero)
            source, pending = target, False
        if not pending:
            k_before = k_t
        kq = _dot(k_t, q_t, column, zero)
        for c in range(0, row, step):
            u = multiply(beta_before, load(zero, e_before + c)) if pending else zero
            recalled, read = zero, zero
            for i in range(K):
                s = multiply_add(load(scale, k_before + i * size), u, load(zero, source + i * row + c))
                if gated:
                    s = multiply(decay_t, s)
                store(target + i * row + c, s)
                recalled = multiply_add(load(scale, k_t + i * size), s, recalled)
                read = multiply_add(load(scale, q_t + i * size), s, read)
            e = load(zero, v_t + c)
            if erase:
                e = multiply_add(minus, recalled, e)
            store(e_t + c, e)
            store(y_t + c, multiply(scale, multiply_add(kq, multiply(beta_t, e), read)))
        source, pending = target, True
    for c in range(0, row, step):
        u = multiply(beta_t, load(zero, e_t + c))
        for i in range(K):
            s = multiply_add(load(scale, k_t + i * size), u, load(zero, target + i * row + c))
            store(target + i * row + c, s)


@njit(nogil=True)
def _sweep_in_reverse(
    b, h, zero, narrow, partials, q, k, v, beta, decay, starts, outputs, errors, doutputs, inner, dk, dv, dbeta,
    ddecay, dstate, scale, erase, gated, sizes,
):  # fmt: skip
    """dS, which lives in `dstate`; all of dv and dbeta; of dk the part dS u.

    dS_t = scale q dy^T + decay' (dS' - k' dv'^T), where ' is the step after.

    The gradient of the decay needs no states: with inner = <dS, S> after the last step, <dS_t, S_t> and <dS'_t, S'_t>
    differ by v . dv, and the step before adds y . dy.
    """
    steps, batch, heads, K, V = sizes
    one, minus = constant(scale, 1), constant(scale, -1)
    size, step, lanes = size_of(scale), size_of(zero), size_of(narrow)
    row, column = V * size, K * size
    gradient = at(dstate, b, h, 0)
    _fill(partials, K * lanes, narrow)
    inner_t = load(scale, at(inner, b, h, 0))
    k_t, dv_t, decay_t = at(k, steps - 1, b, h), at(dv, steps - 1, b, h), one
    pending = False
    for t in range(steps - 1, -1, -1):
        k_after, dv_after, decay_after = k_t, dv_t, decay_t
        k_t, q_t, dk_t = at(k, t, b, h), at(q, t, b, h), at(dk, t, b, h)
        dv_t, dy_t, e_t = at(dv, t, b, h), at(doutputs, t, b, h), at(errors, t, b, h)
        beta_t, decay_t = load(scale, at(beta, t, b, h)), load(scale, at(decay, t, b, h))
        _prefetch_rows(q, k, dk, t - AHEAD, b, h, column)
        _prefetch_rows(doutputs, errors, dv, t - AHEAD, b, h, row)
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
        _fill(partials, K * lanes, narrow)
        start = is_set(at(starts, t, b, 0))
        if gated:
            inner_t += _dot(at(outputs, t, b, h), dy_t, row, zero) - _dot(at(v, t, b, h), dv_t, row, zero)
            if start:
                inner_t = one - one
            store(at(ddecay, t, b, h), inner_t)
        if start:
            _fill(gradient, K * row, zero)
        pending = not start
    if pending:
        for c in range(0, row, step):
            erased = multiply(minus, load(zero, dv_t + c)) if erase else zero
            for i in range(K):
                g = multiply_add(load(scale, k_t + i * size), erased, load(zero, gradient + i * row + c))
                store(gradient + i * row + c, multiply(decay_t, g))


@njit(nogil=True)
def _sweep_forward(
    b, h, zero, matrix, k, beta, decay, starts, initial, errors, doutputs, dq, dk, dv, scale, erase, gated, sizes
):
    """All of dq = scale S dy, and of dk the part -S' dv; S^T, whose rows are columns of S, lives in `matrix`."""
    steps, batch, heads, K, V = sizes
    minus = constant(scale, -1)
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
        beta_t, decay_t = load(scale, at(beta, t, b, h)), load(scale, at(decay, t, b, h))
        _prefetch_rows(k, dk, dq, t + AHEAD, b, h, column)
        _prefetch_rows(doutputs, errors, dv, t + AHEAD, b, h, row)
        if is_set(at(starts, t, b, 0)):
            _fill(matrix, V * column, zero)
            pending = False
        if not pending:
            e_before = e_t
        u_dy = beta_t * _dot(e_t, dy_t, row, zero)
        for c in range(0, column, step):
            key = multiply(beta_before, load(zero, k_before + c)) if pending else zero
            read, erased = zero, zero
            for j in range(V):
                s = multiply_add(load(scale, e_before + j * size), key, load(zero, matrix + j * column + c))
                if gated:
                    s = multiply(decay_t, s)
                store(matrix + j * column + c, s)
                read = multiply_add(load(scale, dy_t + j * size), s, read)
                erased = multiply_add(load(scale, dv_t + j * size), s, erased)
            store(dq_t + c, multiply(scale, multiply_add(u_dy, load(zero, k_t + c), read)))
            if erase:
                store(dk_t + c, multiply_add(minus, erased, load(zero, dk_t + c)))
        pending = True


@functools.cache
def forward_kernel(WIDTH: int, PARALLEL: bool) -> Callable:
    """The scan in tiles of WIDTH columns; K and V are multiples of it."""

    @njit(parallel=PARALLEL, cache=True, nogil=True)
    def forward(q, k, v, beta, decay, starts, initial, state, outputs, errors, scale, erase, gated, sizes):
        heads = sizes[2]
        for program in prange(sizes[1] * heads):
            b = program // heads
            h = program - b * heads
            _scan_forward(
                b, h, zeros(scale, WIDTH), q, k, v, beta, decay, starts, initial, state, outputs, errors,
                scale, erase, gated, sizes,
            )  # fmt: skip
        return PARALLEL  # the cache tells kernels apart by what they close over

    return forward


@functools.cache
def backward_kernel(WIDTH: int, LANES: int) -> Callable:
    """The gradients; `dstate` holds that of the final state and becomes that of the initial one."""

    @njit(parallel=True, cache=True, nogil=True)
    def backward(
        q, k, v, beta, decay, starts, initial, outputs, errors, doutputs, inner, dq, dk, dv, dbeta, ddecay, dstate,
        scale, erase, gated, sizes,
    ):  # fmt: skip
        heads, K, V = sizes[2:]
        for program in prange(sizes[1] * heads):
            b = program // heads
            h = program - b * heads
            zero, narrow = zeros(scale, WIDTH), zeros(scale, LANES)
            scratch = np.empty(K * (V + LANES) * size_of(scale), np.uint8)
            matrix = np.int64(scratch.ctypes.data)
            partials = matrix + K * V * size_of(scale)
            _sweep_in_reverse(
                b, h, zero, narrow, partials, q, k, v, beta, decay, starts, outputs, errors, doutputs, inner,
                dk, dv, dbeta, ddecay, dstate, scale, erase, gated, sizes,
            )  # fmt: skip
            _sweep_forward(
                b, h, zero, matrix, k, beta, decay, starts, initial, errors, doutputs, dq, dk, dv,
                scale, erase, gated, sizes,
            )  # fmt: skip

    return backward


# ------------------------------------------------------------------------------------------------------ from torch


def scan(
    q: Float[Tensor, "T B H K"],
    k: Float[Tensor, "T B H K"],
    v: Float[Tensor, "T B H V"],
    beta: Float[Tensor, "T B H"],
    log_decay: Float[Tensor, "T B H"] | None,
    state: Float[Tensor, "B H K V"],
    episode_starts: Bool[Tensor, "T B"],
    rule: str,
    scale: float,
) -> tuple[Float[Tensor, "T B H V"], Float[Tensor, "B H K V"]]:
    """Pads K and V to whole tiles, and saves for a backward only if there will be one."""
    K, V = state.shape[-2:]
    key_padding, value_padding = -K % 16, -V % 16
    if key_padding or value_padding:
        q, k = functional.pad(q, (0, key_padding)), functional.pad(k, (0, key_padding))
        v = functional.pad(v, (0, value_padding))
        state = functional.pad(state, (0, value_padding, 0, key_padding))
    tensors = (_dense(q), _dense(k), _dense(v), beta, log_decay, state)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        outputs, state = FastWeightScan.apply(*tensors, episode_starts, rule, scale)
    else:
        outputs, state, _, _ = _forward(*tensors, episode_starts, rule, scale, save=False)
    if key_padding or value_padding:
        return outputs[..., :V], state[..., :K, :V]
    return outputs, state


class FastWeightScan(torch.autograd.Function):
    """The kernels as one differentiable function."""

    @staticmethod
    def forward(ctx: FunctionCtx, q, k, v, beta, log_decay, state, episode_starts, rule, scale):
        outputs, final, decay, errors = _forward(
            q, k, v, beta, log_decay, state, episode_starts, rule, scale, save=True
        )
        ctx.save_for_backward(q, k, v, beta, decay, state, episode_starts, errors, outputs, final)
        ctx.erase, ctx.gated, ctx.scale = rule == "delta", log_decay is not None, scale
        ctx.set_materialize_grads(False)
        return outputs, final

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, doutputs, dfinal):
        q, k, v, beta, decay, state, episode_starts, errors, outputs, final = ctx.saved_tensors
        doutputs = torch.zeros_like(errors) if doutputs is None else _dense(doutputs)
        dstate = torch.zeros_like(state) if dfinal is None else dfinal.clone(memory_format=torch.contiguous_format)
        inner = (dstate * final).sum((-1, -2))
        dq, dk, dv, dbeta = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v, beta))
        dlog_decay = torch.empty_like(dbeta) if ctx.gated else None
        sizes = *q.shape, v.shape[-1]
        initial = state.contiguous()
        tensors = [q, k, v, beta, decay, episode_starts, initial, outputs, errors, doutputs, inner]
        tensors += [dq, dk, dv, dbeta, dbeta if dlog_decay is None else dlog_decay, dstate]
        with _threads(3 * q.numel() * v.shape[-1]):
            backward_kernel(_width(sizes, q.dtype), 32 // q.element_size())(
                *map(_rows, tensors), _number(ctx.scale, q.dtype), ctx.erase, ctx.gated, sizes
            )
        return dq, dk, dv, dbeta, dlog_decay, dstate, None, None, None


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    episode_starts: Tensor,
    rule: str,
    scale: float,
    *,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Outputs, final state, decay, errors."""
    sizes = *q.shape, v.shape[-1]
    work = q.numel() * v.shape[-1]
    outputs = torch.empty(v.shape, dtype=v.dtype)
    errors = torch.empty(v.shape if save else (1, *v.shape[1:]), dtype=v.dtype)
    initial = state.contiguous()
    final = torch.empty(initial.shape, dtype=v.dtype)
    decay = _ones(v.dtype).expand(beta.shape) if log_decay is None else log_decay.exp()
    tensors = q, k, v, beta, decay, episode_starts, initial, final, outputs, errors if save else errors.expand(v.shape)
    arguments = (*map(_rows, tensors), _number(scale, v.dtype), rule == "delta", log_decay is not None, sizes)
    if work < SERIAL_BELOW and not save:
        forward_kernel(_width(sizes, v.dtype), False)(*arguments)
    else:
        with _threads(work):
            forward_kernel(_width(sizes, v.dtype), True)(*arguments)
    return outputs, final, decay, errors


@functools.cache
def _ones(dtype: torch.dtype) -> Tensor:
    return torch.ones((), dtype=dtype)


def _number(value: float, dtype: torch.dtype) -> np.floating:
    return np.float32(value) if dtype == torch.float32 else np.float64(value)


def _width(sizes: tuple[int, ...], dtype: torch.dtype) -> int:
    """Columns of a tile: four registers of AVX2, if the matrix has as many."""
    K, V = sizes[-2:]
    return 32 if K % 32 == 0 and V % 32 == 0 and dtype == torch.float32 else 16


def _dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _rows(x: Tensor) -> tuple[int, int, int, int]:
    """Address and the first three strides in bytes."""
    size = x.element_size()
    strides = x.stride()
    if x.ndim == 2:
        return x.data_ptr(), strides[0] * size, strides[1] * size, 0
    return x.data_ptr(), strides[0] * size, strides[1] * size, strides[2] * size


@contextlib.contextmanager
def _threads(work: int) -> Iterator[None]:
    """As many threads as torch uses now, one for little work."""
    available = numba.get_num_threads()
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS) if work >= SERIAL_BELOW else 1)
    try:
        yield
    finally:
        numba.set_num_threads(available)


def compile_probe() -> None:
    """Raise what stands in the way of compiling and running kernels."""
