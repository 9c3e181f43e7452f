"""How fast are the tasks that are written in NumPy?

    python -m benchmarks.tasks             # half a minute; writes benchmarks/results/tasks.{json,md}
    python -m benchmarks.tasks --smoke     # seconds, writes nothing

Steps of all environments together, in one process, with random actions that were drawn beforehand: the step itself, the
episodes that end and begin in it, and the check of the actions. Every task has its default options, and all take turns
within each repeat, so that a noisy machine is noisy for all.
"""

import argparse
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import envs
from benchmarks.machine import describe_machine
from envs.tasks import VECTOR_TASKS
from envs.testing import random_actions

BARS = {16: 0.3, 256: 4.0}  # environments: millions of steps per second
RESULTS = pathlib.Path(__file__).parent / "results"
N_ACTIONS = 64


def stepper(env_id: str, n_envs: int, n_steps: int) -> Callable[[], float]:
    """A function that takes so many steps and returns millions of steps per second."""
    task = envs.make_vector(env_id, n_envs)
    assert task is not None
    rng = np.random.default_rng(0)
    actions = [random_actions(task, rng) for _ in range(N_ACTIONS)]
    task.reset(0)

    def run() -> float:
        begin = time.perf_counter()
        for step in range(n_steps):
            task.step(actions[step % N_ACTIONS])
        return 1e-6 * n_steps * n_envs / (time.perf_counter() - begin)

    return run


def measure(n_steps: int, repeats: int) -> dict[str, dict[str, dict[str, float]]]:
    """Millions of steps per second of each task and number of environments: median and most."""
    steppers = {(env_id, n_envs): stepper(env_id, n_envs, n_steps) for env_id in VECTOR_TASKS for n_envs in BARS}
    speeds: dict[tuple[str, int], list[float]] = {name: [] for name in steppers}
    for _ in range(repeats):
        for name, run in steppers.items():
            speeds[name].append(run())
    result: dict[str, dict[str, dict[str, float]]] = {env_id: {} for env_id in VECTOR_TASKS}
    for (env_id, n_envs), values in speeds.items():
        result[env_id][str(n_envs)] = {"median": statistics.median(values), "max": max(values)}
    return result


def as_markdown(result: dict[str, Any]) -> str:
    lines = [
        "# The tasks that are written in NumPy",
        "",
        "Millions of steps per second of all environments together: the most, and the median in brackets, "
        f"of {result['repeats']} interleaved repeats of {result['steps']} steps; random actions, default options. "
        "Written by `python -m benchmarks.tasks`.",
        "",
        f"{result['machine']}",
        "",
        "| | " + " | ".join(f"{n_envs} environments" for n_envs in BARS) + " |",
        "|---|" + "---|" * len(BARS),
    ]
    for env_id, speeds in result["speeds"].items():
        cells = " | ".join(f"{x['max']:.2f} ({x['median']:.2f})" for x in speeds.values())
        lines.append(f"| `{env_id}` | {cells} |")
    lines += ["", "| | bar | slowest task | |", "|---|---|---|---|"]
    for bar in result["bars"]:
        verdict = "met" if bar["met"] else "missed"
        lines.append(f"| {bar['name']} | at least {bar['bar']:g} | {bar['measured']:.2f} ({bar['task']}) | {verdict} |")
    return "\n".join(lines) + "\n"


def judge(speeds: dict[str, dict[str, dict[str, float]]]) -> list[dict[str, Any]]:
    """Every bar with the slowest task: the most of its repeats, which a busy machine disturbs least."""
    bars = []
    for n_envs, bar in BARS.items():
        task = min(speeds, key=lambda env_id: speeds[env_id][str(n_envs)]["max"])
        slowest = speeds[task][str(n_envs)]["max"]
        name = f"{n_envs} environments, millions of steps per second"
        bars.append({"name": name, "bar": bar, "measured": slowest, "task": task, "met": slowest >= bar})
    return bars


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="few steps, two repeats, nothing written")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=25)
    arguments = parser.parse_args()
    steps, repeats = (50, 2) if arguments.smoke else (arguments.steps, arguments.repeats)
    speeds = measure(steps, repeats)
    result = {
        "machine": describe_machine(),
        "steps": steps,
        "repeats": repeats,
        "speeds": speeds,
        "bars": judge(speeds),
    }
    print(as_markdown(result))
    if not arguments.smoke:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "tasks.json").write_text(json.dumps(result, indent=1) + "\n")
        (RESULTS / "tasks.md").write_text(as_markdown(result))


if __name__ == "__main__":
    main()
