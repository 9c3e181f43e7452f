"""The project in one command: two memories learn the same task side by side, are compared, and are drawn.

Each run is a process of its own with one thread for computing, so that two cores are enough.
"""

import dataclasses
import json
import multiprocessing
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from agents.config import TrainConfig, to_json, train_config_from_json
from agents.errors import AgentsError, InterruptedRunError, UsageError
from agents.evaluation import Summary, evaluate_run, summarize
from agents.interrupts import Interrupts
from agents.presets import preset_config
from agents.progress import Progress, format_seconds
from agents.rendering import render_run
from agents.runs import RunPaths, create_run_directory, read_metrics, read_run
from fwp_rl.registry import memory_config

ENV_ID = "fwp/MiniGrid-TMaze-v0"
MEMORIES = ("delta", "lstm")

_POLL_SECONDS = 0.5


def demo(root: Path, *, total_timesteps: int = 300_000, episodes: int = 200, seed: int = 0) -> None:
    """Train, evaluate on unseen episodes, render, and print what came out."""
    if episodes < 1:
        raise UsageError(f"episodes={episodes} must be at least 1")
    started = time.monotonic()
    configs = {name: _config(name, total_timesteps, seed) for name in MEMORIES}
    directories = {name: root / name for name in MEMORIES}
    for directory in directories.values():
        create_run_directory(directory, overwrite=True)
    print(f"{ENV_ID}, corridor of 7: the cue is in sight only at the start, the turn comes at the end.")
    print(f"Training {' and '.join(MEMORIES)}, one process each; runs in {root}", flush=True)
    _train_side_by_side(configs, directories)
    rows = [_row(name, directories[name], episodes) for name in MEMORIES]
    print(f"\nEvaluation on {episodes} episodes with unseen seeds, the same for both:\n\n{_table(rows)}\n")
    for name, directory in directories.items():
        picture, _ = render_run(directory, directory / "episode.gif")
        print(f"an episode of {name:<6} {picture}")
    print(f"\nlearning curves       tensorboard --logdir {shlex.quote(str(root))} --host 127.0.0.1")
    print(f"finished in {format_seconds(time.monotonic() - started)}")


def _config(memory: str, total_timesteps: int, seed: int) -> TrainConfig:
    preset = preset_config(ENV_ID, None)
    return dataclasses.replace(
        preset,
        env_options={**preset.env_options, "length": 7},
        memory=memory_config(memory),
        total_timesteps=total_timesteps,
        seed=seed,
        eval_every=min(20_000, max(total_timesteps // 4, 1)),
        eval_episodes=100,
        stop_at_success=1.0,
        threads=1,
    )


def _train_side_by_side(configs: dict[str, TrainConfig], directories: dict[str, Path]) -> None:
    context = multiprocessing.get_context("spawn")
    arguments = {name: (json.dumps(to_json(config)), str(directories[name])) for name, config in configs.items()}
    processes = {name: context.Process(target=_train_one, args=arguments[name], name=name) for name in configs}
    total = max(config.planned_steps for config in configs.values())
    with Interrupts() as interrupts, _one_thread_for_children():
        progress = Progress(list(configs), total)
        try:
            for process in processes.values():
                process.start()
            while any(process.is_alive() for process in processes.values()) and interrupts.received is None:
                for name, process in processes.items():
                    _show(progress, name, directories[name], has_ended=not process.is_alive())
                time.sleep(_POLL_SECONDS)
        finally:
            for process in processes.values():
                if process.is_alive():
                    process.terminate()  # it saves, then leaves
            for process in processes.values():
                process.join()
            progress.close()
        if interrupts.received is not None:
            raise InterruptedRunError("stopped; run the demo again to start it anew", interrupts.exit_code)
    for name, process in processes.items():
        if process.exitcode:
            error = AgentsError(f"training {name} failed with exit code {process.exitcode}")
            error.exit_code = process.exitcode
            raise error


def _train_one(config: str, directory: str) -> None:
    """Body of a training process. Ctrl-C on the terminal is for the parent, who then asks us to stop."""
    from agents.command_line import run
    from agents.training import train

    if hasattr(os, "setpgrp"):
        os.setpgrp()
    parsed = train_config_from_json(json.loads(config))
    sys.exit(run(lambda: train(parsed, Path(directory), quiet=True)))


def _show(progress: Progress, name: str, directory: Path, *, has_ended: bool) -> None:
    lines = [line for line in read_metrics(RunPaths(directory).metrics) if line["kind"] == "iteration"]
    if lines:
        last = lines[-1]
        success, mean = last.get("rollout/success_rate"), last.get("rollout/ep_rew_mean")
        progress.update(name, last["step"], success=success, episode_return=mean)
        if has_ended:
            progress.finish(name, last["step"])


class _one_thread_for_children:
    """One thread for the numerical libraries of every process started in the `with` block."""

    _NAMES = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS")

    def __enter__(self) -> None:
        self._before = {name: os.environ.get(name) for name in self._NAMES}
        os.environ.update(dict.fromkeys(self._NAMES, "1"))

    def __exit__(self, *error: object) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _row(name: str, directory: Path, episodes: int) -> dict[str, Any]:
    _, rows = evaluate_run(directory, episodes=episodes, deterministic=True)
    summary: Summary = summarize(rows)
    description = read_run(directory)
    return {
        "memory": name,
        "parameters": f"{description['parameters']['memory']:,}",
        "steps": f"{description['steps']:,}",
        "time": format_seconds(description["seconds"]),
        "success": f"{summary.success_rate:.3f}",
        "95 % interval": f"{summary.success_low:.3f} to {summary.success_high:.3f}",
        "return": f"{summary.return_mean:.3f}",
        "length": f"{summary.length_mean:.1f}",
    }


def _table(rows: list[dict[str, Any]]) -> str:
    widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
    lines = ["  ".join(f"{key:>{width}}" for key, width in widths.items())]
    lines.append("  ".join("-" * width for width in widths.values()))
    lines += ["  ".join(f"{row[key]:>{width}}" for key, width in widths.items()) for row in rows]
    return "\n".join(lines)
