"""What one does with trained agents: `python -m agents --help`."""

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from agents.command_line import option_value, parse, run
from agents.errors import AgentsError, UsageError

DESCRIPTION = """Evaluate, watch, compare and list agents that remember.

examples:
  python -m agents list --tasks
  python -m agents evaluate runs/fwp-MiniGrid-TMaze-v0/delta/seed_0 --episodes 500
  python -m agents render runs/fwp-MiniGrid-TMaze-v0/delta/seed_0 --out episode.gif
  python -m agents evaluate runs/fwp-TMaze-v0/lstm/seed_0 --env-options length=100
  python -m agents probe runs/fwp-MiniGrid-TMaze-v0/delta/seed_0
  python -m agents compare --env-id fwp/TMaze-v0 suite:rewriting --memory delta lstm none --seeds 5
  python -m agents tensorboard runs/compare
  python -m agents demo

A run is read from its run.json and the pickle-free part of its model.zip: a stranger's file cannot run code.
"""

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
"""Cores that this process may run on, which may be fewer than the machine has."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Success, return and length on episodes that no agent was trained on; the same ones for every agent."""

    run: tyro.conf.Positional[Path]
    """Directory of a run."""
    episodes: int = 200
    """Episodes; number i has the seed 1000000 + i."""
    env_options: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Options of the task that differ from training, such as another length."""
    stochastic: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Sample actions instead of taking the most probable one."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object, with a row for each episode."""


@dataclass(frozen=True, kw_only=True)
class Render:
    """A moving picture of an episode: the environment, the agent's view, its actions, and its memory at work."""

    run: tyro.conf.Positional[Path]
    """Directory of a run."""
    out: Path | None = None
    """File to write: .gif, .png (animated) or .mp4 (needs the extra 'video'). None: episode.gif in the run."""
    episodes: int = 1
    """Episodes, one after the other."""
    seed: int = 1_000_000
    """Seed of the first episode."""
    stochastic: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Sample actions instead of taking the most probable one."""
    overlay: Literal["memory", "none"] = "memory"
    """Draw what the memory holds, writes and reads beside the environment, or the environment alone."""
    block: int = 0
    """Of several fast-weight memories on top of one another, the one to draw, counted from the inputs."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What the memory is needed for: change it in the middle of unseen episodes, and see whether the agent succeeds."""

    run: tyro.conf.Positional[Path]
    """Directory of a run."""
    operations: tuple[Literal["erase", "freeze", "transplant", "delete"], ...] | None = None
    """What is done to the memory: erase it, let nothing that is written stay, exchange it for that of another episode,
    delete what lies under the key written last. None: all that this memory has."""
    steps: tuple[int, ...] | None = None
    """Steps before which it is done. None: up to 12, from the first to the last of a typical episode."""
    episodes: int = 200
    """Episodes for each; number i has the seed 1000000 + i."""
    stochastic: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Sample actions instead of taking the most probable one."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object instead of the table."""
    out: Path | None = None
    """Picture to write: .png, .pdf or .svg. None: probe.png in the run."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """The folder of a model card: weights, settings, an evaluation and a moving picture, nothing pickled."""

    run: tyro.conf.Positional[Path]
    """Directory of a run."""
    out: Path
    """Folder to write; it must not exist yet."""
    episodes: int = 200
    """Unseen episodes of the evaluation in the card."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """How fast memories train on this machine, beside PPO and RecurrentPPO."""

    env_id: str = "MiniGrid-MemoryS11-v0"
    """Task, with the options of its preset."""
    memory: tuple[str, ...] = ("delta", "lstm", "gru")
    """Memories."""
    repeats: int = 5
    """Turns that each takes."""
    threads: int = 1
    """Threads for computing."""
    device: str = "cpu"
    """Where everybody computes: cpu, cuda or cuda:N."""


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Train several memories with several seeds on the same tasks, and say which is better and how sure that is."""

    env_id: tuple[str, ...] = ("fwp/MiniGrid-TMaze-v0",)
    """Tasks: ids of environments, names of presets, suite:NAME for all of a suite. Each is trained with its preset."""
    memory: tuple[str, ...] = ("delta", "lstm", "gru", "none")
    """Memories. The others are made as large as the first, and compared with it."""
    seeds: int = 5
    """Runs of each memory on each task, with the seeds 0, 1, ..."""
    equal: Literal["parameters", "state", "nothing"] = "parameters"
    """What the memories have the same number of."""
    total_timesteps: int | None = None
    """Environment steps of each run. None: those of the preset."""
    episodes: int = 200
    """Unseen episodes that each agent plays at the end."""
    equal_time: float | None = None
    """End each run after so many seconds of training. Give more --total-timesteps than can be taken in that time."""
    test: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Let agents also play their task with another option than they were trained with, such as length=28; tasks that
    do not have it are left out."""
    learning_rates: tuple[float, ...] = ()
    """Also give each memory on each task the best of these, chosen on other seeds (1000, 1001, 1002)."""
    jobs: int = CORES
    """Runs side by side, each on one thread."""
    cluster: Literal["ray"] | None = None
    """Train on a cluster instead (extra 'cluster'); the runs must lie on a file system that all its machines share."""
    address: str | None = None
    """host:port of the cluster. None: the one of this machine, or else a new one on it."""
    prepare: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Only make the directories of the runs; any scheduler can train them, with train.py --resume DIRECTORY."""
    root: Path = Path("runs/compare")
    """Directory of all runs. What is finished there is kept, what was cut off goes on."""


