"""RL Zoo's PPO with an LSTM on tasks without velocities: sb3-contrib's RecurrentPPO, our `lstm`, and `delta` beside it.

    python -m benchmarks.zoo               # ours on all tasks, an hour; writes benchmarks/results/zoo.{json,md}
    python -m benchmarks.zoo CartPoleNoVel-v1 --agent RecurrentPPO   # half an hour; all other results stay
    python -m benchmarks.zoo --smoke       # seconds, writes nothing

All have the settings that RL Zoo (`hyperparams/ppo_lstm.yml`) calls tuned, among them observations and rewards
normalised by `VecNormalize`, ReLU, PyTorch's initialisation, and one layer of 64 units for each of actor and critic.
Two things differ: MemoryPPO has one memory, where those settings give the critic an LSTM of its own, and it cuts
rollouts into equal sequences. `lstm` has the size of theirs and, like theirs, reads the observation as it is; `delta`
is as by default. Each agent then plays the same 200 unseen episodes with its most probable actions. What RL Zoo
published is one agent of each, over its episodes; RecurrentPPO shows how its seeds differ.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import statistics
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import LinearSchedule, set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

import envs
from agents.table import markdown
from benchmarks.machine import describe_machine
from fwp_rl import LSTMConfig
from fwp_rl.sb3 import MemoryPPO

EPISODES, FIRST_EPISODE = 200, 10_000
AGENTS, SEEDS = ("RecurrentPPO", "lstm", "delta"), range(5)
RESULTS = pathlib.Path(__file__).parent / "results"
RUNS = pathlib.Path("runs") / "benchmarks" / "zoo"


@dataclass(frozen=True)
class Task:
    """What RL Zoo trains, how, and what it published."""

    n_envs: int
    total_timesteps: int
    lstm_size: int
    sequence_length: int
    settings: dict[str, Any]
    activation: type[nn.Module]
    published: tuple[float, float]
    """Mean and standard deviation over episodes."""


TASKS = {
    "CartPoleNoVel-v1": Task(
        n_envs=8,
        total_timesteps=100_000,
        lstm_size=64,
        sequence_length=32,
        settings={
            "n_steps": 32,
            "batch_size": 256,
            "gae_lambda": 0.8,
            "gamma": 0.98,
            "n_epochs": 20,
            "learning_rate": LinearSchedule(1e-3, 0.0, 1.0),
            "clip_range": LinearSchedule(0.2, 0.0, 1.0),
        },
        activation=nn.ReLU,
        published=(500.0, 0.0),
    ),
    "PendulumNoVel-v1": Task(
        n_envs=4,
        total_timesteps=100_000,
        lstm_size=64,
        sequence_length=128,
        settings={
            "n_steps": 1024,
            "batch_size": 128,
            "gae_lambda": 0.95,
            "gamma": 0.9,
            "n_epochs": 10,
            "learning_rate": 1e-3,
            "use_sde": True,
            "sde_sample_freq": 4,
        },
        activation=nn.ReLU,
        published=(-217.933, 140.094),
    ),
    "MountainCarContinuousNoVel-v0": Task(
        n_envs=8,
        total_timesteps=300_000,
        lstm_size=32,
        sequence_length=256,
        settings={
            "n_steps": 1024,
            "batch_size": 256,
            "gae_lambda": 0.9,
            "gamma": 0.9999,
            "n_epochs": 10,
            "learning_rate": 7.77e-5,
            "ent_coef": 0.00429,
            "clip_range": 0.1,
            "max_grad_norm": 5.0,
            "vf_coef": 0.19,
            "use_sde": True,
            "sde_sample_freq": 8,
        },
        activation=nn.Tanh,
        published=(91.469, 1.776),
    ),
}


def make_env(env_id: str, n_envs: int, gamma: float) -> VecNormalize:
    def make() -> gymnasium.Env[Any, Any]:
        return Monitor(envs.make(env_id))

    return VecNormalize(DummyVecEnv([make] * n_envs), gamma=gamma)


def build(agent: str, task: Task, env: VecNormalize, seed: int) -> RecurrentPPO | MemoryPPO:
    policy: dict[str, Any] = {
        "ortho_init": False,
        "activation_fn": task.activation,
        "net_arch": {"pi": [64], "vf": [64]},
    }
    common: dict[str, Any] = {**task.settings, "seed": seed, "device": "cpu"}
    if agent == "RecurrentPPO":
        policy |= {"lstm_hidden_size": task.lstm_size, "enable_critic_lstm": True}
        return RecurrentPPO("MlpLstmPolicy", env, policy_kwargs=policy, **common)
    policy["memory"] = LSTMConfig(hidden_size=task.lstm_size) if agent == "lstm" else agent
    if agent == "lstm":
        policy["encoder_size"] = None
    return MemoryPPO("MlpPolicy", env, sequence_length=task.sequence_length, policy_kwargs=policy, **common)


def run(env_id: str, agent: str, seed: int, *, total_timesteps: int, episodes: int) -> dict[str, Any]:
    """One agent, trained and evaluated: mean and standard deviation of its returns."""
    torch.set_num_threads(1)
    task = TASKS[env_id]
    env = make_env(env_id, task.n_envs, task.settings["gamma"])
    model = build(agent, task, env, seed).learn(total_timesteps)
    test_env = make_env(env_id, 1, task.settings["gamma"])
    test_env.obs_rms, test_env.training, test_env.norm_reward = env.obs_rms, False, False
    test_env.seed(FIRST_EPISODE)
    set_random_seed(0)
    returns, _ = evaluate_policy(
        model, test_env, n_eval_episodes=episodes, deterministic=True, return_episode_rewards=True
    )
    return {
        "task": env_id,
        "agent": agent,
        "seed": seed,
        "parameters": sum(parameter.numel() for parameter in model.policy.parameters()),
        "steps": model.num_timesteps,
        "mean": statistics.fmean(returns),
        "std": float(np.std(returns)),
        "machine": describe_machine(),
    }


def result_of(env_id: str, agent: str, seed: int) -> dict[str, Any]:
    """`run`, unless that has been done."""
    file = RUNS / env_id / agent / f"seed_{seed}.json"
    if not file.exists():
        row = run(env_id, agent, seed, total_timesteps=TASKS[env_id].total_timesteps, episodes=EPISODES)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(row), encoding="utf-8")
        print(f"{env_id} {agent} seed {seed}: {row['mean']:.1f} +- {row['std']:.1f}", flush=True)
    return dict(json.loads(file.read_text(encoding="utf-8")))


def as_markdown(rows: list[dict[str, Any]]) -> str:
    table = []
    for env_id, agent in dict.fromkeys((row["task"], row["agent"]) for row in rows):
        of = [row for row in rows if (row["task"], row["agent"]) == (env_id, agent)]
        mean, std = TASKS[env_id].published
        table.append(
            {
                "task": env_id,
                "published": f"{mean:.1f} ± {std:.1f}",
                "agent": agent,
                "parameters": f"{of[0]['parameters']:,}",
                "mean return by seed": ", ".join(f"{row['mean']:.1f}" for row in of),
                "reach it": f"{sum(row['mean'] >= mean - std for row in of)} of {len(of)}",
                "mean": f"{statistics.fmean(row['mean'] for row in of):.1f}",
                "largest deviation": f"{max(row['std'] for row in of):.1f}",
            }
        )
    return "\n".join(
        [
            "# RL Zoo's PPO with an LSTM on tasks without velocities",
            "",
            f"Mean returns of {EPISODES} unseen episodes, deterministic policy; the settings are RL Zoo's. Published: "
            "one agent of RecurrentPPO, mean and standard deviation over its episodes. A seed reaches it with no less "
            "than that mean minus that deviation; largest deviation: of the episodes of one seed. Written by "
            "`python -m benchmarks.zoo`.",
            "",
            *(f"{machine}\n" for machine in dict.fromkeys(row["machine"] for row in rows)),
            markdown(table),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(TASKS)}; all if none is named")
    parser.add_argument("--agent", nargs="+", choices=AGENTS, default=["lstm", "delta"])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs side by side")
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.tasks if name not in TASKS]:
        parser.error(f"unknown task {unknown[0]!r}: there are {', '.join(TASKS)}")
    if arguments.smoke:
        print(as_markdown([run("CartPoleNoVel-v1", agent, 0, total_timesteps=256, episodes=2) for agent in AGENTS]))
        return
    # Seeds outermost, so that a benchmark that is cut off has compared agents
    wanted = [(task, agent, seed) for seed in SEEDS for task in arguments.tasks or TASKS for agent in arguments.agent]
    with concurrent.futures.ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        rows = list(pool.map(result_of, *zip(*wanted, strict=True)))
    file = RESULTS / "zoo.json"
    if file.exists():
        done = {(row["task"], row["agent"]) for row in rows}
        rows += [row for row in json.loads(file.read_text()) if (row["task"], row["agent"]) not in done]
    rows.sort(key=lambda row: (list(TASKS).index(row["task"]), AGENTS.index(row["agent"]), row["seed"]))
    file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    file.with_suffix(".md").write_text(as_markdown(rows), encoding="utf-8")
    print(as_markdown(rows))


if __name__ == "__main__":
    main()
