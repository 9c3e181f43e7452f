"""Learning curves and performance profiles of a comparison, as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agents.comparison.judging import ComparedRun
from agents.comparison.summary import ENOUGH_SEEDS, Summary
from agents.curves import bands
from agents.statistics import performance_profile, profile_band


def draw(runs: Sequence[ComparedRun], summary: Summary, memories: Sequence[str], file: Path) -> None:
    """One panel for each task, seeds as thin lines, their mean as a thick one with its interval; then the profiles."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colors = {memory: "0.5" if memory == "none" else f"C{number}" for number, memory in enumerate(memories)}
    n_panels = len(summary.tasks) + (summary.together is not None)
    figure, panels = plt.subplots(
        1, n_panels, figsize=(5 * n_panels, 3.4), dpi=120, squeeze=False, layout="constrained"
    )
    for axes, task in zip(panels[0], summary.tasks, strict=False):
        directories = {
            name: [run.directory for run in runs if (run.task, run.memory) == (task.title, name)] for name in memories
        }
        for memory, band in bands(directories, "rollout/ep_rew_mean").items():
            axes.fill_between(band.steps, band.low, band.high, color=colors[memory], alpha=0.15, linewidth=0)
            axes.plot(band.steps, band.seeds.T, color=colors[memory], linewidth=0.8, alpha=0.5)
            axes.plot(band.steps, band.mean, color=colors[memory], linewidth=2.2, label=memory)
        axes.set_title(task.title, fontsize=10)
        axes.set_xlabel("environment steps")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g}M" if x >= 1e6 else f"{x / 1e3:g}k")
    panels[0][0].set_ylabel("return in training")
    if summary.together is not None:
        _draw_profiles(panels[0][-1], {line.memory: line.scores for line in summary.together.lines}, colors)
    for axes in panels[0]:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    if summary.n_seeds < ENOUGH_SEEDS:
        s = "s" * (summary.n_seeds != 1)
        figure.suptitle(f"only {summary.n_seeds} seed{s}: too few to call anything better", color="red")
    figure.savefig(file)
    plt.close(figure)


def _draw_profiles(axes: Any, scores: Mapping[str, np.ndarray], colors: Mapping[str, str]) -> None:
    least = min(0.0, *(float(of.min()) for of in scores.values()))
    thresholds = np.linspace(least, max(1.0, *(float(of.max()) for of in scores.values())), 101)
    for memory, of in scores.items():
        low, high = profile_band(of, thresholds)
        axes.fill_between(thresholds, low, high, color=colors[memory], alpha=0.15, linewidth=0)
        axes.plot(thresholds, performance_profile(of, thresholds), color=colors[memory], linewidth=2.2, label=memory)
    axes.set_title("all tasks", fontsize=10)
    axes.set_xlabel("score of the trained agent")
    axes.set_ylabel("fraction of runs that score more")
