"""Delay heads for scans that know nothing of them: the frame in which their fast weights do not move.

    P e_i = e_{i+1},  P e_{K-1} = -e_0            a signed cyclic shift of the rows: orthogonal, P^2K = 1

With R_t = P^-(t+1) S_t the update S_t = (1 - beta k k^T) alpha P S_{t-1} + beta k v^T is one without P, for keys and
queries P^-(t+1) k_t and P^-(t+1) q_t. A start changes nothing of that: it clears R as it clears S.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def scan_in_moving_frame(
    scan: Callable[..., tuple[Tensor, Tensor]],
    q: Float[Tensor, "T B H K"],
    k: Float[Tensor, "T B H K"],
    v: Float[Tensor, "T B H V"],
    beta: Float[Tensor, "T B H"],
    log_decay: Float[Tensor, "T B H"] | Float[Tensor, "T B H K"] | None,
    state: Float[Tensor, "B H K V"],
    episode_starts: Bool[Tensor, "T B"],
    rule: str,
    scale: float,
    delay_heads: int,
    n_inner: int,
) -> tuple[Float[Tensor, "T B H V"], Float[Tensor, "B H K V"]]:
    """Outputs and final state of `scan`, with the first heads as delay heads; see `fast_weight_scan`."""
    if log_decay is not None and log_decay.ndim == 4:
        log_decay = in_moving_frame(log_decay, delay_heads, n_inner, signed=False)
    q, k = (in_moving_frame(x, delay_heads, n_inner) for x in (q, k))
    outputs, state = scan(q, k, v, beta, log_decay, state, episode_starts, rule, scale)
    return outputs, moved(state, delay_heads, len(q) // n_inner)


def in_moving_frame(
    x: Float[Tensor, "T B H K"], delay_heads: int, n_inner: int, *, signed: bool = True
) -> Float[Tensor, "T B H K"]:
    """P^-(t+1) x_t for the first heads, t counted in steps of `n_inner`; without signs for what belongs to a row."""
    steps, key_size = x.shape[0], x.shape[-1]
    turns = torch.arange(steps, device=x.device)[:, None] // n_inner + 1
    places = (torch.arange(key_size, device=x.device) + turns) % (2 * key_size)  # [T, K]
    moving = x[:, :, :delay_heads]
    moving = moving.gather(-1, (places % key_size)[:, None, None].expand_as(moving))
    if signed:
        moving = moving * torch.where(places < key_size, 1.0, -1.0).to(x.dtype)[:, None, None]
    return torch.cat([moving, x[:, :, delay_heads:]], dim=2)


def moved(state: Float[Tensor, "B H K V"], delay_heads: int, n_steps: int) -> Float[Tensor, "B H K V"]:
    """P^n S for the first heads; the other heads stay."""
    key_size = state.shape[2]
    places = (torch.arange(key_size, device=state.device) - n_steps) % (2 * key_size)
    signs = torch.where(places < key_size, 1.0, -1.0).to(state.dtype)
    return torch.cat([state[:, :delay_heads, places % key_size] * signs[:, None], state[:, delay_heads:]], dim=1)
