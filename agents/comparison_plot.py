"""Learning curves and performance profiles of a comparison, as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agents.comparison_text import ENOUGH_SEEDS, common_scale
from agents.curves import bands
from agents.side_by_side import Job
from agents.statistics import performance_profile, profile_band


def task_of(job: Job) -> str:
    """The first word of its name; several tasks may be of one environment."""
    return job.name.partition(" ")[0]


def draw(jobs: Sequence[Job], rows: list[dict[str, Any]], file: Path) -> None:
    """One panel for each task, seeds as thin lines, their mean as a thick one with its interval; then the profiles."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    env_ids = list(dict.fromkeys(map(task_of, jobs)))
    memories = list(dict.fromkeys(job.directory.parent.name for job in jobs))
    colors = {memory: "0.5" if memory == "none" else f"C{number}" for number, memory in enumerate(memories)}
    scores = common_scale(rows)
    n_panels = len(env_ids) + (scores is not None)
    figure, panels = plt.subplots(
        1, n_panels, figsize=(5 * n_panels, 3.4), dpi=120, squeeze=False, layout="constrained"
    )
    for axes, env_id in zip(panels[0], env_ids, strict=False):
        of_task = [job for job in jobs if task_of(job) == env_id]
        directories = {
            memory: [job.directory for job in of_task if job.directory.parent.name == memory] for memory in memories
        }
        for memory, band in bands(directories, "rollout/ep_rew_mean").items():
            axes.fill_between(band.steps, band.low, band.high, color=colors[memory], alpha=0.15, linewidth=0)
            axes.plot(band.steps, band.seeds.T, color=colors[memory], linewidth=0.8, alpha=0.5)
            axes.plot(band.steps, band.mean, color=colors[memory], linewidth=2.2, label=memory)
        axes.set_title(env_id, fontsize=10)
        axes.set_xlabel("environment steps")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g}M" if x >= 1e6 else f"{x / 1e3:g}k")
    panels[0][0].set_ylabel("return in training")
    if scores is not None:
        _draw_profiles(panels[0][-1], scores, colors)
    for axes in panels[0]:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    n_seeds = len({row["seed"] for row in rows})
    if n_seeds < ENOUGH_SEEDS:
        figure.suptitle(f"only {n_seeds} seed{'s' * (n_seeds != 1)}: too few to call anything better", color="red")
    figure.savefig(file)
    plt.close(figure)


def _draw_profiles(axes: Any, scores: dict[str, np.ndarray], colors: dict[str, str]) -> None:
    least = min(0.0, *(float(of.min()) for of in scores.values()))
    thresholds = np.linspace(least, max(1.0, *(float(of.max()) for of in scores.values())), 101)
    for memory, of in scores.items():
        low, high = profile_band(of, thresholds)
        axes.fill_between(thresholds, low, high, color=colors[memory], alpha=0.15, linewidth=0)
        axes.plot(thresholds, performance_profile(of, thresholds), color=colors[memory], linewidth=2.2, label=memory)
    axes.set_title("all tasks", fontsize=10)
    axes.set_xlabel("score of the trained agent")
    axes.set_ylabel("fraction of runs that score more")
