"""Does an agent learn with settings that nobody chose for it? Ours beside Stable-Baselines3's, with the same settings.

    python -m benchmarks.defaults               # hours; writes benchmarks/results/defaults.{json,md}
    python -m benchmarks.defaults a c           # only these; all other results stay
    python -m benchmarks.defaults --smoke       # seconds, writes nothing

Settings a, b and c train on CartPole without velocities: those of sb3-contrib's own test of its LSTM, the defaults of
PPO, and a set with a larger learning rate. The others are fully observable, with the defaults of PPO. Every agent has
the settings of its task and the defaults of its class for all else; `lstm` has as many cells as RecurrentPPO's.
Some of ours are left as they were before one choice was made, to show what it does: with "raw values" the critic learns
values in units of reward, and a "saturated encoder" starts with four times the weights.

The measure is the mean of ten numbers, the mean training return in each tenth of the steps: it needs no evaluation, and
an agent that learns sooner has more of it.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import statistics
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

import envs
from agents.table import markdown
from benchmarks.machine import describe_machine
from fwp_rl import DeltaConfig, LSTMConfig
from fwp_rl.sb3 import MemoryPPO

RESULTS = pathlib.Path(__file__).parent / "results"
RUNS = pathlib.Path("runs") / "benchmarks" / "defaults"
SEEDS = range(5)
OURS = ("lstm", "delta", "lstm, raw values", "delta, raw values", "delta, saturated encoder")
PPO_DEFAULTS = {"n_steps": 2048, "batch_size": 64, "n_epochs": 10, "learning_rate": 3e-4}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A task, and the settings that all agents have."""

    env_id: str
    n_envs: int
    total_timesteps: int = 50_000
    normalize: bool = False
    """Observations and rewards, by `VecNormalize`."""
    ppo: dict[str, Any] = field(default_factory=dict)
    net_arch: dict[str, list[int]] = field(default_factory=lambda: {"pi": [64], "vf": [64]})
    peer: str = "RecurrentPPO"
    bars: dict[str, float] = field(default_factory=lambda: {"lstm": 0.95, "delta": 1.0})
    """At least so much of the mean of the peer."""
    scale: tuple[float, float] = (0.0, 1.0)
    """Returns of a random agent and of a perfect one, which are 0 and 1 in the ratio."""


def _observable(env_id: str, scale: tuple[float, float], total_timesteps: int = 100_000) -> Setting:
    return Setting(
        env_id=env_id,
        n_envs=1,
        total_timesteps=total_timesteps,
        ppo=PPO_DEFAULTS,
        peer="PPO",
        bars={"delta": 0.9},
        scale=scale,
    )


SETTINGS = {
    "a": Setting(
        env_id="CartPoleNoVel-v1",
        n_envs=8,
        normalize=True,
        ppo={
            **{"n_steps": 128, "batch_size": 256, "n_epochs": 10, "learning_rate": 7e-4},
            **{"gae_lambda": 0.98, "max_grad_norm": 1.0},
        },
        net_arch={"pi": [], "vf": [64]},
    ),
    "b": Setting(env_id="CartPoleNoVel-v1", n_envs=8, ppo=PPO_DEFAULTS),
    "c": Setting(
        env_id="CartPoleNoVel-v1",
        n_envs=8,
        ppo={
            **{"n_steps": 128, "batch_size": 256, "n_epochs": 10, "learning_rate": 1e-3},
            **{"gamma": 0.98, "gae_lambda": 0.8},
        },
    ),
    "CartPole": _observable("CartPole-v1", (22.0, 500.0)),
    "Acrobot": _observable("Acrobot-v1", (-500.0, -80.0)),
    "Pendulum": _observable("Pendulum-v1", (-1230.0, -150.0)),
    "LunarLander": _observable("LunarLander-v3", (-180.0, 260.0)),
}


class Returns(BaseCallback):
    """Step and return of every episode of training."""

    def __init__(self) -> None:
        super().__init__()
        self.episodes: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self.episodes.append((self.num_timesteps, float(info["episode"]["r"])))
        return True


def build(setting: Setting, agent: str, env: VecEnv, seed: int) -> BaseAlgorithm:
    common: dict[str, Any] = {**setting.ppo, "seed": seed, "device": "cpu"}
    kwargs: dict[str, Any] = {"net_arch": setting.net_arch}
    if agent == "PPO":
        return PPO("MlpPolicy", env, **common)
    if agent == "RecurrentPPO":
        return RecurrentPPO("MlpLstmPolicy", env, policy_kwargs=kwargs | {"lstm_hidden_size": 64}, **common)
    name, _, change = agent.partition(", ")
    kwargs |= {
        "memory": LSTMConfig(hidden_size=64) if name == "lstm" else DeltaConfig(),
        "normalize_values": change != "raw values",
    }
    length = min(128, setting.ppo["batch_size"])
    model = MemoryPPO("MlpPolicy", env, sequence_length=length, policy_kwargs=kwargs, **common)
    if change == "saturated encoder":
        with torch.no_grad():
            model.policy.encoder[0].weight *= 4  # type: ignore[index]  # a Sequential
    return model


