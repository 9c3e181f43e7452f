"""One training run, from a config to a run directory.

    directory = train(TrainConfig(env_id="MiniGrid-MemoryS11-v0", memory=DeltaConfig()))
    resume(directory)  # if it was cut off

Runs end in one of four ways, and run.json says which: finished, interrupted, failed, or still "running" if the process
was killed; model.zip and metrics.jsonl are whole in each. One that waits to be trained is "waiting".
"""

import contextlib
import dataclasses
import math
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Image, KVWriter, Logger, TensorBoardOutputFormat
from stable_baselines3.common.utils import safe_mean
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from agents.checkpoints import begin_stretch, load_checkpoint, save_checkpoint
from agents.config import TrainConfig, config_problems, to_json
from agents.episodes import EVALUATION_SEED
from agents.errors import EnvironmentFaultError, InterruptedRunError, RunFileError, UsageError
from agents.evaluation import evaluate_policy_on, summarize
from agents.interrupts import Interrupts
from agents.model import build_model, make_training_env, ppo_problems
from agents.panels import still_pictures
from agents.progress import Progress, format_seconds
from agents.provenance import changed_versions, git_commit, machine, now, versions
from agents.recording import record
from agents.runs import (
    FORMAT,
    VERSION,
    MetricsFile,
    RunPaths,
    claimed,
    create_run_directory,
    cut_metrics,
    default_directory,
    read_config,
    read_run,
    write_json,
)
from agents.vec_env import best_workers
from fwp_rl.registry import memory_name
from fwp_rl.sb3 import MemoryPPO, NonFiniteError, RolloutSample, WorkerError, diagnose

_DIAGNOSE_EVERY = 8
"""Rollouts between two looks at the memory: one look costs a few per cent of a rollout and its update."""
_MOST_DRAWN_STEPS = 256
"""Of the episode whose memory is drawn at an evaluation."""


def train(
    config: TrainConfig,
    run_dir: Path | None = None,
    *,
    root: Path = Path("runs"),
    overwrite: bool = False,
    quiet: bool = False,
) -> Path:
    """Train, and return the directory that holds the run.

    Raises UsageError before anything is written, EnvironmentFaultError when the task breaks, and InterruptedRunError
    after Ctrl-C or SIGTERM, with everything saved in the last two cases.
    """
    directory = run_dir or default_directory(root, config.env_id, memory_name(config.memory), config.seed)
    if not overwrite and directory.exists():
        create_run_directory(directory, overwrite=False)  # refuse before anything slow happens
    if problems := config_problems(config):
        raise UsageError("\n".join(problems + ppo_problems(config)))
    _train(config, lambda: create_run_directory(directory, overwrite=overwrite), quiet)
    return directory


def prepare(config: TrainConfig, directory: Path, *, overwrite: bool = False) -> None:
    """Make the directory of a run that anybody may then train, here or elsewhere, with `resume`."""
    paths = create_run_directory(directory, overwrite=overwrite)
    write_json(
        paths.description, {"format": FORMAT, "version": VERSION, "status": "waiting", "config": to_json(config)}
    )


def resume(directory: Path, *, device: str | None = None, quiet: bool = False) -> Path:
    """Go on with the run in `directory` from its last checkpoint, or from its beginning if it had none yet.

    On another `device` than before, if one is named. On a CPU it becomes what it would have been without a break.
    Nothing happens if it is finished. Raises RunFileError if the directory holds no run or a damaged one, and what
    `train` raises.
    """
    config = read_config(directory)
    if device is not None:
        config = dataclasses.replace(config, device=device)
    if read_run(directory)["status"] == "finished":
        if not quiet:
            print(f"finished      {directory} is finished already")
        return directory
    if problems := config_problems(config):
        raise RunFileError("\n".join(f"{RunPaths(directory).description}: {problem}" for problem in problems))
    _train(config, lambda: RunPaths(directory), quiet)
    return directory


def _train(config: TrainConfig, make_paths: Callable[[], RunPaths], quiet: bool) -> None:
    """Train in the directory that is made once everything else has turned out to work."""
    _set_threads(config.threads)
    if config.workers is None:
        workers = 0
        if config.engine == "original":
            workers = best_workers(
                config.env_id, config.n_envs, config.planned_steps, config.env_options, config.wrappers
            )
        config = dataclasses.replace(config, workers=workers)
    with contextlib.closing(make_training_env(config)) as venv, Interrupts() as interrupts:
        model = build_model(config, venv)
        paths = make_paths()
        with claimed(paths):
            _Run(config, model, paths, quiet).learn(interrupts)


