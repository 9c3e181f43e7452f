"""Every registered memory keeps the contract, alone and in a stack."""

import jaxtyping
import pytest
import torch

import fwp_rl
from fwp_rl.registry import memory_configs
from fwp_rl.stack import build_memory
from fwp_rl.testing import check_memory

MEMORIES = list(memory_configs())


def test_the_memories_of_the_package_are_registered() -> None:
    expected = {"none", "rnn", "gru", "lstm", "additive", "delta", "gated_delta"}
    expected |= {"recurrent_delta", "delta_rnn", "delta_lstm", "delta_mlp", "srwm", "fast_weight_memory"}
    assert expected <= set(fwp_rl.memory_configs())


@pytest.mark.parametrize("name", MEMORIES)
def test_memory_keeps_the_contract(name: str) -> None:
    check_memory(memory_configs()[name]())


def test_channels_that_fade_apart_keep_the_contract() -> None:
    """Red if a step in a rollout takes another way than the sequence, or a start is late, with decays of channels."""
    check_memory(fwp_rl.GatedDeltaConfig(channel_decay=True))


ODD = {"width": 24, "n_heads": 2, "key_size": 5, "value_size": 7}
"""Sizes that the compiled heads do not take: no multiples of 16, and T = 11 is more than 2 K."""
WHOLE = {"width": 24, "n_heads": 3, "key_size": 16, "value_size": 32}


@pytest.mark.parametrize("sizes", [ODD, WHOLE], ids=["odd", "whole"])
@pytest.mark.parametrize("delay_heads", [1, 2])
@pytest.mark.parametrize("name", ["additive", "delta", "gated_delta", "delta_product"])
def test_delay_heads_keep_the_contract(name: str, delay_heads: int, sizes: dict[str, int]) -> None:
    """Red if the step of a rollout moves other rows than the sequence, or before a start in another way."""
    options = {"negative_eigenvalues": True} if name == "delta" else {}
    check_memory(memory_configs()[name](**sizes, delay_heads=delay_heads, **options))


def test_delay_heads_with_channels_that_fade_apart_keep_the_contract() -> None:
    check_memory(fwp_rl.GatedDeltaConfig(**ODD, delay_heads=1, channel_decay=True))


@pytest.mark.parametrize("name", ["additive", "delta", "gated_delta", "delta_product"])
@pytest.mark.parametrize("delay_heads", [-1, 5])
def test_wrong_number_of_delay_heads_is_one_line(name: str, delay_heads: int) -> None:
    with pytest.raises(ValueError, match=rf"^delay_heads={delay_heads} must lie between 0 and n_heads=4$"):
        build_memory(memory_configs()[name](delay_heads=delay_heads), 9)


def test_other_memories_have_no_delay_heads() -> None:
    """Red if a rule without the option takes it in silence."""
    with pytest.raises(TypeError, match="delay_heads"):
        memory_configs()["oja"](delay_heads=1)


@pytest.mark.parametrize("name", ["none", "lstm", "delta", "recurrent_delta"])
def test_stack_of_two_keeps_the_contract(name: str) -> None:
    """Red if the stack mixes the states of its blocks: empty ones, pairs, matrices, and pairs of different shapes."""
    check_memory(lambda input_size: build_memory(name, input_size, n_blocks=2))


def test_shapes_are_checked_while_tests_run() -> None:
    """Else every shape in every signature would be a comment that nobody runs."""
    memory = build_memory("none", 9)
    inputs, starts = torch.zeros(11, 5, 9), torch.zeros(11, 5, dtype=torch.bool)
    memory.scan(inputs, memory.initial_state(5), starts)
    for wrong_starts in (starts[:, :4], starts.float(), starts[0]):
        with pytest.raises(jaxtyping.TypeCheckError, match="episode_starts"):
            memory.scan(inputs, memory.initial_state(5), wrong_starts)
