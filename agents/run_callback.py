"""What happens in a run between two updates, and what is written down of it."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Image, KVWriter, TensorBoardOutputFormat
from stable_baselines3.common.utils import safe_mean

from agents.checkpoints import begin_stretch
from agents.config import TrainConfig
from agents.episodes import EVALUATION_SEED
from agents.evaluation import evaluate_policy_on, summarize
from agents.interrupts import Interrupts
from agents.panels import still_pictures
from agents.progress import Progress
from agents.recording import record
from agents.runs import MetricsFile
from fwp_rl.registry import memory_name
from fwp_rl.sb3 import MemoryActorCriticPolicy, MemoryPPO, RolloutSample, diagnose

EPISODES = "rollout/episodes"
"""Name of the metric that says of how many of the last episodes `rollout/*` are means."""
_DIAGNOSE_EVERY = 8
"""Rollouts between two looks at the memory: one look costs a few per cent of a rollout and its update."""
_MOST_DRAWN_STEPS = 256
"""Of the episode whose memory is drawn at an evaluation."""
_FEW_EPISODES = 10
"""Fewer in each environment between two checkpoints are too few."""


class RunCallback(BaseCallback):
    """Everything that happens between two updates; SB3 calls it.

    :param save: Writes model and checkpoint, from which the run could go on.
    :param seconds: How long the run has been trained.
    """

    model: MemoryPPO

    def __init__(
        self,
        config: TrainConfig,
        progress: Progress,
        interrupts: Interrupts,
        *,
        save: Callable[[], None],
        seconds: Callable[[], float],
        is_resumed: bool,
    ) -> None:
        super().__init__()
        self._config = config
        self._progress = progress
        self._interrupts = interrupts
        self._save = save
        self._seconds = seconds
        self._is_resumed = is_resumed
        self._name = memory_name(config.memory)
        self._reached_target = False
        self._sample: RolloutSample | None = None

    def _on_training_start(self) -> None:
        self._next_save = _next_multiple(self._config.save_every, self.num_timesteps)
        self._next_evaluation = _next_multiple(self._config.eval_every, self.num_timesteps)

    def _on_rollout_start(self) -> None:
        config = self._config
        self._record_memory()
        if config.ppo.ent_coef_final is not None:
            done = min(self.num_timesteps / config.total_timesteps, 1.0)
            self.model.ent_coef = (1 - done) * config.ppo.ent_coef + done * config.ppo.ent_coef_final
        if self.num_timesteps >= self._next_evaluation:
            self._next_evaluation = _next_multiple(config.eval_every, self.num_timesteps)
            self._evaluate()
        if config.stop_at_seconds is not None and self._seconds() >= config.stop_at_seconds:
            self._reached_target = True
        if self._reached_target:
            return  # what is left to do is not to be done again
        if self._is_resumed:
            self._is_resumed = False
            begin_stretch(self.model, config.seed)
        elif self.num_timesteps >= self._next_save:
            self._next_save = _next_multiple(config.save_every, self.num_timesteps)
            self._save()
            self._tell_of_cuts()
            begin_stretch(self.model, config.seed)

    def _on_rollout_end(self) -> None:
        model = self.model
        self.logger.record(EPISODES, len(model.ep_info_buffer or ()))
        if (self.num_timesteps // (model.n_envs * model.n_steps) - 1) % _DIAGNOSE_EVERY == 0:
            self._sample = RolloutSample.of(model)

    def _record_memory(self) -> None:
        """What the last update made of the memory on the rollout that it learned from."""
        if self._sample is not None:
            for name, value in diagnose(self.model.policy, self._sample).items():
                self.logger.record(f"memory/{name}", value)
            self._sample = None

    def _tell_of_cuts(self) -> None:
        """Say so if a good part of all episodes is cut off at checkpoints, whose ends are then hardly ever seen."""
        config, infos = self._config, self.model.ep_info_buffer
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
        if self._config.eval_every and not (self._interrupts.received or self._reached_target):
            self._evaluate()

    def _evaluate(self) -> None:
        config = self._config
        player = _Interruptible(self.model.policy, self._interrupts)
        try:
            summary = summarize(evaluate_policy_on(player, config, episodes=config.eval_episodes))
        except _Interrupted:
            return
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
        policy, config = self.model.policy, self._config
        (recording,) = record(policy, config, seeds=[EVALUATION_SEED], pictures=False, most_steps=_MOST_DRAWN_STEPS)
        return {f"memory/{name}": Image(picture, "HWC") for name, picture in still_pictures(recording).items()}


class _Interrupted(Exception):
    pass


class _Interruptible:
    """Plays as the policy does, until somebody asks to stop: the episodes of an evaluation may take minutes."""

    def __init__(self, policy: MemoryActorCriticPolicy, interrupts: Interrupts) -> None:
        self._policy = policy
        self._interrupts = interrupts
        self.observation_space, self.action_space = policy.observation_space, policy.action_space

    def predict(
        self, observation: Any, state: Any, episode_start: np.ndarray, deterministic: bool
    ) -> tuple[np.ndarray, Any]:
        """As the policy's; raises _Interrupted."""
        if self._interrupts.received is not None:
            raise _Interrupted
        return self._policy.predict(observation, state, episode_start, deterministic)


_SAID_ALREADY = ("time/iterations", "time/time_elapsed", "time/total_timesteps")
"""What SB3 counts from where a process began; a line has `step` and `seconds`, which go on."""


class MetricsWriter(KVWriter):
    """SB3's logger -> metrics.jsonl, one line for each iteration and each evaluation.

    :param seconds: How long the run has been trained.
    """

    def __init__(self, metrics: MetricsFile, progress: Progress, seconds: Callable[[], float]) -> None:
        self._metrics = metrics
        self._progress = progress
        self._seconds = seconds

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """One line."""
        kind = "evaluation" if any(key.startswith("eval/") for key in key_values) else "iteration"
        line: dict[str, Any] = {"kind": kind, "step": step, "seconds": round(self._seconds(), 3)}
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


def _reaches(target: float | None, measured: float | None) -> bool:
    return target is not None and measured is not None and measured >= target


def _next_multiple(every: int, step: int) -> float:
    """The next step that is a multiple; never, if `every` is 0."""
    return (step // every + 1) * every if every else math.inf