def run(name: str, agent: str, seed: int, total_timesteps: int | None = None) -> dict[str, Any]:
    """One training: the mean return in each tenth of its steps."""
    torch.set_num_threads(1)
    setting = SETTINGS[name]
    steps = total_timesteps or setting.total_timesteps

    def make() -> gymnasium.Env[Any, Any]:
        return Monitor(envs.make(setting.env_id))

    env: VecEnv = DummyVecEnv([make] * setting.n_envs)
    if setting.normalize:
        env = VecNormalize(env, gamma=setting.ppo.get("gamma", 0.99))
    returns = Returns()
    build(setting, agent, env, seed).learn(steps, callback=returns)
    ends, values = (np.array(column) for column in zip(*returns.episodes, strict=True))
    tenths: list[float] = []
    for n in range(10):
        inside = (ends > n * steps / 10) & (ends <= (n + 1) * steps / 10)
        tenths.append(float(values[inside].mean()) if inside.any() else tenths[-1] if tenths else float(values[0]))
    return {
        "setting": name,
        "agent": agent,
        "seed": seed,
        "tenths": tenths,
        "mean": statistics.fmean(tenths),
        "machine": describe_machine(),
    }


def result_of(name: str, agent: str, seed: int) -> dict[str, Any]:
    """`run`, unless that has been done."""
    file = RUNS / name / agent.replace(", ", "-").replace(" ", "-") / f"seed_{seed}.json"
    if not file.exists():
        row = run(name, agent, seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(row), encoding="utf-8")
    return dict(json.loads(file.read_text(encoding="utf-8")))


def as_markdown(rows: list[dict[str, Any]]) -> str:
    table = []
    for name in dict.fromkeys(row["setting"] for row in rows):
        setting = SETTINGS[name]
        means = {
            agent: [row["mean"] for row in rows if (row["setting"], row["agent"]) == (name, agent)]
            for agent in (setting.peer, *OURS)
        }
        low, high = setting.scale

        def score(values: list[float], low: float = low, high: float = high) -> float:
            return (statistics.fmean(values) - low) / (high - low)

        for agent, values in means.items():
            if not values:
                continue
            ratio = score(values) / score(means[setting.peer]) if means[setting.peer] else float("nan")
            bar = setting.bars.get(agent)
            table.append(
                {
                    "setting": name,
                    "task": setting.env_id,
                    "agent": agent,
                    "mean training return by seed": ", ".join(f"{value:.0f}" for value in values),
                    "mean": f"{statistics.fmean(values):.0f}",
                    "of the peer's": f"{ratio:.2f}",
                    "bar": "" if bar is None else f"{bar} {'met' if ratio >= bar else 'missed'}",
                }
            )
    return "\n".join(
        [
            "# With settings that were chosen for nobody",
            "",
            "The mean over ten tenths of a training of the mean return in each. Ratios are of means over seeds; where "
            "a task is fully observable, a random agent is 0 in them and a perfect one 1. "
            "Written by `python -m benchmarks.defaults`.",
            "",
            *(f"{machine}\n" for machine in dict.fromkeys(row["machine"] for row in rows)),
            *(
                f"{name}: {setting.n_envs} environments, {setting.total_timesteps:,} steps, {setting.ppo}"
                f"{', observations and rewards normalised' if setting.normalize else ''}\n"
                for name, setting in SETTINGS.items()
                if name in {row["setting"] for row in rows}
            ),
            markdown(table),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="SETTING", help=f"of {', '.join(SETTINGS)}; default: all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs side by side")
    parser.add_argument("--smoke", action="store_true", help="a few steps, nothing written")
    arguments = parser.parse_args()
    if arguments.smoke:
        print(as_markdown([run("c", agent, 0, 2048) for agent in ("RecurrentPPO", *OURS)]))
        return
    if unknown := set(arguments.settings) - set(SETTINGS):
        parser.error(f"unknown setting {sorted(unknown)[0]!r}; known are {', '.join(SETTINGS)}")
    names = arguments.settings or list(SETTINGS)
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    jobs = [(name, agent, seed) for name in names for seed in SEEDS for agent in (SETTINGS[name].peer, *OURS)]
    with concurrent.futures.ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        rows = []
        for future in [pool.submit(result_of, *job) for job in jobs]:
            rows.append(future.result())
            print(
                f"{len(rows)} of {len(jobs)}: {rows[-1]['setting']} {rows[-1]['agent']} {rows[-1]['mean']:.1f}",
                flush=True,
            )
    file = RESULTS / "defaults.json"
    if file.exists():
        rows += [row for row in json.loads(file.read_text(encoding="utf-8"))["rows"] if row["setting"] not in names]
    rows.sort(key=lambda row: list(SETTINGS).index(row["setting"]))
    file.write_text(json.dumps({"rows": rows}) + "\n", encoding="utf-8")
    (RESULTS / "defaults.md").write_text(as_markdown(rows), encoding="utf-8")
    print(as_markdown(rows))


if __name__ == "__main__":
    main()
