"""How many environment steps per second does a whole training run make: ours, and the peers', side by side.

One process, rollout and update included. Everybody has 16 environments, 128 steps, 4 epochs, 4 minibatches, one memory
shared by actor and critic, and the same heads. All with a memory have as many parameters as RecurrentPPO, as nearly as
a width in steps of 16 can have; PPO has the network that it has by default. The contenders take turns within
each repeat, so that a noisy machine is noisy for all; a ratio is the median of the ratios within each repeat.
"""

import bisect
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

import envs
from agents.command_line import nearest
from agents.config import device_problem
from agents.errors import UsageError
from agents.presets import preset_config
from agents.table import table
from agents.vec_env import make_vec_env, policy_name
from fwp_rl.registry import memory_config, memory_configs
from fwp_rl.sb3 import MemoryPPO

N_ENVS, N_STEPS, N_EPOCHS, N_MINIBATCHES = 16, 128, 4, 4
NET_ARCH = {"pi": [64], "vf": [64]}
WIDTHS = range(32, 513, 16)
LSTM = {"lstm_hidden_size": 128, "shared_lstm": True, "enable_critic_lstm": False, "net_arch": NET_ARCH}
"""sb3-contrib's LSTM, shared by actor and critic."""


def bench(env_id: str, memories: Sequence[str], *, repeats: int, threads: int, device: str) -> str:
    """A table of `memories` in training on a task, with its preset's observations, beside the peers."""
    for name, value in (("repeats", repeats), ("threads", threads)):
        if value < 1:
            raise UsageError(f"{name}={value} must be at least 1")
    if problem := device_problem(device):
        raise UsageError(problem)
    for memory in memories:
        if memory not in memory_configs():
            hint = nearest(memory, list(memory_configs()))
            raise UsageError(f"unknown memory {memory!r}; {hint or 'there are ' + ', '.join(memory_configs())}")
    try:
        config = preset_config(envs.resolve(env_id), None)
    except envs.UnknownEnvironmentError as error:
        raise UsageError(str(error)) from None

    def make() -> VecEnv:
        return make_vec_env(config.env_id, N_ENVS, options=config.env_options)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        theirs = peers(make, device)
        models = {**theirs, **ours(make, memories, device, parameters=count(theirs["RecurrentPPO"]))}
        rows = measure(make, models, repeats=repeats, iterations=1)
    finally:
        torch.set_num_threads(before)
    return table(
        [
            {
                "": name,
                "parameters": f"{row['parameters']:,}" if row["parameters"] else "",
                "steps/s": f"{row['steps_per_second']:,}",
                "from": f"{row['worst']:,}",
                "to": f"{row['best']:,}",
                "x RecurrentPPO": f"{faster(row['seconds'], rows['RecurrentPPO']['seconds']):.2f}",
            }
            for name, row in rows.items()
        ]
    )


def settings(env: VecEnv, device: str) -> dict[str, Any]:
    """What everybody is told."""
    return {
        "n_steps": N_STEPS,
        "batch_size": env.num_envs * N_STEPS // N_MINIBATCHES,
        "n_epochs": N_EPOCHS,
        "seed": 0,
        "device": device,
    }


def peers(make_env: Callable[[], VecEnv], device: str) -> dict[str, BaseAlgorithm]:
    """SB3's memoryless PPO with its default network, and sb3-contrib's RecurrentPPO."""
    env = make_env()
    name, shared = policy_name(env), settings(env, device)
    recurrent = name.replace("Policy", "LstmPolicy")
    return {
        "PPO": PPO(name, env, **shared),
        "RecurrentPPO": RecurrentPPO(recurrent, make_env(), policy_kwargs=LSTM, **shared),
    }


def ours(
    make_env: Callable[[], VecEnv], memories: Sequence[str], device: str, *, parameters: int
) -> dict[str, BaseAlgorithm]:
    """MemoryPPO with each of the memories, in that of `WIDTHS` with which it is nearest to so many parameters."""
    models: dict[str, BaseAlgorithm] = {}
    for memory in memories:
        env = make_env()
        build = functools.partial(memory_ppo, memory, env, device)
        above = bisect.bisect_left(WIDTHS, parameters, hi=len(WIDTHS) - 1, key=lambda width: count(build(width)))
        nearest_to = [build(width) for width in WIDTHS[max(above - 1, 0) : above + 1]]
        models[f"MemoryPPO {memory}"] = min(nearest_to, key=lambda model: abs(count(model) - parameters))
    return models


def memory_ppo(memory: str, env: VecEnv, device: str, width: int) -> MemoryPPO:
    """MemoryPPO whose encoder and memory have this width."""
    config = memory_config(memory)
    sizes = {field.name for field in dataclasses.fields(config)} & {"width", "hidden_size"}
    config = dataclasses.replace(config, **dict.fromkeys(sizes, width))
    kwargs = {"memory": config, "encoder_size": width, "net_arch": NET_ARCH}
    return MemoryPPO(policy_name(env), env, policy_kwargs=kwargs, **settings(env, device))


def count(model: BaseAlgorithm) -> int:
    """Parameters of its policy."""
    return sum(parameter.numel() for parameter in model.policy.parameters())


def seconds_of_env(env: VecEnv, iterations: int) -> float:
    """Seconds of so many rollouts with random actions: the ceiling."""
    actions = [np.array([env.action_space.sample() for _ in range(env.num_envs)]) for _ in range(16)]
    env.reset()
    started = time.perf_counter()
    for t in range(iterations * N_STEPS):
        env.step(actions[t % 16])
    return time.perf_counter() - started


def seconds_of(model: BaseAlgorithm, iterations: int) -> float:
    """Seconds of so many rollouts and updates."""
    started = time.perf_counter()
    model.learn(iterations * model.n_envs * N_STEPS, reset_num_timesteps=False)
    return time.perf_counter() - started


def measure(
    make_env: Callable[[], VecEnv], models: Mapping[str, BaseAlgorithm], *, repeats: int, iterations: int
) -> dict[str, dict[str, Any]]:
    """Speed of the environments alone ("env only") and of each model, in `repeats` turns of so many iterations."""
    env = make_env()
    for model in models.values():
        seconds_of(model, 1)  # compiles and allocates
    times: dict[str, list[float]] = {name: [] for name in ("env only", *models)}
    for _ in range(repeats):
        times["env only"].append(seconds_of_env(env, iterations))
        for name, model in models.items():
            times[name].append(seconds_of(model, iterations))
    steps = iterations * env.num_envs * N_STEPS
    return {
        name: {
            "steps_per_second": round(steps / statistics.median(seconds)),
            "best": round(steps / min(seconds)),
            "worst": round(steps / max(seconds)),
            "parameters": count(models[name]) if name in models else 0,
            "seconds": [round(x, 4) for x in seconds],
        }
        for name, seconds in times.items()
    }


def faster(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How many times, in the median repeat."""
    return statistics.median(other / mine for mine, other in zip(ours, theirs, strict=True))
