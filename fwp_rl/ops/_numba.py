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
def size_of(typing, number):
    """Bytes of a number."""

    def generate(context, builder, signature, args):
        return ir.Constant(ir.IntType(64), number.bitwidth // 8)

    return types.int64(number), generate


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
# A tensor reaches a kernel as (address, stride of time, of batch, of head) in bytes; its last axis is dense. `scale`
# carries the dtype. Loops over i and c run in bytes, too.


@functools.cache
def forward_kernel(WIDTH: int, GATED: bool, PARALLEL: bool) -> Callable:
    """The scan in tiles of WIDTH columns (K and V are multiples of it).

    Of `errors`, e = v - S'^T k, only the last is kept where its stride of time is zero.
    """

    @njit(parallel=PARALLEL, cache=True, nogil=True)
    def forward(q, k, v, beta, decay, starts, initial, state, outputs, errors, scale, erase, sizes):
        steps, batch, heads, K, V = sizes
        for program in prange(batch * heads):
            b = program // heads
            h = program - b * heads
            zero, one, minus = zeros(scale, WIDTH), constant(scale, 1), constant(scale, -1)
            size = size_of(scale)
            step, row, column = WIDTH * size, V * size, K * size
            target = state[0] + program * K * row
            source = initial[0] + program * K * row
            k_t = at(k, 0, b, h)
            e_t = at(errors, 0, b, h)
            beta_t = scale
            pending = False
            for t in range(steps):
                k_before, e_before, beta_before = k_t, e_t, beta_t
                k_t = at(k, t, b, h)
                e_t = at(errors, t, b, h)
                q_t = at(q, t, b, h)
                v_t = at(v, t, b, h)
                y_t = at(outputs, t, b, h)
                beta_t = load(scale, at(beta, t, b, h))
                decay_t = load(scale, at(decay, t, b, h))
                for i in range(0, column, 64):
                    prefetch(at(q, t + 2, b, h) + i)
                    prefetch(at(k, t + 2, b, h) + i)
                for i in range(0, row, 64):
                    prefetch(at(v, t + 2, b, h) + i)
                    prefetch(at(outputs, t + 2, b, h) + i)
                    prefetch(at(errors, t + 2, b, h) + i)
                if is_set(at(starts, t, b, 0)):
                    for i in range(0, K * row, step):
                        store(target + i, zero)
                    source, pending = target, False
                if not pending:
                    k_before = k_t
                products = zero
                for i in range(0, column, step):
                    products = multiply_add(load(zero, k_t + i), load(zero, q_t + i), products)
                kq = total(products)
                for c in range(0, row, step):
                    u = multiply(beta_before, load(zero, e_before + c)) if pending else zero
                    recalled, read = zero, zero
                    for i in range(K):
                        s = load(zero, source + i * row + c)
                        s = multiply_add(load(scale, k_before + i * size), u, s)
                        if GATED:
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
                    s = load(zero, target + i * row + c)
                    store(target + i * row + c, multiply_add(load(scale, k_t + i * size), u, s))
        return PARALLEL  # the cache tells kernels apart by what they close over

    return forward


@functools.cache
def backward_kernel(WIDTH: int, LANES: int, GATED: bool) -> Callable:
    """The gradients: a sweep in reverse with dS in `dstate`, then a sweep forward with S^T in scratch memory.

    `dstate` holds dL/dS of the last step and becomes that of the initial state. The gradient of the decay needs no
    states: <dS_t, S_t> and <dS'_t, S'_t> differ by v . dv, and the next step back adds y . dy.
    """

    @njit(parallel=True, cache=True, nogil=True)
    def backward(
        q, k, v, beta, decay, starts, initial, outputs, errors, doutputs, inner, dq, dk, dv, dbeta, ddecay, dstate,
        scale, erase, sizes,
    ):  # fmt: skip
        steps, batch, heads, K, V = sizes
        for program in prange(batch * heads):
            b = program // heads
            h = program - b * heads
            zero, one, minus = zeros(scale, WIDTH), constant(scale, 1), constant(scale, -1)
            size = size_of(scale)
            narrow = zeros(scale, LANES)
            step, row, column = WIDTH * size, V * size, K * size

            scratch = np.empty(K * (V + LANES), np.float64)
            matrix = np.int64(scratch.ctypes.data)
            partials = matrix + V * column
            for i in range(0, column * LANES, step):
                store(partials + i, zero)

            # In reverse: dS_t = scale q dy^T + decay' (dS' - k' dv'^T), where ' is the step after.
            gradient = dstate[0] + program * K * row
            inner_t = load(scale, at(inner, 0, b, h))
            t = steps - 1
            k_t = at(k, t, b, h)
            dv_t = at(dv, t, b, h)
            decay_t = one
            pending = False
            for t in range(steps - 1, -1, -1):
                k_after, dv_after, decay_after = k_t, dv_t, decay_t
                k_t = at(k, t, b, h)
                dv_t = at(dv, t, b, h)
                q_t = at(q, t, b, h)
                v_t = at(v, t, b, h)
                y_t = at(outputs, t, b, h)
                dy_t = at(doutputs, t, b, h)
                e_t = at(errors, t, b, h)
                dk_t = at(dk, t, b, h)
                beta_t = load(scale, at(beta, t, b, h))
                decay_t = load(scale, at(decay, t, b, h))
                start = is_set(at(starts, t, b, 0))
                for i in range(0, column, 64):
                    prefetch(at(q, t - 2, b, h) + i)
                    prefetch(at(k, t - 2, b, h) + i)
                    prefetch(at(dk, t - 2, b, h) + i)
                for i in range(0, row, 64):
                    prefetch(at(doutputs, t - 2, b, h) + i)
                    prefetch(at(errors, t - 2, b, h) + i)
                    prefetch(at(dv, t - 2, b, h) + i)
                if not pending:
                    k_after = k_t
                write, read = zero, zero
                strength = zero
                for c in range(0, row, step):
                    erased = multiply(minus, load(zero, dv_after + c)) if pending and erase else zero
                    dy = multiply(scale, load(zero, dy_t + c))
                    e = load(zero, e_t + c)
                    u = multiply(beta_t, e)
                    du = zero
                    for i in range(K):
                        g = load(zero, gradient + i * row + c)
                        g = multiply_add(load(scale, k_after + i * size), erased, g)
                        if GATED:
                            g = multiply(decay_after, g)
                        g = multiply_add(load(scale, q_t + i * size), dy, g)
                        store(gradient + i * row + c, g)
                        du = multiply_add(load(scale, k_t + i * size), g, du)
                        partial = partials + i * LANES * size
                        store(partial, fold_product(g, u, load(narrow, partial)))
                    dv_c = multiply(beta_t, du)
                    store(dv_t + c, dv_c)
                    strength = multiply_add(du, e, strength)
                    if GATED:
                        write = multiply_add(load(zero, v_t + c), dv_c, write)
                        read = multiply_add(load(zero, y_t + c), load(zero, dy_t + c), read)
                for i in range(0, K, LANES):
                    partial = partials + i * LANES * size
                    store(dk_t + i * size, totals(narrow, partial))
                    for _ in range(LANES):
                        store(partial, narrow)
                        partial += LANES * size
                store(at(dbeta, t, b, h), total(strength))
                if GATED:
                    inner_t = inner_t + total(read) - total(write)
                    if start:
                        inner_t = one - one
                    store(at(ddecay, t, b, h), inner_t)
                pending = not start
                if start:
                    decay_t = one
                    for i in range(0, K * row, step):
                        store(gradient + i, zero)
            for c in range(0, row, step):
                erased = multiply(minus, load(zero, dv_t + c)) if pending and erase else zero
                for i in range(K):
                    g = load(zero, gradient + i * row + c)
                    g = multiply_add(load(scale, k_t + i * size), erased, g)
                    if GATED:
                        g = multiply(decay_t, g)
                    store(gradient + i * row + c, g)

            # Forward: dq = scale S_t dy and the part of dk that is -S' dv, columns of S^T.
            for i in range(K):
                for j in range(V):
                    store(matrix + j * column + i * size, load(scale, initial[0] + (program * K + i) * row + j * size))
            k_t = at(k, 0, b, h)
            e_t = at(errors, 0, b, h)
            beta_t = scale
            pending = False
            for t in range(steps):
                k_before, e_before, beta_before = k_t, e_t, beta_t
                k_t = at(k, t, b, h)
                e_t = at(errors, t, b, h)
                dv_t = at(dv, t, b, h)
                dy_t = at(doutputs, t, b, h)
                dq_t = at(dq, t, b, h)
                dk_t = at(dk, t, b, h)
                beta_t = load(scale, at(beta, t, b, h))
                decay_t = load(scale, at(decay, t, b, h))
                for i in range(0, column, 64):
                    prefetch(at(k, t + 2, b, h) + i)
                    prefetch(at(dk, t + 2, b, h) + i)
                    prefetch(at(dq, t + 2, b, h) + i)
                for i in range(0, row, 64):
                    prefetch(at(doutputs, t + 2, b, h) + i)
                    prefetch(at(errors, t + 2, b, h) + i)
                    prefetch(at(dv, t + 2, b, h) + i)
                if is_set(at(starts, t, b, 0)):
                    for i in range(0, V * column, step):
                        store(matrix + i, zero)
                    pending = False
                if not pending:
                    e_before = e_t
                products = zero
                for j in range(0, row, step):
                    products = multiply_add(load(zero, e_t + j), load(zero, dy_t + j), products)
                u_dy = beta_t * total(products)
                for c in range(0, column, step):
                    key = multiply(beta_before, load(zero, k_before + c)) if pending else zero
                    read, erase_part = zero, zero
                    for j in range(V):
                        s = load(zero, matrix + j * column + c)
                        s = multiply_add(load(scale, e_before + j * size), key, s)
                        if GATED:
                            s = multiply(decay_t, s)
                        store(matrix + j * column + c, s)
                        read = multiply_add(load(scale, dy_t + j * size), s, read)
                        erase_part = multiply_add(load(scale, dv_t + j * size), s, erase_part)
                    store(dq_t + c, multiply(scale, multiply_add(u_dy, load(zero, k_t + c), read)))
                    if erase:
                        store(dk_t + c, multiply_add(minus, erase_part, load(zero, dk_t + c)))
                pending = True

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
        inner = (dstate * final).sum((-1, -2))[None]
        dq, dk, dv, dbeta = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v, beta))
        dlog_decay = torch.empty_like(dbeta) if ctx.gated else None
        sizes = *q.shape, v.shape[-1]
        initial = state.contiguous()
        tensors = [q, k, v, beta, decay, episode_starts, initial, outputs, errors, doutputs, inner]
        tensors += [dq, dk, dv, dbeta, dbeta if dlog_decay is None else dlog_decay, dstate]
        with _threads(3 * q.numel() * v.shape[-1]):
            backward_kernel(_width(sizes, q.dtype), 32 // q.element_size(), ctx.gated)(
                *map(_rows, tensors), _number(ctx.scale, q.dtype), ctx.erase, sizes
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
    arguments = (*map(_rows, tensors), _number(scale, v.dtype), rule == "delta", sizes)
    if work < SERIAL_BELOW and not save:
        forward_kernel(_width(sizes, v.dtype), log_decay is not None, False)(*arguments)
    else:
        with _threads(work):
            forward_kernel(_width(sizes, v.dtype), log_decay is not None, True)(*arguments)
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
