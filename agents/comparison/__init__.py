"""Which memory is better here, and is it real? Several memories, tasks and seeds, trained and judged alike.

Every agent is a run of its own in `root/<env>/<memory>/seed_<n>`, which `train.py` could have made. Runs that are
finished are kept, those that were cut off go on from their checkpoint, so that a comparison that was killed comes to
the same numbers as one that was not. All agents play the same unseen episodes.
"""

import contextlib
import dataclasses
import difflib
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from agents.comparison.judging import ComparedRun, Option, best_rate, judge, judge_with_options, with_option
from agents.comparison.picture import draw
from agents.comparison.presentation import present
from agents.comparison.summary import ENOUGH_SEEDS, summaries
from agents.comparison.text import as_markdown
from agents.config import TrainConfig
from agents.episodes import make_env
from agents.errors import EnvironmentFaultError, RunFileError, UsageError
from agents.progress import Progress
from agents.provenance import mixture, origin
from agents.runs import RunPaths, default_directory, last_step, read_config, read_run, write_json
from agents.side_by_side import train_side_by_side
from agents.suites import expand, task_config
from agents.training import prepare
from fwp_rl.matching import matched
from fwp_rl.memory import MemoryConfig
from fwp_rl.registry import memory_config, memory_configs

Equal = Literal["parameters", "state", "nothing"]
Trainer = Callable[..., dict[str, int]]
"""Takes jobs, `show` and `again`, and returns exit codes, as `train_side_by_side` does."""

