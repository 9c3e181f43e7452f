"""The recurrent scans as fused loops for the CPU, with the backward pass through time derived by hand.

One thread takes a few rows of the batch through the whole sequence; the recurrent weights stream from its cache, and
up to four rows share each weight that is loaded. The gradient of the weights is one matrix product at the end.

Layout: weights `[from, to]` with contiguous columns, so that every inner loop runs along columns and vectorises.
Loops are kept to few arrays each: LLVM gives up on vectorising when there are many to prove distinct.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
import torch  # before numba: the first to load OpenMP decides which copy both use
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

from numba import njit, prange, types  # isort: skip
from llvmlite import ir  # isort: skip
from numba.core import cgutils  # isort: skip
from numba.extending import intrinsic, overload  # isort: skip
from fwp_rl.ops import _numba  # isort: skip
from fwp_rl.ops._jit import FAST, KERNEL  # isort: skip

PANEL_BYTES = 64
"""Width of a panel of weights: two AVX2 registers, one of AVX-512, four of NEON."""


# --------------------------------------------------------------------------------------------------- activations


def tanh(x: float) -> float:
    """tanh, within 2e-7 in float32 and exact in float64."""
    return math.tanh(x)


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), as accurate as `tanh`."""
    return 1.0 / (1.0 + math.exp(-x))


def _float32(*values: float) -> tuple[np.float32, ...]:
    # A bare literal is float64 to numba and would drag the whole expression along.
    return tuple(np.float32(value) for value in values)


# tanh(x) = x P(x^2) / Q(x^2) on |x| < 7.905, where it reaches 1 in float32 (the minimax fit of Eigen).
LIMIT, ONE_HALF = _float32(7.90531110763549805, 0.5)
P0, P1, P2, P3 = _float32(4.89352455891786e-03, 6.37261928875436e-04, 1.48572235717979e-05, 5.12229709037114e-08)
P4, P5, P6 = _float32(-8.60467152213735e-11, 2.00018790482477e-13, -2.76076847742355e-16)
Q0, Q1, Q2, Q3 = _float32(4.89352518554385e-03, 2.26843463243900e-03, 1.18534705686654e-04, 1.19825839466702e-06)


@njit(**FAST)
def _tanh_float32(x):
    # Comparisons, not min and max: they let a NaN pass.
    x = LIMIT if x > LIMIT else x
    x = -LIMIT if x < -LIMIT else x
    y = x * x
    numerator = P0 + y * (P1 + y * (P2 + y * (P3 + y * (P4 + y * (P5 + y * P6)))))
    return x * numerator / (Q0 + y * (Q1 + y * (Q2 + y * Q3)))


@overload(tanh)
def _overload_tanh(x):
    if x == types.float32:
        return lambda x: _tanh_float32(x)
    return lambda x: math.tanh(x)


@overload(sigmoid)
def _overload_sigmoid(x):
    if x == types.float32:
        return lambda x: ONE_HALF + ONE_HALF * _tanh_float32(ONE_HALF * x)
    return lambda x: 1.0 / (1.0 + math.exp(-x))


# -------------------------------------------------------------------------------------------------- building blocks


