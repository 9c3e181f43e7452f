import contextlib
import dataclasses
import functools
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from agents import run_callback, training
from agents.config import PPOConfig, TrainConfig
from agents.errors import InterruptedRunError
from agents.interrupts import Interrupts
from agents.model import WINDOW, build_model, make_training_env
from agents.presets import preset_config
from agents.runs import RunPaths, read_metrics, read_run
from agents.training import train
from agents.vec_env import NormalizedRewards
from fwp_rl.sb3 import WorkerVecEnv


@pytest.mark.parametrize("normalize", [False, True])
def test_metrics_are_raw_whatever_is_learned_from(normalize: bool, tmp_path: Path) -> None:
    config = TrainConfig(
        env_id="CartPoleNoVel-v1",
        ppo=PPOConfig(n_steps=32, n_epochs=1, normalize_reward=normalize),
        n_envs=4,
        total_timesteps=256,
        eval_every=256,
        eval_episodes=4,
        threads=1,
    )
    lines = read_metrics(RunPaths(train(config, tmp_path / "run", quiet=True)).metrics)
    pairs = [
        (line[f"{of}_mean"], line[to])
        for line in lines
        for of, to in (("rollout/ep_rew", "rollout/ep_len_mean"), ("eval/return", "eval/length_mean"))
        if f"{of}_mean" in line
    ]
    assert len(pairs) >= 2
    assert all(value == pytest.approx(length) for value, length in pairs)  # CartPole pays 1 for each step


def test_the_learner_sees_normalized_rewards_where_the_config_says_so() -> None:
    config = preset_config("CartPoleNoVel-v1", None)
    for normalize in (False, True):
        wanted = dataclasses.replace(config, ppo=dataclasses.replace(config.ppo, normalize_reward=normalize))
        venv = make_training_env(wanted)
        assert isinstance(build_model(wanted, venv).env, NormalizedRewards) == normalize
        venv.close()


def test_every_setting_of_ppo_reaches_the_learner() -> None:
    """Catches settings that do nothing, a fused optimizer that was lost on the way, and means over fewer episodes than
    a comparison waits for before it calls a task learned."""
    numbers: dict[str, Any] = {
        **{"n_steps": 32, "sequence_length": 16, "batch_size": 64, "n_epochs": 3, "target_kl": 0.1},
        **{"gamma": 0.9, "gae_lambda": 0.8, "vf_coef": 0.3, "max_grad_norm": 0.7, "ent_coef": 0.01},
        **{"use_sde": True, "sde_sample_freq": 4},
    }
    elsewhere: dict[str, Any] = {
        **{"learning_rate": 1e-3, "learning_rate_schedule": "linear", "adam_eps": 1e-4},
        **{"clip_range": 0.1, "clip_range_schedule": "linear"},
        **{"advantage_floor": 0.1, "log_std_init": -1.5, "ent_coef_final": 0.001, "normalize_reward": True},
        **{"normalize_values": False},
    }
    ppo = PPOConfig(**numbers, **elsewhere)
    assert {field.name for field in dataclasses.fields(ppo)} == {*numbers, *elsewhere}
    config = TrainConfig(env_id="PendulumNoVel-v1", ppo=ppo, n_envs=4)
    with contextlib.closing(make_training_env(config)) as venv:
        model = build_model(config, venv)
        assert {name: getattr(model, name) for name in numbers} == numbers
        assert (model.lr_schedule(0.5), model.clip_range(0.5)) == (5e-4, 0.05)  # type: ignore[operator]  # a schedule
        assert model.rollout_buffer.advantage_floor == 0.1
        assert model.policy.value_norm is None
        assert model._stats_window_size == WINDOW
        (group,) = model.policy.optimizer.param_groups
        assert (group["eps"], group["fused"]) == (1e-4, True)
        assert (model.policy.log_std == -1.5).all()
        assert isinstance(model.env, NormalizedRewards)


@pytest.mark.parametrize(("target", "stops"), [(1.0, True), (501.0, False)])
def test_a_run_ends_at_the_return_that_was_asked_for(target: float, stops: bool, tmp_path: Path) -> None:
    config = TrainConfig(
        env_id="CartPoleNoVel-v1",
        ppo=PPOConfig(n_steps=32, n_epochs=1),
        n_envs=4,
        total_timesteps=512,
        eval_every=128,
        eval_episodes=2,
        stop_at_return=target,
        threads=1,
    )
    run = read_run(train(config, tmp_path / "run", quiet=True))
    assert run["status"] == "finished"
    assert (run["steps"] < 512) == stops


@pytest.mark.skipif(os.name == "nt", reason="there is no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_change_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if a run with workers collects, logs or learns anything else, or does not say how many it had."""
    monkeypatch.setattr("agents.vec_env.WorkerVecEnv", functools.partial(WorkerVecEnv, start_method="fork"))
    runs = []
    for workers in (None, 1, 2):
        config = TrainConfig(
            env_id="CartPoleNoVel-v1",
            ppo=PPOConfig(n_steps=32, n_epochs=1, normalize_reward=True),
            previous_action=True,
            n_envs=4,
            workers=workers,
            total_timesteps=256,
        )
        directory = train(config, tmp_path / str(workers), quiet=True)
        lines = read_metrics(RunPaths(directory).metrics)
        runs.append([{k: v for k, v in line.items() if "time" not in k and k != "seconds"} for line in lines])
        assert read_run(directory)["config"]["workers"] == (workers or 0)
    assert runs[0]
    assert runs[0] == runs[1] == runs[2]


def test_an_evaluation_is_no_reason_to_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches Ctrl-C that waits for the last of a thousand episodes, and a number that is about half of them."""

    class Interrupted(Interrupts):
        def __enter__(self) -> Interrupts:
            evaluate = run_callback.evaluate_policy_on

            def interrupted(player: Any, *arguments: Any, **settings: Any) -> Any:
                self.received = signal.SIGINT
                return evaluate(player, *arguments, **settings)

            monkeypatch.setattr(run_callback, "evaluate_policy_on", interrupted)
            return self

    monkeypatch.setattr(training, "Interrupts", Interrupted)
    config = TrainConfig(env_id="fwp/TMaze-v0", ppo=PPOConfig(n_steps=16), n_envs=4, eval_every=64, eval_episodes=2000)
    with pytest.raises(InterruptedRunError):
        train(config, tmp_path / "run", quiet=True)
    run = read_run(tmp_path / "run")
    assert (run["status"], run["steps"]) == ("interrupted", 68)
    assert not any("eval/return_mean" in line for line in read_metrics(tmp_path / "run" / "metrics.jsonl"))


def test_a_run_ends_when_its_time_is_over(tmp_path: Path) -> None:
    """Catches a comparison of equal times in which all take all steps."""
    config = TrainConfig(
        env_id="fwp/TMaze-v0", ppo=PPOConfig(n_steps=16), n_envs=4, total_timesteps=640, stop_at_seconds=1e-6
    )
    run = read_run(train(config, tmp_path / "run", quiet=True))
    assert (run["status"], run["steps"]) == ("finished", 4)
