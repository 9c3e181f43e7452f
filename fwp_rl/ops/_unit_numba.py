"""`unit` as compiled loops for the CPU: each vector is read once forward and once backward.

With s = 1 / sqrt(|x|^2 + epsilon) and y = length s x, the gradient is s (length g - y (y . g) / length).
"""

from typing import Any

import torch  # before numba: the first to load OpenMP decides which copy both use
from torch import Tensor
from torch.autograd.function import once_differentiable

import numpy as np  # isort: skip
from numba import njit  # isort: skip
from fwp_rl.ops._jit import CALLED, KERNEL  # isort: skip
from fwp_rl.ops._simd import constant, load, multiply, multiply_add, size_of, store, total, zeros  # isort: skip

WIDTH = 8
"""Numbers of a tile; a vector's last few are done one by one."""

# A tensor reaches a kernel as its address and the stride of its rows in bytes; `length` carries the type of numbers.


@njit(forceinline=True, **CALLED)
def _dot(x, y, size, like):
    number, tile = size_of(like), zeros(like, WIDTH)
    whole = size - size % WIDTH
    products = tile
    for i in range(0, whole * number, WIDTH * number):
        products = multiply_add(load(tile, x + i), load(tile, y + i), products)
    result = total(products)
    for i in range(whole * number, size * number, number):
        result += load(like, x + i) * load(like, y + i)
    return result


@njit(**CALLED)
def scale_vector(source, target, size, epsilon, length):
    """Write y = length s x; returns s."""
    number, tile, one = size_of(length), zeros(length, WIDTH), constant(length, 1)
    whole = size - size % WIDTH
    scale = one / np.sqrt(_dot(source, source, size, length) + epsilon)
    factor = scale * length
    for i in range(0, whole * number, WIDTH * number):
        store(target + i, multiply(factor, load(tile, source + i)))
    for i in range(whole * number, size * number, number):
        store(target + i, factor * load(length, source + i))
    return scale


@njit(**CALLED)
def scale_vector_backward(y, scale, grad, target, size, length):
    """Write the gradient of x; `target` may be `grad`."""
    number, tile, one = size_of(length), zeros(length, WIDTH), constant(length, 1)
    whole = size - size % WIDTH
    along = -scale * _dot(grad, y, size, length) * (one / length)
    across = scale * length
    for i in range(0, whole * number, WIDTH * number):
        store(target + i, multiply_add(along, load(tile, y + i), multiply(across, load(tile, grad + i))))
    for i in range(whole * number, size * number, number):
        store(target + i, along * load(length, y + i) + across * load(length, grad + i))


@njit(**KERNEL)
def _scale_forward(x, x_stride, y, scales, rows, groups, size, epsilon, length):
    number = size_of(length)
    for row in range(rows):
        for group in range(groups):
            store(scales, scale_vector(x + row * x_stride + group * size * number, y, size, epsilon, length))
            y += size * number
            scales += number


@njit(**KERNEL)
def _scale_backward(y, scales, grad, grad_stride, dx, dx_stride, rows, groups, size, length):
    number = size_of(length)
    for row in range(rows):
        for group in range(groups):
            vector = group * size * number
            source, target = grad + row * grad_stride + vector, dx + row * dx_stride + vector
            scale_vector_backward(y, load(length, scales), source, target, size, length)
            y += size * number
            scales += number


def unit(x: Tensor, size: int, epsilon: float, length: float) -> Tensor:
    """See `fwp_rl.ops.unit.unit`; float32 or float64."""
    if torch.is_grad_enabled() and x.requires_grad:
        y: Tensor = _Unit.apply(x, size, epsilon, length)
        return y
    return _forward(x, size, epsilon, length)[0]


def _forward(x: Tensor, size: int, epsilon: float, length: float) -> tuple[Tensor, Tensor]:
    x, stride = _as_rows(x)
    rows, groups = x.numel() // x.shape[-1], x.shape[-1] // size
    y = torch.empty(x.shape, dtype=x.dtype)
    scales = torch.empty(rows, groups, dtype=x.dtype)
    number = np.float32 if x.dtype == torch.float32 else np.float64
    _scale_forward(
        x.data_ptr(), stride, y.data_ptr(), scales.data_ptr(), rows, groups, size, number(epsilon), number(length)
    )
    return y, scales


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, epsilon: float, length: float) -> Tensor:
        y, scales = _forward(x, size, epsilon, length)
        ctx.save_for_backward(y, scales)
        ctx.length = length
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        y, scales = ctx.saved_tensors
        grad, stride = _as_rows(grad)
        dx = torch.empty(y.shape, dtype=y.dtype)
        rows, groups = scales.shape
        number = np.float32 if y.dtype == torch.float32 else np.float64
        _scale_backward(
            y.data_ptr(), scales.data_ptr(), grad.data_ptr(), stride, dx.data_ptr(), y.shape[-1] * y.element_size(),
            rows, groups, y.shape[-1] // groups, number(ctx.length),
        )  # fmt: skip
        return dx, None, None, None


def _as_rows(x: Tensor) -> tuple[Tensor, int]:
    """`x` as rows at equal distances, dense within a row; and that distance in bytes."""
    shape, strides = x.shape, x.stride()
    apart = strides[-2] if x.ndim > 1 else shape[-1]
    is_regular = strides[-1] == 1 and all(
        strides[i] == strides[i + 1] * shape[i + 1] or shape[i] == 1 for i in range(x.ndim - 2)
    )
    if not is_regular:
        x, apart = x.contiguous(), shape[-1]
    return x, apart * x.element_size()
