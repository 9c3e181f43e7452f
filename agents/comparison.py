"""Which memory is better here, and is it real? Several memories, tasks and seeds, trained and judged alike.

Every agent is a run of its own in `root/<env>/<memory>/seed_<n>`, which `train.py` could have made. Runs that are
finished are kept, those that were cut off start again from their seed, so that a comparison that was killed comes to
the same numbers as one that was not. All agents play the same unseen episodes.
"""

import dataclasses
import difflib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

import envs
from agents.config import TrainConfig, to_json, what_decides
from agents.errors import AgentsError, RunFileError, UsageError
from agents.evaluation import Episode, evaluate_run, summarize
from agents.progress import Progress, format_seconds
from agents.runs import RunPaths, default_directory, read_metrics, read_run, write_json
from agents.side_by_side import Job, train_side_by_side
from agents.statistics import Estimate, estimate, interquartile_mean, probability_of_improvement
from agents.suites import expand, task_config
from agents.table import markdown
from fwp_rl.matching import matched
from fwp_rl.memory import MemoryConfig
from fwp_rl.registry import memory_config, memory_configs

Equal = Literal["parameters", "state", "nothing"]

ENCODER_SIZE = 128
"""Inputs of the memory, at which sizes are made equal: what the policy's encoder puts out."""
ENOUGH_SEEDS = 5


def compare(
    env_ids: Sequence[str],
    memories: Sequence[str],
    *,
    n_seeds: int,
    equal: Equal,
    total_timesteps: int | None,
    episodes: int,
    n_processes: int,
    root: Path,
) -> None:
    """Train what is missing, evaluate everything, write comparison.json, .md and .png, and print the tables."""
    for name, value in (("seeds", n_seeds), ("episodes", episodes), ("jobs", n_processes)):
        if value < 1:
            raise UsageError(f"{name}={value} must be at least 1")
    configs = {name: equal_config(name, memories[0], equal) for name in memories}
    tasks = expand(env_ids)
    jobs = [
        _job(task, name, config, seed, total_timesteps, root)
        for seed in range(n_seeds)  # outermost: a comparison that is cut off has compared memories
        for task in tasks
        for name, config in configs.items()
    ]
    missing = [job for job in jobs if not _is_finished(job)]
    print(f"{len(jobs)} runs in {root}: {len(jobs) - len(missing)} are finished, {len(missing)} to train", flush=True)
    failed = _train(missing, n_processes)
    print(f"evaluating {len(jobs) - len(failed)} agents on {episodes} unseen episodes, the same for all", flush=True)
    rows = [_row(job, episodes) for job in jobs if job.name not in failed]
    if not rows:
        raise AgentsError("no run has finished, so there is nothing to compare")
    result = {"equal": equal, "episodes": episodes, "rows": rows}
    write_json(root / "comparison.json", result)
    text = report(result)
    (root / "comparison.md").write_text(text, encoding="utf-8")
    draw([job for job in jobs if job.name not in failed], root / "comparison.png")
    print(f"\n{text}\nwritten to            {root / 'comparison.md'}, comparison.json and comparison.png")
    print(f"learning curves       tensorboard --logdir {shlex.quote(str(root))} --host 127.0.0.1")
    if failed:
        raise RunFileError(f"left out, because training them failed: {', '.join(failed)}")


def equal_config(name: str, reference: str, equal: Equal) -> MemoryConfig:
    """The config of a memory as large as that of `reference`; "none" has no state to be matched."""
    if name not in memory_configs():
        near = difflib.get_close_matches(name, memory_configs(), n=3, cutoff=0.5) or list(memory_configs())
        raise UsageError(f"unknown memory {name!r}: nearest are {', '.join(near)}")
    config = memory_config(name)
    if equal == "nothing" or name == reference or (equal == "state" and name == "none"):
        return config
    try:
        return matched(config, input_size=ENCODER_SIZE, **{equal: reference})
    except ValueError as error:
        raise UsageError(f"{name} cannot have the {equal} of {reference}: {error}") from None


