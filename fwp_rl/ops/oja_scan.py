"""Oja's rule as two fast weight scans."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fwp_rl.ops.fast_weight_scan import fast_weight_scan


def oja_scan(
    q: Float[Tensor, "T B H K"],
    k: Float[Tensor, "T B H K"],
    v: Float[Tensor, "T B H V"],
    beta: Float[Tensor, "T B H"],
    state: Float[Tensor, "B H K V"],
    episode_starts: Bool[Tensor, "T B"],
) -> tuple[Float[Tensor, "T B H V"], Float[Tensor, "B H K V"]]:
    """Write v under what of k the value does not yet bring to mind, then read with q: outputs and final state.

        u_t = beta_t (k_t - S_{t-1} v_t)
        S_t = S_{t-1} + u_t v_t^T     y_t = S_t^T q_t

    Oja 1982; as fast weights Irie et al. 2022 (arXiv 2206.01649). The transposed state obeys the delta rule with v for
    a key and k for a value, so that a first scan finds all u; a second, which only adds, writes and reads. For starts
    and dtypes see `fast_weight_scan`.
    """
    # What v recalls *before* its write: a step that only reads, then one that writes.
    nothing = torch.zeros_like(beta)
    recalled, _ = fast_weight_scan(
        _twice(v, v),
        _twice(v, v),
        _twice(k, k),
        _twice(nothing, beta),
        state.mT,
        _twice(episode_starts, torch.zeros_like(episode_starts)),
    )
    u = beta[..., None] * (k - recalled[::2])
    return fast_weight_scan(q, u, v, torch.ones_like(beta), state, episode_starts, rule="additive")


def _twice(first: Tensor, second: Tensor) -> Tensor:
    """Two steps in the place of each."""
    return torch.stack([first, second], dim=1).flatten(0, 1)
