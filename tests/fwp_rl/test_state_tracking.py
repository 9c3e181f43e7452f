"""What the update rule can do, by hand-set writes: store, replace, count modulo two and permute; and its bound."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fwp_rl.ops import fast_weight_scan

H, K, V = 2, 3, 5
BACKENDS = ["reference", "chunked", "numba"]


def scan(k: Tensor, v: Tensor, beta: Tensor, state: Tensor, *, q: Tensor | None = None, **options: Any) -> Any:
    """One row; k `[T, H, K]`, v `[T, H, V]`, beta `[T, H]`, state `[H, K, V]`; reads with the keys unless told."""
    starts = torch.zeros(len(k), 1, dtype=torch.bool)
    q = k if q is None else q
    y, state = fast_weight_scan(q[:, None], k[:, None], v[:, None], beta[:, None], state[None], starts, **options)
    return y[:, 0], state[0]


def empty() -> Tensor:
    return torch.zeros(H, K, V, dtype=torch.float64)


def key(index: int, size: int = K) -> Tensor:
    """The same basis vector for all heads, `[H, K]`."""
    return F.one_hot(torch.tensor([index] * H), size).double()


def strengths(*beta: float) -> Tensor:
    return torch.tensor(beta, dtype=torch.float64)[:, None].expand(-1, H)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", ["delta", "additive"])
def test_a_written_value_is_read_back_and_an_orthogonal_one_is_left_alone(rule: str, backend: str) -> None:
    """Red if the read comes before the write, or if a write erases along values instead of keys."""
    v = torch.randn(3, H, V, dtype=torch.float64)
    k = torch.stack([key(0), key(1), key(2)])
    y, state = scan(k, v, strengths(1, 1, 1), empty(), rule=rule, backend=backend)
    assert torch.equal(y, v)
    assert torch.equal(state, v.transpose(0, 1))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("rule", "expected"), [("delta", lambda a, b: b), ("additive", lambda a, b: a + b)])
def test_a_second_write_replaces_and_without_the_delta_rule_adds(rule: str, expected: Any, backend: str) -> None:
    """Red if the rule is ignored."""
    v = torch.randn(2, H, V, dtype=torch.float64)
    y, _ = scan(torch.stack([key(1), key(1)]), v, strengths(1, 1), empty(), rule=rule, backend=backend)
    torch.testing.assert_close(y[1], expected(v[0], v[1]), atol=1e-15, rtol=1e-15)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_partial_write_mixes_old_and_new(backend: str) -> None:
    """Red if the strength scales the write but not the erasure."""
    v = torch.randn(2, H, V, dtype=torch.float64)
    k = F.normalize(torch.randn(H, K, dtype=torch.float64), dim=-1).expand(2, H, K)
    y, _ = scan(k, v, strengths(1, 0.3), empty(), backend=backend)
    torch.testing.assert_close(y[1], 0.7 * v[0] + 0.3 * v[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_decay_of_one_is_no_decay(backend: str) -> None:
    """Red if the decay is applied as a logarithm, or to the write."""
    k = F.normalize(torch.randn(40, H, K, dtype=torch.float64), dim=-1)
    v, state = torch.randn(40, H, V, dtype=torch.float64), torch.randn(H, K, V, dtype=torch.float64)
    beta = 2 * torch.rand(40, H, dtype=torch.float64)
    y, final = scan(k, v, beta, state, backend=backend)
    gated, gated_final = scan(k, v, beta, state, log_decay=torch.zeros(40, 1, H).double(), backend=backend)
    torch.testing.assert_close(gated, y, atol=1e-12, rtol=0)
    torch.testing.assert_close(gated_final, final, atol=1e-12, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_parity_is_tracked_exactly_over_a_thousand_bits(backend: str) -> None:
    """Red if the strength is clipped at 1: a write of strength 2 and value 0 flips the sign of what its key recalls."""
    bits = torch.rand(1000) < 0.5
    beta = (2.0 * bits).double()[:, None].expand(-1, H)
    one = torch.ones(H, V, dtype=torch.float64)
    state = empty()
    state[:, 0] = one
    y, _ = scan(key(0).expand(1000, H, K), torch.zeros(1000, H, V).double(), beta, state, backend=backend)
    expected = 1.0 - 2.0 * (bits.cumsum(0) % 2)
    assert torch.equal(y, expected[:, None, None] * one)


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_reflections_turn_a_three_cycle(backend: str) -> None:
    """Red if the order of erasures is reversed: the cycle would turn the other way. One reflection swaps two places."""

    def swap(a: int, b: int) -> Tensor:
        return (key(a) - key(b)) / math.sqrt(2)

    k = torch.stack([swap(0, 1), swap(1, 2)] * 7)
    contents = torch.randn(H, K, V, dtype=torch.float64)
    zeros = torch.zeros(1, H, V, dtype=torch.float64)
    _, once = scan(k[:1], zeros, strengths(2), contents, backend=backend)
    torch.testing.assert_close(once, contents[:, [1, 0, 2]])
    for turns in range(1, 8):
        _, state = scan(
            k[: 2 * turns], zeros.expand(2 * turns, H, V), strengths(*[2] * 2 * turns), contents, backend=backend
        )
        # Swap the first two, then the last two: 0 1 2 -> 1 0 2 -> 1 2 0.
        torch.testing.assert_close(state, contents.roll(-turns, dims=1))


STEPS = 100_000


def worst_case(beta: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values that reach the bound: S stays u a^T, and each key meets a at the angle at which |a| grows most.

    |S|_F^2 grows by beta / (2 - beta) |v|^2 at most, and does where S^T k = (1 - beta) / (2 - beta) v.
    """
    strengths, keys = beta.tolist(), []
    x, y = 0.0, 0.0
    for strength in strengths:
        length = math.hypot(x, y)
        along = (1 - strength) / (2 - strength) / length if length else 0.0
        if abs(along) > 1:
            along = math.copysign(1.0, along)
        across = math.sqrt(1 - along * along)
        unit_x, unit_y = (x / length, y / length) if length else (1.0, 0.0)
        key_x, key_y = along * unit_x - across * unit_y, along * unit_y + across * unit_x
        keys.append((key_x, key_y, 0.0))
        correction = strength * (1 - (x * key_x + y * key_y))
        x, y = x + correction * key_x, y + correction * key_y
    return torch.tensor(keys, dtype=torch.float64), F.one_hot(torch.tensor([2] * len(keys)), V).double()


