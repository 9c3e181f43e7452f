"""The project in one command: two memories learn the same task side by side, are compared, and are drawn.

Each run is a process of its own with one thread for computing, so that two cores are enough.
"""

import dataclasses
import shlex
import time
from pathlib import Path
from typing import Any

from agents.config import TrainConfig
from agents.errors import AgentsError, UsageError
from agents.evaluation import Summary, evaluate_run, summarize
from agents.presets import preset_config
from agents.progress import Progress, format_seconds
from agents.rendering import render_run
from agents.runs import RunPaths, read_metrics, read_run
from agents.side_by_side import Job, train_side_by_side
from agents.table import table
from agents.training import prepare
from fwp_rl.registry import memory_config

ENV_ID = "fwp/MiniGrid-TMaze-v0"
MEMORIES = ("delta", "lstm")


def demo(root: Path, *, total_timesteps: int = 300_000, episodes: int = 200, seed: int = 0) -> None:
    """Train, evaluate on unseen episodes, render, and print what came out."""
    if episodes < 1:
        raise UsageError(f"episodes={episodes} must be at least 1")
    started = time.monotonic()
    configs = {name: _config(name, total_timesteps, seed) for name in MEMORIES}
    directories = {name: root / name for name in MEMORIES}
    for name, directory in directories.items():
        prepare(configs[name], directory, overwrite=True)
    print(f"{ENV_ID}, corridor of 7: the cue is in sight only at the start, the turn comes at the end.")
    print(f"Training {' and '.join(MEMORIES)}, one process each; runs in {root}", flush=True)
    _train(configs, directories)
    rows = [_row(name, directories[name], episodes) for name in MEMORIES]
    print(f"\nEvaluation on {episodes} episodes with unseen seeds, the same for both:\n\n{table(rows)}\n")
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
        workers=0,
    )


def _train(configs: dict[str, TrainConfig], directories: dict[str, Path]) -> None:
    progress = Progress(list(configs), max(config.planned_steps for config in configs.values()))
    jobs = [Job(name, config, directories[name]) for name, config in configs.items()]
    try:
        codes = train_side_by_side(
            jobs,
            len(jobs),
            lambda job, has_ended: _show(progress, job.name, job.directory, has_ended=has_ended),
            again="stopped; run the demo again to start it anew",
        )
    finally:
        progress.close()
    for name, code in codes.items():
        if code:
            error = AgentsError(f"training {name} failed with exit code {code}")
            error.exit_code = code
            raise error


def _show(progress: Progress, name: str, directory: Path, *, has_ended: bool) -> None:
    lines = [line for line in read_metrics(RunPaths(directory).metrics) if line["kind"] == "iteration"]
    if lines:
        last = lines[-1]
        success, mean = last.get("rollout/success_rate"), last.get("rollout/ep_rew_mean")
        progress.update(name, last["step"], success=success, episode_return=mean)
        if has_ended:
            progress.finish(name, last["step"])


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
