"""The recurrent scans as Triton kernels: one launch forward, one backward, whatever the length of the sequence.

One program takes `ROWS` rows of the batch through the whole sequence. The recurrent weights fit no register file, so it
reads them at every step, tile by tile, and a step that has written its outputs is the next one's input through memory:
one barrier of the program's threads per step makes the writes of all visible to all. Programs share nothing but the
weights, and nothing is added up atomically: what they compute is bitwise reproducible. As in cuDNN (Appleyard et al.
2016), the gradient of the weights is one matrix product over all steps, after the backward kernel.

Starts are masks: what a row held before its start is never loaded, and the gradient that would cross is replaced, not
multiplied, by zero.

Masks of a whole program (the last step, say) are chosen by `tl.where`, not joined by `&`: the interpreter of Triton 3.9
turns the latter into integers, which it then refuses as masks.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx

from fwp_rl.ops import _rnn_reference

INTERPRETED = triton.knobs.runtime.interpret
"""Triton decides when a kernel is defined whether it is compiled for a GPU or interpreted in numpy."""

ROWS = 16
"""Rows of the batch per program: the height of a tensor-core tile."""
TILES = {"ROWS": ROWS, "UNITS": 32, "DEPTH": 32, "num_warps": 4, "num_stages": 3}
"""A product is [ROWS, DEPTH] @ [DEPTH, UNITS]. For hidden sizes that are multiples of 16 nothing spills from the
registers of sm_80, sm_90, sm_100 and gfx942 with these."""
SELF_CHECK_TOLERANCE = 2e-5
"""Far above the rounding of float32, far below that of plain TF32 (1e-3)."""


# ------------------------------------------------------------------------------------------------------------- kernels


@triton.jit
def sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def tanh(x):
    # Of the absolute value, so that nothing overflows; NaN stays NaN.
    e = tl.exp(-2 * tl.abs(x))
    y = (1 - e) / (1 + e)
    return tl.where(x < 0, -y, y)


@triton.jit
def _recurrent(
    h,
    row,
    keep,
    weight,
    unit,
    H,
    GATES: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """weight @ h for one tile of units, gate by gate; zeros for the gates that the cell does not have."""
    dtype: tl.constexpr = h.dtype.element_ty
    product_0 = tl.zeros((row.shape[0], UNITS), dtype)
    product_1, product_2, product_3 = product_0, product_0, product_0
    for first in range(0, H, DEPTH):
        source = first + tl.arange(0, DEPTH)
        x = tl.load(h + row * H + source[None, :], mask=keep & (source < H)[None, :], other=0)
        inside = (source < H)[:, None] & (unit < H)
        tile = weight + unit * H + source[:, None]
        product_0 = tl.dot(x, tl.load(tile, inside, 0), product_0, input_precision=PRECISION, out_dtype=dtype)
        if GATES >= 3:
            tile_1, tile_2 = tile + H * H, tile + 2 * H * H
            product_1 = tl.dot(x, tl.load(tile_1, inside, 0), product_1, input_precision=PRECISION, out_dtype=dtype)
            product_2 = tl.dot(x, tl.load(tile_2, inside, 0), product_2, input_precision=PRECISION, out_dtype=dtype)
        if GATES == 4:
            tile_3 = tile + 3 * H * H
            product_3 = tl.dot(x, tl.load(tile_3, inside, 0), product_3, input_precision=PRECISION, out_dtype=dtype)
    return product_0, product_1, product_2, product_3


@triton.jit(do_not_specialize=["T", "B"])
def forward_kernel(
    projected,  # [T, B, GATES, H]
    weight,  # [GATES, H, H]
    bias,  # [GATES, H]
    h,  # [B, H], like c
    c,
    episode_starts,  # bool [T, B]
    outputs,  # [T, B, H]
    gates,  # [T, B, GATES, H]: activations; not written for rnn
    saved,  # [T, B, H]: c of lstm, weight_n @ h + bias_n of gru
    final_h,  # [B, H], like final_c
    final_c,
    T,
    B,
    H,
    GATES: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None].to(tl.int64)
    present = row < B
    previous_h, previous_c = h, c
    for t in range(T):
        step_row = row + t * B.to(tl.int64)
        keep = present & (tl.load(episode_starts + step_row, present, 1) == 0)
        for first in range(0, H, UNITS):
            unit = first + tl.arange(0, UNITS)[None, :]
            known = unit < H
            inside = present & known
            at = step_row * H + unit
            gate = step_row * (GATES * H) + unit
            a_0, a_1, a_2, a_3 = _recurrent(previous_h, row, keep, weight, unit, H, GATES, UNITS, DEPTH, PRECISION)
            a_0 += tl.load(bias + unit, known, 0)
            inputs_0 = tl.load(projected + gate, inside, 0)
            if GATES == 1:
                new_h = tanh(inputs_0 + a_0)
            else:
                a_1 += tl.load(bias + H + unit, known, 0)
                a_2 += tl.load(bias + 2 * H + unit, known, 0)
                inputs_1 = tl.load(projected + gate + H, inside, 0)
                inputs_2 = tl.load(projected + gate + 2 * H, inside, 0)
                gate_0 = sigmoid(inputs_0 + a_0)
                gate_1 = sigmoid(inputs_1 + a_1)
                if GATES == 3:
                    gate_2 = tanh(inputs_2 + gate_0 * a_2)
                    old_h = tl.load(previous_h + row * H + unit, keep & known, 0)
                    new_h = (1 - gate_1) * gate_2 + gate_1 * old_h
                    tl.store(saved + at, a_2, inside)
                else:
                    gate_2 = tanh(inputs_2 + a_2)
                    a_3 += tl.load(bias + 3 * H + unit, known, 0)
                    gate_3 = sigmoid(tl.load(projected + gate + 3 * H, inside, 0) + a_3)
                    new_c = gate_1 * tl.load(previous_c + row * H + unit, keep & known, 0) + gate_0 * gate_2
                    new_h = gate_3 * tanh(new_c)
                    tl.store(saved + at, new_c, inside)
                    tl.store(final_c + row * H + unit, new_c, tl.where(t == T - 1, inside, False))
                    tl.store(gates + gate + 3 * H, gate_3, inside)
                tl.store(gates + gate, gate_0, inside)
                tl.store(gates + gate + H, gate_1, inside)
                tl.store(gates + gate + 2 * H, gate_2, inside)
            tl.store(outputs + at, new_h, inside)
            tl.store(final_h + row * H + unit, new_h, tl.where(t == T - 1, inside, False))
        tl.debug_barrier()
        previous_h = outputs + t * B.to(tl.int64) * H
        previous_c = saved + t * B.to(tl.int64) * H


@triton.jit
def _transposed(
    d_recurrent, row, present, weight, unit, inner, H, UNITS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr
):
    """d_recurrent @ weight, summed over `inner` gates, for one tile of units."""
    dtype: tl.constexpr = d_recurrent.dtype.element_ty
    product = tl.zeros((row.shape[0], UNITS), dtype)
    for first in range(0, inner, DEPTH):
        source = first + tl.arange(0, DEPTH)
        x = tl.load(d_recurrent + row * inner + source[None, :], present & (source < inner)[None, :], 0)
        tile = tl.load(weight + unit * inner + source[:, None], (source < inner)[:, None] & (unit < H), 0)
        product = tl.dot(x, tile, product, input_precision=PRECISION, out_dtype=dtype)
    return product


@triton.jit(do_not_specialize=["T", "B"])
def backward_kernel(
    weight,  # [H, GATES, H]: transposed, so that the depth of the product is contiguous here too (ldmatrix)
    h,  # [B, H], like c
    c,
    episode_starts,  # bool [T, B]
    outputs,  # [T, B, H]
    gates,  # [T, B, GATES, H]
    saved,  # [T, B, H]
    d_outputs,  # [T, B, H]
    d_final_h,  # [B, H]
    d_projected,  # [T, B, GATES, H]: written
    d_recurrent,  # [T, B, GATES, H]: written, gradient of weight @ h + bias; the same as d_projected but for gru
    carry,  # [2, B, H]: the gradient of the state that passes by the product; step t reads the slot that t + 1 wrote
    T,
    B,
    H,
    GATES: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None].to(tl.int64)
    present = row < B
    size = B.to(tl.int64)
    for back in range(T):
        t = T - 1 - back
        step_row = row + t * size
        keep = present & (tl.load(episode_starts + step_row, present, 1) == 0)
        keep_next = present & (tl.load(episode_starts + step_row + size, tl.where(back > 0, present, False), 1) == 0)
        for first in range(0, H, UNITS):
            unit = first + tl.arange(0, UNITS)[None, :]
            inside = present & (unit < H)
            keep_unit = keep & (unit < H)
            at = step_row * H + unit
            gate = step_row * (GATES * H) + unit
            # No product for the last step: it would read past the end.
            inner = tl.where(back > 0, GATES * H, 0)
            d_h = _transposed(d_recurrent, step_row + size, present, weight, unit, inner, H, UNITS, DEPTH, PRECISION)
            d_h = tl.where(keep_next, d_h, 0)
            d_h += tl.load(d_final_h + row * H + unit, tl.where(back == 0, inside, False), 0)
            d_h += tl.load(d_outputs + at, inside, 0)
            carry_read = carry + ((t + 1) % 2) * size * H + row * H + unit
            carry_write = carry + (t % 2) * size * H + row * H + unit
            if GATES == 1:
                new_h = tl.load(outputs + at, inside, 0)
                tl.store(d_projected + gate, d_h * (1 - new_h * new_h), inside)
            else:
                gate_0 = tl.load(gates + gate, inside, 0)
                gate_1 = tl.load(gates + gate + H, inside, 0)
                gate_2 = tl.load(gates + gate + 2 * H, inside, 0)
                if GATES == 3:
                    d_h += tl.load(carry_read, tl.where(back > 0, inside, False), 0)
                    old_h = tl.load(outputs + at - size * H, tl.where(t > 0, keep_unit, False), 0)
                    old_h += tl.load(h + row * H + unit, tl.where(t == 0, keep_unit, False), 0)
                    d_gate_2 = d_h * (1 - gate_1) * (1 - gate_2 * gate_2)
                    d_gate_1 = d_h * (old_h - gate_2) * gate_1 * (1 - gate_1)
                    d_gate_0 = d_gate_2 * tl.load(saved + at, inside, 0) * gate_0 * (1 - gate_0)
                    tl.store(d_recurrent + gate, d_gate_0, inside)
                    tl.store(d_recurrent + gate + H, d_gate_1, inside)
                    tl.store(d_recurrent + gate + 2 * H, d_gate_2 * gate_0, inside)
                    tl.store(carry_write, tl.where(keep, d_h * gate_1, 0), inside)
                else:
                    gate_3 = tl.load(gates + gate + 3 * H, inside, 0)
                    tanh_c = tanh(tl.load(saved + at, inside, 0))
                    old_c = tl.load(saved + at - size * H, tl.where(t > 0, keep_unit, False), 0)
                    old_c += tl.load(c + row * H + unit, tl.where(t == 0, keep_unit, False), 0)
                    d_c = tl.load(carry_read, inside, 0) + d_h * gate_3 * (1 - tanh_c * tanh_c)
                    d_gate_3 = d_h * tanh_c * gate_3 * (1 - gate_3)
                    d_gate_2 = d_c * gate_0 * (1 - gate_2 * gate_2)
                    d_gate_1 = d_c * old_c * gate_1 * (1 - gate_1)
                    d_gate_0 = d_c * gate_2 * gate_0 * (1 - gate_0)
                    tl.store(d_projected + gate + 3 * H, d_gate_3, inside)
                    tl.store(carry_write, tl.where(keep, d_c * gate_1, 0), inside)
                tl.store(d_projected + gate, d_gate_0, inside)
                tl.store(d_projected + gate + H, d_gate_1, inside)
                tl.store(d_projected + gate + 2 * H, d_gate_2, inside)
        tl.debug_barrier()


# ----------------------------------------------------------------------------------------------------------- operators


@torch.library.custom_op("fwp_rl::recurrent_scan", mutates_args=())
def _scan(
    projected: Tensor, weight_hh: Tensor, bias_hh: Tensor, h: Tensor, c: Tensor | None, episode_starts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Outputs, final h, final c, gates and what else the backward needs; empty where the cell has none."""
    results = _results(projected, weight_hh, bias_hh, h, c, episode_starts)
    outputs, final_h, final_c, gates, saved = results
    arguments = (projected, weight_hh, bias_hh, h, h if c is None else c, episode_starts)
    arguments = (argument.contiguous() for argument in arguments)
    _launch(forward_kernel, outputs, weight_hh, *arguments, outputs, gates, saved, final_h, final_c)
    return results