ENCODER_SIZE = 128
"""Inputs of the memory, at which sizes are made equal: what the policy's encoder puts out."""
SWEEP_SEEDS = (1000, 1001, 1002)
"""On which learning rates are chosen: seeds that no comparison reaches."""
_SECONDS_BETWEEN_LINES = 15.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
    """What all runs of a comparison have in common."""

    root: Path
    total_timesteps: int | None
    equal_time: float | None

    def job(
        self, task: str, name: str, memory: MemoryConfig, seed: int, learning_rate: float | None = None
    ) -> ComparedRun:
        """A run with the preset's learning rate, or in a folder of its own with another one."""
        config = dataclasses.replace(task_config(task), memory=memory, seed=seed, threads=1, workers=0)
        config = dataclasses.replace(config, stop_at_seconds=self.equal_time)
        if self.total_timesteps is not None:
            config = dataclasses.replace(config, total_timesteps=self.total_timesteps)
        label, root = f"{task} {name} seed {seed}", self.root
        if learning_rate not in (None, config.ppo.learning_rate) or seed in SWEEP_SEEDS:
            rate = config.ppo.learning_rate if learning_rate is None else learning_rate
            config = dataclasses.replace(config, ppo=dataclasses.replace(config.ppo, learning_rate=rate))
            label, root = f"{label} learning rate {rate:g}", self.root / "learning_rates" / f"{rate:g}"
        return ComparedRun(label, config, default_directory(root, task, name, seed), task, name)


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
    equal_time: float | None = None,
    tests: Sequence[Option] = (),
    learning_rates: Sequence[float] = (),
    cluster: Literal["ray"] | None = None,
    address: str | None = None,
    prepare_only: bool = False,
) -> None:
    """Train what is missing, evaluate everything, write the comparison in all its forms, and print its tables.

    A run that is damaged or cannot be trained is left out; RunFileError names all of them in the end. With
    `prepare_only`, make the directories of the runs for another scheduler, and do no more.

    :param tests: Options of the environment, by name and value; trained agents also play their task with each of them.
    """
    for name, names in (("env-id", env_ids), ("memory", memories)):
        if not names:
            raise UsageError(f"--{name} needs at least one name")
    counts = {"seeds": n_seeds, "episodes": episodes, "jobs": n_processes, "total_timesteps": total_timesteps}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise UsageError(f"{name}={value} must be at least 1")
    if bad := [rate for rate in learning_rates if not 0 < rate < float("inf")]:
        raise UsageError(f"learning rate {bad[0]:g} must be more than 0")
    if equal_time is not None and not equal_time > 0:
        raise UsageError(f"equal_time={equal_time:g} must be more than 0 seconds")
    configs = {name: equal_config(name, memories[0], equal) for name in memories}
    pairs = [(task, name) for task in expand(env_ids) for name in configs]
    plan = _Plan(root=root, total_timesteps=total_timesteps, equal_time=equal_time)
    # Seeds outermost: a comparison that is cut off has compared memories.
    runs = [plan.job(task, name, configs[name], seed) for seed in range(n_seeds) for task, name in pairs]
    sweep = [
        plan.job(task, name, configs[name], seed, rate)
        for seed in SWEEP_SEEDS
        for rate in dict.fromkeys(learning_rates)
        for task, name in pairs
    ]
    if n_seeds < ENOUGH_SEEDS:
        print(
            f"warning: seeds={n_seeds} is too few to call anything better; {ENOUGH_SEEDS} or more are", file=sys.stderr
        )
    tested = _tested(expand(env_ids), tests)
    trainer = _trainer(cluster, address, n_processes)
    left_out: dict[str, str] = {}
    waiting = _prepared(runs + sweep, root, left_out)
    if prepare_only:
        print("train each with       python train.py --resume DIRECTORY")
        print("then compare them     this command without --prepare")
        _tell(left_out)
        return
    _train(waiting, trainer, left_out)
    rows = _judged(runs, lambda run: judge(run, episodes), left_out)
    result: dict[str, Any] = {
        **{"memories": list(configs), "equal": equal, "equal_time": equal_time, "episodes": episodes},
        "rows": list(rows.values()),
    }
    best = runs
    if sweep:
        trials = list(_judged(sweep, lambda run: judge(run, episodes), left_out).values())
        chosen = {pair: best_rate(trials, *pair, n_seeds=len(SWEEP_SEEDS)) for pair in pairs}
        best = [
            plan.job(task, name, configs[name], seed, chosen[task, name])
            for seed in range(n_seeds)
            for task, name in pairs
            if chosen[task, name] is not None
        ]
        _train(_prepared(best, root, left_out), trainer, left_out)
        with_other_rates = [run for run in best if run.name not in rows]
        rows |= _judged(with_other_rates, lambda run: judge(run, episodes), left_out)
        result |= {"trials": trials, "best_rows": [rows[run.name] for run in best if run.name in rows]}
    if not result["rows"]:
        raise RunFileError("\n".join(["no run can be compared", *_lines(left_out)]))
    if tested:
        able = [run for run in best if run.name in rows]
        unplayed: dict[str, str] = {}
        played = _judged(able, lambda run: judge_with_options(run, tested[run.task], episodes), unplayed)
        left_out |= {f"{name}, played with other options": reason for name, reason in unplayed.items()}
        result["tests"] = [row for of_run in played.values() for row in of_run]
    compared = [run for run in runs if run.name in rows]
    descriptions = [read_run(run.directory) for run in compared]
    result |= {"mixed": mixture(descriptions), "origin": origin(descriptions), "left_out": left_out}
    write_json(root / "comparison.json", result)
    found = summaries(result)
    text = as_markdown(result, *found)
    (root / "comparison.md").write_text(text, encoding="utf-8")
    draw(compared, found[0], result["memories"], root / "comparison.png")
    print(f"\n{text}\nwritten to            {root / 'comparison.md'}, comparison.json and comparison.png")
    print(f"to look at            {present(root, result, *found)}")
    print(f"learning curves       python -m agents tensorboard {shlex.quote(str(root))}")
    _tell(left_out)


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


def _trainer(cluster: str | None, address: str | None, n_processes: int) -> Trainer:
    """Where runs are trained: on the cores of this machine, or on a cluster, which must answer."""
    if cluster is None:
        if address is not None:
            raise UsageError(f"address={address} is that of a cluster: add --cluster ray")
        return lambda jobs, show, again: train_side_by_side(jobs, n_processes, show, again=again)
    from agents.cluster import RayCluster

    return RayCluster(address).train


def _prepared(runs: list[ComparedRun], root: Path, left_out: dict[str, str]) -> list[ComparedRun]:
    """Those that are not finished, with their directories. Of those that are damaged, `left_out` tells why, by name."""
    runs = [run for run in runs if run.name not in left_out]
    waiting = []
    for run in runs:
        try:
            if not _is_finished(run):
                waiting.append(run)
        except RunFileError as error:
            left_out[run.name] = str(error)
    damaged = len([run for run in runs if run.name in left_out])
    counts = f"{len(runs) - len(waiting) - damaged} are finished, {len(waiting)} to train"
    print(
        f"{len(runs)} run{'s' * (len(runs) != 1)} in {root}: {counts}" + f", {damaged} damaged" * (damaged > 0),
        flush=True,
    )
    for run in waiting:
        if not RunPaths(run.directory).description.exists():
            prepare(run.config, run.directory)
    return waiting