def report(result: dict[str, Any]) -> str:
    """Tables in Markdown: one for each task, and over all tasks if they have a common scale."""
    rows = result["rows"]
    env_ids, memories = (list(dict.fromkeys(row[key] for row in rows)) for key in ("env_id", "memory"))
    scores = {
        name: [[row["score"] for row in rows if (row["env_id"], row["memory"]) == (env_id, name)] for env_id in env_ids]
        for name in memories
    }
    lines = ["# Comparison\n"]
    n_seeds = min(len(of) for each in scores.values() for of in each)
    if n_seeds < ENOUGH_SEEDS:
        lines.append(f"**Only {n_seeds} seed{'s' * (n_seeds != 1)}: too few to call anything better.**\n")
    lines.append(
        f"Equal {result['equal']}; {result['episodes']} unseen episodes for each agent, the same for all. Means over "
        "seeds with a 95 % bootstrap interval; steps and time until training ended.\n"
    )
    for env_id in env_ids:
        of_task = [row for row in rows if row["env_id"] == env_id]
        lines += [f"## {env_id}\n", markdown([_task_line(of_task, name) for name in memories]), ""]
    complete = all(len({len(of) for of in each}) == 1 and each[0] for each in scores.values())
    if complete and all(row["scale"] is not None for row in rows):
        arrays = {name: np.array(each, dtype=float) for name, each in scores.items()}
        lines += ["## All tasks\n", f"Scores are {_scales(rows)}.\n", markdown(_overall(arrays)), ""]
    lines.append("![learning curves](comparison.png)\n")
    return "\n".join(lines)


def _task_line(rows: list[dict[str, Any]], name: str) -> dict[str, str]:
    of = [row for row in rows if row["memory"] == name]
    if not of:
        return {"memory": name} | dict.fromkeys(_TASK_COLUMNS, "")
    success = [row["success_rate"] for row in of]
    return {
        "memory": name,
        "parameters": f"{of[0]['parameters']:,}",
        "success": "" if success[0] is None else str(_mean(success)),
        "return": str(_mean([row["return_mean"] for row in of])),
        "by seed": ", ".join(f"{row['score']:.2f}" for row in of),
        "steps": ", ".join(f"{row['steps'] / 1000:.0f}k" for row in of),
        "time": format_seconds(sum(row["seconds"] for row in of) / len(of)),
    }


_TASK_COLUMNS = ("parameters", "success", "return", "by seed", "steps", "time")


def _overall(scores: dict[str, np.ndarray]) -> list[dict[str, str]]:
    first, *_ = scores
    return [
        {
            "memory": name,
            "interquartile mean": str(estimate(interquartile_mean, of)),
            f"better than {first}": ""
            if name == first
            else str(estimate(probability_of_improvement, of, scores[first])),
        }
        for name, of in scores.items()
    ]


def _scales(rows: list[dict[str, Any]]) -> str:
    return " or ".join(sorted({row["scale"] for row in rows}))


def _mean(values: Sequence[float]) -> Estimate:
    return estimate(lambda x: float(x.mean()), np.array([values]))


def _job(task: str, name: str, memory: MemoryConfig, seed: int, total_timesteps: int | None, root: Path) -> Job:
    config = dataclasses.replace(task_config(task), memory=memory, seed=seed, threads=1, workers=0)
    if total_timesteps is not None:
        config = dataclasses.replace(config, total_timesteps=total_timesteps)
    return Job(f"{task} {name} seed {seed}", config, default_directory(root, task, name, seed))


def _task_of(job: Job) -> str:
    """The first word of its name; several tasks may be of one environment."""
    return job.name.partition(" ")[0]


def _is_finished(job: Job) -> bool:
    """Whether the run is there; another one in its place is refused."""
    if not RunPaths(job.directory).description.exists():
        return False
    description = read_run(job.directory)
    wanted = what_decides(json.loads(json.dumps(to_json(job.config))))
    found = what_decides(description["config"])
    if found != wanted:
        differs = [key for key in wanted if found.get(key) != wanted[key]]
        raise UsageError(f"{job.directory} is a run with another {', '.join(differs)}; give another --root")
    return bool(description["status"] == "finished")


