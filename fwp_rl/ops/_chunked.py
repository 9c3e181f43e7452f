"""The fast weight scan in pure torch, parallel within chunks of time; autograd makes the backward.

Within a chunk the writes u of the delta rule solve a unit lower triangular system (Yang et al. 2024, "Parallelizing
Linear Transformers with the Delta Rule"). Starts are masks on pairs of steps: they never enter as a decay, because a
decay of zero is a logarithm of minus infinity. What is not a number in the inputs spreads to the end of its chunk.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def scan(
    q: Float[Tensor, "T B H K"],
    k: Float[Tensor, "T B H K"],
    v: Float[Tensor, "T B H V"],
    beta: Float[Tensor, "T B H"],
    log_decay: Float[Tensor, "T B H"] | None,
    state: Float[Tensor, "B H K V"],
    episode_starts: Bool[Tensor, "T B"],
    rule: str,
    scale: float,
) -> tuple[Float[Tensor, "T B H V"], Float[Tensor, "B H K V"]]:
    """Chunks one after the other, each with four matrix products and one triangular solve."""
    chunk_length = 16 if q.shape[-1] <= 16 else 32
    q, k, v = (x.permute(1, 2, 0, 3) for x in (scale * q, k, v))  # [B, H, T, K or V]
    beta = beta.permute(1, 2, 0)[..., None]  # [B, H, T, 1]
    if log_decay is not None:
        log_decay = log_decay.permute(1, 2, 0)
    starts = episode_starts.permute(1, 0)[:, None]  # [B, 1, T]

    outputs = []
    for begin in range(0, q.shape[2], chunk_length):
        chunk = slice(begin, begin + chunk_length)
        decays = _decays(None if log_decay is None else log_decay[..., chunk], starts[..., chunk], q.dtype)
        output, state = _scan_chunk(
            q[:, :, chunk], k[:, :, chunk], v[:, :, chunk], beta[:, :, chunk], state, *decays, rule
        )
        outputs.append(output)
    return torch.cat(outputs, dim=2).permute(2, 0, 1, 3), state


def _decays(
    log_decay: Float[Tensor, "B H C"] | None, starts: Bool[Tensor, "B 1 C"], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """What is left of step j at step i `[B, H, C, C]`, of the state at step i, and of step j at the end `[B, H, C, 1]`.

    Zero where a start lies between. The last entry of the second is what is left of the state at the end.
    """
    episode = starts.cumsum(-1)  # 0 before the first start of the chunk
    same_episode = (episode[..., :, None] == episode[..., None, :]).tril()
    if log_decay is None:
        pairs = same_episode.to(dtype)
        from_state = (episode == 0).to(dtype)[..., None]
    else:
        # Summed within episodes, where a start has no decay: a sum over all would let rounding errors cross starts.
        total = (same_episode.to(dtype) @ log_decay.masked_fill(starts, 0.0)[..., None])[..., 0]
        # The mask goes inside the exponential: outside, exp may overflow and infinity times zero is not a number.
        pairs = (total[..., :, None] - total[..., None, :]).masked_fill(~same_episode, -torch.inf).exp()
        from_state = total.masked_fill(episode != 0, -torch.inf).exp()[..., None]
    return pairs, from_state, pairs[..., -1, :, None]


def _scan_chunk(
    q: Float[Tensor, "B H C K"],
    k: Float[Tensor, "B H C K"],
    v: Float[Tensor, "B H C V"],
    beta: Float[Tensor, "B H C 1"],
    state: Float[Tensor, "B H K V"],
    pairs: Float[Tensor, "B h C C"],
    from_state: Float[Tensor, "B h C 1"],
    to_end: Float[Tensor, "B h C 1"],
    rule: str,
) -> tuple[Float[Tensor, "B H C V"], Float[Tensor, "B H K V"]]:
    # The masks multiply by zero, so what is not a number is taken out of the state and put back where it belongs.
    broken = ~state.sum((-1, -2), keepdim=True).isfinite()
    state = state.masked_fill(broken, 0.0)
    if rule == "delta":
        # u_i = beta_i (v_i - from_state_i S^T k_i - sum_{j<i} pairs_ij (k_i . k_j) u_j), solved and never inverted by
        # a series: near-identical keys, an agent that stands still, make the series diverge.
        system = (beta * pairs * (k @ k.mT)).tril(-1)
        right = beta * (v - from_state * (k @ state))
        u = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    else:
        u = beta * v
    outputs = from_state * (q @ state) + (pairs * (q @ k.mT)) @ u
    state = from_state[..., -1:, :] * state + (to_end * k).mT @ u
    reached = broken & (from_state != 0)
    return outputs.masked_fill(reached, torch.nan), state.masked_fill(reached[..., -1:, :], torch.nan)