@dataclass
class _Run:
    """A run that has a directory."""

    config: TrainConfig
    model: MemoryPPO
    paths: RunPaths
    quiet: bool
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """How long the run has been trained, without the breaks."""
        return time.monotonic() - self.started

    def learn(self, interrupts: Interrupts) -> None:
        """Train to the end, to the target, or until a signal; whatever happens, save and close."""
        earlier = read_run(self.paths.directory) if self.paths.description.exists() else None
        self.model.set_logger(Logger(str(self.paths.directory), []))
        is_resumed = self.paths.checkpoint.exists()
        if is_resumed:
            self.started -= load_checkpoint(self.paths.checkpoint, self.model)
        already = self.model.num_timesteps
        names = [memory_name(self.config.memory)]
        progress = Progress(names, self.config.planned_steps, quiet=self.quiet, already=already)
        metrics = self._open_metrics(progress, last_step=already if is_resumed else -1)
        description = self._describe(earlier)
        write_json(self.paths.description, description)
        self._introduce(earlier)
        status = "failed"
        try:
            self.model.learn(
                max(self.config.total_timesteps - self.model.num_timesteps, 0),
                callback=_RunCallback(self, progress, interrupts, is_resumed=is_resumed),
                reset_num_timesteps=False,
            )
            status = "interrupted" if interrupts.received else "finished"
        except (NonFiniteError, WorkerError, EnvironmentFaultError) as error:
            parts = [str(error), *getattr(error, "__notes__", ()), f"the agent is saved in {self.paths.model}"]
            raise EnvironmentFaultError("; ".join(parts)) from error
        finally:
            with contextlib.ExitStack() as closing:  # each of these happens even if another one fails
                if status == "finished":
                    closing.callback(self.paths.checkpoint.unlink, missing_ok=True)
                closing.callback(lambda: write_json(self.paths.description, {**description, **self._ending(status)}))
                closing.callback(metrics.close)
                closing.callback(self.model.logger.close)
                closing.callback(progress.close)
                self.model.save(self.paths.model)
        self._say_goodbye(interrupts)

    def save(self, progress: Progress) -> None:
        """Replace model.zip and checkpoint.zip; a full disk is no reason to stop."""
        try:
            self.model.save(self.paths.model)
            save_checkpoint(self.paths.checkpoint, self.model, seconds=self.seconds)
        except OSError as error:
            progress.note(f"could not save the model ({error.strerror or error}); the last one is intact, going on")

    def _open_metrics(self, progress: Progress, last_step: int) -> MetricsFile:
        """metrics.jsonl and TensorBoard, both without what an earlier process wrote about steps after `last_step`."""
        for leftover in self.paths.directory.glob(".*.??*"):
            leftover.unlink(missing_ok=True)
        cut_metrics(self.paths.metrics, last_step)
        metrics = MetricsFile(self.paths.metrics)
        tensorboard = TensorBoardOutputFormat(str(self.paths.directory))
        # What SummaryWriter(purge_step=...) writes, which SB3 does not let through.
        begin = Event(step=last_step + 1, session_log=SessionLog(status=SessionLog.START))
        tensorboard.writer._get_file_writer().add_event(begin, step=last_step + 1)
        self.model.logger.output_formats += [_MetricsWriter(metrics, progress, self), tensorboard]
        return metrics

    def _introduce(self, earlier: dict[str, Any] | None) -> None:
        if earlier is not None and (changes := changed_versions(earlier.get("versions", {}))):
            print(f"warning: begun with other versions ({changes}); it will not be quite the same run", file=sys.stderr)
        if not self.quiet:
            print(f"environment   {self.config.env_id}{_options_text(self.config)}")
            print(self.model.describe())
            if self.config.engine != "original":
                print(f"engine        {self.config.engine}")
            if self.config.workers:
                print(f"workers       {self.config.workers} besides this process")
            print(f"run           {self.paths.directory}")
            if earlier is not None:
                print(f"resumed       at step {self.model.num_timesteps:,}")
            sys.stdout.flush()

    def _say_goodbye(self, interrupts: Interrupts) -> None:
        evaluate = f"python -m agents evaluate {shlex.quote(str(self.paths.directory))}"
        took = f"{self.model.num_timesteps:,} steps in {format_seconds(self.seconds)}"
        if interrupts.received is not None:
            go_on = f"python train.py --resume {shlex.quote(str(self.paths.directory))}"
            raise InterruptedRunError(
                f"stopped after {took}, model saved; evaluate it: {evaluate}\ngo on with it: {go_on}",
                interrupts.exit_code,
            )
        if not self.quiet:
            print(f"finished      {took}, model saved\nevaluate      {evaluate}", flush=True)

    def _describe(self, earlier: dict[str, Any] | None) -> dict[str, Any]:
        policy = self.model.policy
        begun = earlier if earlier is not None and earlier["status"] != "waiting" else None
        return {
            "format": FORMAT,
            "version": VERSION,
            "status": "running",
            "config": to_json(self.config),
            "parameters": {"memory": _count(policy.memory), "policy": _count(policy)},
            "sequence_length": self.model.sequence_length,
            "batch_size": self.model.batch_size,
            "versions": versions(["envpool"] if self.config.engine == "envpool" else []),
            "machine": {**machine(), "threads": torch.get_num_threads(), "device": str(self.model.device)},
            "git_commit": git_commit(),
            "started": begun["started"] if begun else now(),
            "resumed_at": [*begun["resumed_at"], self.model.num_timesteps] if begun else [],
            "ended": None,
            "steps": 0,
            "seconds": None,
        }

    def _ending(self, status: str) -> dict[str, Any]:
        return {
            "status": status,
            "ended": now(),
            "steps": self.model.num_timesteps,
            "seconds": round(self.seconds, 3),
        }


