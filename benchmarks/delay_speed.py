"""What does a delay head cost in time, and how fast is attention? Rollouts and updates, all in turns in one run.

    python -m benchmarks.delay_speed             # 5 minutes; writes benchmarks/results/delay_speed.{json,md}
    python -m benchmarks.delay_speed --smoke     # seconds, writes nothing

Everybody as in `agents.throughput`, on random observations without an environment. A ratio is the median over repeats
of what two contenders took right after one another, in an order that changes with every repeat.
"""

import argparse
import json
import pathlib
import statistics
import time
from typing import Any

import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from agents.throughput import LSTM, N_ENVS, N_STEPS, NET_ARCH, faster, settings
from benchmarks.machine import describe_machine
from benchmarks.throughput import NullVecEnv
from fwp_rl import AttentionConfig, DeltaConfig, MemoryConfig
from fwp_rl.sb3 import MemoryPPO

RESULTS = pathlib.Path(__file__).parent / "results"
PARTS = ("rollout", "update")
PLAIN, DELAY, ATTENTION, PEER = "delta", "delta, one delay head", "attention", "RecurrentPPO"
BARS = ((DELAY, PLAIN, "rollout", 0.97), (DELAY, PLAIN, "update", 0.97), (ATTENTION, PEER, "whole", 2.0))
"""Ours, theirs, the part of training, at least."""


class _Clock(BaseCallback):
    """Seconds of the last rollout."""

    def _on_rollout_start(self) -> None:
        self.began = time.perf_counter()

    def _on_rollout_end(self) -> None:
        self.rollout = time.perf_counter() - self.began

    def _on_step(self) -> bool:
        return True


def contenders(n_envs: int) -> dict[str, BaseAlgorithm]:
    env = NullVecEnv(n_envs)

    def ours(memory: MemoryConfig) -> MemoryPPO:
        kwargs = {"memory": memory, "net_arch": NET_ARCH}
        return MemoryPPO("MlpPolicy", env, policy_kwargs=kwargs, **settings(env, "cpu"))

    return {
        PLAIN: ours(DeltaConfig(delay_heads=0)),
        DELAY: ours(DeltaConfig(delay_heads=1)),
        ATTENTION: ours(AttentionConfig()),
        PEER: RecurrentPPO("MlpLstmPolicy", env, policy_kwargs=LSTM, **settings(env, "cpu")),
    }


def seconds_of(model: BaseAlgorithm) -> dict[str, float]:
    """Seconds of one rollout and one update."""
    clock, began = _Clock(), time.perf_counter()
    model.learn(model.n_envs * N_STEPS, callback=clock, reset_num_timesteps=False)
    whole = time.perf_counter() - began
    return {"rollout": clock.rollout, "update": whole - clock.rollout, "whole": whole}


def measure(n_envs: int, repeats: int) -> dict[str, dict[str, list[float]]]:
    models = contenders(n_envs)
    for model in models.values():
        seconds_of(model)  # compiles and allocates
    times: dict[str, dict[str, list[float]]] = {name: {part: [] for part in (*PARTS, "whole")} for name in models}
    for repeat in range(repeats):
        for name in list(models)[:: 1 if repeat % 2 else -1]:
            for part, seconds in seconds_of(models[name]).items():
                times[name][part].append(round(seconds, 5))
    return times


def as_markdown(result: dict[str, Any]) -> str:
    lines = [
        "# Delay heads and attention in time\n",
        f"Steps per second, median of {result['repeats']} interleaved repeats, {result['threads']} threads; random "
        "observations, no environment. Written by `python -m benchmarks.delay_speed`.\n",
        f"{result['machine']}\n",
        "| environments | | rollout | update | whole |",
        "|---|---|---|---|---|",
    ]
    for n_envs, times in result["seconds"].items():
        for name, parts in times.items():
            speeds = [f"{round(int(n_envs) * N_STEPS / statistics.median(x)):,}" for x in parts.values()]
            lines.append(f"| {n_envs} | {name} | {' | '.join(speeds)} |")
    lines += ["", "| ratio | environments | part | bar | measured | |", "|---|---|---|---|---|---|"]
    for n_envs, times in result["seconds"].items():
        for ours, theirs, part, bar in BARS:
            found = faster(times[ours][part], times[theirs][part])
            verdict = "met" if found >= bar else "missed"
            lines.append(f"| {ours} / {theirs} | {n_envs} | {part} | {bar} | {found:.2f} | {verdict} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one tiny repeat, nothing written")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1 if arguments.smoke else arguments.threads)
    repeats = 1 if arguments.smoke else arguments.repeats
    sizes = (4,) if arguments.smoke else (N_ENVS, 256)
    result = {
        "machine": describe_machine(),
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "seconds": {str(n_envs): measure(n_envs, repeats) for n_envs in sizes},
    }
    print(as_markdown(result))
    if not arguments.smoke:
        (RESULTS / "delay_speed.json").write_text(json.dumps(result) + "\n", encoding="utf-8")
        (RESULTS / "delay_speed.md").write_text(as_markdown(result), encoding="utf-8")


if __name__ == "__main__":
    main()
