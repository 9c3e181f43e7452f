"""`VectorTask`: many copies of one task as NumPy arrays, and its faces for Gymnasium.

A task is one class with arrays `[n_envs, ...]`. Everything that is random in an episode is drawn when it begins, from
the random stream of its row; the streams are children of one seed, so that row 3 lives the same life among 4 copies
as among 400, and alone behind `TaskEnv` as row 0.
"""

import abc
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from typing_extensions import override


class Outcome(NamedTuple):
    """What one step led to, before any row starts anew."""

    observations: np.ndarray  # [n_envs, ...]
    rewards: np.ndarray  # float64[n_envs]
    terminated: np.ndarray  # bool[n_envs]
    truncated: np.ndarray  # bool[n_envs]
    success: np.ndarray  # bool[n_envs], only ever true where an episode ends


class VectorStep(NamedTuple):
    """One step of all rows, of which those whose episode ended have already started anew."""

    observations: np.ndarray  # [n_envs, ...]; of a row that ended, the first of its next episode
    rewards: np.ndarray  # float64[n_envs]
    terminated: np.ndarray  # bool[n_envs]
    truncated: np.ndarray  # bool[n_envs]
    success: np.ndarray  # bool[n_envs], only ever true where an episode ends
    final_observations: np.ndarray  # [n_envs, ...]; of a row that ended, the last of its episode


class VectorTask(abc.ABC):
    """`n_envs` copies of a task.

    Abstract or final: a task defines its spaces, `begin`, `advance`, `observe` and `render`, and what it takes to know
    how good an agent is: `anchors`, `oracle_actions` and `memoryless_actions`, and `other_policies` for other anchors.
    `envs.testing.check_task` checks them.
    """

    observation_space: spaces.Space  # of one row
    action_space: spaces.Space  # of one row
    has_success = True  # whether the end of an episode says if it was a success
    action_names: tuple[str, ...] = ()  # of a Discrete action space whose numbers say little to people

    def __init__(self, n_envs: int) -> None:
        if not isinstance(n_envs, int) or n_envs < 1:
            raise ValueError(f"n_envs must be a positive whole number, got {n_envs!r}")
        self.n_envs = n_envs
        self.rngs: list[np.random.Generator] = []

    @abc.abstractmethod
    def begin(self, rows: np.ndarray) -> None:
        """Start a new episode in each of `rows`, int[n]; draw what is random from `rngs[row]` alone."""

    @abc.abstractmethod
    def advance(self, actions: np.ndarray) -> Outcome:
        """One step of every row; nothing starts anew."""

    @abc.abstractmethod
    def observe(self) -> np.ndarray:
        """What every row sees now, a new array `[n_envs, ...]`."""

    @abc.abstractmethod
    def render(self, row: int = 0) -> np.ndarray:
        """A picture of one row for people, uint8[height, width, 3]."""

    @abc.abstractmethod
    def anchors(self) -> dict[str, float]:
        """Expected return of the best policy ("optimal"), of the best one without memory, and of random actions.

        Where they tell more, also of the best policies without memory that know the step of the episode ("clock") or
        what they did last ("previous_action"), and of those that know what has been seen and how often, but not in
        which order ("order_blind").
        """

    @abc.abstractmethod
    def oracle_actions(self) -> np.ndarray:
        """Best actions, [n_envs], by somebody who knows all that is hidden."""

    @abc.abstractmethod
    def memoryless_actions(self, observations: np.ndarray) -> np.ndarray:
        """Actions of a best policy that sees only the present observations, [n_envs]."""

    def other_policies(self) -> Mapping[str, Callable[[np.ndarray], np.ndarray]]:
        """For each anchor that is not of every task, a policy that returns it: from observations to actions, [n_envs].

        What a policy may know besides the observations, it takes from the task, as an oracle does.
        """
        return {}

    def reset(self, seed: int | None = None) -> np.ndarray:
        """Start every row anew; with a seed, also its random stream. Returns the observations."""
        if seed is not None or not self.rngs:
            entropy = np.random.SeedSequence(seed).entropy
            children = (np.random.SeedSequence(entropy, spawn_key=(row,)) for row in range(self.n_envs))
            self.rngs = [np.random.default_rng(child) for child in children]
        self.begin(np.arange(self.n_envs))
        return self.observe()

    def step(self, actions: np.ndarray) -> VectorStep:
        """One step of every row; rows whose episode ends start anew in the same step."""
        outcome = self.advance(self.check_actions(actions))
        ended = np.flatnonzero(outcome.terminated | outcome.truncated)
        if not len(ended):
            return VectorStep(*outcome, outcome.observations)
        self.begin(ended)
        return VectorStep(self.observe(), *outcome[1:], outcome.observations)

    def uniform_draws(self, rows: np.ndarray, count: int) -> np.ndarray:
        """Random numbers in [0, 1), float64[len(rows), count], each row's from its own stream.

        Drawing once for a whole episode and computing the rest for all rows together is what makes `begin` fast.
        `(draws * n).astype(int)` is uniform in 0..n - 1, and `draws.argsort(1)` a random order.
        """
        draws = np.empty((len(rows), count))
        for row, numbers in zip(rows.tolist(), draws, strict=True):
            self.rngs[row].random(out=numbers)
        return draws

    def check_actions(self, actions: np.ndarray) -> np.ndarray:
        """The actions as an array, or a `ValueError`."""
        actions = np.asarray(actions)
        if not self.rngs:
            raise RuntimeError("reset the environment before its first step")
        expected = (self.n_envs, *(self.action_space.shape or ()))
        if actions.shape != expected:
            raise ValueError(f"actions must have shape {expected}, got {actions.shape}")
        if isinstance(self.action_space, spaces.Discrete) and not (
            actions.dtype.kind in "iu" and actions.min() >= 0 and actions.max() < self.action_space.n
        ):
            raise ValueError(f"actions must be whole numbers in 0..{self.action_space.n - 1}, got {actions}")
        return actions


