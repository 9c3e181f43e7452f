"""What every NumPy task can also be: one that shows the answer, and one whose rows are out of step."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from typing_extensions import override

from envs.task import Outcome, VectorTask

VARIANT_OPTIONS = ("oracle", "longest_wait")


class TaskVariant(VectorTask):
    """`task`, with the answer in view or with rows that begin at different times.

    `oracle`: the best action follows the observation, one-hot if it is one of several, so that no memory is needed:
    what an agent fails to learn here it does not fail to learn for want of memory.

    `longest_wait`: before its first episode after a reset with a seed, each row waits 0..longest_wait steps, in which
    it sees zeros and nothing counts. Episodes of equal length would otherwise begin and end in all rows at once, and
    a rollout would show the learner few of their steps.
    """

    def __init__(self, task: VectorTask, *, oracle: bool = False, longest_wait: int = 0) -> None:
        super().__init__(task.n_envs)
        if not isinstance(longest_wait, int) or longest_wait < 0:
            raise ValueError(f"longest_wait must be a whole number, at least 0, got {longest_wait!r}")
        seen, answers = task.observation_space, _answer_space(task.action_space)
        if not (isinstance(seen, spaces.Box) and len(seen.shape) == 1):
            raise ValueError(f"the task must have observations in a Box of one axis, got {seen}")
        self.task, self.oracle, self.longest_wait = task, oracle, longest_wait
        self.action_space = task.action_space
        self.observation_space = seen
        self._n_answers = answers.shape[0]
        if oracle:
            low, high = np.append(seen.low, answers.low), np.append(seen.high, answers.high)
            self.observation_space = spaces.Box(low.astype(seen.dtype), high.astype(seen.dtype), dtype=seen.dtype.type)
        self._wait = np.zeros(task.n_envs, np.int64)
        self._is_new = True  # the streams have not been drawn from

    @override
    def reset(self, seed: int | None = None) -> np.ndarray:
        self._is_new = seed is not None or not self.rngs
        self._wait[:] = 0
        return super().reset(seed)

    @override
    def begin(self, rows: np.ndarray) -> None:
        self.task.rngs = self.rngs
        if self._is_new and self.longest_wait:
            waits = self.uniform_draws(rows, 1)[:, 0] * (self.longest_wait + 1)
            self._wait[rows] = waits.astype(np.int64)
        self._is_new = False
        self.task.begin(rows)

    @override
    def advance(self, actions: np.ndarray) -> Outcome:
        outcome = self.task.advance(actions)
        waiting = np.flatnonzero(self._wait)
        if len(waiting):
            self._wait[waiting] -= 1
            self.task.begin(waiting)  # the step that they made does not count
            for values in outcome[1:]:
                values[waiting] = 0
            outcome = outcome._replace(observations=self.task.observe())
        return outcome._replace(observations=self._with_answers(outcome.observations))

    @override
    def observe(self) -> np.ndarray:
        return self._with_answers(self.task.observe())

    @override
    def render(self, row: int = 0) -> np.ndarray:
        return self.task.render(row)

    @override
    def anchors(self) -> dict[str, float]:
        anchors = self.task.anchors()
        if not self.oracle:
            return anchors
        return {"optimal": anchors["optimal"], "memoryless": anchors["optimal"], "random": anchors["random"]}

    @override
    def oracle_actions(self) -> np.ndarray:
        return self.task.oracle_actions()

    @override
    def memoryless_actions(self, observations: np.ndarray) -> np.ndarray:
        if self.oracle:
            answers = observations[:, -self._n_answers :]
            return answers.argmax(1) if isinstance(self.action_space, spaces.Discrete) else answers
        return self.task.memoryless_actions(observations)

    @override
    def other_policies(self) -> Mapping[str, Callable[[np.ndarray], np.ndarray]]:
        return {} if self.oracle else self.task.other_policies()

    def _with_answers(self, observations: np.ndarray) -> np.ndarray:
        if self.oracle:
            answers = self.task.oracle_actions()
            if isinstance(self.action_space, spaces.Discrete):
                answers = np.eye(self._n_answers, dtype=observations.dtype)[answers]
            observations = np.hstack([observations, answers])
        observations[self._wait > 0] = 0
        return observations


def _answer_space(actions: spaces.Space) -> spaces.Box:
    """How an action is shown: one-hot if it is one of several, as it is if it is made of numbers."""
    if isinstance(actions, spaces.Discrete):
        return spaces.Box(0.0, 1.0, (int(actions.n),), np.float32)
    if isinstance(actions, spaces.Box) and len(actions.shape) == 1:
        return actions
    raise ValueError(f"the task must have actions that are Discrete or in a Box of one axis, got {actions}")


def build_task(
    task_class: type[VectorTask], n_envs: int, *, oracle: bool = False, longest_wait: int = 0, **options: Any
) -> VectorTask:
    """`n_envs` copies of a task, as they are or as a variant; `options` are the task's own."""
    task = task_class(n_envs, **options)
    return TaskVariant(task, oracle=oracle, longest_wait=longest_wait) if oracle or longest_wait else task
