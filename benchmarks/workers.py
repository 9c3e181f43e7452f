"""Do worker processes collect faster than one process?

    python -m benchmarks.workers             # 5 minutes; writes benchmarks/results/workers.{json,md}
    python -m benchmarks.workers --smoke     # seconds, writes nothing

Steps of all environments together, random actions, no learner, everybody with Monitor around each environment. The
contenders take turns within each repeat, so that a noisy machine is noisy for all; a ratio is the median of the ratios
within each repeat.

- one process: SB3's DummyVecEnv.
- SubprocVecEnv: SB3's, a process for each environment.
- two workers: ours, each with half of the environments.
"""

import argparse
import functools
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

import envs
from benchmarks.machine import describe_machine
from fwp_rl.sb3 import WorkerVecEnv

N_WORKERS = 2
RESULTS = pathlib.Path(__file__).parent / "results"


class Idle(gymnasium.Env[Any, Any]):
    """Does nothing: what is left is the time that the messages take."""

    observation_space = gymnasium.spaces.Box(-1, 1, (147,), np.float32)
    action_space = gymnasium.spaces.Discrete(7)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._observation = np.zeros(147, np.float32)
        return self._observation, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._observation, 0.0, False, False, {}


def stock_minigrid() -> gymnasium.Env[Any, Any]:
    """MiniGrid-MemoryS11-v0 as everybody has it: the image of the view, flat."""
    from minigrid.wrappers import ImgObsWrapper

    return Monitor(gymnasium.wrappers.FlattenObservation(ImgObsWrapper(gymnasium.make("MiniGrid-MemoryS11-v0"))))


def from_envs(env_id: str, **options: Any) -> gymnasium.Env[Any, Any]:
    return Monitor(envs.make(env_id, **options))


CASES: dict[str, tuple[Callable[[], gymnasium.Env[Any, Any]], int]] = {
    "no environment": (Idle, 16),
    "`CartPole-v1`": (functools.partial(from_envs, "CartPole-v1"), 16),
    "`MiniGrid-MemoryS11-v0`, stock": (stock_minigrid, 16),
    "`MiniGrid-MemoryS11-v0` from `envs`": (functools.partial(from_envs, "MiniGrid-MemoryS11-v0"), 16),
    "the same, 128 environments": (functools.partial(from_envs, "MiniGrid-MemoryS11-v0"), 128),
    "the same as pictures of 56 x 56": (functools.partial(from_envs, "MiniGrid-MemoryS11-v0", observation="rgb"), 16),
    "`BabyAI-GoToLocal-v0` from `envs`": (functools.partial(from_envs, "BabyAI-GoToLocal-v0"), 16),
}
BARS = (("`MiniGrid-MemoryS11-v0`, stock", "two workers", "one process", 1.6),)


def contenders(make: Callable[[], gymnasium.Env[Any, Any]], n_envs: int) -> dict[str, VecEnv]:
    return {
        "one process": DummyVecEnv([make] * n_envs),
        "SubprocVecEnv": SubprocVecEnv([make] * n_envs),
        "two workers": WorkerVecEnv([make] * n_envs, N_WORKERS),
    }


def seconds_of(venv: VecEnv, n_steps: int) -> float:
    rng = np.random.default_rng(0)
    actions = rng.integers(venv.action_space.n, size=(64, venv.num_envs))  # type: ignore[attr-defined]  # all are Discrete
    started = time.perf_counter()
    for step in range(n_steps):
        venv.step(actions[step % 64])
    return (time.perf_counter() - started) / n_steps


def main() -> None:
    import sys
    from fwp_rl.sb3 import WorkerVecEnv

    for name, (make, n) in CASES.items():
        if len(sys.argv) > 1 and sys.argv[1] not in name:
            continue
        a = DummyVecEnv([make] * n)
        b = WorkerVecEnv([make] * n, 1, start_method="fork")
        a.seed(0)
        b.seed(0)
        a.reset()
        b.reset()
        seconds_of(a, 20)
        seconds_of(b, 20)
        k = max(10, int(0.08 / seconds_of(a, 20)))
        x = []
        y = []
        for _ in range(25):
            x.append(seconds_of(a, k))
            y.append(seconds_of(b, k))
        r = [p / q for p, q in zip(x, y)]
        print(
            f"{name:45} dummy {1e6 * min(x):.0f} (median {1e6 * statistics.median(x):.0f}) workers {1e6 * min(y):.0f} ({1e6 * statistics.median(y):.0f}) ratio of min {min(x) / min(y):.2f} median ratio {statistics.median(r):.2f}",
            flush=True,
        )
        b.close()


if __name__ == "__main__":
    main()
