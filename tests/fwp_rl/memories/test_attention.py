"""Attention over a window against its definition: one row, one head, one step and one distance at a time."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fwp_rl import build_memory
from fwp_rl.memories.attention import AttentionConfig
from fwp_rl.state import state_leaves
from fwp_rl.testing import check_memory

B, D, W, H, K, V = 3, 11, 10, 2, 5, 7
SIZES = {"width": W, "n_heads": H, "key_size": K, "value_size": V}
WINDOW = 6
PERIOD = 8 * WINDOW
LENGTHS = [1, 2, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW + 5]


def make(window: int = WINDOW, dtype: torch.dtype = torch.float64) -> Any:
    """A memory with no parameter at 0 or 1."""
    memory = AttentionConfig(**SIZES, window=window).build(D).to(dtype)
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return memory


def used_state(memory: Any, n_steps: int) -> Any:
    """Row 0 is full and about to be counted from 0 again, row 1 holds one step, row 2 none."""
    starts = torch.zeros(n_steps, B, dtype=torch.bool)
    starts[-1, 1] = True
    with torch.no_grad():
        inputs = torch.randn(n_steps, B, D, dtype=memory.norm.weight.dtype)
        _, state = memory.scan(inputs, memory.initial_state(B), starts)
    for leaf in state_leaves(state):
        leaf[2] = 0.0
        leaf.requires_grad_()
    return state


def turned(x: Tensor, steps: Tensor, turns: list[int], period: int) -> Tensor:
    """Pairs of channels i and i + K // 2, each turned by its angle for so many steps."""
    parts, half = list(x.unbind()), len(turns)
    for i, n in enumerate(turns):
        angle = 2 * math.pi * n / period * steps.detach()  # counted in whole steps: no gradient
        a, b = x[i], x[half + i]
        parts[i] = a * angle.cos() - b * angle.sin()
        parts[half + i] = a * angle.sin() + b * angle.cos()
    return torch.stack(parts)