def _tile(num_rows: int, num_chains: int) -> Callable:
    """Intrinsic `tile(out, a, row, panels, panel)`: one panel of columns of `out = a @ panels`, for `num_rows` rows.

    The sums stay in vector registers over the whole depth, which loops over arrays cannot express: twice as fast as
    those. `num_chains` independent sums per row hide the latency of an addition where there are few rows.
    """

    @intrinsic
    def tile(typing_context, out, a, row, panels, panel):
        def generate(context, builder, signature, arguments):
            element = context.get_value_type(signature.args[3].dtype)
            size = context.get_abi_sizeof(element)
            width = PANEL_BYTES // size
            vector, index = ir.VectorType(element, width), ir.IntType(64)
            zeros, lanes = ir.Constant(vector, [0.0] * width), ir.Constant(ir.VectorType(ir.IntType(32), width), None)
            out, a, panels = (context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 1, 3))
            row, panel = arguments[2], arguments[4]
            depth = cgutils.unpack_tuple(builder, panels.shape)[1]
            panel_start = builder.mul(panel, builder.mul(depth, index(width)))
            sums = [[cgutils.alloca_once_value(builder, zeros) for _ in range(num_chains)] for _ in range(num_rows)]

            def address(array, r, column):
                stride = cgutils.unpack_tuple(builder, array.shape)[1]
                start = builder.mul(builder.add(row, index(r)), stride)
                return builder.gep(array.data, [builder.add(start, column)])

            def add_products(i, chain):
                start = builder.gep(panels.data, [builder.add(panel_start, builder.mul(i, index(width)))])
                weights = builder.load(builder.bitcast(start, vector.as_pointer()), align=size)
                for r in range(num_rows):
                    value = builder.insert_element(zeros, builder.load(address(a, r, i)), ir.IntType(32)(0))
                    product = builder.fmul(builder.shuffle_vector(value, zeros, lanes), weights, flags=["contract"])
                    total = builder.fadd(builder.load(sums[r][chain]), product, flags=["contract"])
                    builder.store(total, sums[r][chain])

            even = builder.sub(depth, builder.urem(depth, index(num_chains)))
            with cgutils.for_range_slice(builder, index(0), even, index(num_chains), index) as (i, _):
                for chain in range(num_chains):
                    add_products(builder.add(i, index(chain)), chain)
            with cgutils.for_range_slice(builder, even, depth, index(1), index) as (i, _):
                add_products(i, 0)
            for r in range(num_rows):
                total = functools.reduce(builder.fadd, [builder.load(chain) for chain in sums[r]])
                start = address(out, r, builder.mul(panel, index(width)))
                builder.store(total, builder.bitcast(start, vector.as_pointer()), align=size)

        signature = types.void(out, a, types.intp, panels, types.intp)
        return signature, generate

    return tile


_tile_of_4, _tile_of_2, _tile_of_1 = _tile(4, 1), _tile(2, 2), _tile(1, 4)


@njit(**FAST)
def _product(out, a, panels):
    """out[r] = a[r] @ weight for the rows of `a`; `out` is as wide as all panels."""
    num_rows = a.shape[0]
    for panel in range(panels.shape[0]):
        row = 0
        while row < num_rows - 3:
            _tile_of_4(out, a, row, panels, panel)
            row += 4
        if row < num_rows - 1:
            _tile_of_2(out, a, row, panels, panel)
            row += 2
        if row < num_rows:
            _tile_of_1(out, a, row, panels, panel)


# Copies are spelled out: assignments to slices compile many times slower, and run no faster.


@njit(**FAST)
def _read(state, is_start, previous):
    """What the step starts from: zeros at an episode start, the state otherwise."""
    for j in range(state.size):
        previous[j] = state[j]
    if is_start:
        _clear(previous)


@njit(**FAST)
def _clear(x):
    for j in range(x.size):
        x[j] = 0


@njit(**FAST)
def _add(x, summand):
    for j in range(x.size):
        x[j] += summand[j]


@njit(**FAST)
def _write(h, output):
    for j in range(h.size):
        output[j] = h[j]


# -------------------------------------------------------------------------------------------------------------- lstm


@njit(**FAST)
def _lstm_forward_rows(
    begin, end, projected, panels, bias, episode_starts, h, c, previous_h, previous_c, products, gates, outputs
):
    for t in range(outputs.shape[0]):
        for r in range(begin, end):
            _read(h[r], episode_starts[t, r], previous_h[t, r])
            _read(c[r], episode_starts[t, r], previous_c[t, r])
        _product(products[begin:end], previous_h[t, begin:end], panels)
        for r in range(begin, end):
            _lstm_cell(projected[t, r], bias, products[r], previous_c[t, r], gates[t, r], c[r], h[r])
            _write(h[r], outputs[t, r])


@njit(**FAST)
def _lstm_cell(inputs, bias, product, previous_c, gate, c, h):
    size = c.size
    i, f, g, o = gate[:size], gate[size : 2 * size], gate[2 * size : 3 * size], gate[3 * size :]
    for j in range(4 * size):
        gate[j] = inputs[j] + bias[j] + product[j]
    for j in range(2 * size):
        gate[j] = sigmoid(gate[j])
    for j in range(size):
        g[j] = tanh(g[j])
    for j in range(size):
        o[j] = sigmoid(o[j])
    for j in range(size):
        c[j] = f[j] * previous_c[j] + i[j] * g[j]
    for j in range(size):
        h[j] = o[j] * tanh(c[j])


