"""The fast weight scan in pure torch, parallel within chunks of time; autograd makes the backward.

Within a chunk the writes u of the delta rule solve a unit lower triangular system (Yang et al. 2024, "Parallelizing
Linear Transformers with the Delta Rule"). Starts are masks on pairs of steps: they never enter as a decay, because a
decay of zero is a logarithm of minus infinity. What is not a number in the inputs spreads to the end of its chunk.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fwp_rl.ops._delay import scan_in_moving_frame


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
    """Chunks one after the other, each with four matrix products and one triangular solve."""
    if delay_heads:
        arguments = (q, k, v, beta, log_decay, state, episode_starts, rule, scale, delay_heads, n_inner)
        return scan_in_moving_frame(scan, *arguments)
    chunk_length = 16 if q.shape[-1] <= 16 else 32
    q, k, v = (x.permute(1, 2, 0, 3) for x in (scale * q, k, v))  # [B, H, T, K or V]
    beta = beta.permute(1, 2, 0)[..., None]  # [B, H, T, 1]
    if log_decay is not None:
        log_decay = (log_decay if log_decay.ndim == 4 else log_decay[..., None]).permute(1, 2, 0, 3)
    starts = episode_starts.permute(1, 0)[:, None]  # [B, 1, T]

    outputs = []
    for begin in range(0, q.shape[2], chunk_length):
        chunk = slice(begin, begin + chunk_length)
        decays = _decays(None if log_decay is None else log_decay[:, :, chunk], starts[..., chunk], q.dtype)
        output, state = _scan_chunk(
            q[:, :, chunk], k[:, :, chunk], v[:, :, chunk], beta[:, :, chunk], state, *decays, rule
        )
        outputs.append(output)
    return torch.cat(outputs, dim=2).permute(2, 0, 1, 3), state


def _decays(
    log_decay: Float[Tensor, "B H C k"] | None, starts: Bool[Tensor, "B 1 C"], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """What is left of step j at step i `[B, H, C, C, k]`, of the state at step i, of step j at the end `[B, H, C, k]`.

    k is 1 where all channels of a key decay alike, else K. Zero where a start lies between. The last entry of the
    second is what is left of the state at the end.
    """
    episode = starts.cumsum(-1)  # 0 before the first start of the chunk
    same_episode = (episode[..., :, None] == episode[..., None, :]).tril()
    if log_decay is None:
        pairs = same_episode.to(dtype)[..., None]
        from_state = (episode == 0).to(dtype)[..., None]
    else:
        # Summed within episodes, where a start has no decay: a sum over all would let rounding errors cross starts.
        total = same_episode.to(dtype) @ log_decay.masked_fill(starts[..., None], 0.0)
        # The mask goes inside the exponential: outside, exp may overflow and infinity times zero is not a number.
        differences = total[..., :, None, :] - total[..., None, :, :]
        pairs = differences.masked_fill(~same_episode[..., None], -torch.inf).exp()
        from_state = total.masked_fill((episode != 0)[..., None], -torch.inf).exp()
    return pairs, from_state, pairs[..., -1, :, :]


def _products(x: Float[Tensor, "B H C K"], k: Float[Tensor, "B H C K"], pairs: Float[Tensor, "B h C C k"]) -> Tensor:
    """What x of step i finds in k of step j, `[B, H, C, C]`."""
    if pairs.shape[-1] == 1:
        return pairs[..., 0] * (x @ k.mT)
    # Not the product of x exp(total) and k exp(-total), which overflows.
    return torch.einsum("bhik,bhjk,bhijk->bhij", x, k, pairs)


def _scan_chunk(
    q: Float[Tensor, "B H C K"],
    k: Float[Tensor, "B H C K"],
    v: Float[Tensor, "B H C V"],
    beta: Float[Tensor, "B H C 1"],
    state: Float[Tensor, "B H K V"],
    pairs: Float[Tensor, "B h C C k"],
    from_state: Float[Tensor, "B h C k"],
    to_end: Float[Tensor, "B h C k"],
    rule: str,
) -> tuple[Float[Tensor, "B H C V"], Float[Tensor, "B H K V"]]:
    # The masks multiply by zero, so what is not a number is taken out of the state and put back where it belongs.
    broken = ~state.sum((-1, -2), keepdim=True).isfinite()
    state = state.masked_fill(broken, 0.0)
    if rule == "delta":
        # u_i = beta_i (v_i - S^T (from_state_i k_i) - sum_{j<i} (k_i . pairs_ij k_j) u_j), solved and never inverted by
        # a series: near-identical keys, an agent that stands still, make the series diverge.
        system = (beta * _products(k, k, pairs)).tril(-1)
        right = beta * (v - (from_state * k) @ state)
        u = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    else:
        u = beta * v
    outputs = (from_state * q) @ state + _products(q, k, pairs) @ u
    state = from_state[..., -1:, :].mT * state + (to_end * k).mT @ u
    reached = broken & (from_state != 0).any(-1, keepdim=True)
    return outputs.masked_fill(reached, torch.nan), state.masked_fill(reached[..., -1:, :], torch.nan)