def test_fast_weights_never_outgrow_their_bound() -> None:
    """Red if a key is longer than 1 or the erasure is incomplete: |S|^2 <= |S_0|^2 + sum beta / (2 - beta) |v|^2 for
    unit keys and beta in (0, 2), here over 10^5 steps of what is worst for it. In the first head the inputs are made to
    reach the bound, in the second the same key is written with values that alternate.
    """
    beta = 0.02 + 1.96 * torch.rand(STEPS, H, dtype=torch.float64)
    worst_keys, worst_values = worst_case(beta[:, 0])
    k = torch.stack([worst_keys, key(1)[0].expand(STEPS, K)], dim=1)
    alternating = torch.randn(V, dtype=torch.float64) * (1 - 2 * (torch.arange(STEPS) % 2))[:, None]
    v = torch.stack([worst_values, alternating], dim=1)
    state = empty()
    state[1] = torch.randn(K, V, dtype=torch.float64)
    start = state.square().sum((-2, -1))
    bound = start + (beta / (2 - beta) * v.square().sum(-1)).cumsum(0)
    for first in range(0, STEPS, 500):
        part = slice(first, first + 500)
        _, state = scan(k[part], v[part], beta[part], state)
        assert (state.square().sum((-2, -1)) <= bound[first + 499] * (1 + 1e-9)).all()
    reached = state[0].square().sum() / bound[-1, 0]
    assert 0.99 < reached <= 1 + 1e-9  # else the adversary was none
