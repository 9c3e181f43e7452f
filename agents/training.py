"""One training run, from a config to a run directory.

    directory = train(TrainConfig(env_id="MiniGrid-MemoryS11-v0", memory=DeltaConfig()))
    resume(directory)  # if it was cut off

Runs end in one of four ways, and run.json says which: finished, interrupted, failed, or still "running" if the process
was killed; model.zip and metrics.jsonl are whole in each. One that waits to be trained is "waiting".
"""

import contextlib
import dataclasses
import shlex
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from agents.checkpoints import load_checkpoint, save_checkpoint
from agents.config import TrainConfig, config_problems, to_json
from agents.errors import DivergedRunError, EnvironmentFaultError, InterruptedRunError, RunFileError, UsageError
from agents.interrupts import Interrupts
from agents.model import build_model, make_training_env, ppo_problems
from agents.progress import Progress, format_seconds
from agents.provenance import changed_versions, git_commit, machine, now, versions
from agents.run_callback import MetricsWriter, RunCallback
from agents.runs import (
    FORMAT,
    VERSION,
    MetricsFile,
    RunPaths,
    claimed,
    cut_metrics,
    default_directory,
    fresh_run_directory,
    read_config,
    read_run,
    refuse_occupied,
    write_json,
)
from agents.vec_env import best_workers
from fwp_rl.files import PART
from fwp_rl.registry import memory_name
from fwp_rl.sb3 import DivergedError, MemoryPPO, NonFiniteError, WorkerError


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
    after Ctrl-C or SIGTERM, with everything saved in the last two cases; DivergedRunError if the weights did not stay
    finite, and RunFileError if the disk is full at the end, with what was saved last still there.
    """
    directory = run_dir or default_directory(root, config.env_id, memory_name(config.memory), config.seed)
    refuse_occupied(directory, overwrite=overwrite)  # before anything slow happens
    if problems := config_problems(config):
        raise UsageError("\n".join(problems + ppo_problems(config)))
    _train(config, lambda: fresh_run_directory(directory, overwrite=overwrite), quiet)
    return directory


def prepare(config: TrainConfig, directory: Path, *, overwrite: bool = False) -> None:
    """Make the directory of a run that anybody may then train, here or elsewhere, with `resume`."""
    with fresh_run_directory(directory, overwrite=overwrite) as paths:
        description = {"format": FORMAT, "version": VERSION, "status": "waiting", "config": to_json(config)}
        write_json(paths.description, description)


def resume(directory: Path, *, device: str | None = None, quiet: bool = False) -> Path:
    """Go on with the run in `directory` from its last checkpoint, or from its beginning if it had none yet.

    On another `device` than before, if one is named. On a CPU it becomes what it would have been without a break.
    Nothing happens if it is finished. Raises RunFileError if the directory holds no run or a damaged one, and what
    `train` raises.
    """
    config, paths = read_config(directory), RunPaths(directory)
    if device is not None:
        config = dataclasses.replace(config, device=device)
    if _is_finished(paths, quiet):
        return directory
    if problems := config_problems(config):
        raise RunFileError("\n".join(f"{paths.description}: {problem}" for problem in problems))
    _train(config, lambda: claimed(paths), quiet)
    return directory


def _train(config: TrainConfig, claim: Callable[[], AbstractContextManager[RunPaths]], quiet: bool) -> None:
    """Train in the directory that is claimed once everything else has turned out to work."""
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
        with claim() as paths:
            if not _is_finished(paths, quiet):  # by the process that had it before
                _Run(config, model, paths, quiet).learn(interrupts)


def _is_finished(paths: RunPaths, quiet: bool) -> bool:
    finished = paths.description.exists() and read_run(paths.directory)["status"] == "finished"
    if finished and not quiet:
        print(f"finished      {paths.directory} is finished already")
    return finished


@dataclass
class _Run:
    """A run that has a directory."""

    config: TrainConfig
    model: MemoryPPO
    paths: RunPaths
    quiet: bool
    started: float = field(default_factory=time.monotonic)
    checkpoint_step: int = 0
    """From where it would go on."""

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
        already = self.checkpoint_step = self.model.num_timesteps
        description = self._describe(earlier)
        write_json(self.paths.description, description)  # before all else: without it this would not be a run
        progress = Progress(
            [memory_name(self.config.memory)], self.config.planned_steps, quiet=self.quiet, already=already
        )
        metrics = self._open_metrics(progress, last_step=already if is_resumed else -1)
        self._introduce(earlier)
        callback = RunCallback(
            self.config,
            progress,
            interrupts,
            save=lambda: self._save(progress),
            seconds=lambda: self.seconds,
            is_resumed=is_resumed,
        )
        with contextlib.ExitStack() as closing:  # each of these happens even if another one fails
            for close in (metrics.close, self.model.logger.close, progress.close):
                closing.callback(close)
            status, is_sound = "failed", True
            try:
                remaining = max(self.config.total_timesteps - already, 0)
                self.model.learn(remaining, callback=callback, reset_num_timesteps=False)
                status = "interrupted" if interrupts.received else "finished"
            except DivergedError as error:
                is_sound = False
                kept = (
                    f"{self.paths.model} is left as it was" if self.paths.model.exists() else "no model was saved yet"
                )
                raise DivergedRunError(
                    f"training diverged: {error}; {kept}; a smaller learning rate may help"
                ) from error
            except (NonFiniteError, WorkerError, EnvironmentFaultError) as error:
                parts = [str(error), *getattr(error, "__notes__", ()), f"the agent is saved in {self.paths.model}"]
                raise EnvironmentFaultError("; ".join(parts)) from error
            finally:
                self._end(status, description, is_sound=is_sound)
        self._say_goodbye(interrupts)

    def _save(self, progress: Progress) -> None:
        """Replace model.zip and checkpoint.zip; a full disk is no reason to stop."""
        try:
            self.model.save(self.paths.model)
            save_checkpoint(self.paths.checkpoint, self.model, seconds=self.seconds)
            self.checkpoint_step = self.model.num_timesteps
        except OSError as error:
            progress.note(f"could not save the model ({error.strerror or error}); the last one is intact, going on")

    def _end(self, status: str, description: dict[str, Any], *, is_sound: bool) -> None:
        """Save the model if it `is_sound`, write down how the run ended, and only then let go of its checkpoint."""

        def ended(status: str) -> dict[str, Any]:
            steps, seconds = self.model.num_timesteps, round(self.seconds, 3)
            return {**description, "status": status, "ended": now(), "steps": steps, "seconds": seconds}

        try:
            if is_sound:
                self.model.save(self.paths.model)
            write_json(self.paths.description, ended(status))
        except OSError as error:
            with contextlib.suppress(OSError):  # else it still says "running", which can be resumed as well
                write_json(self.paths.description, ended("failed"))
            raise RunFileError(
                f"could not save the model ({error.strerror or error}); once there is room, {self._go_on} goes on from "
                f"step {self.checkpoint_step:,}"
            ) from error
        if status == "finished":
            self.paths.checkpoint.unlink(missing_ok=True)

    def _open_metrics(self, progress: Progress, last_step: int) -> MetricsFile:
        """metrics.jsonl and TensorBoard, both without what an earlier process wrote about steps after `last_step`."""
        for leftover in self.paths.directory.glob(f"{PART}*"):
            leftover.unlink(missing_ok=True)
        cut_metrics(self.paths.metrics, last_step)
        metrics = MetricsFile(self.paths.metrics)
        tensorboard = TensorBoardOutputFormat(str(self.paths.directory))
        # What SummaryWriter(purge_step=...) writes, which SB3 does not let through.
        begin = Event(step=last_step + 1, session_log=SessionLog(status=SessionLog.START))
        tensorboard.writer._get_file_writer().add_event(begin, step=last_step + 1)
        self.model.logger.output_formats += [MetricsWriter(metrics, progress, lambda: self.seconds), tensorboard]
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

    @property
    def _go_on(self) -> str:
        return f"python train.py --resume {shlex.quote(str(self.paths.directory))}"

    def _say_goodbye(self, interrupts: Interrupts) -> None:
        evaluate = f"python -m agents evaluate {shlex.quote(str(self.paths.directory))}"
        took = f"{self.model.num_timesteps:,} steps in {format_seconds(self.seconds)}"
        if interrupts.received is not None:
            raise InterruptedRunError(
                f"stopped after {took}, model saved; evaluate it: {evaluate}\n"
                f"go on from its last checkpoint, step {self.checkpoint_step:,}: {self._go_on}",
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


def _set_threads(threads: int | None) -> None:
    if threads is None:
        return
    import numba

    torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]  # set at import


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _options_text(config: TrainConfig) -> str:
    parts = [f"{key}={value}" for key, value in config.env_options.items()] + list(config.wrappers)
    parts += ["previous action"] * config.previous_action + ["previous reward"] * config.previous_reward
    return f"  ({', '.join(parts)})" if parts else ""
