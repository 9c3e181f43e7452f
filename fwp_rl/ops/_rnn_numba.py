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

import numba  # isort: skip
from numba import njit, prange, types  # isort: skip
from llvmlite import ir  # isort: skip
from numba.core import cgutils  # isort: skip
from numba.extending import intrinsic, overload  # isort: skip

# fastmath without nnan and ninf: a number that diverged has to stay visible. The numpy error model, because a check for
# division by zero keeps a loop from vectorising.
FAST = {"cache": True, "error_model": "numpy", "fastmath": {"contract", "nsz", "arcp", "afn"}}
PANEL_BYTES = 64
"""Width of a panel of weights: two AVX2 registers, one of AVX-512, four of NEON."""
SERIAL_BELOW = 4_000_000
"""Multiply-adds under which a second thread costs more than it brings (about 0.2 ms)."""


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


@njit(inline="always", **FAST)
def _tanh_float32(x):
    # Comparisons, not min and max: they let a NaN pass.
    x = LIMIT if x > LIMIT else x
    x = -LIMIT if x < -LIMIT else x
    y = x * x
    numerator = P0 + y * (P1 + y * (P2 + y * (P3 + y * (P4 + y * (P5 + y * P6)))))
    return x * numerator / (Q0 + y * (Q1 + y * (Q2 + y * Q3)))


@overload(tanh, inline="always")
def _overload_tanh(x):
    if x == types.float32:
        return lambda x: _tanh_float32(x)
    return lambda x: math.tanh(x)


@overload(sigmoid, inline="always")
def _overload_sigmoid(x):
    if x == types.float32:
        return lambda x: ONE_HALF + ONE_HALF * _tanh_float32(ONE_HALF * x)
    return lambda x: 1.0 / (1.0 + math.exp(-x))


# -------------------------------------------------------------------------------------------------- building blocks


def _tile(num_rows: int, num_chains: int) -> Callable:
    """Intrinsic `tile(out, a, panel, column)`: out[:, column : column + width] = a @ panel, for `num_rows` rows.

    The sums stay in vector registers over the whole depth, which loops over arrays cannot express: twice as fast as
    those. `num_chains` independent sums per row hide the latency of an addition where there are few rows.
    """

    @intrinsic
    def tile(typing_context, out, a, panel, column):
        def generate(context, builder, signature, arguments):
            element = context.get_value_type(signature.args[0].dtype)
            size = context.get_abi_sizeof(element)
            width = PANEL_BYTES // size
            vector, index = ir.VectorType(element, width), ir.IntType(64)
            zeros, lanes = ir.Constant(vector, [0.0] * width), ir.Constant(ir.VectorType(ir.IntType(32), width), None)
            out, a, panel = (
                context.make_array(kind)(context, builder, value)
                for kind, value in zip(signature.args[:3], arguments[:3], strict=True)
            )
            out_rows, a_rows = (
                [builder.gep(array.data, [builder.mul(stride, index(row))]) for row in range(num_rows)]
                for array, stride in ((x, cgutils.unpack_tuple(builder, x.shape)[1]) for x in (out, a))
            )
            sums = [[cgutils.alloca_once_value(builder, zeros) for _ in range(num_chains)] for _ in range(num_rows)]

            def add_products(i, chain):
                address = builder.gep(panel.data, [builder.mul(i, index(width))])
                weights = builder.load(builder.bitcast(address, vector.as_pointer()), align=size)
                for row in range(num_rows):
                    value = builder.insert_element(zeros, builder.load(builder.gep(a_rows[row], [i])), ir.IntType(32)(0))
                    product = builder.fmul(builder.shuffle_vector(value, zeros, lanes), weights, flags=["contract"])
                    total = builder.fadd(builder.load(sums[row][chain]), product, flags=["contract"])
                    builder.store(total, sums[row][chain])

            depth = cgutils.unpack_tuple(builder, panel.shape)[0]
            even = builder.sub(depth, builder.urem(depth, index(num_chains)))
            with cgutils.for_range_slice(builder, index(0), even, index(num_chains), index) as (i, _):
                for chain in range(num_chains):
                    add_products(builder.add(i, index(chain)), chain)
            with cgutils.for_range_slice(builder, even, depth, index(1), index) as (i, _):
                add_products(i, 0)
            for row in range(num_rows):
                total = functools.reduce(builder.fadd, [builder.load(chain) for chain in sums[row]])
                address = builder.bitcast(builder.gep(out_rows[row], [arguments[3]]), vector.as_pointer())
                builder.store(total, address, align=size)

        return types.void(out, a, panel, column), generate

    return tile


