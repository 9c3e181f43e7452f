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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

import envs
from agents.comparison_plot import draw, task_of
from agents.comparison_text import ENOUGH_SEEDS, report
from agents.config import OptionValue, TrainConfig
from agents.episodes import make_env
from agents.errors import RunFileError, UsageError
from agents.evaluation import Episode, evaluate_policy_on, evaluate_run, load_run, summarize
from agents.presentation import present
from agents.progress import Progress
from agents.provenance import mixture, origin
from agents.runs import RunPaths, default_directory, read_config, read_metrics, read_run, write_json
from agents.side_by_side import Job, train_side_by_side
from agents.suites import expand, task_config
from agents.training import prepare
from fwp_rl.matching import matched
from fwp_rl.memory import MemoryConfig
from fwp_rl.registry import memory_config, memory_configs

Equal = Literal["parameters", "state", "nothing"]
_Option = tuple[str, OptionValue]
Trainer = Callable[..., dict[str, int]]
"""Takes jobs, `show` and `again`, and returns exit codes, as `train_side_by_side` does."""

ENCODER_SIZE = 128
"""Inputs of the memory, at which sizes are made equal: what the policy's encoder puts out."""
SWEEP_SEEDS = (1000, 1001, 1002)
"""On which learning rates are chosen: seeds that no comparison reaches."""
THRESHOLD = 0.9
"""Score from which a task counts as learned."""
WAY = "the fraction of the way from the best return without memory to the optimum"
_SECONDS_BETWEEN_LINES = 15.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
    """What all runs of a comparison have in common."""

    root: Path
    total_timesteps: int | None
    equal_time: float | None

    def job(self, task: str, name: str, memory: MemoryConfig, seed: int, learning_rate: float | None = None) -> Job:
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
        return Job(label, config, default_directory(root, task, name, seed))


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
    tests: Sequence[_Option] = (),
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
    for name, value in (("seeds", n_seeds), ("episodes", episodes), ("jobs", n_processes)):
        if value < 1:
            raise UsageError(f"{name}={value} must be at least 1")
    if bad := [rate for rate in learning_rates if not 0 < rate < float("inf")]:
        raise UsageError(f"learning rate {bad[0]:g} must be more than 0")
    if equal_time is not None and not equal_time > 0:
        raise UsageError(f"equal_time={equal_time:g} must be more than 0 seconds")
    configs = {name: equal_config(name, memories[0], equal) for name in memories}
    pairs = [(task, name) for task in expand(env_ids) for name in configs]
    plan = _Plan(root=root, total_timesteps=total_timesteps, equal_time=equal_time)
    # Seeds outermost: a comparison that is cut off has compared memories.
    jobs = [plan.job(task, name, configs[name], seed) for seed in range(n_seeds) for task, name in pairs]
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
    problems: dict[str, str] = {}
    waiting = _prepared(jobs + sweep, root, problems)
    if prepare_only:
        print("train each with       python train.py --resume DIRECTORY")
        print("then compare them     this command without --prepare")
        return
    _train(waiting, trainer, problems)
    result: dict[str, Any] = {"equal": equal, "equal_time": equal_time, "episodes": episodes}
    result["rows"] = _rows(jobs, episodes, problems)
    best = jobs
    if sweep:
        trials = _rows(sweep, episodes, problems)
        chosen = {pair: _best_rate(trials, *pair) for pair in pairs}
        best = [
            plan.job(task, name, configs[name], seed, chosen[task, name])
            for seed in range(n_seeds)
            for task, name in pairs
            if chosen[task, name] is not None
        ]
        _train(_prepared(best, root, problems), trainer, problems)
        result |= {"trials": trials, "best_rows": _rows(best, episodes, problems)}
    if not result["rows"]:
        raise RunFileError("\n".join(["no run can be compared", *_left_out(problems)]))
    compared = [job for job in jobs if job.name not in problems]
    if tested:
        able = [job for job in best if job.name not in problems]
        result["tests"] = [row for job in able for row in _test_rows(job, tested[task_of(job)], episodes)]
    descriptions = [read_run(job.directory) for job in compared]
    result |= {"mixed": mixture(descriptions), "origin": origin(descriptions)}
    write_json(root / "comparison.json", result)
    text = report(result)
    (root / "comparison.md").write_text(text, encoding="utf-8")
    draw(compared, result["rows"], root / "comparison.png")
    print(f"\n{text}\nwritten to            {root / 'comparison.md'}, comparison.json and comparison.png")
    print(f"to look at            {present(root, result)}")
    print(f"learning curves       python -m agents tensorboard {shlex.quote(str(root))}")
    if problems:
        raise RunFileError("\n".join(_left_out(problems)))


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


