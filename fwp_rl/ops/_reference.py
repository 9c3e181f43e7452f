"""The definition of the fast weight scan: a loop over time, written for the eye. All backends are tested on it."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def scan(
    q: Float[Tensor, "T B H K"],
    k: Float[Tensor, "T B H K"],
    v: Float[Tensor, "T B H V"],
    beta: Float[Tensor, "T B H"],
    log_decay: Float[Tensor, "T B H"] | Float[Tensor, "T B H K"] | None,
    state: Float[Tensor, "B H K V"],
    episode_starts: Bool[Tensor, "T B"],
    rule: str,
    scale: float,
    delay_heads: int = 0,
    n_inner: int = 1,
) -> tuple[Float[Tensor, "T B H V"], Float[Tensor, "B H K V"]]:
    """Any dtype, any number of derivatives; the formula is in `fast_weight_scan`."""
    outputs = []
    for t in range(q.shape[0]):
        # A fill, not a product: a start also clears what is not a number.
        state = state.masked_fill(episode_starts[t, :, None, None, None], 0.0)
        if delay_heads and t % n_inner == 0:
            moving, still = state[:, :delay_heads], state[:, delay_heads:]
            moving = torch.cat([-moving[:, :, -1:], moving[:, :, :-1]], dim=2)
            state = torch.cat([moving, still], dim=1)
        if log_decay is not None:
            decay = log_decay[t].exp()[..., None]
            state = (decay if log_decay.ndim == 4 else decay[..., None]) * state
        target = v[t]
        if rule == "delta":
            target = target - torch.einsum("bhkv,bhk->bhv", state, k[t])
        state = state + torch.einsum("bh,bhk,bhv->bhkv", beta[t], k[t], target)
        outputs.append(scale * torch.einsum("bhkv,bhk->bhv", state, q[t]))
    return torch.stack(outputs), state