_tile_of_4, _tile_of_2, _tile_of_1 = _tile(4, 1), _tile(2, 2), _tile(1, 4)


@njit(**FAST)
def _product(out, a, panels):
    """out[r] = a[r] @ weight for the rows of `a`; `out` is as wide as all panels."""
    num_rows = a.shape[0]
    width = panels.shape[2]
    for panel in range(panels.shape[0]):
        row = 0
        while num_rows - row >= 4:
            _tile_of_4(out[row:], a[row:], panels[panel], panel * width)
            row += 4
        if num_rows - row >= 2:
            _tile_of_2(out[row:], a[row:], panels[panel], panel * width)
            row += 2
        if num_rows > row:
            _tile_of_1(out[row:], a[row:], panels[panel], panel * width)


@njit(**FAST)
def _apply_tanh(x):
    for j in range(x.size):
        x[j] = tanh(x[j])


@njit(**FAST)
def _apply_sigmoid(x):
    for j in range(x.size):
        x[j] = sigmoid(x[j])


@njit(**FAST)
def _scratch(rows, panels):
    return np.empty((rows, panels.shape[0] * panels.shape[2]), panels.dtype)


@njit(cache=True)
def _previous(current, initial, episode_starts, t, row, out):
    """What the step t of a row started from: zeros, the initial state, or the state after t - 1."""
    if episode_starts[t, row]:
        out[:] = 0
    elif t == 0:
        out[:] = initial[row]
    else:
        out[:] = current[t - 1, row]


# -------------------------------------------------------------------------------------------------------------- lstm


@njit(**FAST)
def _lstm_forward_rows(begin, end, projected, panels, bias, h0, c0, episode_starts, gates, cells, outputs):
    num_steps, _, size = outputs.shape
    rows = end - begin
    h, c = h0[begin:end].copy(), c0[begin:end].copy()
    recurrent = _scratch(rows, panels)
    for t in range(num_steps):
        for r in range(rows):
            if episode_starts[t, begin + r]:
                h[r] = 0
                c[r] = 0
        _product(recurrent, h, panels)
        for r in range(rows):
            gate, inputs, summand = gates[t, begin + r], projected[t, begin + r], recurrent[r]
            for j in range(4 * size):
                gate[j] = inputs[j] + bias[j] + summand[j]
            _apply_sigmoid(gate[: 2 * size])
            _apply_tanh(gate[2 * size : 3 * size])
            _apply_sigmoid(gate[3 * size :])
            _lstm_output(gate, c[r], h[r])
            cells[t, begin + r] = c[r]
            outputs[t, begin + r] = h[r]


@njit(**FAST)
def _lstm_output(gate, c, h):
    size = c.size
    i, f, g, o = gate[:size], gate[size : 2 * size], gate[2 * size : 3 * size], gate[3 * size :]
    for j in range(size):
        c[j] = f[j] * c[j] + i[j] * g[j]
    for j in range(size):
        h[j] = o[j] * tanh(c[j])


@njit(**FAST)
def _lstm_backward_rows(
    begin, end, panels, h0, c0, episode_starts, gates, cells, outputs, d_outputs, d_h, d_c, d_gates, previous_h
):
    num_steps, _, size = outputs.shape
    previous_c = np.empty(size, c0.dtype)
    products = _scratch(end - begin, panels)
    for t in range(num_steps - 1, -1, -1):
        for r in range(begin, end):
            _previous(outputs, h0, episode_starts, t, r, previous_h[t, r])
            _previous(cells, c0, episode_starts, t, r, previous_c)
            d_row, d_output = d_h[r], d_outputs[t, r]
            for j in range(size):
                d_row[j] += d_output[j]
            _lstm_gate_gradients(gates[t, r], cells[t, r], previous_c, d_row, d_c[r], d_gates[t, r])
        _product(products, d_gates[t, begin:end], panels)
        for r in range(begin, end):
            if episode_starts[t, r]:
                d_h[r] = 0
                d_c[r] = 0
            else:
                d_h[r] = products[r - begin, :size]