def _prepared(jobs: list[Job], root: Path, problems: dict[str, str]) -> list[Job]:
    """Those that are not finished, with their directories. Of those that are damaged, `problems` tells why, by name."""
    waiting = []
    for job in jobs:
        try:
            if not _is_finished(job):
                waiting.append(job)
        except RunFileError as error:
            problems[job.name] = str(error)
    damaged = len([job for job in jobs if job.name in problems])
    counts = f"{len(jobs) - len(waiting) - damaged} are finished, {len(waiting)} to train"
    print(
        f"{len(jobs)} run{'s' * (len(jobs) != 1)} in {root}: {counts}" + f", {damaged} damaged" * (damaged > 0),
        flush=True,
    )
    for job in waiting:
        if not RunPaths(job.directory).description.exists():
            prepare(job.config, job.directory)
    return waiting


def _train(waiting: list[Job], trainer: Trainer, problems: dict[str, str]) -> None:
    """Train them. Of those that fail, `problems` tells so, by name."""
    if not waiting:
        return
    steps = {job.name: _last_step(job) for job in waiting}
    planned = sum(job.config.planned_steps for job in waiting)
    progress = Progress(["all runs"], planned, already=sum(steps.values()))
    ended = 0

    def show(job: Job, has_ended: bool) -> None:
        nonlocal ended
        last = _last_step(job)
        steps[job.name] = job.config.planned_steps if has_ended else last
        progress.update("all runs", sum(steps.values()))
        if has_ended:
            ended += 1
            progress.note(f"{job.name}: ended after {last:,} steps ({ended} of {len(waiting)} runs)")

    try:
        codes = trainer(waiting, show, again="stopped; the same command goes on from here")
    finally:
        progress.close()
    problems.update({name: f"training failed with exit code {code}" for name, code in codes.items() if code})


def _is_finished(job: Job) -> bool:
    """Whether the run is there; another one in its place is refused."""
    paths = RunPaths(job.directory)
    if not job.directory.exists() or (job.directory.is_dir() and not paths.content):
        return False
    description = read_run(job.directory)
    config = dataclasses.replace(read_config(job.directory), workers=job.config.workers)  # they change no result
    if config != job.config:
        names = [item.name for item in dataclasses.fields(TrainConfig)]
        differs = [name for name in names if getattr(config, name) != getattr(job.config, name)]
        raise UsageError(f"{job.directory} is a run with another {', '.join(differs)}; give another --root")
    return bool(description["status"] == "finished")


def _last_step(job: Job) -> int:
    """The last step that the metrics tell of; 0 if they cannot be read, which is told where it matters."""
    try:
        return max((line["step"] for line in read_metrics(RunPaths(job.directory).metrics)), default=0)
    except RunFileError:
        return 0


def _rows(jobs: list[Job], episodes: int, problems: dict[str, str]) -> list[dict[str, Any]]:
    """What came out of each run that can be judged."""
    jobs = [job for job in jobs if job.name not in problems]
    print(f"evaluating {len(jobs)} agents on {episodes} unseen episodes, the same for all", flush=True)
    rows, next_line = [], time.monotonic() + _SECONDS_BETWEEN_LINES
    for number, job in enumerate(jobs):
        if time.monotonic() > next_line:
            print(f"{number} of {len(jobs)} agents evaluated", file=sys.stderr, flush=True)
            next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
        try:
            rows.append(_row(job, episodes))
        except RunFileError as error:
            problems[job.name] = str(error)
        except KeyError as error:
            problems[job.name] = f"{RunPaths(job.directory).description} lacks {error}"
    return rows