@njit(**FAST)
def _lstm_backward_rows(begin, end, panels, episode_starts, previous_c, gates, d_outputs, products, d_h, d_c, d_gates):
    for t in range(gates.shape[0] - 1, -1, -1):
        for r in range(begin, end):
            _add(d_h[r], d_outputs[t, r])
            _lstm_gradients(gates[t, r], previous_c[t, r], products[r], d_h[r], d_c[r], d_gates[t, r])
        _product(products[begin:end], d_gates[t, begin:end], panels)
        for r in range(begin, end):
            _read(products[r, : d_h.shape[1]], episode_starts[t, r], d_h[r])
            if episode_starts[t, r]:
                _clear(d_c[r])


@njit(**FAST)
def _lstm_gradients(gate, previous_c, squashed, d_h, d_c, d_gate):
    """d_gate from d_h and d_c; d_c turns into the gradient of the previous c. `squashed` is scratch: tanh(c)."""
    size = d_h.size
    i, f, g, o = gate[:size], gate[size : 2 * size], gate[2 * size : 3 * size], gate[3 * size :]
    d_i, d_f, d_g, d_o = d_gate[:size], d_gate[size : 2 * size], d_gate[2 * size : 3 * size], d_gate[3 * size :]
    one = gate.dtype.type(1)
    for j in range(size):
        squashed[j] = tanh(f[j] * previous_c[j] + i[j] * g[j])
    for j in range(size):
        d_o[j] = d_h[j] * squashed[j] * o[j] * (one - o[j])
    for j in range(size):
        d_c[j] += d_h[j] * o[j] * (one - squashed[j] * squashed[j])
    for j in range(size):
        d_i[j] = d_c[j] * g[j] * i[j] * (one - i[j])
    for j in range(size):
        d_g[j] = d_c[j] * i[j] * (one - g[j] * g[j])
    for j in range(size):
        d_f[j] = d_c[j] * previous_c[j] * f[j] * (one - f[j])
    for j in range(size):
        d_c[j] *= f[j]


@functools.cache
def _lstm_forward(PARALLEL: bool) -> Callable:
    @njit(parallel=PARALLEL, **KERNEL)
    def forward(num_parts, batch_size, arrays):
        for part in prange(num_parts):
            begin, end = part * batch_size // num_parts, (part + 1) * batch_size // num_parts
            _lstm_forward_rows(begin, end, *arrays)
        return PARALLEL  # the cache tells kernels apart by what they close over

    return forward


@functools.cache
def _lstm_backward(PARALLEL: bool) -> Callable:
    @njit(parallel=PARALLEL, **KERNEL)
    def backward(num_parts, batch_size, arrays):
        for part in prange(num_parts):
            begin, end = part * batch_size // num_parts, (part + 1) * batch_size // num_parts
            _lstm_backward_rows(begin, end, *arrays)
        return PARALLEL  # the cache tells kernels apart by what they close over

    return backward


class _LSTMScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        projected: Tensor,
        weight_hh: Tensor,
        bias_hh: Tensor,
        h: Tensor,
        c: Tensor,
        episode_starts: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        panels, gates = _panels(weight_hh.t()), torch.empty_like(projected)
        outputs, previous_h, previous_c = (projected.new_empty(*projected.shape[:2], h.shape[1]) for _ in range(3))
        h, c = h.clone(), c.clone()
        states = (h, c, previous_h, previous_c, _scratch(h, panels))
        _launch(_lstm_forward, gates, h, (projected, panels, bias_hh, episode_starts, *states, gates, outputs))
        ctx.save_for_backward(weight_hh, episode_starts, previous_h, previous_c, gates)
        ctx.set_materialize_grads(False)
        return outputs, h, c

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, d_outputs: Tensor | None, d_h: Tensor | None, d_c: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        weight_hh, episode_starts, previous_h, previous_c, gates = ctx.saved_tensors
        d_outputs = _gradient(d_outputs, previous_h)
        d_h, d_c = _own_gradient(d_h, previous_h[0]), _own_gradient(d_c, previous_c[0])
        panels, d_gates = _panels(weight_hh), torch.empty_like(gates)
        gradients = (d_outputs, _scratch(d_h, panels), d_h, d_c, d_gates)
        _launch(_lstm_backward, gates, d_h, (panels, episode_starts, previous_c, gates, *gradients))
        return d_gates, *_parameter_gradients(d_gates, previous_h), d_h, d_c, None