@njit(**FAST)
def _lstm_gate_gradients(gate, cell, previous_c, d_h, d_c, d_gate):
    """d_gate from the gradient of h; d_c turns from the gradient of c to that of the previous c."""
    size = cell.size
    i, f, g, o = gate[:size], gate[size : 2 * size], gate[2 * size : 3 * size], gate[3 * size :]
    d_i, d_f, d_g, d_o = d_gate[:size], d_gate[size : 2 * size], d_gate[2 * size : 3 * size], d_gate[3 * size :]
    one = cell.dtype.type(1)
    for j in range(size):
        squashed = tanh(cell[j])
        d_o[j] = d_h[j] * squashed * o[j] * (one - o[j])
        d_c[j] += d_h[j] * o[j] * (one - squashed * squashed)
    for j in range(size):
        d_i[j] = d_c[j] * g[j] * i[j] * (one - i[j])
    for j in range(size):
        d_g[j] = d_c[j] * i[j] * (one - g[j] * g[j])
    for j in range(size):
        d_f[j] = d_c[j] * previous_c[j] * f[j] * (one - f[j])
    for j in range(size):
        d_c[j] *= f[j]


@njit(parallel=True, cache=True)
def _lstm_forward(num_parts, batch_size, arrays):
    for part in prange(num_parts):
        begin, end = part * batch_size // num_parts, (part + 1) * batch_size // num_parts
        _lstm_forward_rows(begin, end, *arrays)


@njit(parallel=True, cache=True)
def _lstm_backward(num_parts, batch_size, arrays):
    for part in prange(num_parts):
        begin, end = part * batch_size // num_parts, (part + 1) * batch_size // num_parts
        _lstm_backward_rows(begin, end, *arrays)


