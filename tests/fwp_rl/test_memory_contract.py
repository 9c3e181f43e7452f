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