def by_definition(memory: Any, inputs: Tensor, state: Any, starts: Tensor) -> tuple[Tensor, Tensor | None]:
    """Softmax over the last steps of the episode, with keys turned back by how long ago they were."""
    window = memory.config.window
    period, block = 8 * window, memory.block
    fastest = period / (2 * math.pi)
    turns = [round(fastest ** (1 - i / max(K // 2 - 1, 1))) for i in range(K // 2)]
    x = block.encode(inputs)
    slots = memory.project(memory.norm(x))
    q, k, v = slots.split([H * K, H * K, H * V], dim=-1)
    q, k, v = (z.unflatten(-1, (H, -1)) for z in (q, k, v))
    reads, finals = [], []
    for b in range(inputs.shape[1]):
        kept: list[tuple[Tensor, Tensor, Tensor]] = []  # number in the episode, keys and values of all heads
        for row in state[b] if isinstance(state, Tensor) else ():
            if row[-1] > 0:
                keys, values = row[: H * K].unflatten(0, (H, K)), row[H * K : -1].unflatten(0, (H, V))
                number = row[-1] * period
                kept.append((number, torch.stack([turned(key, -number, turns, period) for key in keys]), values))
        row_reads = []
        for t in range(len(inputs)):
            if starts[t, b]:
                kept = []
            number = kept[-1][0].detach() + 1 if kept else torch.ones((), dtype=inputs.dtype)
            kept = [*kept, (number, k[t, b], v[t, b])][-window:]
            heads = []
            for h in range(H):
                scores = [q[t, b, h] @ turned(keys[h], s - number, turns, period) for s, keys, _ in kept]
                weights = (torch.stack(scores) / math.sqrt(K)).softmax(0)
                heads.append(sum(a * values[h] for a, (_, _, values) in zip(weights, kept, strict=True)))
            row_reads.append(torch.cat(heads))
        reads.append(torch.stack(row_reads))
        rows = [
            torch.cat(
                [
                    *(turned(key, number, turns, period) for key in keys),
                    values.flatten(),
                    ((number - 1) % period + 1)[None] / period,
                ]
            )
            for number, keys, values in (kept[-(window - 1) :] if window > 1 else [])
        ]
        empty = [torch.zeros(H * (K + V) + 1, dtype=inputs.dtype)] * (window - 1 - len(rows))
        finals.append(torch.stack([*empty, *rows]) if window > 1 else torch.zeros(0))
    x = x + block.readout(torch.stack(reads, dim=1))
    outputs = x + block.down(block.up(block.feed_forward_norm(x)).relu())
    return outputs, torch.stack(finals) if window > 1 else None


@pytest.mark.parametrize("start", ["none", "first", "last", "anywhere"])
@pytest.mark.parametrize(("window", "length"), [*((WINDOW, n) for n in LENGTHS), (2, 9), (1, 1), (1, 4), (40, 7)])
def test_it_is_the_softmax_over_the_last_steps_of_the_episode(window: int, length: int, start: str) -> None:
    """Red if the window is a step too long or too short, if chunks of time see other steps than they should, if a
    start is late, if the empty rows of a young episode count, or if the gradient of any of it is wrong."""
    memory = make(window)
    state = used_state(memory, 8 * window + 2)
    inputs = torch.randn(length, B, D, dtype=torch.float64, requires_grad=True)
    starts = torch.zeros(length, B, dtype=torch.bool)
    if start == "anywhere":
        starts = torch.rand(length, B) < 0.3
    elif start != "none":
        starts[0 if start == "first" else -1, :2] = True
    expected, expected_final = by_definition(memory, inputs, state, starts)
    outputs, final = memory.scan(inputs, state, starts)
    results, expectations = [outputs, *state_leaves(final)], [expected]
    if expected_final is not None:
        expectations.append(expected_final)
    past = state if isinstance(state, Tensor) else torch.zeros(1, requires_grad=True)
    weights = [torch.randn_like(result) for result in results]

    def gradients(tensors: list[Tensor]) -> tuple[Tensor, ...]:
        loss = sum((w * x).sum() for w, x in zip(weights, tensors, strict=True))
        assert isinstance(loss, Tensor)
        found, of_state, *others = torch.autograd.grad(
            loss, [inputs, past, *memory.parameters()], materialize_grads=True
        )
        return found, of_state.masked_fill(past[..., -1:] == 0, 0.0), *others  # rows without a step mean nothing

    for found, known in zip([*results, *gradients(results)], [*expectations, *gradients(expectations)], strict=True):
        torch.testing.assert_close(found, known, atol=1e-10, rtol=1e-10)


def test_equal_keys_give_the_mean_of_the_steps_that_there_are() -> None:
    """Red if what was before the episode, or outside of the window, takes part in the mean as a zero."""
    memory = make()
    with torch.no_grad():
        memory.project.weight[: 2 * H * K] = 0.0
        memory.project.bias[: 2 * H * K] = 0.0
    inputs = torch.randn(9, 1, D, dtype=torch.float64)
    x = memory.block.encode(inputs)
    v = memory.project(memory.norm(x))[..., 2 * H * K :]
    reads = torch.stack([v[max(0, t + 1 - WINDOW) : t + 1].mean(0) for t in range(9)])
    x = x + memory.block.readout(reads)
    expected = x + memory.block.down(memory.block.up(memory.block.feed_forward_norm(x)).relu())
    outputs, _ = memory.scan(inputs, memory.initial_state(1), torch.zeros(9, 1, dtype=torch.bool))
    torch.testing.assert_close(outputs, expected)


def test_a_long_episode_is_as_its_last_window() -> None:
    """Red if steps are counted to where angles lose their digits, or if the count begins anew and the angles don't."""
    memory = make()
    n_steps = 3 * PERIOD + 5
    inputs, no_starts = torch.randn(n_steps, B, D, dtype=torch.float64), torch.zeros(n_steps, B, dtype=torch.bool)
    outputs, _ = memory.scan(inputs, memory.initial_state(B), no_starts)
    for t in (PERIOD - 1, PERIOD, PERIOD + 2, n_steps - 1):
        last = inputs[t + 1 - WINDOW : t + 1]
        fresh, _ = memory.scan(last, memory.initial_state(B), no_starts[:WINDOW])
        torch.testing.assert_close(outputs[t], fresh[-1], atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    "config",
    [
        AttentionConfig(**SIZES, window=WINDOW),
        AttentionConfig(**SIZES, window=2),
        AttentionConfig(window=1),
        AttentionConfig(width=9, n_heads=3, key_size=4, value_size=4, window=11),
    ],
    ids=str,
)
def test_windows_shorter_than_the_sequence_keep_the_contract(config: AttentionConfig) -> None:
    """Red if a scan that is longer than the window, or that ends inside of one, is not its steps."""
    check_memory(config)


def test_a_stack_keeps_the_contract() -> None:
    """Red if the state of a block were read by another."""
    check_memory(lambda input_size: build_memory(AttentionConfig(**SIZES, window=4), input_size, n_blocks=2))


@pytest.mark.parametrize("junk", [torch.nan, torch.inf, -torch.inf, 3e38])
@pytest.mark.parametrize("length", [1, 2 * WINDOW + 1])
def test_what_is_no_number_ends_with_the_episode(length: int, junk: float) -> None:
    """Red if NaN, infinity or a product that overflows got past a start by way of a masked weight, in a value or in a
    gradient; or if it became a number without a start."""
    memory = make(dtype=torch.float32)
    state = used_state(memory, WINDOW + 2).detach()
    inputs, starts = torch.randn(length, B, D, requires_grad=True), torch.zeros(length, B, dtype=torch.bool)
    starts[0, 0] = True
    spoilt = state.clone()
    spoilt[0], spoilt[1, -1] = junk, junk
    clean, final = memory.scan(inputs, state, starts)
    spoilt.requires_grad_()
    outputs, spoilt_final = memory.scan(inputs, spoilt, starts)
    for row in (0, 2):
        assert torch.equal(outputs[:, row], clean[:, row])
        assert torch.equal(spoilt_final[row], final[row])
    seen = min(length, WINDOW - 1)
    assert outputs[:seen, 1].isnan().all() or math.isfinite(junk)
    assert outputs[seen:, 1].isfinite().all()  # the last row has left the window
    loss = outputs[:, [0, 2]].square().sum() + spoilt_final[0].square().sum()
    gradients = torch.autograd.grad(loss, [inputs, spoilt])
    assert gradients[0][:, [0, 2]].isfinite().all()
    assert not gradients[1][0].any()


@pytest.mark.parametrize("channel", [0, -2, -1], ids=["key", "value", "number of the step"])
@pytest.mark.parametrize("length", [1, 3])
def test_one_entry_of_the_state_that_is_no_number_is_seen(length: int, channel: int) -> None:
    """Red if a step were left out because its number, or one channel of one head, is none."""
    memory = make(dtype=torch.float32)
    state = used_state(memory, WINDOW + 2).detach()
    state[1, -1, channel] = torch.nan
    inputs, starts = torch.randn(length, B, D), torch.zeros(length, B, dtype=torch.bool)
    outputs, _ = memory.scan(inputs, state, starts)
    assert outputs[:, 1].isnan().all()
    assert outputs[:, [0, 2]].isfinite().all()


def test_an_input_that_is_no_number_is_seen_until_the_next_start() -> None:
    """Red if a spoilt step were left out as if it had not been, or spread to steps before it in its chunk."""
    memory = make(dtype=torch.float32)
    inputs, starts = torch.randn(2 * WINDOW, 2, D), torch.zeros(2 * WINDOW, 2, dtype=torch.bool)
    inputs[2] = torch.nan
    starts[5, 1] = True
    outputs, _ = memory.scan(inputs, memory.initial_state(2), starts)
    bad = outputs.isnan().all(-1)
    assert bad[:, 0].tolist() == [2 <= t < 2 + WINDOW for t in range(2 * WINDOW)]
    assert bad[:, 1].tolist() == [2 <= t < 5 for t in range(2 * WINDOW)]
    assert outputs[~bad].isfinite().all()


class Largest(TorchDispatchMode):
    """The size of the largest tensor that was made."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return made


def test_a_long_scan_takes_memory_in_proportion_to_its_length() -> None:
    """Red if a map of all steps by all steps were made."""
    memory, n_steps = build_memory("attention", D), 5000
    with torch.no_grad(), Largest() as largest:
        memory.scan(torch.randn(n_steps, 1, D), memory.initial_state(1), torch.zeros(n_steps, 1, dtype=torch.bool))
    assert largest.numel < 600 * n_steps


def test_the_logits_are_float32_under_autocast() -> None:
    """Red if keys, or what is read, were rounded to bfloat16."""
    memory = make(dtype=torch.float32)
    inputs, starts = torch.randn(7, B, D), torch.zeros(7, B, dtype=torch.bool)
    kinds = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def watched(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        y = attend(q, k, v, mask)
        kinds.extend([q.dtype, k.dtype, v.dtype, y.dtype])
        return y

    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", dtype=torch.bfloat16):
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
        _, state = memory.scan(inputs, memory.initial_state(B), starts)
        memory.step(inputs[0], state, starts[0])
    assert kinds == [torch.float32] * 8


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"window": 0}, "sizes must be at least 1, got window=0"),
        ({"window": -3}, "sizes must be at least 1, got window=-3"),
        ({"key_size": 1}, "key_size must be at least 2, or steps have no order, got 1"),
    ],
)
def test_sizes_that_cannot_be_are_refused_in_one_line(wrong: dict[str, int], message: str) -> None:
    """Red if a window of no steps gave NaN instead of a message."""
    with pytest.raises(ValueError, match=f"^{message}$"):
        AttentionConfig(**wrong).build(D)


def test_the_default_size_is_near_that_of_the_lstm() -> None:
    """Red for a default that would make comparisons unfair, or a parameter that nobody meant."""
    assert sum(p.numel() for p in build_memory("attention", 128).parameters()) == 132_352