# --------------------------------------------------------------------------------------------------------------- gru


@njit(**FAST)
def _gru_forward_rows(
    begin, end, projected, panels, bias, episode_starts, h, previous_h, products, gates, recurrent_n, outputs
):
    for t in range(outputs.shape[0]):
        for r in range(begin, end):
            _read(h[r], episode_starts[t, r], previous_h[t, r])
        _product(products[begin:end], previous_h[t, begin:end], panels)
        for r in range(begin, end):
            _gru_cell(projected[t, r], bias, products[r], previous_h[t, r], gates[t, r], recurrent_n[t, r], h[r])
            _write(h[r], outputs[t, r])


@njit(**FAST)
def _gru_cell(inputs, bias, product, previous_h, gate, recurrent_n, h):
    size = h.size
    r, z, n = gate[:size], gate[size : 2 * size], gate[2 * size :]
    inputs_n, bias_n, product_n = inputs[2 * size :], bias[2 * size :], product[2 * size :]
    for j in range(2 * size):
        gate[j] = inputs[j] + bias[j] + product[j]
    for j in range(2 * size):
        gate[j] = sigmoid(gate[j])
    for j in range(size):
        recurrent_n[j] = product_n[j] + bias_n[j]
    for j in range(size):
        n[j] = tanh(inputs_n[j] + r[j] * recurrent_n[j])
    for j in range(size):
        h[j] = n[j] + z[j] * (previous_h[j] - n[j])


@njit(**FAST)
def _gru_backward_rows(
    begin, end, panels, episode_starts, previous_h, gates, recurrent_n, d_outputs, products, d_h, d_gates, d_recurrent
):
    for t in range(gates.shape[0] - 1, -1, -1):
        for r in range(begin, end):
            _add(d_h[r], d_outputs[t, r])
            _gru_gradients(gates[t, r], recurrent_n[t, r], previous_h[t, r], d_h[r], d_gates[t, r], d_recurrent[t, r])
        _product(products[begin:end], d_recurrent[t, begin:end], panels)
        for r in range(begin, end):
            _add(d_h[r], products[r])
            if episode_starts[t, r]:
                _clear(d_h[r])


@njit(**FAST)
def _gru_gradients(gate, recurrent_n, previous_h, d_h, d_gate, d_recurrent):
    """Gradients of both summands of the gates from d_h; d_h turns into its direct share for the previous h."""
    size = d_h.size
    r, z, n = gate[:size], gate[size : 2 * size], gate[2 * size :]
    d_r, d_z, d_n, d_recurrent_n = d_gate[:size], d_gate[size : 2 * size], d_gate[2 * size :], d_recurrent[2 * size :]
    one = gate.dtype.type(1)
    for j in range(size):
        d_z[j] = d_h[j] * (previous_h[j] - n[j]) * z[j] * (one - z[j])
    for j in range(size):
        d_n[j] = d_h[j] * (one - z[j]) * (one - n[j] * n[j])
    for j in range(size):
        d_r[j] = d_n[j] * recurrent_n[j] * r[j] * (one - r[j])
    for j in range(2 * size):
        d_recurrent[j] = d_gate[j]
    for j in range(size):
        d_recurrent_n[j] = d_n[j] * r[j]
    for j in range(size):
        d_h[j] *= z[j]


@functools.cache
def _gru_forward(PARALLEL: bool) -> Callable:
    @njit(parallel=PARALLEL, **KERNEL)
    def forward(num_parts, batch_size, arrays):
        for part in prange(num_parts):
            begin, end = part * batch_size // num_parts, (part + 1) * batch_size // num_parts
            _gru_forward_rows(begin, end, *arrays)
        return PARALLEL  # the cache tells kernels apart by what they close over

    return forward


@functools.cache
def _gru_backward(PARALLEL: bool) -> Callable:
    @njit(parallel=PARALLEL, **KERNEL)
    def backward(num_parts, batch_size, arrays):
        for part in prange(num_parts):
            begin, end = part * batch_size // num_parts, (part + 1) * batch_size // num_parts
            _gru_backward_rows(begin, end, *arrays)
        return PARALLEL  # the cache tells kernels apart by what they close over

    return backward


