"""Operations on a memory, on agents of which is known what they remember and when."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import envs
from agents import __main__ as program
from agents.config import TrainConfig
from agents.errors import UsageError
from agents.evaluation import evaluate_policy_on
from agents.model import build_model
from agents.probe import Operated, _sweep, draw, probe, report
from agents.vec_env import make_vec_env
from fwp_rl import build_memory
from fwp_rl.registry import memory_config

LENGTH, EPISODES = 3, 24


class CueKeeper:
    """An agent written by hand: it keeps the last cue as a number, and turns right where it has none."""

    def __init__(self, config: TrainConfig) -> None:
        env = envs.make(config.env_id, **config.env_options)
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.memory = build_memory("lstm", 4)

    def initial_state(self, batch_size: int) -> torch.Tensor:
        return torch.zeros(batch_size, 1)

    def actor_state(self, state: torch.Tensor) -> torch.Tensor:
        return state

    def predict(
        self, observation: np.ndarray, state: Any, episode_start: np.ndarray, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        held = np.where(episode_start[:, None], 0.0, np.zeros((len(observation), 1)) if state is None else state)
        cue = (observation[:, 0] - observation[:, 1])[:, None]
        held = np.where(cue != 0, cue, held)
        forward, left, right = 0, 1, 2
        turn = np.where(held[:, 0] > 0, left, right)
        return np.where(observation[:, 2] == 1, turn, forward), held


def config(n_corridors: int = 1) -> TrainConfig:
    return TrainConfig(env_id="fwp/TMaze-v0", env_options={"length": LENGTH, "n_corridors": n_corridors})


def values(result: Any) -> dict[tuple[str, int], float]:
    return {(outcome.operation, outcome.step): outcome.estimate.value for outcome in result.outcomes}


def test_operations_show_when_the_memory_is_needed() -> None:
    """Catches an operation a step early or late, one that reaches the wrong rows, and one that does nothing.

    The agent needs what it saw at step 0, from step 1 until it turns at step 3.
    """
    agent: Any = CueKeeper(config())
    result = probe(agent, config(), episodes=EPISODES)
    blind = evaluate_policy_on(
        Operated(agent, "always erased", 0), config(), episodes=EPISODES, n_envs=EPISODES, deterministic=True
    )
    is_right = np.array([bool(row.is_success) for row in blind])
    no_memory = is_right.mean()
    assert 0.2 < no_memory < 0.8
    mixed = (is_right == np.roll(is_right, 1)).mean()  # the cue of the episode whose memory it got
    assert 0.2 < mixed < 0.8
    assert result.untouched.value == 1.0
    assert result.without_memory.value == no_memory
    assert values(result) == {
        **{("erase", step): no_memory if step else 1.0 for step in range(4)},
        **{("freeze", step): 1.0 if step else no_memory for step in range(4)},
        **{("transplant", step): mixed if step else 1.0 for step in range(4)},
    }


def test_what_will_be_written_anew_need_not_be_remembered() -> None:
    """Catches an erased memory that stays erased: before the second cue, what is lost of the first does not matter."""
    agent: Any = CueKeeper(config(2))
    result = probe(agent, config(2), operations=["erase"], episodes=EPISODES)
    kept = {step for (_, step), value in values(result).items() if value == 1.0}
    assert kept == {0, LENGTH + 1}  # before the first cue and before the second
    assert {outcome.reached for outcome in result.outcomes} == {EPISODES}


@pytest.mark.parametrize(("memory", "n_blocks"), [("delta", 1), ("gated_delta", 2), ("delta_product", 1)])
def test_a_deleted_key_recalls_nothing_and_others_what_they_did(memory: str, n_blocks: int) -> None:
    """Catches a projection on the wrong axis, keys of the wrong step or block, and only one of several keys."""
    made = TrainConfig(env_id="fwp/TMaze-v0", memory=memory_config(memory), n_blocks=n_blocks, n_envs=2)
    policy = build_model(made, make_vec_env(made.env_id, 2)).policy
    agent = Operated(policy, "delete", 2)
    rng = np.random.default_rng(0)
    observations, starts = rng.uniform(size=(3, 5, 4)).astype(np.float32), np.zeros(5, dtype=bool)
    inputs = policy.encode(torch.as_tensor(observations[1]))[None]
    before: Any = None
    state: Any = None
    for observation in observations[:2]:
        before = state
        _, state = agent.predict(observation, state, starts)
    after = agent._operate(state)
    for number, block in enumerate(policy.memory.blocks if n_blocks > 1 else [policy.memory]):
        old, own, new = (torch.as_tensor(x[number] if n_blocks > 1 else x) for x in (before, state, after))
        with torch.no_grad():
            k = block.head_inputs(inputs, old, torch.as_tensor(starts)[None]).k
            inputs, _ = block.scan(inputs, old, torch.as_tensor(starts)[None])
        assert torch.einsum("nbhk,bhkv->nbhv", k, own).abs().max() > 0.01
        assert torch.einsum("nbhk,bhkv->nbhv", k, new).abs().max() < 1e-5
        taken = own - new
        assert torch.linalg.matrix_rank(taken, atol=1e-4).max() <= len(k)


def test_a_step_that_no_episode_reaches_has_no_success(tmp_path: Path) -> None:
    """Catches a success rate of agents to which nothing was done."""
    agent: Any = CueKeeper(config())
    result = probe(agent, config(), operations=["erase"], steps=[1, 500], episodes=EPISODES)
    last = report(result).splitlines()[-3]
    assert last.split() == ["500", "0", "-"]
    draw(result, tmp_path / "probe.png")


def test_long_episodes_are_swept_with_all_of_their_first_steps() -> None:
    assert _sweep(4) == [0, 1, 2, 3]
    steps = _sweep(500)
    assert len(steps) == 12
    assert steps[:4] == [0, 1, 2, 3]
    assert steps[-1] == 499


def test_the_command_prints_a_table_and_draws(
    run_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new folder" / "probe.png"
    arguments = ["probe", str(run_directory), "--episodes", "4", "--steps", "1", "--out", str(out)]
    program.main([*arguments, "--operations", "erase", "delete"])
    text = capsys.readouterr().out
    assert "untouched" in text
    assert "delete" in text
    with Image.open(out) as image:
        assert image.width > 500
    program.main([*arguments, "--operations", "erase", "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert [outcome["operation"] for outcome in answer["outcomes"]] == ["erase"]
    assert set(answer["untouched"]) == {"value", "low", "high"}


def test_a_table_marks_what_is_apart_from_the_untouched_agent(tmp_path: Path) -> None:
    agent: Any = CueKeeper(config())
    result = probe(agent, config(), operations=["erase"], steps=[0, 2], episodes=EPISODES)
    lines = report(result).splitlines()
    assert [line.rstrip().endswith("*") for line in lines if line.lstrip().startswith(("0 ", "2 "))] == [False, True]
    draw(result, tmp_path / "probe.svg")


def test_attention_is_probed_as_far_as_it_can_be() -> None:
    """Catches keys of attention that are taken for fast weights, and an operation that its state does not stand."""
    made = TrainConfig(env_id="fwp/TMaze-v0", memory=memory_config("attention"), n_envs=2)
    policy = build_model(made, make_vec_env(made.env_id, 2)).policy
    result = probe(policy, made, episodes=4, steps=[1])
    assert [outcome.operation for outcome in result.outcomes] == ["erase", "freeze", "transplant"]
    with pytest.raises(UsageError, match="attention has not one matrix for each head, so that no key can be deleted"):
        probe(policy, made, operations=["delete"], episodes=4)


def test_what_cannot_be_probed_is_refused(run_directory: Path) -> None:
    agent: Any = CueKeeper(config())
    with pytest.raises(UsageError, match="episodes=1 must be at least 2"):
        probe(agent, config(), episodes=1)
    with pytest.raises(UsageError, match="steps=-1 must be at least 0"):
        probe(agent, config(), steps=[3, -1])
    with pytest.raises(UsageError, match=r"no key can be deleted; choose from erase, freeze, transplant"):
        probe(agent, TrainConfig(memory=memory_config("lstm")), operations=["delete"])
    with pytest.raises(UsageError, match=r"must end in \.png"):
        program.main(["probe", str(run_directory), "--out", "probe.txt"])
