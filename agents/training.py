"""One training run, from a config to a run directory.

    directory = train(TrainConfig(env_id="MiniGrid-MemoryS11-v0", memory=DeltaConfig()))

Runs end in one of four ways, and run.json says which: finished, interrupted, failed, or still "running" if the process
was killed; model.zip and metrics.jsonl are whole in each.
"""

import contextlib
import dataclasses
import math
import os
import platform
import shlex
import subprocess
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Image, KVWriter, Logger, TensorBoardOutputFormat
from stable_baselines3.common.utils import LinearSchedule, safe_mean
from stable_baselines3.common.vec_env import VecEnv

from agents.config import TrainConfig, config_problems, to_json
from agents.episodes import EVALUATION_SEED
from agents.errors import AgentsError, EnvironmentFaultError, InterruptedRunError, UsageError
from agents.evaluation import evaluate_policy_on, summarize
from agents.interrupts import Interrupts
from agents.panels import still_pictures
from agents.progress import Progress, format_seconds
from agents.recording import record
from agents.runs import FORMAT, VERSION, MetricsFile, RunPaths, create_run_directory, default_directory, write_json
from agents.vec_env import NormalizedRewards, best_workers, make_vec_env, policy_name, seed_training
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
        raise UsageError("\n".join(problems + _ppo_problems(config)))
    _set_threads(config.threads)
    if config.workers is None:
        workers = best_workers(config.env_id, config.n_envs, config.planned_steps, config.env_options, config.wrappers)
        config = dataclasses.replace(config, workers=workers)
    with contextlib.closing(_make_training_env(config)) as venv, Interrupts() as interrupts:
        model = build_model(config, venv)
        run = _Run(config, model, create_run_directory(directory, overwrite=overwrite), quiet)
        run.learn(interrupts)
    return directory


def build_model(config: TrainConfig, venv: VecEnv) -> MemoryPPO:
    """The learner of `config` on `venv`; UsageError with one line for each setting that cannot work."""
    special = ("learning_rate_schedule", "ent_coef_final", "log_std_init", "normalize_reward")
    settings = {name: value for name, value in asdict(config.ppo).items() if name not in special}
    if config.ppo.learning_rate_schedule == "linear" and config.ppo.learning_rate >= 0:
        settings["learning_rate"] = LinearSchedule(config.ppo.learning_rate, 0.0, 1.0)
    try:
        model = MemoryPPO(
            policy_name(venv),
            venv,
            **settings,
            policy_kwargs={
                "memory": config.memory,
                "n_blocks": config.n_blocks,
                "net_arch": list(config.net_arch),
                "normalize_features": config.normalize_observations,
                "log_std_init": config.ppo.log_std_init,
            },
            seed=config.seed,
            device=config.device,
        )
    except (ValueError, AssertionError) as error:
        raise UsageError(str(error)) from error
    seed_training(venv, config.seed)  # SB3 has just seeded the environments with the seed of the weights
    return model


@dataclass
class _Run:
    """A run that has a directory."""

    config: TrainConfig
    model: MemoryPPO
    paths: RunPaths
    quiet: bool
    started: float = field(default_factory=time.monotonic)

    def learn(self, interrupts: Interrupts) -> None:
        """Train to the end, to the target, or until a signal; whatever happens, save and close."""
        description = self._describe()
        write_json(self.paths.description, description)
        self._introduce()
        progress = Progress([memory_name(self.config.memory)], self.config.planned_steps, quiet=self.quiet)
        metrics = MetricsFile(self.paths.metrics)
        writers = [_MetricsWriter(metrics, progress, self.started), TensorBoardOutputFormat(str(self.paths.directory))]
        self.model.set_logger(Logger(str(self.paths.directory), writers))
        status = "failed"
        try:
            self.model.learn(self.config.total_timesteps, callback=_RunCallback(self, progress, interrupts))
            status = "interrupted" if interrupts.received else "finished"
        except (NonFiniteError, WorkerError, EnvironmentFaultError) as error:
            parts = [str(error), *getattr(error, "__notes__", ()), f"the agent is saved in {self.paths.model}"]
            raise EnvironmentFaultError("; ".join(parts)) from error
        finally:
            with contextlib.ExitStack() as closing:  # each of these happens even if another one fails
                closing.callback(lambda: write_json(self.paths.description, {**description, **self._ending(status)}))
                closing.callback(metrics.close)
                closing.callback(self.model.logger.close)
                closing.callback(progress.close)
                self.model.save(self.paths.model)
        self._say_goodbye(interrupts)

    def save(self, progress: Progress) -> None:
        """Replace model.zip; a full disk is no reason to stop."""
        try:
            self.model.save(self.paths.model)
        except OSError as error:
            progress.note(f"could not save the model ({error.strerror or error}); the last one is intact, going on")

    def _introduce(self) -> None:
        if not self.quiet:
            print(f"environment   {self.config.env_id}{_options_text(self.config)}")
            print(self.model.describe())
            if self.config.workers:
                print(f"workers       {self.config.workers} besides this process")
            print(f"run           {self.paths.directory}", flush=True)

    def _say_goodbye(self, interrupts: Interrupts) -> None:
        evaluate = f"python -m agents evaluate {shlex.quote(str(self.paths.directory))}"
        took = f"{self.model.num_timesteps:,} steps in {format_seconds(time.monotonic() - self.started)}"
        if interrupts.received is not None:
            raise InterruptedRunError(
                f"stopped after {took}, model saved; evaluate it: {evaluate}", interrupts.exit_code
            )
        if not self.quiet:
            print(f"finished      {took}, model saved\nevaluate      {evaluate}", flush=True)

    def _describe(self) -> dict[str, Any]:
        policy = self.model.policy
        return {
            "format": FORMAT,
            "version": VERSION,
            "status": "running",
            "config": to_json(self.config),
            "parameters": {"memory": _count(policy.memory), "policy": _count(policy)},
            "sequence_length": self.model.sequence_length,
            "batch_size": self.model.batch_size,
            "versions": _versions(),
            "machine": {
                "system": platform.system(),
                "processor": platform.machine(),
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
                "device": str(self.model.device),
            },
            "git_commit": _git_commit(),
            "started": _now(),
            "ended": None,
            "steps": 0,
            "seconds": None,
        }

    def _ending(self, status: str) -> dict[str, Any]:
        return {
            "status": status,
            "ended": _now(),
            "steps": self.model.num_timesteps,
            "seconds": round(time.monotonic() - self.started, 3),
        }


