"""Do worker processes collect, and train, faster than one process?

    python -m benchmarks.workers             # a minute; writes benchmarks/results/workers.{json,md}
    python -m benchmarks.workers --smoke     # seconds, writes nothing

First the steps of all environments together, with random actions and without a learner; then whole training runs of
MemoryPPO with `delta`, set up as in `benchmarks.throughput`, on one thread. Everybody has Monitor around each
environment and forks. The contenders take turns within each repeat, so that a noisy machine is noisy for all; a ratio
is the median of the ratios within each repeat. Processes wait for one another, and a process that wakes up on a machine
that others use waits for them as well: that hits workers harder than one process. There, put `chrt -f 1` before it all.

- one process: SB3's DummyVecEnv.
- SubprocVecEnv: SB3's, a process for each environment (not with 128 of them).
- N processes: our WorkerVecEnv, N - 1 workers and the process that asks them, each with its share.
"""

import argparse
import functools
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

import envs
from agents.throughput import N_ENVS, N_STEPS, memory_ppo, seconds_of
from benchmarks.machine import describe_machine
from benchmarks.throughput import our_minigrid, stock_minigrid
from fwp_rl.sb3 import WorkerVecEnv

RESULTS = pathlib.Path(__file__).parent / "results"
SECONDS = 0.05
"""How long each contender steps within a repeat."""

Maker = Callable[[], gymnasium.Env[Any, Any]]


class Idle(gymnasium.Env[Any, Any]):
    """Does nothing, so that what takes time are the messages."""

    observation_space = gymnasium.spaces.Box(-1, 1, (147,), np.float32)
    action_space = gymnasium.spaces.Discrete(7)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._observation = np.zeros(147, np.float32)
        return self._observation, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._observation, 0.0, False, False, {}


def from_envs(env_id: str, **options: Any) -> gymnasium.Env[Any, Any]:
    return Monitor(envs.make(env_id, **options))


CASES: dict[str, tuple[Maker, int]] = {
    "no environment": (Idle, 16),
    "`CartPole-v1`": (functools.partial(from_envs, "CartPole-v1"), 16),
    "`MiniGrid-MemoryS11-v0`": (stock_minigrid, 16),
    "`MiniGrid-MemoryS11-v0` (envs)": (our_minigrid, 16),
    "`MiniGrid-MemoryS11-v0` (envs), many": (our_minigrid, 128),
    "`MiniGrid-MemoryS11-v0` (envs), pictures": (
        functools.partial(from_envs, "MiniGrid-MemoryS11-v0", observation="rgb"),
        16,
    ),
    "`BabyAI-GoToLocal-v0` (envs)": (functools.partial(from_envs, "BabyAI-GoToLocal-v0"), 16),
}
TRAINING = {"`MiniGrid-MemoryS11-v0`": stock_minigrid, "`MiniGrid-MemoryS11-v0` (envs)": our_minigrid}
BAR = ("`MiniGrid-MemoryS11-v0`", 1.6)  # two processes against one, without a learner


def one_process(make: Maker, n_envs: int) -> VecEnv:
    return DummyVecEnv([make] * n_envs)


def subprocesses(make: Maker, n_envs: int) -> VecEnv:
    return SubprocVecEnv([make] * n_envs, start_method="fork")


def with_workers(n_workers: int, make: Maker, n_envs: int) -> VecEnv:
    return WorkerVecEnv([make] * n_envs, n_workers, start_method="fork")


CONTENDERS: dict[str, Callable[[Maker, int], VecEnv]] = {
    "one process": one_process,
    "SubprocVecEnv": subprocesses,
    "2 processes": functools.partial(with_workers, 1),
    "3 processes": functools.partial(with_workers, 2),
}


def seconds_of_step(venv: VecEnv, n_steps: int) -> float:
    """Seconds that a step of all environments takes."""
    rng = np.random.default_rng(0)
    actions = rng.integers(venv.action_space.n, size=(64, venv.num_envs))  # type: ignore[attr-defined]  # all are Discrete
    started = time.perf_counter()
    for step in range(n_steps):
        venv.step(actions[step % 64])
    return (time.perf_counter() - started) / n_steps


