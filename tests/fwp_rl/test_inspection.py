"""What is in a memory: the trace is what the memory does, the retrieval map is exact, and the gradient audit counts."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fwp_rl import (
    AdditiveConfig,
    AttentionConfig,
    DeltaConfig,
    FastWeightMemoryConfig,
    GatedDeltaConfig,
    LSTMConfig,
    SRWMConfig,
    audit_gradients,
    build_memory,
    inspect_memory,
)
from fwp_rl.inspection import (
    AttentionTrace,
    Inspectable,
    MemoryTrace,
    gradient_audit,
    read_out,
    trace_attention,
    trace_heads,
)
from fwp_rl.layers import FastWeightBlock, HeadInputs, normalised_reads
from fwp_rl.memory import Memory, MemoryConfig
from fwp_rl.ops import unit
from fwp_rl.ops.fast_weight_heads import READ_EPSILON
from fwp_rl.ops.recurrent_scan import NORM_EPSILON
from fwp_rl.registry import memory_configs
from fwp_rl.state import State, map_state, state_leaves

T, B, D, H, K, V, W = 12, 4, 9, 2, 5, 7, 8
SIZES: dict[str, int] = {"width": W, "n_heads": H, "key_size": K, "value_size": V, "expansion": 3}
CONFIGS = {
    "additive": AdditiveConfig(**SIZES),
    "delta": DeltaConfig(**SIZES),
    "delta (0, 2)": DeltaConfig(**SIZES, negative_eigenvalues=True),  # type: ignore[arg-type]  # a bool is an int
    "gated_delta": GatedDeltaConfig(**SIZES),
    "gated_delta, channels": GatedDeltaConfig(**SIZES, channel_decay=True),  # type: ignore[arg-type]  # a bool is an int
    "compiled": GatedDeltaConfig(width=24, n_heads=3, key_size=16, value_size=32),
    "delay heads, additive": AdditiveConfig(**SIZES, delay_heads=2),
    "delay heads, delta": DeltaConfig(**SIZES, delay_heads=1),
    "delay heads, gated": GatedDeltaConfig(**SIZES, delay_heads=1),
    "delay heads, channels": GatedDeltaConfig(**SIZES, channel_decay=True, delay_heads=2),  # type: ignore[arg-type]  # a bool is an int
    "delay heads, compiled": GatedDeltaConfig(width=24, n_heads=3, key_size=16, value_size=32, delay_heads=2),
}
BY_NAME = (
    *("hebb", "oja", "continuous_delta", "linear_attention", "schlag2021", "irie2021", "delta_product", "delta_mlp"),
    *("recurrent_delta", "delta_rnn", "delta_lstm"),
)
"""Memories with reads of their own: what they put out is not computed again here."""


def starts() -> Tensor:
    """Row 0 starts at once, row 1 in the middle, row 2 twice in a row, row 3 never."""
    episode_starts = torch.zeros(T, B, dtype=torch.bool)
    for row, times in enumerate([(0,), (6,), (3, 4), ()]):
        episode_starts[list(times), row] = True
    return episode_starts


def trained(config: MemoryConfig) -> Memory:
    """In float64, its parameters moved as if it had learned: gates and norms that differ everywhere."""
    memory = config.build(D).double()
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return memory


def traced(config: MemoryConfig) -> tuple[Memory, Tensor, Tensor, MemoryTrace]:
    memory = trained(config)
    inputs = torch.randn(T, B, D, dtype=torch.float64)
    state = torch.randn_like(memory.initial_state(B))  # type: ignore[arg-type]  # a tensor here
    return memory, inputs, state, inspect_memory(memory, inputs, state, starts())


@pytest.mark.parametrize("name", CONFIGS)
def test_the_trace_is_what_the_memory_does(name: str) -> None:
    """Catches a trace with its own idea of the projection: columns in another order, another rule or largest strength,
    a decay that is left out. What the memory puts out is computed once more from the reads of the trace.
    """
    memory, inputs, state, trace = traced(CONFIGS[name])
    outputs, final = memory.scan(inputs, state, starts())
    block: Any = memory.block
    size = trace.v.shape[-1]
    x = block.encode(inputs)
    reads = trace.reads + block.skip[:, None] * trace.v
    x = x + block.readout(unit(reads.flatten(-2), size, epsilon=READ_EPSILON * size, length=size**0.5))
    x = x + block.down(block.up(block.feed_forward_norm(x)).relu())
    torch.testing.assert_close(x, outputs, atol=1e-10, rtol=0)
    torch.testing.assert_close(trace.fast_weights[-1], final, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_retrieval_map_gives_the_reads(name: str) -> None:
    """Catches a map that misses the erase, the decay, the initial state or a start, or that reads before the write."""
    _, _, _, trace = traced(CONFIGS[name])
    assert trace.beta.max() > 0.5
    recalled = torch.einsum("tbhs,sbhv->tbhv", trace.retrieval, trace.v) + trace.from_state
    assert (recalled - trace.reads).abs().max() < 1e-10
    assert trace.from_state[:, 3].abs().max() > 1e-3  # else the initial state was not tested


def test_erased_and_overlap_of_a_delay_head_follow_its_rows() -> None:
    """Red if a key is compared with where an earlier write was, not with where its row is now; or if a row that only
    moved counts as erased."""
    steps = 4
    key = F.one_hot(torch.zeros(steps, dtype=torch.int64), K).double()[:, None, None]
    heads = HeadInputs(
        q=key,
        k=key,
        v=torch.ones(steps, 1, 1, V, dtype=torch.float64),
        beta=torch.ones(steps, 1, 1, dtype=torch.float64),
        log_decay=None,
        state=torch.zeros(1, 1, K, V, dtype=torch.float64),
        rule="delta",
        delay_heads=1,
    )
    trace = trace_heads(heads, torch.zeros(steps, 1, dtype=torch.bool))
    assert not trace.erased.any()
    torch.testing.assert_close(trace.key_overlap[:, 0, 0], torch.eye(steps, dtype=torch.float64))
    assert trace.norms[-1].item() == pytest.approx((steps * V) ** 0.5)


@pytest.mark.parametrize("name", ["additive", "delta", "gated_delta", "delay heads, compiled"])
def test_what_is_read_out_adds_up_to_what_the_block_gets(name: str) -> None:
    """Catches another norm, heads that are added without their columns, transposed columns."""
    memory, inputs, _, _ = traced(CONFIGS[name])
    block: Any = memory.block
    trace = inspect_memory(memory, inputs[:, :1])
    present = block.skip[:, None] * trace.v
    scale = (trace.reads + present).square().mean(-1).add(READ_EPSILON).rsqrt()[..., None]
    given = torch.einsum("tbhs,sbhv->tbshv", trace.retrieval, trace.v)
    parts = block.readout((scale[:, :, None] * given).flatten(-2))  # [T, B, T, W]
    torch.testing.assert_close(read_out(block, trace), parts.norm(dim=-1))
    outputs, _ = memory.scan(inputs[:, :1], memory.initial_state(1), starts()[:, 3:])
    x = block.encode(inputs[:, :1]) + parts.sum(2) + block.readout((scale * present).flatten(-2))
    torch.testing.assert_close(x + block.down(block.up(block.feed_forward_norm(x)).relu()), outputs)


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in BY_NAME), ("delta_product", {"delay_heads": 1, "n_writes": 3})]
)
def test_the_trace_of_the_others_is_what_they_do(name: str, options: dict[str, int]) -> None:
    """Catches heads whose trace differs from what the memory runs: the last output of the wrong step, a start that is
    missed, another order of the slots, rows that move at every inner step. The final fast weights are those of the
    memory, the map gives the reads."""
    memory = trained(memory_configs()[name](**SIZES, **options))  # type: ignore[call-arg]  # all of fast weights
    inputs = torch.randn(T, B, D, dtype=torch.float64)
    state = map_state(lambda x: 0.3 * torch.randn_like(x), memory.initial_state(B))
    trace = inspect_memory(memory, inputs, state, starts())
    _, final = memory.scan(inputs, state, starts())
    matrices = [leaf for leaf in state_leaves(final) if leaf.ndim > 3]  # others are outputs and cells
    largest = max(matrix.shape[-2] for matrix in matrices)
    together = [F.pad(x, (0, 0, 0, largest - x.shape[-2])).flatten(1, -3) for x in matrices]
    torch.testing.assert_close(trace.fast_weights[-1], torch.cat(together, dim=1), atol=1e-10, rtol=0)
    recalled = torch.einsum("tbhs,sbhv->tbhv", trace.retrieval, trace.v) + trace.from_state
    assert (recalled - trace.reads).abs().max() < 1e-10


def test_the_trace_of_a_self_referential_matrix_is_what_it_does() -> None:
    """Catches rates or columns of another block, a read after the write, and a learned matrix that counts as written.

    What the memory puts out is computed once more from W_0 and the reads of the trace.
    """
    memory = trained(SRWMConfig(width=W, n_heads=H, value_size=V, expansion=3))
    inputs = torch.randn(T, B, D, dtype=torch.float64)
    state = torch.randn_like(memory.initial_state(B))  # type: ignore[arg-type]  # a tensor here
    outputs, final = memory.scan(inputs, state, starts())
    trace = inspect_memory(memory, inputs, state, starts())
    key_size = W // H
    block: Any = memory.block
    four = trace.fast_weights[-1].unflatten(1, (H, 4))
    parts = [four[:, :, i, :, :size] for i, size in enumerate([V, key_size, key_size, 4])]
    torch.testing.assert_close(torch.cat(parts, dim=-1), final, atol=1e-10, rtol=0)
    recalled = torch.einsum("tbhs,sbhv->tbhv", trace.retrieval, trace.v) + trace.from_state
    assert (recalled - trace.reads).abs().max() < 1e-10

    x = block.encode(inputs)
    fixed = torch.einsum("hkv,tbhk->tbhv", memory.initial_matrix, x.unflatten(-1, (H, key_size)).softmax(-1))
    y = trace.reads[::2].unflatten(2, (H, 4))[:, :, :, 0, :V] + fixed[..., :V]
    x = x + block.readout(normalised_reads(y))
    torch.testing.assert_close(x + block.down(block.up(block.feed_forward_norm(x)).relu()), outputs, atol=1e-10, rtol=0)
    rates = trace.beta[1::2].unflatten(2, (H, 4))
    assert rates[:, :, :, 0].std() > 0.01
    assert (rates[:, :, :, 0] - rates[:, :, :, 1]).abs().max() > 0.1
    assert trace.contributions.diagonal(dim1=0, dim2=3).abs().max() == 0  # what is written is read later


def test_the_trace_of_a_memory_of_associations_is_what_it_does() -> None:
    """Catches a bound that is missed or applied before the write, and reads that do not begin where the last one led.

    What the memory puts out is computed once more from the last read of each step.
    """
    memory = trained(FastWeightMemoryConfig(hidden_size=6, entity_size=V, relation_size=3, n_reads=2))
    inputs = torch.randn(T, B, D, dtype=torch.float64)
    state = map_state(lambda x: 0.5 * torch.randn_like(x), memory.initial_state(B))
    outputs, (final, *_) = memory.scan(inputs, state, starts())
    trace = inspect_memory(memory, inputs, state, starts())
    torch.testing.assert_close(trace.fast_weights[-1, :, 0], final, atol=1e-10, rtol=0)
    assert trace.decay.min() < 0.9  # else the bound was not tested
    recalled = torch.einsum("tbhs,sbhv->tbhv", trace.retrieval, trace.v) + trace.from_state
    assert (recalled - trace.reads).abs().max() < 1e-10
    h, _ = memory.controller.scan(inputs, state[1:], starts())
    last = F.layer_norm(trace.reads[2::3, :, 0], [V], eps=NORM_EPSILON)
    torch.testing.assert_close(h + memory.readout(last), outputs, atol=1e-10, rtol=0)


@pytest.mark.parametrize("window", [1, 5, 40])
def test_the_trace_of_attention_is_what_it_does(window: int) -> None:
    """Catches another scale, window or rotation than the memory has, rows of the state that count as steps, and a step
    that is seen across a start. What the memory puts out is computed once more from the reads of the trace."""
    memory = trained(AttentionConfig(**SIZES, window=window))
    inputs, before = torch.randn(T, B, D, dtype=torch.float64), torch.randn(7, B, D, dtype=torch.float64)
    _, state = memory.scan(before, memory.initial_state(B), starts()[-7:])
    trace = inspect_memory(memory, inputs, state, starts())
    assert isinstance(trace, AttentionTrace)
    outputs, _ = memory.scan(inputs, state, starts())
    block: Any = memory.block
    x = block.encode(inputs)
    x = x + block.readout(trace.reads.flatten(-2))
    x = x + block.down(block.up(block.feed_forward_norm(x)).relu())
    torch.testing.assert_close(x, outputs, atol=1e-10, rtol=0)
    recalled = torch.einsum("tbhs,sbhv->tbhv", trace.retrieval, trace.v) + trace.from_state
    assert (recalled - trace.reads).abs().max() < 1e-10
    first = starts().cumsum(0)
    for t in range(T):
        for s in range(T):
            seen = (first[t] == first[s]) & (0 <= t - s < window)
            assert ((trace.retrieval[t, :, :, s] > 0) == seen[:, None]).all()
    given = trace.retrieval[..., None] * trace.v.permute(1, 2, 0, 3)  # [T, B, H, T, V]
    torch.testing.assert_close(trace.contributions, given.norm(dim=-1))
    parts = block.readout(given.transpose(2, 3).flatten(-2))  # [T, B, T, W]
    torch.testing.assert_close(read_out(block, trace), parts.norm(dim=-1))


def test_attention_of_what_is_no_number_is_told_where_it_is_seen() -> None:
    """Catches NaN that reaches weights or reads of another episode, and reads that look fine where it is seen."""
    memory: Any = trained(AttentionConfig(**SIZES, window=4))
    inputs = torch.randn(T, B, D, dtype=torch.float64)
    seen = torch.zeros(T, B, dtype=torch.bool)
    for row, last in enumerate([6, 6, 3, 6]):  # row 1 starts anew at 6, row 2 at 3
        seen[2:last, row] = True
    heads = memory.attention_inputs(inputs, memory.initial_state(B), starts())
    for name in ("k", "v"):
        part = getattr(heads, name).clone()
        part[5] = torch.nan  # step 2, after the three rows of the state
        trace = trace_attention(heads._replace(**{name: part}))
        assert torch.equal(trace.reads.isnan().any(-1).any(-1), seen)
        assert torch.equal(trace.contributions.isnan().any(-1).any(-1), seen)
        assert not trace.retrieval.permute(0, 1, 3, 2)[~heads.allowed[:, :, 3:]].any()


def test_of_a_stack_of_attention_the_chosen_block_is_traced() -> None:
    """Catches a block that is given the inputs, or the state, of the first."""
    memory: Any = build_memory(AttentionConfig(**SIZES, window=4), D, n_blocks=2).double()
    inputs = torch.randn(T, B, D, dtype=torch.float64)
    _, state = memory.scan(inputs, memory.initial_state(B), starts())
    between, _ = memory.blocks[0].scan(inputs, state[0], starts())
    expected = inspect_memory(memory.blocks[1], between, state[1], starts())
    torch.testing.assert_close(inspect_memory(memory, inputs, state, starts(), block=1).reads, expected.reads)


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_is_retrieved_across_a_start_or_from_the_future(name: str) -> None:
    """Catches a start that is a small number instead of a cut, and one that is a step late: also with NaN before it."""
    memory = trained(CONFIGS[name])
    inputs = torch.randn(T, B, D, dtype=torch.float64)
    inputs[:6, 1] = torch.nan
    state = torch.randn_like(memory.initial_state(B))  # type: ignore[arg-type]  # a tensor here
    trace = trace_heads(memory.head_inputs(inputs, state, starts()), starts())
    for row in range(B):
        for t in range(T):
            first = max((s for s in range(t + 1) if starts()[s, row]), default=0)
            outside = [s for s in range(T) if not first <= s <= t]
            for weights in (trace.retrieval, trace.key_overlap):
                assert not weights[t, row][:, outside].any()
            assert bool(trace.from_state[t, row].any()) == (not starts()[: t + 1, row].any())
    for t in range(6, T):
        assert trace.retrieval[t, 1].isfinite().all()
        assert trace.retrieval[t, 1, :, t].all()
    assert torch.equal(trace.singular_values.isfinite().all(-1), trace.norms.isfinite())


def hand_written(rule: str, **changes: Any) -> HeadInputs:
    """One head: a under e0, b under e1, c under e0 with half the strength; then reads of e0 and e1."""
    keys = F.one_hot(torch.tensor([0, 1, 0, 2, 2]), K).double()[:, None, None]
    queries = F.one_hot(torch.tensor([0, 1, 0, 0, 1]), K).double()[:, None, None]
    beta = torch.tensor([1.0, 1.0, 0.5, 0.0, 0.0], dtype=torch.float64)[:, None, None]
    v = torch.randn(5, 1, 1, V, dtype=torch.float64)
    heads = HeadInputs(queries, keys, v, beta, None, torch.zeros(1, 1, K, V, dtype=torch.float64), rule)  # type: ignore[arg-type]  # a rule by its name
    return heads._replace(**changes)


@pytest.mark.parametrize(("rule", "left_of_first"), [("delta", 0.5), ("additive", 1.0)])
def test_known_writes_are_retrieved_with_known_weights(rule: str, left_of_first: float) -> None:
    """Catches a transposed map, and a delta rule that adds."""
    trace = trace_heads(hand_written(rule), torch.zeros(5, 1, dtype=torch.bool))
    expected = [
        [1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [left_of_first, 0, 0.5, 0, 0],
        [left_of_first, 0, 0.5, 0, 0],
        [0, 1, 0, 0, 0],
    ]
    assert trace.retrieval[:, 0, 0].tolist() == expected
    v, surprise = trace.v[:, 0, 0], trace.surprise[:, 0, 0]
    torch.testing.assert_close(surprise[:2], v[:2].norm(dim=-1))
    torch.testing.assert_close(surprise[2], (v[2] - v[0]).norm())  # what e0 recalled was v0
    assert trace.key_overlap[2, 0, 0].tolist() == [1, 0, 1, 0, 0]


def test_decay_fades_what_is_retrieved() -> None:
    """Catches a decay that is applied once too often, or not to the initial state."""
    log_decay = torch.full((5, 1, 1), 0.9, dtype=torch.float64).log()
    state = torch.randn(1, 1, K, V, dtype=torch.float64)
    trace = trace_heads(hand_written("delta", log_decay=log_decay, state=state), torch.zeros(5, 1, dtype=torch.bool))
    assert trace.retrieval[4, 0, 0, 1].item() == pytest.approx(0.9**3)
    assert trace.decay.unique().tolist() == pytest.approx([0.9])
    expected = 0.9 * state[0, 0, 2]
    reads_e2 = trace_heads(
        hand_written("delta", log_decay=log_decay, state=state, q=hand_written("delta").k.roll(2, 0)),
        torch.zeros(5, 1, dtype=torch.bool),
    )
    torch.testing.assert_close(reads_e2.from_state[0, 0, 0], expected)


def test_channels_fade_what_is_retrieved_at_their_own_rates() -> None:
    """Catches channels of values in the place of those of keys, and decays of another channel, head or step."""
    rates = torch.tensor([0.9, 0.5, 1.0, 1.0, 1.0], dtype=torch.float64)
    log_decay = rates.log().expand(5, 1, 1, K)
    trace = trace_heads(hand_written("delta", log_decay=log_decay), torch.zeros(5, 1, dtype=torch.bool))
    assert trace.retrieval[3, 0, 0, 2].item() == pytest.approx(0.5 * 0.9)  # v2 was written under e0
    assert trace.retrieval[4, 0, 0, 1].item() == pytest.approx(0.5**3)  # and v1 under e1
    torch.testing.assert_close(trace.decay[2, 0, 0], rates)


@pytest.mark.parametrize("name", CONFIGS)
def test_norms_and_singular_values_are_those_of_the_fast_weights(name: str) -> None:
    """Catches values that are read before the write, or across heads."""
    _, _, _, trace = traced(CONFIGS[name])
    torch.testing.assert_close(trace.norms, trace.fast_weights.square().sum((-2, -1)).sqrt())
    torch.testing.assert_close(trace.norms, trace.singular_values.square().sum(-1).sqrt())
    assert (trace.singular_values.diff(dim=-1) <= 0).all()


def test_every_first_order_memory_can_be_inspected() -> None:
    """Catches a memory around a fast-weight block that was added without the method."""
    for name in memory_configs():
        memory = build_memory(name, D)
        if any(isinstance(module, FastWeightBlock) for module in memory.modules()):
            assert isinstance(memory, Inspectable), name


def test_what_cannot_be_inspected_says_why() -> None:
    delta = build_memory("delta", D)
    inputs = torch.randn(T, B, D)
    with pytest.raises(TypeError, match="with attention_inputs, got LSTMMemory; audit_gradients takes any memory"):
        inspect_memory(build_memory("lstm", D), inputs)
    with pytest.raises(ValueError, match="block must be a number from 0 to 1, got 2"):
        inspect_memory(build_memory("delta", D, n_blocks=2), inputs, block=2)
    with pytest.raises(ValueError, match=r"inputs must be \[T, B, 9\], at least one step, got \[12, 4, 8\]"):
        inspect_memory(delta, inputs[..., :8])
    with pytest.raises(ValueError, match=r"inputs must be \[T, B, 9\], at least one step, got \[0, 4, 9\]"):
        audit_gradients(delta, inputs[:0])
    with pytest.raises(ValueError, match=r"threshold must be between 0 and 1, got 1.5"):
        audit_gradients(delta, inputs, threshold=1.5)
    with pytest.raises(ValueError, match="rule must be 'delta' or 'additive' to have a retrieval map, got 'oja'"):
        trace_heads(hand_written("oja"), torch.zeros(5, 1, dtype=torch.bool))


class Echo(Memory):
    """y_t = x_t + a y_{t-1}; `cut` detaches the state, which is the mistake that an audit must show."""

    def __init__(self, *, cut: bool) -> None:
        super().__init__()
        self.input_size = self.output_size = 3
        self.cut = cut

    def initial_state(self, batch_size: int) -> State:
        return torch.zeros(batch_size, 3, dtype=torch.float64)

    def scan(self, inputs: Tensor, state: State, episode_starts: Tensor) -> tuple[Tensor, State]:
        assert isinstance(state, Tensor)
        outputs = []
        for x, start in zip(inputs, episode_starts, strict=True):
            state = x + 0.1 * (state.detach() if self.cut else state).masked_fill(start[:, None], 0.0)
            outputs.append(state)
        return torch.stack(outputs), state


def test_audit_measures_the_jacobian() -> None:
    """Catches norms in the order of time instead of n, a sum where a mean over rows belongs, a reach off by one."""
    inputs = torch.randn(T, B, 3, dtype=torch.float64)
    audit = audit_gradients(Echo(cut=False), inputs, threshold=0.0011)
    torch.testing.assert_close(audit.norms, 3**0.5 * 0.1 ** torch.arange(T).double())
    assert audit.reach == 2
    assert dataclasses.replace(audit, threshold=0.0009).reach == 3
    episode_starts = torch.zeros(T, B, dtype=torch.bool)
    episode_starts[T - 2] = True
    assert audit_gradients(Echo(cut=False), inputs, None, episode_starts).norms[2:].tolist() == [0.0] * (T - 2)


def test_audit_finds_a_gradient_that_is_cut() -> None:
    """Catches an audit that measures outputs instead of gradients: a detached state changes no output."""
    audit = audit_gradients(Echo(cut=True), torch.randn(T, B, 3, dtype=torch.float64))
    assert audit.reach == 0
    assert audit.norms[1:].tolist() == [0.0] * (T - 1)


@pytest.mark.parametrize("name", list(memory_configs()))
def test_audit_takes_every_memory(name: str) -> None:
    """Catches a memory that the audit cannot run, and one whose gradient is cut."""
    config = memory_configs()[name]()
    known = {field.name for field in dataclasses.fields(config)}
    small = {field: size for field, size in (SIZES | {"hidden_size": 10}).items() if field in known}
    memory = dataclasses.replace(config, **small).build(D)
    audit = audit_gradients(memory, torch.randn(T, B, D))
    assert audit.reach == (0 if name == "none" else T - 1)


def test_audit_prints_its_norms_and_its_reach() -> None:
    """Catches the logarithm of zero, and a last step that is left out."""
    text = str(
        audit_gradients(Echo(cut=False), torch.randn(T, B, 3, dtype=torch.float64), threshold=0.0011)
    ).splitlines()
    assert text[0] == "gradient of the last outputs of 12 steps with respect to the input n steps before"
    assert [line.split()[2] for line in text[1:-1]] == ["0", "1", "2", "4", "8", "11"]
    assert [line.count("#") for line in text[1:-1]] == [24, 20, 16, 8, 0, 0]
    assert text[-1] == "reach: 2 of 11 steps; further back less than 0.0011 of the largest"
    nothing = gradient_audit("nothing", torch.zeros(B, 1), torch.zeros(T, B, 3), 0.5)
    assert nothing.reach == 0
    assert "n = 0      0.0e+00" in str(nothing)
    lstm = audit_gradients(LSTMConfig(hidden_size=10).build(D), torch.randn(T, B, D))
    assert str(lstm).endswith("reach: 11 steps, all of the sequence")
