"""`fast_weight_heads` on the CPU: the kernels of `_unit_numba` and `_numba`, and one for the gates, in a row.

Values are read where the projection left them, and gradients are written where its backward will look for them.
"""

from typing import Any

import torch  # before numba: the first to load OpenMP decides which copy both use
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

import numpy as np  # isort: skip
from numba import njit  # isort: skip
from fwp_rl.ops import _numba  # isort: skip
from fwp_rl.ops._numba import empty, number  # isort: skip
from fwp_rl.ops._simd import constant, load, size_of, store  # isort: skip
from fwp_rl.ops._unit_numba import scale_backward, scale_forward  # isort: skip
from fwp_rl.ops.fast_weight_heads import READ_EPSILON, UNIT_EPSILON  # isort: skip

# `logits`, `dlogits`: addresses of the strengths, with the decays behind them, and the stride of rows in bytes.
# `largest` carries the type of numbers.


@njit(cache=True, nogil=True)
def _gates(logits, stride, beta, decay, rows, heads, gated, largest):
    size, one = size_of(largest), constant(largest, 1)
    for row in range(rows):
        for head in range(heads):
            source = logits + row * stride + head * size
            store(beta, largest / (one + np.exp(-load(largest, source))))
            beta += size
            if gated:  # exp(-softplus(d)) = sigmoid(-d)
                store(decay, one / (one + np.exp(load(largest, source + heads * size))))
                decay += size


@njit(cache=True, nogil=True)
def _gates_backward(logits, stride, beta, dbeta, ddecay, dlogits, dstride, rows, heads, gated, largest):
    size, one = size_of(largest), constant(largest, 1)
    for row in range(rows):
        for head in range(heads):
            target = dlogits + row * dstride + head * size
            strength = load(largest, beta)
            store(target, load(largest, dbeta) * strength * (one - strength / largest))
            beta += size
            dbeta += size
            if gated:  # Not 1 - decay: that cancels where memory is long.
                logit = load(largest, logits + row * stride + (head + heads) * size)
                store(target + heads * size, -load(largest, ddecay) / (one + np.exp(-logit)))
                ddecay += size


def heads(
    projected: Float[Tensor, "T B P"],
    state: Float[Tensor, "B H K V"],
    episode_starts: Bool[Tensor, "T B"],
    rule: str,
    gated: bool,
    largest_strength: float,
) -> tuple[Float[Tensor, "T B Y"], Float[Tensor, "B H K V"]]:
    """See `fast_weight_heads`; both tensors of one dtype, K and V multiples of 16, T at least 1."""
    projected = projected.contiguous()
    if torch.is_grad_enabled() and (projected.requires_grad or state.requires_grad):
        y, final = _FastWeightHeads.apply(projected, state, episode_starts, rule, gated, largest_strength)
        return y, final
    y, final, *_ = _forward(projected, state, episode_starts, rule, gated, largest_strength, save=False)
    return y, final


def _forward(
    projected: Tensor, state: Tensor, starts: Tensor, rule: str, gated: bool, largest: float, *, save: bool
) -> tuple[Tensor, ...]:
    """y, final state, and what the backward needs."""
    time, batch, width = projected.shape
    _, n_heads, K, V = state.shape
    dtype, rows, stride = projected.dtype, time * batch, width * projected.element_size()
    units = empty((time, batch, 2 * n_heads, K), dtype)
    scales, beta = empty((rows, 2 * n_heads), dtype), empty((time, batch, n_heads), dtype)
    decay = empty(beta.shape, dtype) if gated else beta
    v, logits = _values(projected, n_heads, K, V)
    scale_forward(
        projected.data_ptr(), stride, units.data_ptr(), scales.data_ptr(), rows, 2 * n_heads, K,
        number(UNIT_EPSILON, dtype), number(1.0, dtype),
    )  # fmt: skip
    _gates(logits, stride, beta.data_ptr(), decay.data_ptr(), rows, n_heads, gated, number(largest, dtype))
    outputs, final, errors = _numba.forward(
        units[:, :, :n_heads], units[:, :, n_heads:], v, beta, decay, state, starts, rule, gated, 1.0, save=save
    )
    y, y_scales = empty((time, batch, n_heads * V), dtype), empty((rows, n_heads), dtype)
    scale_forward(
        outputs.data_ptr(), n_heads * V * outputs.element_size(), y.data_ptr(), y_scales.data_ptr(), rows, n_heads, V,
        number(READ_EPSILON * V, dtype), number(V**0.5, dtype),
    )  # fmt: skip
    return y, final, units, scales, beta, decay, outputs, errors, y_scales


class _FastWeightHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, projected: Tensor, state: Tensor, starts: Tensor, rule: str, gated: bool, largest: float
    ) -> tuple[Tensor, Tensor]:
        y, final, *intermediate = _forward(projected, state, starts, rule, gated, largest, save=True)
        ctx.save_for_backward(projected, state, starts, y, final, *intermediate)
        ctx.options = rule, gated, largest
        ctx.set_materialize_grads(False)
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor, Tensor, None, None, None, None]:
        projected, state, starts, y, final, units, scales, beta, decay, outputs, errors, y_scales = ctx.saved_tensors
        rule, gated, largest = ctx.options
        time, batch, width = projected.shape
        _, n_heads, K, V = state.shape
        dtype, rows, size = projected.dtype, time * batch, projected.element_size()
        doutputs = empty(outputs.shape, dtype)
        if dy is None:
            doutputs.zero_()
        else:
            dy = dy.contiguous()
            scale_backward(
                y.data_ptr(), y_scales.data_ptr(), dy.data_ptr(), n_heads * V * size,
                doutputs.data_ptr(), n_heads * V * size, rows, n_heads, V, number(V**0.5, dtype),
            )  # fmt: skip
        dprojected, dunits, dbeta = (empty(x.shape, dtype) for x in (projected, units, beta))
        ddecay = empty(beta.shape, dtype) if gated else None
        v, logits = _values(projected, n_heads, K, V)
        dv, dlogits = _values(dprojected, n_heads, K, V)
        dstate = _numba.backward(
            units[:, :, :n_heads], units[:, :, n_heads:], v, beta, decay, state, starts, outputs, final, errors,
            doutputs, dfinal, dunits[:, :, :n_heads], dunits[:, :, n_heads:], dv, dbeta, ddecay, rule, gated, 1.0,
        )  # fmt: skip
        scale_backward(
            units.data_ptr(), scales.data_ptr(), dunits.data_ptr(), 2 * n_heads * K * size,
            dprojected.data_ptr(), width * size, rows, 2 * n_heads, K, number(1.0, dtype),
        )  # fmt: skip
        _gates_backward(
            logits, width * size, beta.data_ptr(), dbeta.data_ptr(), (ddecay if gated else dbeta).data_ptr(),
            dlogits, width * size, rows, n_heads, gated, number(largest, dtype),
        )  # fmt: skip
        return dprojected, dstate, None, None, None, None


def _values(projected: Tensor, n_heads: int, K: int, V: int) -> tuple[Tensor, int]:
    """The values `[T, B, H, V]` within a dense projection, and the address of the logits behind them."""
    first = 2 * n_heads * K
    time, batch, width = projected.shape
    offset = projected.storage_offset() + first
    values = projected.as_strided((time, batch, n_heads, V), (batch * width, width, V, 1), offset)
    return values, projected.data_ptr() + (first + n_heads * V) * projected.element_size()
