"""One step of a whole fast-weight block, compiled: what the memory costs in a rollout."""

import importlib
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fwp_rl.ops.fast_weight_scan import Rule, resolve_backend

MOST_ROWS = 128
"""Rows from which on a product of matrices in torch, with all its threads, is faster."""


class BlockWeights(NamedTuple):
    """The parameters of `fwp_rl.layers.FastWeightBlock` behind its encoder; F: width of the feed-forward layer."""

    norm: Float[Tensor, " W"]
    norm_bias: Float[Tensor, " W"]
    project: Float[Tensor, "P W"]
    project_bias: Float[Tensor, " P"]
    skip: Float[Tensor, " H"]
    readout: Float[Tensor, "W Y"]
    feed_forward_norm: Float[Tensor, " W"]
    feed_forward_norm_bias: Float[Tensor, " W"]
    up: Float[Tensor, "F W"]
    up_bias: Float[Tensor, " F"]
    down: Float[Tensor, "W F"]
    down_bias: Float[Tensor, " W"]


def block_step(
    x: Float[Tensor, "B W"],
    weights: BlockWeights,
    state: Float[Tensor, "B H K V"],
    episode_starts: Bool[Tensor, " B"],
    *,
    rule: Rule,
    largest_strength: float,
    delay_heads: int = 0,
) -> tuple[Float[Tensor, "B W"], Float[Tensor, "B H K V"]] | None:
    """The residual stream x behind the block, and the new state; without gradient.

    None where there is nothing compiled for these sizes, dtypes or this device: then take the operations one by one.
    """
    _, heads, key_size, value_size = state.shape
    sizes = (x.shape[-1], key_size, weights.up.shape[0], value_size // 2)
    if (
        len(x) > MOST_ROWS
        or len(weights.project) > heads * (2 * key_size + value_size + 2)  # a decay for each channel of the keys
        or any(size % 8 for size in sizes)
        or not x.dtype == weights.project.dtype == state.dtype
        or resolve_backend("auto", state.device) != "numba"
        or torch.is_autocast_enabled(state.device.type)
    ):
        return None
    step = importlib.import_module("fwp_rl.ops._block_numba").step
    result: tuple[Tensor, Tensor] = step(
        x, weights, state, episode_starts, rule == "delta", largest_strength, delay_heads
    )
    return result
