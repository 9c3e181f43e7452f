"""What the block of the fast-weight memories hands to the update rule."""

import importlib
from typing import Any

import pytest
import torch

from fwp_rl import GatedDeltaConfig, build_memory
from fwp_rl.layers import spaced_time_constants, write_strength_bias
from fwp_rl.ops import fast_weight_scan


@pytest.mark.parametrize("name", ["additive", "delta", "gated_delta", "gated_delta of channels"])
def test_gates_start_at_their_time_constants_and_keys_at_length_1(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches gates that are read from the wrong columns of the projection, or in the wrong order."""
    seen: dict[str, Any] = {}

    def spy(q: Any, k: Any, v: Any, beta: Any, state: Any, starts: Any, **options: Any) -> Any:
        seen.update(options, q=q, k=k, beta=beta)
        return fast_weight_scan(q, k, v, beta, state, starts, **options)

    monkeypatch.setenv("FWP_RL_BACKEND", "reference")  # the compiled heads do not go through fast_weight_scan
    monkeypatch.setattr(importlib.import_module("fwp_rl.ops.fast_weight_heads"), "fast_weight_scan", spy)
    channels = name == "gated_delta of channels"
    memory = GatedDeltaConfig(channel_decay=True).build(128) if channels else build_memory(name, 128)
    with torch.no_grad():
        memory.scan(torch.randn(50, 4, 128), memory.initial_state(4), torch.zeros(50, 4, dtype=torch.bool))
    for vectors in (seen["q"], seen["k"]):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(50, 4, 4), atol=1e-3, rtol=0)
    strength = torch.sigmoid(write_strength_bias(4, 32, 1.0))
    torch.testing.assert_close(seen["beta"].mean((0, 1)), strength, rtol=0.1, atol=0)
    if name == "gated_delta":
        decay = -1 / spaced_time_constants(4, 64.0, 8192.0)
        torch.testing.assert_close(seen["log_decay"].mean((0, 1)), decay, rtol=0.1, atol=0)
    if channels:
        decay = -1 / spaced_time_constants(4, 64.0, 8192.0)[:, None].expand(4, 32)
        torch.testing.assert_close(seen["log_decay"].mean((0, 1)), decay, rtol=0.1, atol=0)


@pytest.mark.parametrize(("key_size", "value_size"), [(5, 7), (16, 32)])
def test_channels_that_fade_alike_are_gated_delta(key_size: int, value_size: int) -> None:
    """Red if decays of channels start at another rate, are read from other columns, or make another update of the fast
    weights: with the weights of a head's decay for each of its channels, both are one memory, also in their gradients.
    """
    T, B, D, H = 29, 3, 11, 2
    sizes = {"width": 10, "n_heads": H, "key_size": key_size, "value_size": value_size}
    head = GatedDeltaConfig(**sizes).build(D).double()
    channel = GatedDeltaConfig(**sizes, channel_decay=True).build(D).double()  # type: ignore[arg-type]  # a bool is an int
    torch.testing.assert_close(*(x.block.project.bias[-1] for x in (head, channel)))  # type: ignore[index, union-attr]  # layers
    parameters = dict(head.named_parameters())
    with torch.no_grad():
        for name, parameter in channel.named_parameters():
            parameters[name] += 0.3 * torch.randn_like(parameters[name])
            wanted = parameters[name]
            if name.startswith("block.project."):
                wanted = torch.cat([wanted[:-H], wanted[-H:].repeat_interleave(key_size, 0)])
            parameter.copy_(wanted)
    inputs = torch.randn(T, B, D, dtype=torch.float64)
    state = torch.randn(B, H, key_size, value_size, dtype=torch.float64)
    starts, weights = torch.rand(T, B) < 0.1, torch.randn(T, B, 10, dtype=torch.float64)
    results = {}
    for memory in (head, channel):
        leaves = [inputs.requires_grad_(), state.requires_grad_(), *memory.parameters()]
        outputs, final = memory.scan(inputs, state, starts)
        assert isinstance(final, torch.Tensor)
        gradients = torch.autograd.grad((outputs * weights).sum() + final.square().sum(), leaves)
        results[memory] = {"outputs": outputs, "final": final}
        results[memory] |= dict(zip(["inputs", "state", *parameters], gradients, strict=True))
    for name, expected in results[head].items():
        actual = results[channel][name]
        if name.startswith("block.project."):
            actual = torch.cat([actual[: -H * key_size], actual[-H * key_size :].unflatten(0, (H, -1)).sum(1)])
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(actual / scale, expected / scale, rtol=0, atol=1e-10, msg=name)