def _row(job: Job, episodes: int) -> dict[str, Any]:
    _, played = evaluate_run(job.directory, episodes=episodes, deterministic=True)
    summary, description = summarize(played), read_run(job.directory)
    score, scale = _score(job.config, played)
    learned = _learned(job.config, scale, read_metrics(RunPaths(job.directory).metrics))
    return {
        "env_id": task_of(job),
        "memory": job.directory.parent.name,
        "seed": job.config.seed,
        "learning_rate": job.config.ppo.learning_rate,
        "parameters": description["parameters"]["memory"],
        "steps": description["steps"],
        "seconds": description["seconds"],
        "steps_to_threshold": learned["step"] if learned else None,
        "seconds_to_threshold": learned["seconds"] if learned else None,
        "success_rate": summary.success_rate,
        "return_mean": summary.return_mean,
        "score": score,
        "scale": scale,
    }


def _tested(tasks: Sequence[str], tests: Sequence[_Option]) -> dict[str, list[_Option]]:
    """The options that each task is to be played with. Tasks that do not take one are told; UsageError if none does.

    With an option that changes what is seen or can be done an agent cannot play. It is refused here, before training.
    """
    taken: dict[str, list[_Option]] = {task: [] for task in tasks if tests}
    for name, value in tests:
        refusals = {}
        for task in tasks:
            trained = task_config(task)
            try:
                if _spaces(trained) != _spaces(_with_option(trained, name, value)):
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


def _with_option(config: TrainConfig, name: str, value: OptionValue) -> TrainConfig:
    return dataclasses.replace(config, env_options={**config.env_options, name: value})


def _test_rows(job: Job, tests: Sequence[_Option], episodes: int) -> list[dict[str, Any]]:
    """How an agent does with options that it was not trained with."""
    _, policy = load_run(job.directory)
    rows = []
    for name, value in tests:
        config = _with_option(job.config, name, value)
        played = evaluate_policy_on(policy, config, episodes=episodes)
        score, _ = _score(config, played)
        rows.append(
            {
                **{"env_id": task_of(job), "memory": job.directory.parent.name, "seed": job.config.seed},
                **{"option": name, "value": value},
                **{"success_rate": summarize(played).success_rate, "score": score},
            }
        )
    return rows


def _score(config: TrainConfig, played: list[Episode]) -> tuple[float, str | None]:
    """What is compared, and on what scale: None where no other task can be measured by it."""
    mean = float(np.mean([episode.episode_return for episode in played]))
    anchors = _anchors(config)
    if anchors is not None:
        return _way(anchors, mean), WAY
    outcomes = [episode.is_success for episode in played]
    if None not in outcomes:
        return float(np.mean(np.array(outcomes, dtype=float))), "success rates"
    return mean, None


def _learned(config: TrainConfig, scale: str | None, lines: list[dict[str, Any]]) -> Mapping[str, Any] | None:
    """The first line of the metrics in which the last episodes of training, or those of an evaluation, score THRESHOLD;
    None if there is none. Both, since a run may end with the evaluation in which its agent makes no mistake any more.
    """
    anchors = _anchors(config)
    for line in lines:
        mean_return = line.get("rollout/ep_rew_mean", line.get("eval/return_mean"))
        success = line.get("rollout/success_rate", line.get("eval/success_rate"))
        if scale == WAY and anchors is not None and mean_return is not None:
            score = _way(anchors, mean_return)
        elif scale is not None and scale != WAY and success is not None:
            score = success
        else:
            continue
        if score >= THRESHOLD:
            return line
    return None


def _way(anchors: Mapping[str, float], mean_return: float) -> float:
    return (mean_return - anchors["memoryless"]) / (anchors["optimal"] - anchors["memoryless"])


def _anchors(config: TrainConfig) -> Mapping[str, float] | None:
    task = envs.make_vector(config.env_id, 1, wrappers=config.wrappers, **config.env_options)
    return None if task is None else task.anchors()


def _best_rate(trials: list[dict[str, Any]], env_id: str, name: str) -> float | None:
    """The learning rate with the best mean score; of equal ones, that with which the task was learned sooner."""
    of = [row for row in trials if (row["env_id"], row["memory"]) == (env_id, name)]

    def merit(rate: float) -> tuple[float, float]:
        with_rate = [row for row in of if row["learning_rate"] == rate]
        needed = [row["steps"] if row["steps_to_threshold"] is None else row["steps_to_threshold"] for row in with_rate]
        return float(np.mean([row["score"] for row in with_rate])), -float(np.mean(needed))

    return max(dict.fromkeys(row["learning_rate"] for row in of), key=merit, default=None)


def _left_out(problems: dict[str, str]) -> list[str]:
    return [f"left out: {name}: {reason}" for name, reason in problems.items()]
