"""`block_step`: the compiled step of a fast-weight block against the same block, operation by operation."""

import pytest
import torch
from torch import Tensor

from fwp_rl.memories.additive import AdditiveConfig
from fwp_rl.memories.delta import DeltaConfig
from fwp_rl.memories.gated_delta import GatedDeltaConfig
from fwp_rl.memory import Memory, MemoryConfig
from fwp_rl.ops import block_step
from fwp_rl.ops.block_step import MOST_ROWS

SIZES = {"width": 24, "n_heads": 3, "key_size": 8, "value_size": 16}


def make(config: MemoryConfig, rows: int, dtype: torch.dtype = torch.float64) -> tuple[Memory, Tensor, Tensor, Tensor]:
    """A memory with no parameter at 0 or 1, inputs, state and starts."""
    memory = config.build(24).to(dtype)
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    state = torch.randn(rows, *memory.initial_state(1).shape[1:], dtype=dtype)  # type: ignore[union-attr]  # a tensor
    return memory, torch.randn(rows, 24, dtype=dtype), state, torch.rand(rows) < 0.4


@pytest.mark.parametrize("rows", [1, 4, 7])
@pytest.mark.parametrize(
    "config",
    [
        AdditiveConfig(**SIZES),
        DeltaConfig(**SIZES),
        DeltaConfig(**SIZES, negative_eigenvalues=True),
        GatedDeltaConfig(**SIZES, expansion=3),
        DeltaConfig(width=24, n_heads=2, key_size=16, value_size=32),
        DeltaConfig(**SIZES, delay_heads=1),
        AdditiveConfig(**SIZES, delay_heads=2),
        GatedDeltaConfig(**SIZES, delay_heads=3),
    ],
)
def test_it_is_the_block(config: MemoryConfig, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a bias, a norm or a residual that is forgotten, a wrong column, and rows that are mixed up; of a delay
    head a last row that keeps its sign, and a start that moves what it has just cleared and written."""
    memory, inputs, state, starts = make(config, rows)
    state[starts] = float("nan")  # forgotten at a start, whatever it was
    before = inputs.clone(), state.clone()
    with torch.no_grad():
        compiled = memory.step(inputs, state, starts)
        monkeypatch.setenv("FWP_RL_BACKEND", "reference")
        expected = memory.step(inputs, state, starts)
    for actual, wanted in zip(compiled, expected, strict=True):
        torch.testing.assert_close(actual, wanted, atol=1e-10, rtol=1e-10)
        assert not torch.equal(actual, wanted), "both took the same path"
    for actual, wanted in zip((inputs, state), before, strict=True):
        assert torch.equal(actual.nan_to_num(7.0), wanted.nan_to_num(7.0)), "an argument was written to"


def test_single_precision_and_any_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, inputs, state, starts = make(GatedDeltaConfig(**SIZES), 5, torch.float32)
    strided = inputs.t().contiguous().t(), state.transpose(2, 3).contiguous().transpose(2, 3)
    with torch.no_grad():
        compiled = memory.step(*strided, torch.stack([starts, ~starts], 1)[:, 0])
        monkeypatch.setenv("FWP_RL_BACKEND", "reference")
        expected = memory.step(inputs, state, starts)
    for actual, wanted in zip(compiled, expected, strict=True):
        torch.testing.assert_close(actual, wanted, atol=1e-5, rtol=1e-5)


def test_a_nan_stays_visible() -> None:
    """Catches a rectifier that makes 0 of NaN."""
    memory, inputs, state, starts = make(DeltaConfig(**SIZES), 3)
    inputs[1, 2] = float("nan")
    with torch.no_grad():
        outputs, _ = memory.step(inputs, state, starts)
    assert outputs[1].isnan().all()
    assert outputs[::2].isfinite().all()


@pytest.mark.parametrize(
    ("config", "rows", "why"),
    [
        (DeltaConfig(width=24, n_heads=2, key_size=5, value_size=16), 2, "keys are no whole tiles"),
        (DeltaConfig(width=24, n_heads=2, key_size=16, value_size=8), 2, "values are no whole tiles"),
        (DeltaConfig(**SIZES), MOST_ROWS + 1, "too many rows"),
        (GatedDeltaConfig(**SIZES, channel_decay=True), 2, "channels fade at rates of their own"),
    ],
)
def test_what_it_was_not_made_for_is_left_to_torch(config: MemoryConfig, rows: int, why: str) -> None:
    memory, inputs, state, starts = make(config, rows)
    with torch.no_grad():
        weights = memory.block._step_weights()  # type: ignore[operator, union-attr]  # a module
        assert block_step(inputs, weights, state, starts, rule="delta", largest_strength=1.0) is None, why
        outputs, _ = memory.step(inputs, state, starts)
    assert outputs.isfinite().all()
