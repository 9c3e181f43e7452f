"""Oja's rule in the terms of the fast weight scan."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fwp_rl.ops.fast_weight_scan import fast_weight_scan


def oja_keys(
    k: Float[Tensor, "T B H K"],
    v: Float[Tensor, "T B H V"],
    beta: Float[Tensor, "T B H"],
    state: Float[Tensor, "B H K V"],
    episode_starts: Bool[Tensor, "T B"],
) -> Float[Tensor, "T B H K"]:
    """The keys u under which v is added to the fast weights: what v does not bring to mind yet.

        u_t = beta_t (k_t - S_{t-1} v_t)     S_t = S_{t-1} + u_t v_t^T

    Oja 1982; as fast weights Irie et al. 2022 (arXiv 2206.01649). S^T obeys the delta rule with v for a key and k for a
    value, so that one scan finds all u; a scan that only adds then writes and reads. For starts and dtypes see
    `fast_weight_scan`.
    """
    # What v recalls *before* its write: a step that only reads, then one that writes.
    recalled, _ = fast_weight_scan(
        _twice(v, v),
        _twice(v, v),
        _twice(k, k),
        _twice(torch.zeros_like(beta), beta),
        state.mT,
        _twice(episode_starts, torch.zeros_like(episode_starts)),
    )
    return beta[..., None] * (k - recalled[::2])


def _twice(first: Tensor, second: Tensor) -> Tensor:
    """Two steps in the place of each."""
    return torch.stack([first, second], dim=1).flatten(0, 1)
