"""Environments that EnvPool steps; what it does itself is tested where it is installed."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecEnv

import envs
from agents.config import PPOConfig, TrainConfig
from agents.errors import EnvironmentFaultError, UsageError
from agents.runs import RunPaths, read_metrics, read_run
from agents.training import train
from agents.vec_env import make_vec_env
from benchmarks.envpool import differences, episodes, fidelity, random_actions
from envs.envpool_task import DIFFERENT
from fwp_rl.registry import memory_config

installed = pytest.mark.skipif(importlib.util.find_spec("envpool") is None, reason="needs the extra envpool")

MOVES = {"actions": "moves", "max_steps": 40}  # reaches the goal sometimes, and the limit


def tape(venv: VecEnv, n_steps: int) -> list[Any]:
    """All that a learner sees of each row, with time stamps left out."""
    act = random_actions(venv, 0)
    seen: list[Any] = [_plain(venv.reset())]
    for _ in range(n_steps):
        observations, rewards, dones, infos = venv.step(act())
        assert (rewards.dtype, dones.dtype) == (np.float32, bool)
        for info in infos:
            if "episode" in info:
                info["episode"] = (round(info["episode"]["r"], 5), info["episode"]["l"])
                info["terminal_observation"] = _plain(info["terminal_observation"])
        rewards = rewards.round(5)  # computed in float32 by EnvPool
        seen.append((_plain(observations), rewards.tolist(), dones.tolist(), infos))
    return seen


def _plain(observations: Any) -> Any:
    if isinstance(observations, dict):
        return {name: _plain(part) for name, part in observations.items()}
    return (observations.dtype, observations.tolist())


@installed
@pytest.mark.parametrize("observation", ["onehot", "symbolic", "rgb"])
def test_in_a_world_without_chance_both_engines_tell_the_same(observation: str) -> None:
    """Red if an ended row loses a step or its last observation, or an info, an observation or a return is another."""
    options = {**MOVES, "observation": observation, "mission": "tokens"}
    ours, theirs = (
        tape(make_vec_env("MiniGrid-Empty-5x5-v0", 3, options=options, engine=engine), 300)
        for engine in ("original", "envpool")
    )
    assert ours == theirs
    ends = [info for step in ours[1:] for info in step[3] if "episode" in info]
    assert {(info["TimeLimit.truncated"], info["is_success"]) for info in ends} == {(True, False), (False, True)}


@installed
@pytest.mark.parametrize(
    "env_id",
    ["MiniGrid-MemoryS7-v0", "MiniGrid-MemoryS9-v0", "MiniGrid-Empty-5x5-v0", "MiniGrid-DoorKey-5x5-v0", "CartPole-v1"],
)
def test_episodes_are_those_of_the_original_in_the_mean(env_id: str) -> None:
    """Red if spaces, rewards, lengths, ends or observations are not those of the original (benchmarks.envpool)."""
    assert fidelity(env_id, n_rows=64, per_row=4) == []


def test_the_comparison_notices_another_world() -> None:
    """Red if the test above could not turn red: a larger room."""
    small, large = (
        episodes(venv, random_actions(venv, 0), 4)
        for venv in (make_vec_env(f"MiniGrid-Empty-{size}-v0", 32, options=MOVES) for size in ("5x5", "8x8"))
    )
    told = "; ".join(differences(small, large))
    assert all(name in told for name in ("return", "length", "share cut off", "success", "last observation"))
    assert differences(small, small) == []


@installed
def test_a_seed_settles_each_row_by_itself() -> None:
    """Red if a row depends on the others, if the seed is forgotten, or if it takes no effect in a second reset."""
    alone, among = (make_vec_env("MiniGrid-MemoryS13Random-v0", n, engine="envpool") for n in (1, 8))
    among.seed(7)
    first = among.reset()
    assert isinstance(first, np.ndarray)
    assert len(np.unique(first, axis=0)) > 1
    assert not np.array_equal(among.reset(), first)
    among.seed(7)
    assert np.array_equal(among.reset(), first)
    alone.seed(7 + 5)
    assert np.array_equal(alone.reset()[0], first[5])  # type: ignore[index]  # an array


@installed
def test_a_task_without_success_has_none() -> None:
    """Red if a run on CartPole logs a success rate of zero."""
    venv = make_vec_env("CartPole-v1", 2, engine="envpool")
    infos = [info for step in tape(venv, 100)[1:] for info in step[3]]
    assert any("episode" in info for info in infos)
    assert not any("is_success" in info for info in infos)


@installed
def test_a_run_says_what_stepped_it_and_can_be_done_again(tmp_path: Path) -> None:
    """Red if the engine is not used or not recorded, or if two runs of a seed differ."""
    lines = []
    for name in ("a", "b"):
        config = TrainConfig(
            env_id="MiniGrid-MemoryS7-v0",
            memory=memory_config("none"),
            ppo=PPOConfig(n_steps=32, n_epochs=1),
            n_envs=4,
            total_timesteps=512,
            save_every=256,  # all environments start new episodes there
            eval_every=512,
            eval_episodes=1,
            previous_action=True,
            engine="envpool",
        )
        directory = train(config, tmp_path / name, quiet=True)
        run = read_run(directory)
        assert run["config"]["engine"] == "envpool"
        assert "envpool" in run["versions"]
        metrics = read_metrics(RunPaths(directory).metrics)
        lines.append([{k: v for k, v in line.items() if "time" not in k and k != "seconds"} for line in metrics])
    assert lines[0] == lines[1]


REFUSED = [
    ("fwp/TMaze-v0", {}, "EnvPool does not step fwp/TMaze-v0: leave engine out"),
    ("CartPoleNoVel-v1", {}, "EnvPool does not step CartPoleNoVel-v1: leave engine out; did you mean CartPole-v1"),
    ("MiniGrid-MemoryS9-v0", {"options": {"view_size": 3}}, "has no option 'view_size', it takes observation, "),
    ("CartPole-v1", {"options": {"sutton_barto_reward": True}}, "'sutton_barto_reward', it takes none"),
    ("CartPole-v1", {"wrappers": ["mask:hide=1"]}, "no wrappers, got mask:hide=1"),
    ("CartPole-v1", {"workers": 1}, "workers=1: CartPole-v1 is stepped by EnvPool"),
    ("CartPol-v1", {}, "CartPole-v1"),
    *((env_id, {}, f"EnvPool's {env_id} is not the original, {how}: ") for env_id, how in DIFFERENT.items()),
]


@installed
@pytest.mark.parametrize(("env_id", "settings", "message"), REFUSED)
def test_what_envpool_cannot_do_is_one_line(env_id: str, settings: dict[str, Any], message: str) -> None:
    """Red if something else than what was asked for is stepped, or if nobody says why it is not."""
    with pytest.raises(UsageError) as caught:
        make_vec_env(env_id, 2, engine="envpool", **settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_where_envpool_is_missing_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if the extra is not named, or a traceback comes instead."""
    monkeypatch.setattr("envs.envpool_task.find_spec", lambda name: None)
    with pytest.raises(
        EnvironmentFaultError, match=r'^CartPole-v1: envpool is not installed: pip install -e "\.\[envpool\]"$'
    ):
        make_vec_env("CartPole-v1", 2, engine="envpool")


@installed
def test_pictures_are_the_originals() -> None:
    with pytest.raises(RuntimeError, match="evaluate and render with the original"):
        envs.make_pool("CartPole-v1", 2).render()
