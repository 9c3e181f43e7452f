"""Does one delay head cost anything where no order is asked for? Steps until a task is solved, with and without it.

    python -m benchmarks.delay_heads            # over an hour; writes benchmarks/results/delay_heads.{json,md}
    python -m benchmarks.delay_heads --smoke    # seconds, writes nothing

Every run is that of `train.py` with the preset of its task, one thread, and ends when an evaluation on 100 unseen
episodes reaches the target of the preset. Compared are the median environment steps until then over seeds that chose
nothing; a run that never gets there counts with all its steps. Runs that are finished are not run again.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import pathlib
import tempfile
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agents.config import TrainConfig
from agents.presets import preset_config
from agents.runs import RunPaths, read_metrics, read_run
from agents.statistics import Estimate, estimate
from agents.training import train
from benchmarks.machine import describe_machine
from fwp_rl import DeltaConfig, GatedDeltaConfig
from fwp_rl.memory import MemoryConfig

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SEEDS = range(10, 15)
MOST = 1.25
"""Upper end of the interval of the ratio up to which a delay head counts as free."""
MEMORIES: dict[str, type[Any]] = {"delta": DeltaConfig, "gated_delta": GatedDeltaConfig}


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task, and how often it is evaluated."""

    preset: str
    eval_every: int
    memories: tuple[str, ...] = ("delta", "gated_delta")
    env_options: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    """Choices of the memory, with and without a delay head."""


TASKS = {
    "T-maze, corridor of 20": Task(preset="fwp/TMaze-v0", eval_every=5_000, env_options={"length": 20}),
    "MiniGrid T-maze": Task(preset="fwp/MiniGrid-TMaze-v0", eval_every=5_000),
    "CartPole without velocities": Task(preset="CartPoleNoVel-v1", eval_every=2_500),
    "key-value recall, 8 keys": Task(preset="key-value-8", eval_every=10_000),
    "key-value recall, 16 keys": Task(preset="key-value-16", eval_every=10_000, memories=("delta",)),
    "five cups (strengths to 2)": Task(
        preset="fwp/GroupTracking-v0",
        eval_every=25_000,
        memories=("delta",),
        memory={"negative_eigenvalues": True},
    ),
    "MiniGrid-MemoryS11": Task(preset="MiniGrid-MemoryS11-v0", eval_every=25_000, memories=("delta",)),
}


def config_of(task: Task, memory: MemoryConfig, seed: int) -> TrainConfig:
    preset = preset_config(None, task.preset)
    return dataclasses.replace(
        preset,
        memory=memory,
        env_options={**preset.env_options, **task.env_options},
        eval_every=task.eval_every,
        eval_episodes=100,
        seed=seed,
        threads=1,
    )


def run(name: str, memory: str, delay_heads: int, seed: int, root: pathlib.Path, **changes: Any) -> dict[str, Any]:
    """One training run, unless it is finished, and what became of it."""
    task = TASKS[name]
    config = config_of(task, MEMORIES[memory](delay_heads=delay_heads, **task.memory), seed)
    directory = root / task.preset.replace("/", "-") / f"{memory}_{delay_heads}" / f"seed_{seed}"
    if not RunPaths(directory).description.exists() or read_run(directory)["status"] != "finished":
        train(dataclasses.replace(config, **changes), directory, overwrite=True, quiet=True)
    success = config.stop_at_success is not None
    measure, target = (
        ("eval/success_rate", config.stop_at_success) if success else ("eval/return_mean", config.stop_at_return)
    )
    last = [line[measure] for line in read_metrics(RunPaths(directory).metrics) if measure in line][-1]
    return {
        "task": name,
        "memory": memory,
        "delay_heads": delay_heads,
        "seed": seed,
        "steps": read_run(directory)["steps"],
        "last": last,
        "reached": last >= target,
    }


def ratio(with_head: list[int], without: list[int]) -> Estimate:
    """Ratio of the median steps, with a 95 % bootstrap interval over seeds."""

    def medians(ours: np.ndarray, theirs: np.ndarray) -> float:
        return float(np.median(ours) / np.median(theirs))

    return estimate(medians, np.array([with_head], float), np.array([without], float))


def as_markdown(rows: list[dict[str, Any]], machine: str) -> str:
    lines = [
        "# What a delay head costs where no order is asked for\n",
        "Environment steps (thousands) until 100 unseen episodes reached the target of the preset, by seed; > means "
        "never. The ratio is that of the medians, with over without, and its 95 % bootstrap interval over seeds. "
        f"Seeds {SEEDS[0]} to {SEEDS[-1]}, which chose nothing. Written by `python -m benchmarks.delay_heads`.\n",
        f"{machine}\n",
        f"| task | memory | without | with one | ratio | upper end at most {MOST} |",
        "|---|---|---|---|---|---|",
    ]
    for name, task in TASKS.items():
        for memory in task.memories:
            own = [r for r in rows if (r["task"], r["memory"]) == (name, memory)]
            without, with_head = ([r for r in own if r["delay_heads"] == n] for n in (0, 1))
            if not without or not with_head:
                continue
            cells = [
                ", ".join(f"{'' if r['reached'] else '> '}{r['steps'] / 1000:.0f}" for r in part)
                for part in (without, with_head)
            ]
            found = ratio(*([r["steps"] for r in part] for part in (with_head, without)))
            verdict = "yes" if found.high <= MOST else "no"
            lines.append(
                f"| {name} | {memory} | {cells[0]} | {cells[1]} | "
                f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f}) | {verdict} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs side by side")
    parser.add_argument("--smoke", action="store_true", help="one task, a few steps, nothing written")
    arguments = parser.parse_args()
    if arguments.smoke:
        with tempfile.TemporaryDirectory() as root:
            short: dict[str, Any] = {"total_timesteps": 512, "eval_every": 256, "eval_episodes": 2, "n_envs": 2}
            name = "CartPole without velocities"
            rows = [run(name, "delta", n, SEEDS[0], pathlib.Path(root), **short) for n in (0, 1)]
        print(as_markdown(rows, describe_machine()))
        return
    root = ROOT / "runs" / "benchmarks" / "delay_heads"
    jobs = [
        (name, memory, delay_heads, seed, root)
        for name, task in TASKS.items()
        for memory in task.memories
        for seed in SEEDS
        for delay_heads in (0, 1)
    ]
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    with concurrent.futures.ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        rows = []
        for future in [pool.submit(run, *job) for job in jobs]:
            rows.append(future.result())
            print(f"{len(rows)} of {len(jobs)}: {rows[-1]}", flush=True)
    machine = describe_machine()
    (RESULTS / "delay_heads.json").write_text(json.dumps({"machine": machine, "rows": rows}) + "\n", encoding="utf-8")
    (RESULTS / "delay_heads.md").write_text(as_markdown(rows, machine), encoding="utf-8")
    print(as_markdown(rows, machine))


if __name__ == "__main__":
    main()