def _train(waiting: list[ComparedRun], trainer: Trainer, left_out: dict[str, str]) -> None:
    """Train them. Of those that fail, `left_out` tells so, by name."""
    if not waiting:
        return
    steps = {run.name: last_step(RunPaths(run.directory).metrics) for run in waiting}
    planned = sum(run.config.planned_steps for run in waiting)
    progress = Progress(["all runs"], planned, already=sum(steps.values()))
    ended = 0

    def show(run: ComparedRun, has_ended: bool) -> None:
        nonlocal ended
        last = last_step(RunPaths(run.directory).metrics)
        steps[run.name] = run.config.planned_steps if has_ended else last
        progress.update("all runs", sum(steps.values()))
        if has_ended:
            ended += 1
            progress.note(f"{run.name}: ended after {last:,} steps ({ended} of {len(waiting)} runs)")

    try:
        codes = trainer(waiting, show, again="stopped; the same command goes on from here")
    finally:
        progress.close()
    left_out.update({name: f"training failed with exit code {code}" for name, code in codes.items() if code})


def _is_finished(run: ComparedRun) -> bool:
    """Whether the run is there; another one in its place is refused."""
    paths = RunPaths(run.directory)
    if not run.directory.exists() or (run.directory.is_dir() and not paths.content):
        return False
    description = read_run(run.directory)
    # Workers change no result; where others have trained it, `mixture` tells.
    config = dataclasses.replace(read_config(run.directory), workers=run.config.workers, device=run.config.device)
    if config != run.config:
        names = [item.name for item in dataclasses.fields(TrainConfig)]
        found, wanted = ({name: getattr(of, name) for name in names} for of in (config, run.config))
        differs = [f"{name} ({found[name]}, not {wanted[name]})" for name in names if found[name] != wanted[name]]
        raise UsageError(f"{run.directory} is a run with another {', '.join(differs)}; give another --root")
    return bool(description["status"] == "finished")


_T = TypeVar("_T")


def _judged(
    runs: Sequence[ComparedRun], judged: Callable[[ComparedRun], _T], left_out: dict[str, str]
) -> dict[str, _T]:
    """What `judged` says of each run, by name. Of those that it can't judge, `left_out` tells why."""
    runs = [run for run in runs if run.name not in left_out]
    print(f"evaluating {len(runs)} agents on unseen episodes, the same for all", flush=True)
    found, next_line = {}, time.monotonic() + _SECONDS_BETWEEN_LINES
    for number, run in enumerate(runs):
        if time.monotonic() > next_line:
            print(f"{number} of {len(runs)} agents evaluated", file=sys.stderr, flush=True)
            next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
        try:
            found[run.name] = judged(run)
        except (RunFileError, EnvironmentFaultError) as error:
            left_out[run.name] = str(error)
    return found


def _tested(tasks: Sequence[str], tests: Sequence[Option]) -> dict[str, list[Option]]:
    """The options that each task is to be played with. Tasks that do not take one are told; UsageError if none does.

    With an option that changes what is seen or can be done an agent cannot play. It is refused here, before training.
    """
    taken: dict[str, list[Option]] = {task: [] for task in tasks if tests}
    for name, value in tests:
        refusals = {}
        for task in tasks:
            trained = task_config(task)
            try:
                if _spaces(trained) != _spaces(with_option(trained, name, value)):
                    raise UsageError(f"{task} with {name}={value} has other spaces than agents are trained with")
            except UsageError as error:
                refusals[task] = error
            else:
                taken[task].append((name, value))
        if len(refusals) == len(tasks):
            raise refusals[tasks[0]]
        for task, refusal in refusals.items():
            print(f"{task} is not played with {name}={value}: {refusal}", file=sys.stderr)
    return taken


def _spaces(config: TrainConfig) -> tuple[Any, Any]:
    with contextlib.closing(make_env(config.env_id, config.env_options, config.wrappers)) as env:
        return env.observation_space, env.action_space


def _tell(left_out: dict[str, str]) -> None:
    if left_out:
        raise RunFileError("\n".join(_lines(left_out)))


def _lines(left_out: dict[str, str]) -> list[str]:
    return [f"left out: {name}: {reason}" for name, reason in left_out.items()]
