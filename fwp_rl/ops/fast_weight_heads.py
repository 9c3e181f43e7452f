"""Fast-weight heads: all that happens between the projection and the readout of a first-order fast-weight memory.

    q, k, v, s, d = split(projected)
    beta = strength sigmoid(s);   log_decay = -softplus(d)         the gates of each head; d may be one for each channel
    y = rms_norm(fast_weight_scan(unit(q), unit(k), v, beta, log_decay) + skip v)    of each head

Small operations, and many: on the CPU `_heads_numba` does them in a few compiled passes, which halves the time of a
step. Elsewhere they are put together from `unit` and `fast_weight_scan`.
"""

import importlib

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from fwp_rl.ops.fast_weight_scan import Rule, check_delay, fast_weight_scan, resolve_backend
from fwp_rl.ops.unit import unit

UNIT_EPSILON = 1e-6
READ_EPSILON = 1e-3
"""Of the mean square of what a head reads; large: an almost empty memory is not blown up to full scale."""


def fast_weight_heads(
    projected: Float[Tensor, "T B P"],
    skip: Float[Tensor, " H"],
    state: Float[Tensor, "B H K V"],
    episode_starts: Bool[Tensor, "T B"],
    *,
    rule: Rule = "delta",
    gated: bool = False,
    largest_strength: float = 1.0,
    delay_heads: int = 0,
    n_inner: int = 1,
) -> tuple[Float[Tensor, "T B Y"], Float[Tensor, "B H K V"]]:
    """What the heads read, side by side and normalised (Y = H V), and the final state.

    `projected` holds for each step, heads side by side: queries, keys (both are scaled to length 1), values, the logits
    of the write strengths (between 0 and `largest_strength`) and, if gated, of the decays, one for each head or one for
    each channel of its keys, which the width tells: P = H (2 K + V + 1 [+ 1 or K]). `skip` is how much of the present
    value a head adds to what it reads. For the rules, delay heads, starts and dtypes see `fast_weight_scan`.
    """
    _, heads, key_size, value_size = state.shape
    sizes = _split_sizes(heads, key_size, value_size, gated)
    width, n_decays = projected.shape[-1], projected.shape[-1] - sum(sizes[:4])
    if width != sum(sizes) and not (gated and n_decays == heads * key_size):
        raise ValueError(f"the last axis of projected must be {' + '.join(map(str, sizes))}, got {width}")
    if (
        resolve_backend("auto", state.device) == "numba"
        and projected.dtype == skip.dtype == state.dtype
        and projected.numel()
        and key_size % 16 == value_size % 16 == 0
        and n_decays <= heads
    ):
        compiled = importlib.import_module("fwp_rl.ops._heads_numba")
        check_delay(delay_heads, n_inner, len(projected), heads)
        options = rule, gated, largest_strength, delay_heads, n_inner
        y, state = compiled.heads(projected, skip, state, episode_starts, *options)
        return y, state
    q, k, v, beta, log_decay = head_arguments(projected, heads, key_size, value_size, largest_strength)
    y, state = fast_weight_scan(
        q,
        k,
        v,
        beta,
        state,
        episode_starts,
        log_decay=log_decay,
        rule=rule,
        delay_heads=delay_heads,
        n_inner=n_inner,
    )
    y = y + skip[:, None] * v
    return unit(y.flatten(-2), value_size, epsilon=READ_EPSILON * value_size, length=value_size**0.5), state


def head_arguments(
    projected: Float[Tensor, "T B P"], heads: int, key_size: int, value_size: int, largest_strength: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """q, k, v, beta and log_decay for `fast_weight_scan`: the projection split, keys made unit, gates opened."""
    sizes = _split_sizes(heads, key_size, value_size, gated=False)
    q, k, v, strength, decay = projected.split([*sizes, projected.shape[-1] - sum(sizes)], dim=-1)
    if decay.shape[-1] > heads:
        decay = decay.unflatten(-1, (heads, key_size))
    return (
        unit(q, key_size, epsilon=UNIT_EPSILON).unflatten(-1, (heads, key_size)),
        unit(k, key_size, epsilon=UNIT_EPSILON).unflatten(-1, (heads, key_size)),
        v.unflatten(-1, (heads, value_size)),
        largest_strength * torch.sigmoid(strength),
        -F.softplus(decay) if decay.shape[-1] > 0 else None,
    )


def _split_sizes(heads: int, key_size: int, value_size: int, gated: bool) -> list[int]:
    keys = heads * key_size
    return [keys, keys, heads * value_size, heads] + ([heads] if gated else [])