class TaskEnv(gymnasium.Env):
    """One copy of a task as a plain `gymnasium.Env`."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 6}  # noqa: RUF012 (Gymnasium reads it off the class)

    def __init__(self, task: VectorTask, *, render_mode: str | None = None) -> None:
        if task.n_envs != 1:
            raise ValueError(f"TaskEnv shows a task of one environment, got n_envs={task.n_envs}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be 'rgb_array' or None, got {render_mode!r}")
        self.task = task
        self.render_mode = render_mode
        self.observation_space, self.action_space = task.observation_space, task.action_space

    @override
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self.task.reset(seed)[0], {}

    @override
    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        outcome = self.task.advance(self.task.check_actions(np.asarray(action)[None]))
        info = {"is_success": bool(outcome.success[0])}
        return (
            outcome.observations[0],
            float(outcome.rewards[0]),
            bool(outcome.terminated[0]),
            bool(outcome.truncated[0]),
            info,
        )

    @override
    def render(self) -> np.ndarray | None:
        return self.task.render(0) if self.render_mode == "rgb_array" else None

    def anchors(self) -> dict[str, float]:
        """The task's reference returns."""
        return self.task.anchors()

    def get_action_meanings(self) -> list[str]:
        """What each action is called; empty if numbers say it. (As the Atari environments do.)"""
        return list(self.task.action_names)


class TaskVectorEnv(gymnasium.vector.VectorEnv):
    """A task as a `gymnasium.vector.VectorEnv` that starts rows anew in the step in which they end."""

    metadata = {  # noqa: RUF012 (Gymnasium reads it off the class)
        "render_modes": ["rgb_array"],
        "render_fps": 6,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(self, task: VectorTask, *, render_mode: str | None = None) -> None:
        self.task = task
        self.num_envs = task.n_envs
        self.render_mode = render_mode
        self.single_observation_space, self.single_action_space = task.observation_space, task.action_space
        self.observation_space = batch_space(task.observation_space, task.n_envs)
        self.action_space = batch_space(task.action_space, task.n_envs)

    @override
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self.task.reset(seed), {}

    @override
    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        step = self.task.step(actions)
        ended = step.terminated | step.truncated
        infos: dict[str, Any] = {}
        if ended.any():
            final_observations = np.full(self.num_envs, None, dtype=object)
            for row in np.flatnonzero(ended):
                final_observations[row] = step.final_observations[row]
            infos = {
                "final_obs": final_observations,
                "_final_obs": ended,
                "final_info": {"is_success": step.success, "_is_success": ended},
                "_final_info": ended,
            }
        return step.observations, step.rewards, step.terminated, step.truncated, infos

    @override
    def render(self) -> tuple[np.ndarray, ...] | None:
        if self.render_mode != "rgb_array":
            return None
        return tuple(self.task.render(row) for row in range(self.num_envs))


def make_task_env(make_task: Callable[..., VectorTask], *, render_mode: str | None = None, **options: Any) -> TaskEnv:
    """What `gymnasium.make` calls for a task; `options` are the task's own."""
    return TaskEnv(make_task(1, **options), render_mode=render_mode)


def make_task_vector_env(
    make_task: Callable[..., VectorTask], *, num_envs: int = 1, render_mode: str | None = None, **options: Any
) -> TaskVectorEnv:
    """What `gymnasium.make_vec` calls for a task; `options` are the task's own."""
    return TaskVectorEnv(make_task(num_envs, **options), render_mode=render_mode)