class _GRUScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, projected: Tensor, weight_hh: Tensor, bias_hh: Tensor, h: Tensor, episode_starts: Tensor
    ) -> tuple[Tensor, Tensor]:
        panels, gates = _panels(weight_hh.t()), torch.empty_like(projected)
        outputs, previous_h, recurrent_n = (projected.new_empty(*projected.shape[:2], h.shape[1]) for _ in range(3))
        h = h.clone()
        states = (h, previous_h, _scratch(h, panels), gates, recurrent_n, outputs)
        _launch(_gru_forward, gates, h, (projected, panels, bias_hh, episode_starts, *states))
        ctx.save_for_backward(weight_hh, episode_starts, previous_h, gates, recurrent_n)
        ctx.set_materialize_grads(False)
        return outputs, h

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_outputs: Tensor | None, d_h: Tensor | None) -> tuple[Tensor | None, ...]:
        weight_hh, episode_starts, previous_h, gates, recurrent_n = ctx.saved_tensors
        d_outputs, d_h = _gradient(d_outputs, previous_h), _own_gradient(d_h, previous_h[0])
        panels, d_gates, d_recurrent = _panels(weight_hh), torch.empty_like(gates), torch.empty_like(gates)
        gradients = (d_outputs, _scratch(d_h, panels), d_h, d_gates, d_recurrent)
        _launch(_gru_backward, gates, d_h, (panels, episode_starts, previous_h, gates, recurrent_n, *gradients))
        return d_gates, *_parameter_gradients(d_recurrent, previous_h), d_h, None


# --------------------------------------------------------------------------------------------------------------- rnn


@njit(**FAST)
def _rnn_forward_rows(begin, end, projected, panels, bias, episode_starts, h, previous_h, products, outputs):
    for t in range(outputs.shape[0]):
        for r in range(begin, end):
            _read(h[r], episode_starts[t, r], previous_h[t, r])
        _product(products[begin:end], previous_h[t, begin:end], panels)
        for r in range(begin, end):
            _rnn_cell(projected[t, r], bias, products[r], h[r])
            _write(h[r], outputs[t, r])


@njit(**FAST)
def _rnn_cell(inputs, bias, product, h):
    for j in range(h.size):
        h[j] = tanh(inputs[j] + bias[j] + product[j])


@njit(**FAST)
def _rnn_backward_rows(begin, end, panels, episode_starts, outputs, d_outputs, products, d_h, d_gates):
    for t in range(outputs.shape[0] - 1, -1, -1):
        for r in range(begin, end):
            _add(d_h[r], d_outputs[t, r])
            _rnn_gradient(outputs[t, r], d_h[r], d_gates[t, r])
        _product(products[begin:end], d_gates[t, begin:end], panels)
        for r in range(begin, end):
            _read(products[r, : d_h.shape[1]], episode_starts[t, r], d_h[r])


@njit(**FAST)
def _rnn_gradient(h, d_h, d_gate):
    one = h.dtype.type(1)
    for j in range(h.size):
        d_gate[j] = d_h[j] * (one - h[j] * h[j])


@functools.cache
def _rnn_forward(PARALLEL: bool) -> Callable:
    @njit(parallel=PARALLEL, **KERNEL)
    def forward(num_parts, batch_size, arrays):
        for part in prange(num_parts):
            begin, end = part * batch_size // num_parts, (part + 1) * batch_size // num_parts
            _rnn_forward_rows(begin, end, *arrays)
        return PARALLEL  # the cache tells kernels apart by what they close over

    return forward


@functools.cache
def _rnn_backward(PARALLEL: bool) -> Callable:
    @njit(parallel=PARALLEL, **KERNEL)
    def backward(num_parts, batch_size, arrays):
        for part in prange(num_parts):
            begin, end = part * batch_size // num_parts, (part + 1) * batch_size // num_parts
            _rnn_backward_rows(begin, end, *arrays)
        return PARALLEL  # the cache tells kernels apart by what they close over

    return backward