class _LSTMScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        projected: Tensor,
        weight_hh: Tensor,
        bias_hh: Tensor,
        h0: Tensor,
        c0: Tensor,
        episode_starts: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        gates = torch.empty_like(projected)
        cells = projected.new_empty(*projected.shape[:2], weight_hh.shape[1])
        outputs = torch.empty_like(cells)
        arrays = (projected, _panels(weight_hh.t()), bias_hh, h0, c0, episode_starts, gates, cells, outputs)
        _launch(_lstm_forward, projected.shape[1], _work(projected, weight_hh), arrays)
        ctx.save_for_backward(weight_hh, h0, c0, episode_starts, gates, cells, outputs)
        ctx.set_materialize_grads(False)
        return outputs, outputs[-1].clone(), cells[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, d_outputs: Tensor | None, d_h: Tensor | None, d_c: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        weight_hh, h0, c0, episode_starts, gates, cells, outputs = ctx.saved_tensors
        d_outputs, d_h, d_c = _gradient(d_outputs, outputs), _own_gradient(d_h, h0), _own_gradient(d_c, c0)
        d_gates, previous_h = torch.empty_like(gates), torch.empty_like(outputs)
        saved = (_panels(weight_hh), h0, c0, episode_starts, gates, cells, outputs)
        _launch(_lstm_backward, gates.shape[1], _work(gates, weight_hh), (*saved, d_outputs, d_h, d_c, d_gates, previous_h))
        d_weight, d_bias = _parameter_gradients(d_gates, previous_h)
        return d_gates, d_weight, d_bias, d_h, d_c, None


# --------------------------------------------------------------------------------------------------------------- gru


@njit(**FAST)
def _gru_forward_rows(begin, end, projected, panels, bias, h0, episode_starts, gates, recurrent, outputs):
    num_steps, _, size = outputs.shape
    rows = end - begin
    h = h0[begin:end].copy()
    products = _scratch(rows, panels)
    for t in range(num_steps):
        for r in range(rows):
            if episode_starts[t, begin + r]:
                h[r] = 0
        _product(products, h, panels)
        for r in range(rows):
            summand, product = recurrent[t, begin + r], products[r]
            for j in range(3 * size):
                summand[j] = product[j] + bias[j]
            _gru_output(projected[t, begin + r], recurrent[t, begin + r], gates[t, begin + r], h[r])
            outputs[t, begin + r] = h[r]


@njit(**FAST)
def _gru_output(inputs, recurrent, gate, h):
    size = h.size
    r, z, n = gate[:size], gate[size : 2 * size], gate[2 * size :]
    inputs_n, recurrent_n = inputs[2 * size :], recurrent[2 * size :]
    for j in range(2 * size):
        gate[j] = sigmoid(inputs[j] + recurrent[j])
    for j in range(size):
        n[j] = tanh(inputs_n[j] + r[j] * recurrent_n[j])
    for j in range(size):
        h[j] = n[j] + z[j] * (h[j] - n[j])


@njit(**FAST)
def _gru_backward_rows(
    begin, end, panels, h0, episode_starts, gates, recurrent, outputs, d_outputs, d_h, d_gates, d_recurrent, previous_h
):
    num_steps, _, size = outputs.shape
    products = _scratch(end - begin, panels)
    for t in range(num_steps - 1, -1, -1):
        for r in range(begin, end):
            _previous(outputs, h0, episode_starts, t, r, previous_h[t, r])
            d_row, d_output = d_h[r], d_outputs[t, r]
            for j in range(size):
                d_row[j] += d_output[j]
            _gru_gate_gradients(gates[t, r], recurrent[t, r], previous_h[t, r], d_row, d_gates[t, r], d_recurrent[t, r])
        _product(products, d_recurrent[t, begin:end], panels)
        for r in range(begin, end):
            d_row, product = d_h[r], products[r - begin]
            if episode_starts[t, r]:
                d_row[:] = 0
            else:
                for j in range(size):
                    d_row[j] += product[j]


@njit(**FAST)
def _gru_gate_gradients(gate, recurrent, previous_h, d_h, d_gate, d_recurrent):
    """Gradients of both summands of the gates; d_h turns into its direct share for the previous h."""
    size = d_h.size
    r, z, n, recurrent_n = gate[:size], gate[size : 2 * size], gate[2 * size :], recurrent[2 * size :]
    d_r, d_z, d_n, d_recurrent_n = d_gate[:size], d_gate[size : 2 * size], d_gate[2 * size :], d_recurrent[2 * size :]
    one = d_h.dtype.type(1)
    for j in range(size):
        d_z[j] = d_h[j] * (previous_h[j] - n[j]) * z[j] * (one - z[j])
    for j in range(size):
        d_n[j] = d_h[j] * (one - z[j]) * (one - n[j] * n[j])
    for j in range(size):
        d_r[j] = d_n[j] * recurrent_n[j] * r[j] * (one - r[j])
    for j in range(size):
        d_recurrent_n[j] = d_n[j] * r[j]
        d_h[j] *= z[j]
    d_recurrent[: 2 * size] = d_gate[: 2 * size]


@njit(parallel=True, cache=True)
def _gru_forward(num_parts, batch_size, arrays):
    for part in prange(num_parts):
        begin, end = part * batch_size // num_parts, (part + 1) * batch_size // num_parts
        _gru_forward_rows(begin, end, *arrays)


@njit(parallel=True, cache=True)
def _gru_backward(num_parts, batch_size, arrays):
    for part in prange(num_parts):
        begin, end = part * batch_size // num_parts, (part + 1) * batch_size // num_parts
        _gru_backward_rows(begin, end, *arrays)


class _GRUScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, projected: Tensor, weight_hh: Tensor, bias_hh: Tensor, h0: Tensor, episode_starts: Tensor
    ) -> tuple[Tensor, Tensor]:
        gates, recurrent = torch.empty_like(projected), torch.empty_like(projected)
        outputs = projected.new_empty(*projected.shape[:2], weight_hh.shape[1])
        arrays = (projected, _panels(weight_hh.t()), bias_hh, h0, episode_starts, gates, recurrent, outputs)
        _launch(_gru_forward, projected.shape[1], _work(projected, weight_hh), arrays)
        ctx.save_for_backward(weight_hh, h0, episode_starts, gates, recurrent, outputs)
        ctx.set_materialize_grads(False)
        return outputs, outputs[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_outputs: Tensor | None, d_h: Tensor | None) -> tuple[Tensor | None, ...]:
        weight_hh, h0, episode_starts, gates, recurrent, outputs = ctx.saved_tensors
        d_outputs, d_h = _gradient(d_outputs, outputs), _own_gradient(d_h, h0)
        d_gates, d_recurrent = torch.empty_like(gates), torch.empty_like(gates)
        previous_h = torch.empty_like(outputs)
        arrays = (_panels(weight_hh), h0, episode_starts, gates, recurrent, outputs, d_outputs, d_h)
        _launch(_gru_backward, gates.shape[1], _work(gates, weight_hh), (*arrays, d_gates, d_recurrent, previous_h))
        d_weight, d_bias = _parameter_gradients(d_recurrent, previous_h)
        return d_gates, d_weight, d_bias, d_h, None


# --------------------------------------------------------------------------------------------------------------- rnn


@njit(**FAST)
def _rnn_forward_rows(begin, end, projected, panels, bias, h0, episode_starts, outputs):
    num_steps, _, size = outputs.shape
    rows = end - begin
    h = h0[begin:end].copy()
    products = _scratch(rows, panels)
    for t in range(num_steps):
        for r in range(rows):
            if episode_starts[t, begin + r]:
                h[r] = 0
        _product(products, h, panels)
        for r in range(rows):
            state, inputs, product = h[r], projected[t, begin + r], products[r]
            for j in range(size):
                state[j] = tanh(inputs[j] + bias[j] + product[j])
            outputs[t, begin + r] = state


