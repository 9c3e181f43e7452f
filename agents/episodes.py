"""Episodes whose seeds are chosen beforehand, so that every agent meets the same ones.

Seeds of training and of evaluation never meet: evaluation takes 1 000 000 + i for episode i, training starts at
10 000 000 (`training_seed`).
"""

import contextlib
import itertools
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium

import envs
from agents.config import OptionValue
from agents.errors import EnvironmentFaultError, UsageError

EVALUATION_SEED = 1_000_000
TRAINING_SEED = 10_000_000

_MOST_STEPS = 100_000  # an evaluation ends even where a task forgot its time limit


def training_seed(seed: int) -> int:
    """Seed of the first training environment of the run `seed`; the others count upwards (at most 1000 of them)."""
    return TRAINING_SEED + (seed * 1000) % 2_000_000_000


def resolve(env_id: str) -> str:
    """`envs.resolve`, with its faults told in one line each."""
    try:
        return envs.resolve(env_id)
    except envs.UnknownEnvironmentError as error:
        raise UsageError(str(error)) from None
    except envs.MissingDependencyError as error:
        raise EnvironmentFaultError(_with_name(env_id, str(error))) from None


def make_env(
    env_id: str, options: Mapping[str, OptionValue], wrappers: Sequence[str] = (), render_mode: str | None = None
) -> gymnasium.Env:
    """`envs.make`, with its faults told in one line each: exit code 2 for a wrong id or option, 3 for a broken task."""
    with making(env_id):
        return EnvFaults(envs.make(env_id, render_mode=render_mode, wrappers=wrappers, **options), env_id)


@contextlib.contextmanager
def making(env_id: str) -> Iterator[None]:
    """Tells what goes wrong while an environment is made in one line."""
    try:
        yield
    except envs.UnknownEnvironmentError as error:
        raise UsageError(str(error)) from error
    except (TypeError, ValueError, AssertionError) as error:
        raise UsageError(_with_name(env_id, " ".join(str(error).split()))) from error
    except envs.MissingDependencyError as error:
        raise EnvironmentFaultError(_with_name(env_id, " ".join(str(error).split()))) from error
    except Exception as error:
        raise EnvironmentFaultError(f"{env_id} cannot be made: {_one_line(error)}") from error


class EnvFaults(gymnasium.Wrapper):
    """Says in one line which task raised, where and why."""

    def __init__(self, env: gymnasium.Env, env_id: str) -> None:
        super().__init__(env)
        self._env_id = env_id

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See `gymnasium.Env.reset`."""
        try:
            return self.env.reset(seed=seed, options=options)
        except Exception as error:
            raise self._fault("reset", error) from error

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """See `gymnasium.Env.step`."""
        try:
            return self.env.step(action)
        except Exception as error:
            raise self._fault("step", error) from error

    def _fault(self, method: str, error: Exception) -> EnvironmentFaultError:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        return EnvironmentFaultError(f"{self._env_id}: {method} raised {_one_line(error)} ({place})")


class EpisodeQueue:
    """The episodes still to be played, in order."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = list(seeds)
        self._waiting: Iterator[int] = iter(range(len(self.seeds)))

    def take(self) -> int | None:
        """Number of the next episode, or None when all are taken."""
        return next(self._waiting, None)


class QueuedEpisodes(gymnasium.Wrapper):
    """Plays one episode of the queue after each reset, each with its own seed; rests when the queue is empty.

    `info["episode_number"]` names the episode in every step. The seed given to `reset` is ignored: the queue decides.
    `at_end` sees the environment after the last step of an episode, before it starts anew.
    """

    def __init__(
        self, env: gymnasium.Env, queue: EpisodeQueue, at_end: Callable[[gymnasium.Env], None] | None = None
    ) -> None:
        super().__init__(env)
        self._queue = queue
        self._at_end = at_end
        self._episode: int | None = None
        self._steps = itertools.count(1)
        self._observation: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start the next episode of the queue."""
        self._episode = self._queue.take()
        self._steps = itertools.count(1)
        if self._episode is not None or self._observation is None:
            seed = self._queue.seeds[self._episode if self._episode is not None else 0]
            self._observation, info = self.env.reset(seed=seed)
            return self._observation, {**info, "episode_number": self._episode}
        return self._observation, {"episode_number": None}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """One step of the episode; nothing happens while there is none."""
        if self._episode is None:
            return self._observation, 0.0, False, False, {"episode_number": None}
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._observation = observation
        truncated = truncated or next(self._steps) >= _MOST_STEPS
        if (terminated or truncated) and self._at_end is not None:
            self._at_end(self.env)
        return observation, reward, terminated, truncated, {**info, "episode_number": self._episode}


def _with_name(env_id: str, text: str) -> str:
    return text if env_id in text else f"{env_id}: {text}"


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