_FEW_EPISODES = 10
"""Fewer in each environment between two checkpoints are too few."""


class _RunCallback(BaseCallback):
    """Everything that happens between two updates; SB3 calls it."""

    def __init__(self, run: _Run, progress: Progress, interrupts: Interrupts, *, is_resumed: bool) -> None:
        super().__init__()
        self._run = run
        self._progress = progress
        self._interrupts = interrupts
        self._name = memory_name(run.config.memory)
        self._is_resumed = is_resumed
        self._next_save = _next_multiple(run.config.save_every, run.model.num_timesteps)
        self._next_evaluation = _next_multiple(run.config.eval_every, run.model.num_timesteps)
        self._reached_target = False
        self._sample: RolloutSample | None = None

    def _on_rollout_start(self) -> None:
        config = self._run.config
        self._record_memory()
        if config.ppo.ent_coef_final is not None:
            done = min(self.num_timesteps / config.total_timesteps, 1.0)
            self._run.model.ent_coef = (1 - done) * config.ppo.ent_coef + done * config.ppo.ent_coef_final
        if self.num_timesteps >= self._next_evaluation:
            self._next_evaluation = _next_multiple(config.eval_every, self.num_timesteps)
            self._evaluate()
        if config.stop_at_seconds is not None and self._run.seconds >= config.stop_at_seconds:
            self._reached_target = True
        if self._reached_target:
            return  # what is left to do is not to be done again
        if self._is_resumed:
            self._is_resumed = False
            begin_stretch(self._run.model, config.seed)
        elif self.num_timesteps >= self._next_save:
            self._next_save = _next_multiple(config.save_every, self.num_timesteps)
            self._run.save(self._progress)
            self._tell_of_cuts()
            begin_stretch(self._run.model, config.seed)

    def _on_rollout_end(self) -> None:
        model = self._run.model
        if (self.num_timesteps // (model.n_envs * model.n_steps) - 1) % _DIAGNOSE_EVERY == 0:
            self._sample = RolloutSample.of(model)

    def _record_memory(self) -> None:
        """What the last update made of the memory on the rollout that it learned from."""
        if self._sample is not None:
            for name, value in diagnose(self._run.model.policy, self._sample).items():
                self.logger.record(f"memory/{name}", value)
            self._sample = None

    def _tell_of_cuts(self) -> None:
        """Say so if a good part of all episodes is cut off at checkpoints, whose ends are then hardly ever seen."""
        config, infos = self._run.config, self.model.ep_info_buffer
        episode = safe_mean([info["l"] for info in infos]) * config.n_envs if infos else math.inf
        if _FEW_EPISODES * episode > config.save_every:
            length = f"about {episode / config.n_envs:.0f} steps long" if infos else "longer than that"
            self._progress.note(
                f"episodes start anew every save_every={config.save_every:,} steps of {config.n_envs} environments, "
                f"but are {length}; make it larger"
            )

    def _on_step(self) -> bool:
        self._show()
        return not (self._reached_target or self._interrupts.received)

    def _show(self) -> None:
        infos, successes = self.model.ep_info_buffer, self.model.ep_success_buffer
        self._progress.update(
            self._name,
            self.num_timesteps,
            success=safe_mean(successes) if successes else None,
            episode_return=safe_mean([info["r"] for info in infos]) if infos else None,
        )

    def _on_training_end(self) -> None:
        self._progress.finish(self._name, self.num_timesteps)
        self._record_memory()
        # SB3 writes the numbers of an update after the next rollout: the last ones would be lost.
        if self.logger.name_to_value:
            self.logger.dump(self.num_timesteps)
        if self._run.config.eval_every and not (self._interrupts.received or self._reached_target):
            self._evaluate()

    def _evaluate(self) -> None:
        config = self._run.config
        summary = summarize(evaluate_policy_on(self._run.model.policy, config, episodes=config.eval_episodes))
        values: dict[str, Any] = {"eval/return_mean": summary.return_mean, "eval/length_mean": summary.length_mean}
        text = f"evaluation at {self.num_timesteps:,} steps: return {summary.return_mean:.2f}"
        if summary.success_rate is not None:
            values["eval/success_rate"] = summary.success_rate
            text += f", success {summary.success_rate:.2f}"
        pictures = self._pictures()
        for writer in self.logger.output_formats:
            writer.write(values, dict.fromkeys(values, ()), self.num_timesteps)
            if isinstance(writer, TensorBoardOutputFormat):
                writer.write(pictures, dict.fromkeys(pictures, ()), self.num_timesteps)
        self._progress.note(text)
        self._reached_target = _reaches(config.stop_at_success, summary.success_rate) or _reaches(
            config.stop_at_return, summary.return_mean
        )

    def _pictures(self) -> dict[str, Any]:
        """The memory in the first of the episodes of an evaluation."""
        policy, config = self._run.model.policy, self._run.config
        (recording,) = record(policy, config, seeds=[EVALUATION_SEED], pictures=False, most_steps=_MOST_DRAWN_STEPS)
        return {f"memory/{name}": Image(picture, "HWC") for name, picture in still_pictures(recording).items()}


_SAID_ALREADY = ("time/iterations", "time/time_elapsed", "time/total_timesteps")
"""What SB3 counts from where a process began; a line has `step` and `seconds`, which go on."""


class _MetricsWriter(KVWriter):
    """SB3's logger -> metrics.jsonl, one line for each iteration and each evaluation."""

    def __init__(self, metrics: MetricsFile, progress: Progress, run: _Run) -> None:
        self._metrics = metrics
        self._progress = progress
        self._run = run

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """One line."""
        kind = "evaluation" if any(key.startswith("eval/") for key in key_values) else "iteration"
        line: dict[str, Any] = {"kind": kind, "step": step, "seconds": round(self._run.seconds, 3)}
        line.update(
            (key, value)
            for key, value in sorted(key_values.items())
            if not (isinstance(value, str) or key in _SAID_ALREADY)
        )
        try:
            self._metrics.append(line)
        except OSError as error:
            self._progress.note(f"could not write metrics ({error.strerror or error}); this line is lost, going on")

    def close(self) -> None:
        """Nothing: the run closes its file."""


def _set_threads(threads: int | None) -> None:
    if threads is None:
        return
    import numba

    torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]  # set at import


def _reaches(target: float | None, measured: float | None) -> bool:
    return target is not None and measured is not None and measured >= target


def _next_multiple(every: int, step: int) -> float:
    """The next step that is a multiple; never, if `every` is 0."""
    return (step // every + 1) * every if every else math.inf


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _options_text(config: TrainConfig) -> str:
    parts = [f"{key}={value}" for key, value in config.env_options.items()] + list(config.wrappers)
    parts += ["previous action"] * config.previous_action + ["previous reward"] * config.previous_reward
    return f"  ({', '.join(parts)})" if parts else ""
