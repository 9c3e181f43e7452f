"""`check_task`: what a task promises, as code.

    check_task(lambda n_envs: TMaze(n_envs, length=5))

and `best_memoryless_value`, which finds by search how far a policy without memory can get.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
from gymnasium import spaces

from envs.task import TaskEnv, VectorTask

MakeTask = Callable[[int], VectorTask]

_SIGMAS = 5.0  # a false alarm in a million runs


def check_task(make_task: MakeTask, *, n_episodes: int = 2000, seed: int = 0) -> None:
    """Check every promise of a `VectorTask`; raises `AssertionError` with the first that is broken."""
    check_spaces(make_task, seed=seed)
    check_rows_are_strangers(make_task, seed=seed)
    check_faces_agree(make_task, seed=seed)
    check_anchors(make_task, n_episodes=n_episodes, seed=seed)


def check_spaces(make_task: MakeTask, *, n_steps: int = 100, seed: int = 0) -> None:
    """Observations lie in their space, rewards are float64, ends and successes bool, pictures uint8."""
    task = make_task(3)
    rng = np.random.default_rng(seed)
    observations = task.reset(seed)
    for _ in range(n_steps):
        assert observations.dtype == task.observation_space.dtype, f"observations are {observations.dtype}"
        assert all(task.observation_space.contains(row) for row in observations), f"not in space: {observations}"
        step = task.step(random_actions(task, rng))
        assert step.rewards.dtype == np.float64, f"rewards are {step.rewards.dtype}"
        for name in ("terminated", "truncated", "success"):
            assert getattr(step, name).dtype == np.bool_, f"{name} is {getattr(step, name).dtype}"
        assert not (step.terminated & step.truncated).any(), "an episode both terminated and truncated"
        assert not (step.success & ~(step.terminated | step.truncated)).any(), "success before the end of an episode"
        observations = step.observations
    picture = task.render(row=2)
    assert picture.dtype == np.uint8, f"the picture is {picture.dtype}"
    assert picture.ndim == 3, f"the picture has shape {picture.shape}"
    assert picture.shape[2] == 3, f"the picture has shape {picture.shape}"


def check_rows_are_strangers(make_task: MakeTask, *, n_steps: int = 200, seed: int = 0) -> None:
    """A row's life is its own: it depends on the seed and its own actions, and on no other row, nor is it like one."""
    few, many = make_task(2), make_task(5)
    rng = np.random.default_rng(seed)
    np.testing.assert_array_equal(few.reset(seed), many.reset(seed)[:2])
    for _ in range(n_steps):
        actions = random_actions(many, rng)
        step, other = few.step(actions[:2]), many.step(actions)
        for name, ours, theirs in zip(step._fields, step, other, strict=True):
            np.testing.assert_array_equal(ours, theirs[:2], err_msg=f"{name} of a row depends on the other rows")
    lives = [
        few.reset(seed),
        *(few.step(np.repeat(random_actions(few, rng)[:1], 2, axis=0)).observations for _ in range(n_steps)),
    ]
    assert any((rows[0] != rows[1]).any() for rows in lives), "two rows of the same actions live the same life"
    assert np.array_equal(_tape(few, seed), _tape(few, seed)), "a seed does not settle what happens"
    assert not np.array_equal(_tape(few, seed), _tape(few, seed + 1)), "the seed does not matter"


def check_faces_agree(make_task: MakeTask, *, n_steps: int = 200, seed: int = 0) -> None:
    """Row 0 of many and the plain environment live the same life; a row that ends starts anew in the same step."""
    tasks, env = make_task(3), TaskEnv(make_task(1))
    rng = np.random.default_rng(seed)
    np.testing.assert_array_equal(tasks.reset(seed)[0], env.reset(seed=seed)[0])
    for _ in range(n_steps):
        actions = random_actions(tasks, rng)
        step = tasks.step(actions)
        observation, reward, terminated, truncated, info = env.step(actions[0])
        np.testing.assert_array_equal(step.final_observations[0], observation)
        assert (step.rewards[0], step.terminated[0], step.truncated[0]) == (reward, terminated, truncated)
        assert bool(step.success[0]) == info["is_success"]
        if terminated or truncated:
            observation, _ = env.reset()
        np.testing.assert_array_equal(step.observations[0], observation)