class _RNNScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, projected: Tensor, weight_hh: Tensor, bias_hh: Tensor, h: Tensor, episode_starts: Tensor
    ) -> tuple[Tensor, Tensor]:
        panels, outputs, previous_h = _panels(weight_hh.t()), torch.empty_like(projected), torch.empty_like(projected)
        h = h.clone()
        states = (h, previous_h, _scratch(h, panels), outputs)
        _launch(_rnn_forward, outputs, h, (projected, panels, bias_hh, episode_starts, *states))
        ctx.save_for_backward(weight_hh, episode_starts, previous_h, outputs)
        ctx.set_materialize_grads(False)
        return outputs, h

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_outputs: Tensor | None, d_h: Tensor | None) -> tuple[Tensor | None, ...]:
        weight_hh, episode_starts, previous_h, outputs = ctx.saved_tensors
        d_outputs, d_h = _gradient(d_outputs, previous_h), _own_gradient(d_h, previous_h[0])
        panels, d_gates = _panels(weight_hh), torch.empty_like(outputs)
        gradients = (d_outputs, _scratch(d_h, panels), d_h, d_gates)
        _launch(_rnn_backward, outputs, d_h, (panels, episode_starts, outputs, *gradients))
        return d_gates, *_parameter_gradients(d_gates, previous_h), d_h, None


# -------------------------------------------------------------------------------------------------- doors and plumbing


@njit(**KERNEL)
def _probe(out, a, panels):
    _product(out, a, panels)


def compile_probe() -> None:
    """Compile, or load, the part of the kernels that is most likely to fail."""
    _probe(np.zeros((1, 16), np.float32), np.zeros((1, 3), np.float32), np.zeros((1, 3, 16), np.float32))


def lstm_scan(
    projected: Tensor, weight_hh: Tensor, bias_hh: Tensor, h: Tensor, c: Tensor, episode_starts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `_rnn_reference.lstm_scan`."""
    tensors = (projected, weight_hh, bias_hh, h, c, episode_starts)
    return _LSTMScan.apply(*(tensor.contiguous() for tensor in tensors))


def gru_scan(
    projected: Tensor, weight_hh: Tensor, bias_hh: Tensor, h: Tensor, episode_starts: Tensor
) -> tuple[Tensor, Tensor]:
    """See `_rnn_reference.gru_scan`."""
    tensors = (projected, weight_hh, bias_hh, h, episode_starts)
    return _GRUScan.apply(*(tensor.contiguous() for tensor in tensors))


def rnn_scan(
    projected: Tensor, weight_hh: Tensor, bias_hh: Tensor, h: Tensor, episode_starts: Tensor
) -> tuple[Tensor, Tensor]:
    """See `_rnn_reference.rnn_scan`."""
    tensors = (projected, weight_hh, bias_hh, h, episode_starts)
    return _RNNScan.apply(*(tensor.contiguous() for tensor in tensors))


def _panels(weight: Tensor) -> Tensor:
    """The matrix `[depth, columns]` as `[panels, depth, width]`, filled up with zero columns."""
    width = PANEL_BYTES // weight.element_size()
    if weight.shape[1] % width:
        weight = functional.pad(weight, (0, -weight.shape[1] % width))
    return weight.unflatten(1, (-1, width)).transpose(0, 1).contiguous()


def _scratch(state: Tensor, panels: Tensor) -> Tensor:
    """Room for `_product`: as many rows as `state`, as wide as all panels."""
    return state.new_empty(state.shape[0], panels.shape[0] * panels.shape[2])


def _launch(kernel: Callable, gates: Tensor, state: Tensor, tensors: tuple[Tensor, ...]) -> None:
    """Run a kernel on as many threads as torch may use now, on one if there is little to do."""
    batch_size, size = state.shape
    arrays = tuple(tensor.detach().numpy() for tensor in tensors)
    _numba.launch(kernel, gates.numel() * size, max(1, min(torch.get_num_threads(), batch_size)), batch_size, arrays)


def _gradient(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient.contiguous()


def _own_gradient(gradient: Tensor | None, like: Tensor) -> Tensor:
    # A copy: the kernel carries the gradient of the state in it, and autograd owns the one that came in.
    return torch.zeros_like(like) if gradient is None else gradient.clone(memory_format=torch.contiguous_format)


def _parameter_gradients(d_recurrent: Tensor, previous_h: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of weight_hh and bias_hh from those of weight_hh @ h + bias_hh."""
    d_recurrent = d_recurrent.flatten(0, 1)
    return d_recurrent.t() @ previous_h.flatten(0, 1), d_recurrent.sum(0)
