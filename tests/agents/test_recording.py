"""Recordings: all of an episode is there, and the fast weights are those that the agent had."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.config import TrainConfig
from agents.evaluation import evaluate_policy_on, load_run
from agents.model import build_model
from agents.recording import Attention, folded, record
from agents.vec_env import make_vec_env
from fwp_rl import DeltaConfig, build_memory, inspect_memory
from fwp_rl.registry import memory_config
from fwp_rl.sb3 import MemoryActorCriticPolicy


def untrained(memory: str, n_blocks: int = 1) -> tuple[TrainConfig, MemoryActorCriticPolicy]:
    config = TrainConfig(
        env_id="fwp/TMaze-v0", env_options={"length": 3}, memory=memory_config(memory), n_blocks=n_blocks, n_envs=2
    )
    return config, build_model(config, make_vec_env(config.env_id, 2, options=config.env_options)).policy


def test_all_of_an_episode_is_recorded(run_directory: Path) -> None:
    """Catches an end that is drawn after the environment has started anew, episodes in another order, a return or a
    length that is not that of the evaluation."""
    config, policy = load_run(run_directory)
    recordings = record(policy, config, seeds=[1_000_000, 1_000_001])
    rows = evaluate_policy_on(policy, config, episodes=2)
    for recording, row in zip(recordings, rows, strict=True):
        assert recording.seed == row.seed
        assert len(recording.actions) == len(recording.values) == row.length
        assert recording.rewards.sum() == pytest.approx(row.episode_return)
        assert len(recording.frames) == row.length + 1
        assert (recording.frames[-1] != recording.frames[-2]).any()
        assert recording.outcome
        assert recording.action_probabilities is not None
        np.testing.assert_allclose(recording.action_probabilities.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("env_id", "options", "names"),
    [
        ("fwp/TMaze-v0", {"length": 3}, ("forward", "left", "right")),
        ("fwp/MiniGrid-TMaze-v0", {}, ("left", "right", "forward")),
        ("fwp/RepeatPrevious-v0", {}, ("0", "1", "2", "3")),
    ],
)
def test_actions_are_called_by_their_names(env_id: str, options: dict[str, int], names: tuple[str, ...]) -> None:
    """Catches numbers where people would have to look up what they mean, and the names of another task."""
    config = TrainConfig(env_id=env_id, env_options=options, memory=memory_config("none"), n_envs=2)
    policy = build_model(config, make_vec_env(env_id, 2, options=config.env_options)).policy
    (recording,) = record(policy, config, seeds=[1_000_000], most_steps=5)
    assert recording.action_names == names
    assert recording.action_texts == tuple(names[action] for action in recording.actions)


@pytest.mark.parametrize("memory", ["delta", "gated_delta", "delta_product"])
def test_the_fast_weights_are_those_of_the_agent(memory: str) -> None:
    """Catches a memory that is run again on other inputs, from another state, or with its inner writes as steps."""
    config, policy = untrained(memory)
    (recording,) = record(policy, config, seeds=[1_000_000])
    weights = recording.fast_weights
    assert weights is not None
    np.testing.assert_allclose(weights.matrices, recording.states[0], atol=1e-5)
    n_steps, n_heads = weights.beta.shape
    assert n_steps == len(recording.actions)
    assert weights.contributions.shape == (n_steps, n_heads, n_steps)
    if memory == "delta":  # which does not fade: what it holds is the sum of what was written
        np.testing.assert_allclose(weights.written.cumsum(0), weights.matrices, atol=1e-5)


def test_of_a_stack_the_chosen_block_is_recorded() -> None:
    """Catches a block that is given the inputs of the first."""
    config, policy = untrained("delta", n_blocks=2)
    for block in (0, 1):
        (recording,) = record(policy, config, seeds=[1_000_000], block=block)
        assert recording.fast_weights is not None
        np.testing.assert_allclose(recording.fast_weights.matrices, recording.states[block], atol=1e-5)


@pytest.mark.parametrize("n_blocks", [1, 2])
def test_the_attention_is_that_of_the_agent(n_blocks: int) -> None:
    """Catches maps of another block or of other inputs: the weights of the values that the agent kept give its reads,
    and all weights of a step add up to 1."""
    config, policy = untrained("attention", n_blocks)
    (recording,) = record(policy, config, seeds=[1_000_000], block=n_blocks - 1)
    assert recording.fast_weights is None
    attention = recording.attention
    assert attention is not None
    n_steps = len(recording.actions)
    np.testing.assert_allclose(attention.weights.sum(-1), 1, rtol=1e-5)
    assert not np.triu(attention.weights.swapaxes(0, 1), 1).any()
    memory: Any = policy.memory if n_blocks == 1 else policy.memory.blocks[1]
    values = torch.as_tensor(recording.states[-1][-1, -n_steps:, -129:-1]).unflatten(-1, (4, 32))
    columns = memory.block.readout.weight.detach().unflatten(1, (4, 32))
    given = torch.einsum("ths,shv,whv->tsw", torch.as_tensor(attention.weights), values, columns)
    np.testing.assert_allclose(attention.retrieval, given.norm(dim=-1).numpy(), atol=1e-5)
    np.testing.assert_array_equal(recording.retrieval, attention.retrieval)


def test_steps_back_are_the_mean_of_what_is_attended_to() -> None:
    """Catches steps that are counted from the start, and heads that are added."""
    weights = np.array([[[1, 0, 0], [1, 0, 0]], [[0.5, 0.5, 0], [0, 1, 0]], [[1, 0, 0], [0, 0, 1]]], np.float32)
    attention = Attention(weights=weights, retrieval=weights.sum(1))
    assert attention.steps_back.tolist() == [[0, 0], [0.5, 0], [2, 0]]


def test_recording_names_delay_heads() -> None:
    """Red if pictures can't say in which heads rows are times."""
    trace = inspect_memory(build_memory(DeltaConfig(delay_heads=2), 5), torch.randn(6, 1, 5))
    assert folded(trace).delay_heads == 2


@pytest.mark.parametrize(("memory", "n_leaves"), [("lstm", 2), ("none", 0)])
def test_other_memories_have_activations(memory: str, n_leaves: int) -> None:
    config, policy = untrained(memory)
    (recording,) = record(policy, config, seeds=[1_000_000])
    assert recording.fast_weights is recording.attention is recording.retrieval is None
    assert len(recording.states) == n_leaves
    if n_leaves:
        squares = sum((leaf[0] ** 2).sum() for leaf in recording.states)
        assert recording.changes[0] == pytest.approx(squares**0.5, rel=1e-5)


def test_what_several_writes_of_an_input_contribute_is_the_norm_of_their_sum() -> None:
    """Catches norms that are added, and writes of another input."""
    memory = build_memory("delta_product", 5)
    trace = inspect_memory(memory, torch.randn(6, 1, 5))
    n_heads = trace.v.shape[2]
    parts = torch.einsum("tbhs,sbhv->tbhsv", trace.retrieval, trace.v).unflatten(3, (6, 2)).sum(4)
    expected = parts.norm(dim=-1)[1::2, 0]
    assert expected.shape == (6, n_heads, 6)
    np.testing.assert_allclose(folded(trace).contributions, expected.numpy(), atol=1e-5)