def check_anchors(make_task: MakeTask, *, n_episodes: int = 2000, seed: int = 0) -> None:
    """The anchors are what the oracle, the memoryless and the random policy in fact return."""
    task = make_task(100)
    anchors = task.anchors()
    rng = np.random.default_rng(seed)
    policies = reference_policies(task, rng)
    assert policies.keys() == anchors.keys(), f"anchors {list(anchors)}, but policies {list(policies)}"
    for name, policy in policies.items():
        scores = play(task, policy, n_episodes=n_episodes, seed=seed)
        tolerance = 1e-9 + _SIGMAS * scores.returns.std() / np.sqrt(n_episodes)
        assert abs(scores.returns.mean() - anchors[name]) <= tolerance, (
            f"anchor {name!r} is {anchors[name]}, but its policy returns {scores.returns.mean()} +- {tolerance}"
        )
    assert anchors["random"] <= anchors["memoryless"] < anchors["optimal"], f"anchors out of order: {anchors}"
    others = [anchors[name] for name in task.other_policies()]
    assert all(anchors["memoryless"] <= value <= anchors["optimal"] for value in others), f"out of order: {anchors}"
    assert play(task, policies["optimal"], n_episodes=100, seed=seed).successes.all(), "an optimal episode fails"


Policy = Callable[[VectorTask, np.ndarray], np.ndarray]


def reference_policies(task: VectorTask, rng: np.random.Generator) -> dict[str, Policy]:
    """For each anchor of the task, the policy whose expected return it is; `rng` draws the random actions."""
    others = {name: _without_task(policy) for name, policy in task.other_policies().items()}
    return {
        "optimal": lambda task, observations: task.oracle_actions(),
        "memoryless": lambda task, observations: task.memoryless_actions(observations),
        "random": lambda task, observations: random_actions(task, rng),
        **others,
    }


def _without_task(policy: Callable[[np.ndarray], np.ndarray]) -> Policy:
    return lambda task, observations: policy(observations)


class Scores(NamedTuple):
    """One entry per episode."""

    returns: np.ndarray
    successes: np.ndarray


def play(task: VectorTask, policy: Policy, *, n_episodes: int, seed: int = 0) -> Scores:
    """Returns and successes of the first episodes of each row; as many of every row, else short ones count more."""
    per_row = -(-n_episodes // task.n_envs)
    returns, successes = np.zeros((task.n_envs, per_row)), np.zeros((task.n_envs, per_row), bool)
    episode, total = np.zeros(task.n_envs, np.int64), np.zeros(task.n_envs)
    observations = task.reset(seed)
    while (episode < per_row).any():
        step = task.step(policy(task, observations))
        total += step.rewards
        ended = np.flatnonzero((step.terminated | step.truncated) & (episode < per_row))
        returns[ended, episode[ended]] = total[ended]
        successes[ended, episode[ended]] = step.success[ended]
        episode += step.terminated | step.truncated
        total[step.terminated | step.truncated] = 0.0
        observations = step.observations
    return Scores(returns.ravel(), successes.ravel())


def random_actions(task: VectorTask, rng: np.random.Generator) -> np.ndarray:
    """Uniform actions of a task, [n_envs] or, of a bounded `Box`, [n_envs, ...]."""
    if isinstance(task.action_space, spaces.Box):
        low, high = task.action_space.low, task.action_space.high
        return rng.uniform(low, high, (task.n_envs, *low.shape)).astype(low.dtype)
    assert isinstance(task.action_space, spaces.Discrete)
    return rng.integers(task.action_space.n, size=task.n_envs)


def _tape(task: VectorTask, seed: int, *, n_steps: int = 200) -> np.ndarray:
    """All observations under one fixed sequence of actions."""
    rng = np.random.default_rng(0)
    return np.stack([task.reset(seed), *(task.step(random_actions(task, rng)).observations for _ in range(n_steps))])


class Transition(NamedTuple):
    """Where an action leads: the next state, or None at the end with what the episode is worth."""

    state: Hashable | None
    value: float


def best_memoryless_value(
    starts: Sequence[Hashable],
    observe: Callable[[Hashable], Hashable],
    step: Callable[[Hashable, int], Transition],
    n_actions: int,
) -> float:
    """Largest mean value over `starts` that a deterministic policy of the observation alone can reach.

    Exact, for a deterministic world that pays at the end: tries every action at every observation that is met, and
    only those. A policy that meets a state twice goes in circles and is worth nothing.
    """

    def follow(state: Hashable, remaining: tuple[Hashable, ...], policy: dict[Hashable, int], seen: frozenset) -> float:
        """Best total value of this start, from `state` on, and of the remaining starts."""
        if state in seen:
            return follow_next(remaining, policy)
        observation = observe(state)
        chosen = policy.get(observation)
        best = 0.0
        for action in range(n_actions) if chosen is None else (chosen,):
            after = step(state, action)
            extended = {**policy, observation: action}
            if after.state is None:
                best = max(best, after.value + follow_next(remaining, extended))
            else:
                best = max(best, follow(after.state, remaining, extended, seen | {state}))
        return best

    def follow_next(remaining: tuple[Hashable, ...], policy: dict[Hashable, int]) -> float:
        return follow(remaining[0], remaining[1:], policy, frozenset()) if remaining else 0.0

    return follow_next(tuple(starts), {}) / len(starts)