def steps(make: Maker, n_envs: int, repeats: int) -> dict[str, list[float]]:
    venvs = {name: build(make, n_envs) for name, build in CONTENDERS.items() if n_envs <= 16 or name != "SubprocVecEnv"}
    for venv in venvs.values():
        venv.seed(0)
        venv.reset()
    n_steps = {name: max(int(SECONDS / seconds_of_step(venv, 10)), 10) for name, venv in venvs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in venvs}
    for _ in range(repeats):
        for name, venv in venvs.items():
            seconds[name].append(seconds_of_step(venv, n_steps[name]))
    for venv in venvs.values():
        venv.close()
    return seconds


def training(make: Maker, repeats: int) -> dict[str, list[float]]:
    """Seconds of a rollout and an update."""
    models = {
        name: memory_ppo("delta", CONTENDERS[name](make, N_ENVS), "cpu", 128)
        for name in ("one process", "2 processes", "3 processes")
    }
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for repeat in range(repeats + 1):
        for name, model in models.items():
            taken = seconds_of(model, 1)
            if repeat:  # the first one compiles
                seconds[name].append(taken)
    for model in models.values():
        model.get_env().close()  # type: ignore[union-attr]  # it has one
    return seconds


def faster(seconds: dict[str, list[float]], name: str) -> float:
    """How many times, in the median repeat, compared with one process."""
    return statistics.median(one / other for one, other in zip(seconds["one process"], seconds[name], strict=True))


def table(rows: dict[str, dict[str, list[float]]], unit: float, sizes: dict[str, int]) -> list[str]:
    names = list(next(iter(rows.values())))
    lines = ["| | environments | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for case, seconds in rows.items():
        cells = [
            f"{unit * statistics.median(seconds[name]):,.0f} ({faster(seconds, name):.2f})" if name in seconds else ""
            for name in names
        ]
        lines.append(f"| {case} | {sizes[case]} | " + " | ".join(cells) + " |")
    return lines


def as_markdown(result: dict[str, Any]) -> str:
    bar = result["bar"]
    lines = [
        "# Worker processes",
        "",
        f"Medians of {result['repeats']} interleaved repeats; in brackets how many times as fast as one process. "
        "Written by `python -m benchmarks.workers`.",
        "",
        f"{result['machine']}",
        "",
        "Microseconds for a step of all environments, random actions, no learner:",
        "",
        *table(result["steps"], 1e6, {case: n_envs for case, (_, n_envs) in CASES.items()}),
        "",
        f"Milliseconds for a rollout of {N_STEPS} steps and the update, MemoryPPO with `delta`:",
        "",
        *table(result["training"], 1e3, dict.fromkeys(TRAINING, N_ENVS)),
        "",
        "| | bar | measured | |",
        "|---|---|---|---|",
        f"| {bar['case']}, 2 processes / one process | {bar['bar']} | {bar['measured']:.2f} | "
        f"{'met' if bar['measured'] >= bar['bar'] else 'missed'} |",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one case, one repeat, nothing written")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    repeats = 1 if arguments.smoke else arguments.repeats
    n_cases = 1 if arguments.smoke else None
    case, bar = BAR
    stepped = {name: steps(*CASES[name], repeats) for name in ([case] if n_cases else CASES)}
    trained = {name: training(make, repeats) for name, make in list(TRAINING.items())[-1 if n_cases else 0 :]}
    is_first = hasattr(os, "sched_getscheduler") and os.sched_getscheduler(0) == os.SCHED_FIFO
    result = {
        "machine": describe_machine() + "; before all other processes (`chrt -f 1`)" * is_first,
        "repeats": repeats,
        "steps": stepped,
        "training": trained,
        "bar": {"case": case, "bar": bar, "measured": faster(stepped[case], "2 processes")},
    }
    print(as_markdown(result))
    if not arguments.smoke:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "workers.json").write_text(json.dumps(result, indent=1) + "\n")
        (RESULTS / "workers.md").write_text(as_markdown(result))


if __name__ == "__main__":
    main()
