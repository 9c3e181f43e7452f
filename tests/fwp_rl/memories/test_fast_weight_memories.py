"""What the block of the fast-weight memories hands to the update rule."""

import importlib
from typing import Any

import pytest
import torch

from fwp_rl import build_memory
from fwp_rl.layers import spaced_time_constants, write_strength_bias
from fwp_rl.ops import fast_weight_scan


@pytest.mark.parametrize("name", ["additive", "delta", "gated_delta"])
def test_gates_start_at_their_time_constants_and_keys_at_length_1(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches gates that are read from the wrong columns of the projection, or in the wrong order."""
    seen: dict[str, Any] = {}

    def spy(q: Any, k: Any, v: Any, beta: Any, state: Any, starts: Any, **options: Any) -> Any:
        seen.update(options, q=q, k=k, beta=beta)
        return fast_weight_scan(q, k, v, beta, state, starts, **options)

    monkeypatch.setenv("FWP_RL_BACKEND", "reference")  # the compiled heads do not go through fast_weight_scan
    monkeypatch.setattr(importlib.import_module("fwp_rl.ops.fast_weight_heads"), "fast_weight_scan", spy)
    memory = build_memory(name, 128)
    with torch.no_grad():
        memory.scan(torch.randn(50, 4, 128), memory.initial_state(4), torch.zeros(50, 4, dtype=torch.bool))
    for vectors in (seen["q"], seen["k"]):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(50, 4, 4), atol=1e-3, rtol=0)
    strength = torch.sigmoid(write_strength_bias(4, 32, 1.0))
    torch.testing.assert_close(seen["beta"].mean((0, 1)), strength, rtol=0.1, atol=0)
    if name == "gated_delta":
        decay = -1 / spaced_time_constants(4, 64.0, 8192.0)
        torch.testing.assert_close(seen["log_decay"].mean((0, 1)), decay, rtol=0.1, atol=0)