def _train(jobs: list[Job], n_processes: int) -> list[str]:
    """Train them, and return the names of those that failed."""
    total = sum(job.config.planned_steps for job in jobs)
    progress = Progress(["all runs"], max(total, 1))
    steps = dict.fromkeys((job.name for job in jobs), 0)

    def show(job: Job, has_ended: bool) -> None:
        lines = [line for line in read_metrics(RunPaths(job.directory).metrics) if line["kind"] == "iteration"]
        steps[job.name] = job.config.planned_steps if has_ended else (lines[-1]["step"] if lines else 0)
        progress.update("all runs", sum(steps.values()))
        if has_ended and lines:
            progress.note(f"{job.name}: ended after {lines[-1]['step']:,} steps")

    try:
        codes = train_side_by_side(jobs, n_processes, show, again="stopped; the same command goes on from here")
    finally:
        progress.close()
    return [name for name, code in codes.items() if code]


def _row(job: Job, episodes: int) -> dict[str, Any]:
    _, played = evaluate_run(job.directory, episodes=episodes, deterministic=True)
    summary, description = summarize(played), read_run(job.directory)
    score, scale = _score(job.config, played)
    return {
        "env_id": _task_of(job),
        "memory": job.directory.parent.name,
        "seed": job.config.seed,
        "parameters": description["parameters"]["memory"],
        "steps": description["steps"],
        "seconds": description["seconds"],
        "success_rate": summary.success_rate,
        "return_mean": summary.return_mean,
        "score": score,
        "scale": scale,
    }


def _score(config: TrainConfig, played: list[Episode]) -> tuple[float, str | None]:
    """What is compared, and on what scale: None where no other task can be measured by it."""
    mean = float(np.mean([episode.episode_return for episode in played]))
    task = envs.make_vector(config.env_id, 1, wrappers=config.wrappers, **config.env_options)
    if task is not None:
        anchors = task.anchors()
        share = (mean - anchors["memoryless"]) / (anchors["optimal"] - anchors["memoryless"])
        return share, "the fraction of the way from the best return without memory to the optimum"
    outcomes = [episode.is_success for episode in played]
    if None not in outcomes:
        return float(np.mean(np.array(outcomes, dtype=float))), "success rates"
    return mean, None


def draw(jobs: Sequence[Job], file: Path) -> None:
    """Learning curves of all runs, one panel for each task: every seed as a thin line, their mean as a thick one."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    env_ids = list(dict.fromkeys(map(_task_of, jobs)))
    memories = list(dict.fromkeys(job.directory.parent.name for job in jobs))
    figure, panels = plt.subplots(
        1, len(env_ids), figsize=(5 * len(env_ids), 3.4), dpi=120, squeeze=False, layout="constrained"
    )
    for axes, env_id in zip(panels[0], env_ids, strict=True):
        for number, memory in enumerate(memories):
            of = [job for job in jobs if (_task_of(job), job.directory.parent.name) == (env_id, memory)]
            curves = [curve for job in of if (curve := _curve(job)) is not None]
            color = "0.5" if memory == "none" else f"C{number}"
            for steps, values in curves:
                axes.plot(steps, values, color=color, linewidth=0.8, alpha=0.5)
            if curves:
                # A run that ended early, because it had learned all there was, stays where it was.
                grid = np.linspace(0, max(steps[-1] for steps, _ in curves), 200)
                mean = np.mean([np.interp(grid, steps, values) for steps, values in curves], axis=0)
                axes.plot(grid, mean, color=color, linewidth=2.2, label=memory)
        axes.set_title(env_id, fontsize=10)
        axes.set_xlabel("environment steps")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g}M" if x >= 1e6 else f"{x / 1e3:g}k")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    panels[0][0].set_ylabel("return in training")
    figure.savefig(file)
    plt.close(figure)


def _curve(job: Job) -> tuple[np.ndarray, np.ndarray] | None:
    """Steps and mean returns of the last episodes; None before the first episode has ended."""
    lines = [line for line in read_metrics(RunPaths(job.directory).metrics) if "rollout/ep_rew_mean" in line]
    if not lines:
        return None
    return np.array([line["step"] for line in lines]), np.array([line["rollout/ep_rew_mean"] for line in lines])