class _RunCallback(BaseCallback):
    """Everything that happens between two updates; SB3 calls it."""

    def __init__(self, run: _Run, progress: Progress, interrupts: Interrupts) -> None:
        super().__init__()
        self._run = run
        self._progress = progress
        self._interrupts = interrupts
        self._name = memory_name(run.config.memory)
        self._next_save = run.config.save_every
        self._next_evaluation = run.config.eval_every
        self._reached_target = False
        self._sample: RolloutSample | None = None

    def _on_rollout_start(self) -> None:
        config = self._run.config
        self._record_memory()
        if config.ppo.ent_coef_final is not None:
            done = min(self.num_timesteps / config.total_timesteps, 1.0)
            self._run.model.ent_coef = (1 - done) * config.ppo.ent_coef + done * config.ppo.ent_coef_final
        if self.num_timesteps >= self._next_save:
            self._next_save = _next_multiple(config.save_every, self.num_timesteps)
            self._run.save(self._progress)
        if config.eval_every and self.num_timesteps >= self._next_evaluation:
            self._next_evaluation = _next_multiple(config.eval_every, self.num_timesteps)
            self._evaluate()

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


class _MetricsWriter(KVWriter):
    """SB3's logger -> metrics.jsonl, one line for each iteration and each evaluation."""

    def __init__(self, metrics: MetricsFile, progress: Progress, started: float) -> None:
        self._metrics = metrics
        self._progress = progress
        self._started = started

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """One line."""
        kind = "evaluation" if any(key.startswith("eval/") for key in key_values) else "iteration"
        line: dict[str, Any] = {"kind": kind, "step": step, "seconds": round(time.monotonic() - self._started, 3)}
        line.update((key, value) for key, value in sorted(key_values.items()) if not isinstance(value, str))
        try:
            self._metrics.append(line)
        except OSError as error:
            self._progress.note(f"could not write metrics ({error.strerror or error}); this line is lost, going on")

    def close(self) -> None:
        """Nothing: the run closes its file."""


def _make_training_env(config: TrainConfig) -> VecEnv:
    venv = make_vec_env(
        config.env_id,
        config.n_envs,
        seed=config.seed,
        options=config.env_options,
        wrappers=config.wrappers,
        previous_action=config.previous_action,
        previous_reward=config.previous_reward,
        workers=config.workers or 0,
    )
    return NormalizedRewards(venv, config.ppo.gamma) if config.ppo.normalize_reward else venv


def _ppo_problems(config: TrainConfig) -> list[str]:
    """What MemoryPPO has to say about its settings, where a model can be built at all."""
    if not 1 <= config.n_envs <= 1000 or config.n_blocks < 1 or any(size < 1 for size in config.net_arch):
        return []
    try:
        config = dataclasses.replace(config, device="cpu", workers=0)
        with contextlib.closing(_make_training_env(config)) as venv:
            build_model(config, venv)
    except (AgentsError, RuntimeError) as error:
        return str(error).splitlines()
    return []


def _set_threads(threads: int | None) -> None:
    if threads is None:
        return
    import numba

    torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]


def _reaches(target: float | None, measured: float | None) -> bool:
    return target is not None and measured is not None and measured >= target


def _next_multiple(every: int, step: int) -> int:
    return (math.floor(step / every) + 1) * every


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _options_text(config: TrainConfig) -> str:
    parts = [f"{key}={value}" for key, value in config.env_options.items()] + list(config.wrappers)
    parts += ["previous action"] * config.previous_action + ["previous reward"] * config.previous_reward
    return f"  ({', '.join(parts)})" if parts else ""


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("torch", "numba", "numpy", "gymnasium", "minigrid", "stable-baselines3", "fwp-rl"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _git_commit() -> str | None:
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