@njit(**FAST)
def _rnn_backward_rows(begin, end, panels, h0, episode_starts, outputs, d_outputs, d_h, d_gates, previous_h):
    num_steps, _, size = outputs.shape
    products = _scratch(end - begin, panels)
    for t in range(num_steps - 1, -1, -1):
        for r in range(begin, end):
            _previous(outputs, h0, episode_starts, t, r, previous_h[t, r])
            h, d_row, d_output, d_gate = outputs[t, r], d_h[r], d_outputs[t, r], d_gates[t, r]
            one = h.dtype.type(1)
            for j in range(size):
                d_gate[j] = (d_row[j] + d_output[j]) * (one - h[j] * h[j])
        _product(products, d_gates[t, begin:end], panels)
        for r in range(begin, end):
            if episode_starts[t, r]:
                d_h[r] = 0
            else:
                d_h[r] = products[r - begin, :size]


@njit(parallel=True, cache=True)
def _rnn_forward(num_parts, batch_size, arrays):
    for part in prange(num_parts):
        begin, end = part * batch_size // num_parts, (part + 1) * batch_size // num_parts
        _rnn_forward_rows(begin, end, *arrays)


@njit(parallel=True, cache=True)
def _rnn_backward(num_parts, batch_size, arrays):
    for part in prange(num_parts):
        begin, end = part * batch_size // num_parts, (part + 1) * batch_size // num_parts
        _rnn_backward_rows(begin, end, *arrays)


class _RNNScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, projected: Tensor, weight_hh: Tensor, bias_hh: Tensor, h0: Tensor, episode_starts: Tensor
    ) -> tuple[Tensor, Tensor]:
        outputs = torch.empty_like(projected)
        arrays = (projected, _panels(weight_hh.t()), bias_hh, h0, episode_starts, outputs)
        _launch(_rnn_forward, projected.shape[1], _work(projected, weight_hh), arrays)
        ctx.save_for_backward(weight_hh, h0, episode_starts, outputs)
        ctx.set_materialize_grads(False)
        return outputs, outputs[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_outputs: Tensor | None, d_h: Tensor | None) -> tuple[Tensor | None, ...]:
        weight_hh, h0, episode_starts, outputs = ctx.saved_tensors
        d_outputs, d_h = _gradient(d_outputs, outputs), _own_gradient(d_h, h0)
        d_gates, previous_h = torch.empty_like(outputs), torch.empty_like(outputs)
        arrays = (_panels(weight_hh), h0, episode_starts, outputs, d_outputs, d_h, d_gates, previous_h)
        _launch(_rnn_backward, outputs.shape[1], _work(outputs, weight_hh), arrays)
        d_weight, d_bias = _parameter_gradients(d_gates, previous_h)
        return d_gates, d_weight, d_bias, d_h, None


# -------------------------------------------------------------------------------------------------- doors and plumbing


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
    weight = functional.pad(weight, (0, -weight.shape[1] % width))
    return weight.unflatten(1, (-1, width)).transpose(0, 1).contiguous()


def _gradient(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient.contiguous()


def _own_gradient(gradient: Tensor | None, like: Tensor) -> Tensor:
    # A copy: the kernel carries the gradient of the state in it, and autograd owns the one that came in.
    return torch.zeros_like(like) if gradient is None else gradient.clone(memory_format=torch.contiguous_format)


def _work(gates: Tensor, weight_hh: Tensor) -> int:
    return gates.numel() * weight_hh.shape[1]


def _launch(kernel: Callable, batch_size: int, multiply_adds: int, tensors: tuple[Tensor, ...]) -> None:
    """Run a kernel on as many threads as torch may use now, on one if there is little to do."""
    num_threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS, batch_size)
    if multiply_adds < SERIAL_BELOW:
        num_threads = 1
    arrays = tuple(tensor.detach().numpy() for tensor in tensors)
    others = numba.get_num_threads()
    numba.set_num_threads(num_threads)
    try:
        kernel(num_threads, batch_size, arrays)
    finally:
        numba.set_num_threads(others)


def _parameter_gradients(d_recurrent: Tensor, previous_h: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of weight_hh and bias_hh from those of weight_hh @ h + bias_hh."""
    d_recurrent = d_recurrent.flatten(0, 1)
    return d_recurrent.t() @ previous_h.flatten(0, 1), d_recurrent.sum(0)
