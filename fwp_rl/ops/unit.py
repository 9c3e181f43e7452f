"""Vectors of a fixed length: what keys and queries are, and how what was read is normalised.

    y = length * x / sqrt(|x|^2 + epsilon)

On the CPU one compiled pass forward and one backward (`_unit_numba`), elsewhere torch.
"""

import importlib

import torch
from jaxtyping import Float
from torch import Tensor

from fwp_rl.ops.fast_weight_scan import resolve_backend


def unit(
    x: Float[Tensor, "*batch D"], size: int, *, epsilon: float = 1e-6, length: float = 1.0
) -> Float[Tensor, "*batch D"]:
    """`x`, whose last axis holds vectors of `size` numbers side by side, with each of them scaled to `length`.

    Keys must not be longer than 1: the delta rule erases by I - beta k k^T, which explodes for beta |k|^2 > 2.
    `epsilon` keeps the gradient finite at zero. Computes in float32 at least.
    """
    if x.shape[-1] % size:
        raise ValueError(f"the last axis of x must be a multiple of size={size}, got {list(x.shape)}")
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if resolve_backend("auto", x.device) == "numba":
        y: Tensor = importlib.import_module("fwp_rl.ops._unit_numba").unit(x, size, epsilon, length)
        return y
    vectors = x.unflatten(-1, (-1, size))
    return (vectors * (length * (vectors.square().sum(-1, keepdim=True) + epsilon).rsqrt())).flatten(-2)