@dataclass(frozen=True, kw_only=True)
class Tensorboard:
    """Open TensorBoard on a directory of runs, for this machine alone, until Ctrl-C."""

    root: tyro.conf.Positional[Path] = Path("runs")
    """Directory with runs, at any depth."""
    port: int | None = None
    """Port on the loopback address. None: the first free one from 6006 on."""


@dataclass(frozen=True, kw_only=True)
class List:
    """Memories, tasks, wrappers and presets."""

    tasks: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Only the tasks: what each isolates, its anchors, and its speed on this machine; and the suites."""


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """What is installed, what works and what does not: a block to paste into a bug report."""

    root: Path = Path("runs")
    """Where runs are to be written."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Train delta and lstm side by side on a T-maze in MiniGrid, compare them, and draw an episode of each."""

    root: Path = Path("runs/demo")
    """Directory of the demo; its own earlier runs in it are replaced."""
    total_timesteps: int = 300_000
    """Most steps for each agent; a run ends early once an evaluation finds no mistake."""
    episodes: int = 200
    """Unseen episodes of the comparison, at least 1."""
    seed: int = 0
    """Seed of both runs."""


def main(argv: Sequence[str] | None = None) -> None:
    """Do what the command line says (`sys.argv` if None)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = parse(
        Evaluate | Render | Probe | Export | Bench | Compare | Tensorboard | List | Doctor | Demo,
        arguments,
        prog="python -m agents",
        description=DESCRIPTION,
    )
    match command:
        case Evaluate():
            _evaluate(command)
        case Render():
            _render(command)
        case Probe():
            _probe(command)
        case Export():
            from agents.export import export

            print(export(command.run, command.out, episodes=command.episodes))
        case Bench():
            from agents.throughput import bench

            print(
                bench(
                    command.env_id,
                    command.memory,
                    repeats=command.repeats,
                    threads=command.threads,
                    device=command.device,
                )
            )
        case Compare():
            from agents.comparison import compare

            compare(
                command.env_id,
                command.memory,
                n_seeds=command.seeds,
                equal=command.equal,
                total_timesteps=command.total_timesteps,
                episodes=command.episodes,
                n_processes=command.jobs,
                root=command.root,
                equal_time=command.equal_time,
                tests=[option_value(text) for text in command.test],
                learning_rates=command.learning_rates,
                cluster=command.cluster,
                address=command.address,
                prepare_only=command.prepare,
            )
        case Tensorboard():
            from agents.tensorboard import open_tensorboard

            open_tensorboard(command.root, command.port)
        case List():
            from agents.listing import listing, task_listing

            print(task_listing() if command.tasks else listing())
        case Doctor():
            from agents.doctor import examine

            report, healthy = examine(command.root)
            print(report)
            if not healthy:
                raise AgentsError("not all of it works, see above")
        case Demo():
            from agents.demo import demo

            demo(command.root, total_timesteps=command.total_timesteps, episodes=command.episodes, seed=command.seed)


def _evaluate(command: Evaluate) -> None:
    from agents.evaluation import evaluate_run, summarize, summary_lines
    from fwp_rl.registry import memory_name

    config, rows = evaluate_run(
        command.run,
        episodes=command.episodes,
        deterministic=not command.stochastic,
        env_options=dict(option_value(text) for text in command.env_options),
    )
    summary = summarize(rows)
    if command.json:
        answer = {
            "run": str(command.run),
            "env_id": config.env_id,
            "memory": memory_name(config.memory),
            "deterministic": not command.stochastic,
            "env_options": dict(config.env_options),
            **dataclasses.asdict(summary),
            "rows": [dataclasses.asdict(row) for row in rows],
        }
        print(json.dumps(answer, allow_nan=False))
    else:
        print(f"{config.env_id}   {memory_name(config.memory)}   {command.run}")
        print("\n".join(summary_lines(summary)))


def _render(command: Render) -> None:
    from agents.rendering import render_run

    if command.seed < 0:
        raise UsageError(f"seed={command.seed} must be at least 0")
    path, note = render_run(
        command.run,
        command.out,
        episodes=command.episodes,
        seed=command.seed,
        deterministic=not command.stochastic,
        overlay=command.overlay,
        block=command.block,
    )
    if note:
        print(note, file=sys.stderr)
    print(path)


def _probe(command: Probe) -> None:
    from agents.probe import draw, probe_json, probe_run, report
    from agents.runs import RunPaths

    out = command.out or RunPaths(command.run).directory / "probe.png"
    if out.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise UsageError(f"cannot write {out.name!r}: the name must end in .png, .pdf or .svg")
    result = probe_run(
        command.run,
        operations=command.operations,
        steps=command.steps,
        episodes=command.episodes,
        deterministic=not command.stochastic,
    )
    if command.json:
        print(json.dumps({"run": str(command.run), **probe_json(result)}, allow_nan=False))
    else:
        print(report(result))
    try:
        draw(result, out)
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror or error}") from None
    print(out, file=sys.stderr if command.json else sys.stdout)


if __name__ == "__main__":
    sys.exit(run(main))
