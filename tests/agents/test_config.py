import dataclasses
import json

import pytest

from agents.config import ConfigError, PPOConfig, TrainConfig, config_problems, to_json, train_config_from_json
from agents.presets import presets
from fwp_rl.registry import memory_config, memory_configs

PLAIN = TrainConfig(env_options={"view_size": 3, "actions": "moves", "scale": 0.5, "mission": None, "flag": True})


@pytest.mark.parametrize("memory", memory_configs())
def test_config_survives_a_round_trip_through_json(memory: str) -> None:
    config = dataclasses.replace(PLAIN, memory=memory_config(memory), net_arch=(3, 5), ppo=PPOConfig(target_kl=0.1))
    text = json.dumps(to_json(config), allow_nan=False)
    assert train_config_from_json(json.loads(text)) == config


@pytest.mark.parametrize("name", presets())
def test_presets_survive_a_round_trip_and_have_no_problems(name: str) -> None:
    config = presets()[name].config
    assert train_config_from_json(to_json(config)) == config
    assert config_problems(config) == []


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("sed",), 1, "config: unknown key 'sed'"),
        (("ppo", "gama"), 0.9, "config.ppo: unknown key 'gama'"),
        (("memory", "type"), "os.system", "config.memory: unknown memory 'os.system'"),
        (("memory", "secret"), 1, "config.memory: unknown key 'secret'"),
        (("ppo", "gamma"), float("nan"), "config.ppo.gamma: expected a finite number"),
        (("ppo", "gamma"), "0.9", "config.ppo.gamma: expected float"),
        (("ppo", "n_steps"), 1.5, "config.ppo.n_steps: expected int"),
        (("ppo", "n_steps"), True, "config.ppo.n_steps: expected int"),
        (("ppo", "batch_size"), "8", "config.ppo.batch_size: expected int or null"),
        (("ppo", "learning_rate_schedule"), "cosine", "config.ppo.learning_rate_schedule: expected one of"),
        (("net_arch",), 64, "config.net_arch: expected a list"),
        (("net_arch",), [64, "x"], r"config.net_arch\[1\]: expected int"),
        (("env_options",), {"a": [1]}, "config.env_options.a: expected"),
        (("memory",), "delta", "config.memory: expected an object with a type"),
    ],
)
def test_a_wrong_config_file_is_refused_by_place(path: tuple[str, ...], value: object, message: str) -> None:
    data = to_json(PLAIN)
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(ConfigError, match=f"^{message}"):
        train_config_from_json(data)


def test_numbers_that_are_none_are_not_written() -> None:
    with pytest.raises(ConfigError):
        to_json(dataclasses.replace(PLAIN, ppo=PPOConfig(gamma=float("inf"))))


def test_all_problems_are_told_at_once() -> None:
    config = TrainConfig(
        n_envs=0, seed=-1, total_timesteps=0, stop_at_success=2.0, device="tpu", net_arch=(0,), encoder_size=0
    )
    problems = "\n".join(config_problems(config))
    for name in (
        "n_envs=0",
        "seed=-1",
        "total_timesteps=0",
        "stop_at_success=2.0",
        "eval_every",
        "'tpu'",
        "net_arch",
        "encoder_size=0",
    ):
        assert name in problems
    for workers in (-1, 4):
        assert f"workers={workers} must be" in "\n".join(config_problems(TrainConfig(n_envs=4, workers=workers)))
    assert "stop_at_return needs evaluations" in "\n".join(config_problems(TrainConfig(stop_at_return=450.0)))
    assert "ppo.adam_eps=0.0 must be more than 0" in "\n".join(
        config_problems(TrainConfig(ppo=PPOConfig(adam_eps=0.0)))
    )