@_scan.register_fake
def _results(
    projected: Tensor, weight_hh: Tensor, bias_hh: Tensor, h: Tensor, c: Tensor | None, episode_starts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    num_steps, batch_size, width = projected.shape
    hidden_size = weight_hh.shape[1]
    steps_with_gates = 0 if weight_hh.shape[0] == hidden_size else num_steps
    return (
        h.new_empty(num_steps, batch_size, hidden_size),
        h.new_empty(batch_size, hidden_size),
        h.new_empty(0 if c is None else batch_size, hidden_size),
        h.new_empty(steps_with_gates, batch_size, width),
        h.new_empty(steps_with_gates, batch_size, hidden_size),
    )


@torch.library.custom_op("fwp_rl::recurrent_scan_backward", mutates_args=())
def _scan_backward(
    weight_hh: Tensor,
    h: Tensor,
    c: Tensor | None,
    episode_starts: Tensor,
    outputs: Tensor,
    gates: Tensor,
    saved: Tensor,
    d_outputs: Tensor,
    d_h: Tensor,
    d_c: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of projected, of weight_hh @ h + bias_hh (empty: the same), and what passes by the product (slot 0)."""
    results = _gradients(weight_hh, h, c, episode_starts, outputs, gates, saved, d_outputs, d_h, d_c)
    d_projected, d_recurrent, carry = results
    if d_c is not None:
        carry[outputs.shape[0] % 2] = d_c
    arguments = (weight_hh.t(), h, h if c is None else c, episode_starts, outputs, gates, saved, d_outputs, d_h)
    arguments = (argument.contiguous() for argument in arguments)
    written = (d_projected, d_recurrent if d_recurrent.shape[0] else d_projected, carry)
    _launch(backward_kernel, outputs, weight_hh, *arguments, *written)
    return results


@_scan_backward.register_fake
def _gradients(
    weight_hh: Tensor,
    h: Tensor,
    c: Tensor | None,
    episode_starts: Tensor,
    outputs: Tensor,
    gates: Tensor,
    saved: Tensor,
    d_outputs: Tensor,
    d_h: Tensor,
    d_c: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    num_steps, batch_size, hidden_size = outputs.shape
    width = weight_hh.shape[0]
    return (
        h.new_empty(num_steps, batch_size, width),
        h.new_empty(num_steps if width == 3 * hidden_size else 0, batch_size, width),
        h.new_empty(0 if width == hidden_size else 2, batch_size, hidden_size),
    )


def _launch(kernel: triton.JITFunction, outputs: Tensor, weight_hh: Tensor, *tensors: Tensor) -> None:
    num_steps, batch_size, hidden_size = outputs.shape
    # TF32 in three products is float32 but for the last bit or two; AMD multiplies float32 as it is.
    exact = torch.version.hip is not None or outputs.dtype != torch.float32
    with torch.cuda.device_of(outputs):
        kernel[(triton.cdiv(batch_size, ROWS),)](
            *tensors,
            num_steps,
            batch_size,
            hidden_size,
            GATES=weight_hh.shape[0] // hidden_size,
            PRECISION="ieee" if exact else "tf32x3",
            **TILES,
        )


def _save(ctx: FunctionCtx, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, ...]) -> None:
    _, weight_hh, _, h, c, episode_starts = inputs
    outputs, _, _, gates, saved = output
    ctx.save_for_backward(weight_hh, h, c, episode_starts, outputs, gates, saved)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: FunctionCtx, d_outputs: Tensor | None, d_h: Tensor | None, d_c: Tensor | None, *_: None
) -> tuple[Tensor | None, ...]:
    weight_hh, h, c, episode_starts, outputs, gates, saved = ctx.saved_tensors
    d_outputs = torch.zeros_like(outputs) if d_outputs is None else d_outputs
    d_h = torch.zeros_like(h) if d_h is None else d_h
    if c is not None and d_c is None:
        d_c = torch.zeros_like(c)
    elif c is None:
        d_c = None
    arguments = (weight_hh, h, c, episode_starts, outputs, gates, saved, d_outputs, d_h, d_c)
    d_projected, d_recurrent, carry = _scan_backward(*arguments)
    if d_recurrent.shape[0] == 0:
        d_recurrent = d_projected
    previous_h = torch.cat((h[None], outputs[:-1])).masked_fill(episode_starts[..., None], 0)
    with torch.autocast(h.device.type, enabled=False):
        d_weight_hh = d_recurrent.flatten(0, 1).t() @ previous_h.flatten(0, 1)
        d_h = (d_recurrent[0] @ weight_hh).masked_fill(episode_starts[0, :, None], 0)
    if c is not None:
        d_c = carry[0]
    elif carry.shape[0]:
        d_h = d_h + carry[0]
    return d_projected, d_weight_hh, d_recurrent.sum((0, 1)), d_h, d_c, None


_scan.register_autograd(_backward, setup_context=_save)


# --------------------------------------------------------------------------------------------------------------- doors


def rnn_scan(
    projected: Tensor, weight_hh: Tensor, bias_hh: Tensor, h: Tensor, episode_starts: Tensor
) -> tuple[Tensor, Tensor]:
    """See `_rnn_reference.rnn_scan`."""
    outputs, h, *_ = _scan(projected, weight_hh, bias_hh, h, None, episode_starts)
    return outputs, h


gru_scan = rnn_scan  # the number of gates tells them apart


def lstm_scan(
    projected: Tensor, weight_hh: Tensor, bias_hh: Tensor, h: Tensor, c: Tensor, episode_starts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `_rnn_reference.lstm_scan`."""
    outputs, h, c, *_ = _scan(projected, weight_hh, bias_hh, h, c, episode_starts)
    return outputs, h, c


def self_check(device: torch.device) -> None:
    """Raise unless every kernel, compiled for this device, agrees with the reference in float64."""
    num_steps, batch_size, hidden_size = 3, ROWS + 1, 48
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(False), torch.enable_grad():
        for scan, expected_scan, num_gates in (
            (rnn_scan, _rnn_reference.rnn_scan, 1),
            (gru_scan, _rnn_reference.gru_scan, 3),
            (lstm_scan, _rnn_reference.lstm_scan, 4),
        ):
            width = num_gates * hidden_size
            shapes = [(num_steps, batch_size, width), (width, hidden_size), (width,), (batch_size, hidden_size)]
            shapes += shapes[3:] if num_gates == 4 else []
            leaves = [0.3 * torch.randn(shape, generator=generator, device="cpu") for shape in shapes]
            starts = torch.rand(num_steps, batch_size, generator=generator, device="cpu") < 0.2
            mine = _values_and_gradients(scan, [leaf.to(device) for leaf in leaves], starts.to(device))
            expected = _values_and_gradients(expected_scan, [leaf.double() for leaf in leaves], starts)
            for value, other in zip(mine, expected, strict=True):
                error = ((value.cpu() - other).abs().max() / other.abs().max()).item()
                if not error < SELF_CHECK_TOLERANCE:
                    raise ArithmeticError(f"the kernel with {num_gates} gates is off by {error:.1e} on {device}")


def _values_and_gradients(
    scan: Callable[..., tuple[Tensor, ...]], leaves: list[Tensor], starts: Tensor
) -> list[Tensor]:
    leaves = [leaf.requires_grad_() for leaf in leaves]
    results = scan(*leaves, starts)
    gradients = torch.autograd.grad([result.sin().sum() for result in results], leaves)
    return [value.detach() for value in (*results, *gradients)]
