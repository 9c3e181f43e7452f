"""Memory solves the MiniGrid T-maze, and nothing else can."""

from collections import deque

import numpy as np
import pytest

import envs
from envs.testing import Transition, best_memoryless_value

LEFT, RIGHT, FORWARD = range(3)
ACTIONS = (LEFT, RIGHT, FORWARD)


class World:
    """The maze as a finite table: states are (x, y, direction, cue), taken from the environment itself."""

    def __init__(self, length: int, view_size: int) -> None:
        self.env = envs.make("fwp/MiniGrid-TMaze-v0", length=length, view_size=view_size, max_steps=10**9)
        self.starts, self.observations, self.transitions = [], {}, {}
        for cue, seed in self._seeds().items():
            self.env.reset(seed=seed)
            self.starts.append(self._state(cue))
            self._explore(self.starts[-1])

    def step(self, state, action):
        return self.transitions[state, action]

    def observe(self, state):
        return self.observations[state]

    def bottleneck(self, cue):
        """The junction, seen from the corridor."""
        return (1 + self.env.unwrapped.length, 2, 0, cue)

    def _seeds(self) -> dict[str, int]:
        seeds = {}
        for seed in range(20):
            self.env.reset(seed=seed)
            seeds.setdefault(self.env.unwrapped.grid.get(1, 1).type, seed)
        assert set(seeds) == {"key", "ball"}
        return seeds

    def _state(self, cue):
        x, y = self.env.unwrapped.agent_pos
        return int(x), int(y), int(self.env.unwrapped.agent_dir), cue

    def _put(self, state):
        self.env.unwrapped.agent_pos, self.env.unwrapped.agent_dir = state[:2], state[2]

    def _explore(self, start):
        queue = deque([start])
        while queue:
            state = queue.popleft()
            if state in self.observations:
                continue
            self._put(state)
            self.observations[state] = self.env.unwrapped.gen_obs().tobytes()
            for action in ACTIONS:
                self._put(state)
                _, reward, terminated, _, _ = self.env.step(action)
                after = None if terminated else self._state(state[3])
                self.transitions[state, action] = Transition(after, reward)
                if after is not None:
                    queue.append(after)


@pytest.fixture(scope="module", params=[(3, 3), (6, 3), (5, 5), (7, 7)], ids=str)
def world(request):
    return World(*request.param)


def distance_to_reward(world, start):
    queue, seen = deque([(start, 0)]), {start}
    while queue:
        state, steps = queue.popleft()
        for action in ACTIONS:
            after = world.step(state, action)
            if after.state is None and after.value > 0:
                return steps + 1
            if after.state is not None and after.state not in seen:
                seen.add(after.state)
                queue.append((after.state, steps + 1))
    return None


def test_the_arm_that_the_cue_told_is_near_enough(world):
    for start in world.starts:
        assert distance_to_reward(world, start) == world.env.unwrapped.length + 2


def test_the_cue_is_in_view_at_the_start(world):
    first, second = world.starts
    assert world.observe(first) != world.observe(second)


def test_whoever_enters_an_arm_came_through_the_bottleneck_and_sees_no_cue_there(world):
    """The two premises of the proof in `MiniGridTMaze`."""
    for start in world.starts:
        queue, seen = deque([start]), {start, world.bottleneck(start[3])}
        while queue:  # all that can be reached round the bottleneck
            state = queue.popleft()
            for action in ACTIONS:
                after = world.step(state, action).state
                assert after is not None, "an arm was entered round the bottleneck"
                if after not in seen:
                    seen.add(after)
                    queue.append(after)
    junction = world.bottleneck("key")[0]
    for x, y, direction, _ in world.observations:
        if x == junction:
            key, ball = (world.observe((x, y, direction, cue)) for cue in ("key", "ball"))
            assert key == ball


def test_no_deterministic_policy_without_memory_does_better_than_guessing(world):
    assert best_memoryless_value(world.starts, world.observe, world.step, len(ACTIONS)) == 0.5


def test_the_search_finds_what_a_policy_can_use(world):
    """Were the cue to be seen everywhere, memory would not be needed: the search above can tell."""
    assert best_memoryless_value(world.starts, lambda state: state, world.step, len(ACTIONS)) == 1.0


def test_no_stochastic_policy_without_memory_does_better_than_guessing():
    world = World(3, 3)
    states = list(world.observations)
    index = {state: i for i, state in enumerate(states)}
    kinds = {observation: i for i, observation in enumerate(set(world.observations.values()))}
    kind = np.array([kinds[world.observe(state)] for state in states])
    transition = np.zeros((len(ACTIONS), len(states), len(states)))
    value = np.zeros((len(ACTIONS), len(states)))
    for (state, action), after in world.transitions.items():
        if after.state is None:
            value[action, index[state]] = after.value
        else:
            transition[action, index[state], index[after.state]] = 1.0
    rng = np.random.default_rng(0)
    best = 0.0
    for _ in range(150):
        policy = rng.dirichlet(np.full(len(ACTIONS), rng.choice([0.05, 0.3, 1.0])), size=len(kinds))[kind].T
        step = np.einsum("as,ast->st", policy, transition)
        expected = np.einsum("as,as->s", policy, value)
        now, reached = expected, step
        for _ in range(70):  # the default limit, exactly
            reached_value = reached @ expected
            now, reached = now + reached_value, reached @ step
        best = max(best, np.mean([now[index[start]] for start in world.starts]))
    assert 0.2 < best <= 0.5 + 1e-12


def play(env, policy, n_episodes):
    successes = []
    for seed in range(n_episodes):
        observation, _ = env.reset(seed=seed)
        memory, ended = None, False
        while not ended:
            action, memory = policy(observation, memory, env.unwrapped)
            observation, reward, terminated, truncated, info = env.step(action)
            ended = terminated or truncated
            assert info["is_success"] == (ended and reward == 1.0)
        successes.append(reward)
    return np.mean(successes)


def walk_then_turn(env, turn):
    if env.agent_dir != 0 or env.agent_pos[0] != 1 + env.length:
        return FORWARD
    return turn


def test_a_policy_with_memory_reaches_the_optimum():
    env = envs.make("fwp/MiniGrid-TMaze-v0", length=4, observation="symbolic")

    def remember(observation, memory, maze):
        if memory is None:
            memory = LEFT if 5 in observation[0::3] else RIGHT  # 5 is a key
        return walk_then_turn(maze, memory), memory

    assert play(env, remember, 20) == env.unwrapped.anchors()["optimal"] == 1.0


def test_a_policy_without_memory_guesses():
    env = envs.make("fwp/MiniGrid-TMaze-v0", length=4)
    mean = play(env, lambda observation, memory, maze: (walk_then_turn(maze, LEFT), None), 300)
    assert abs(mean - env.unwrapped.anchors()["memoryless"]) < 5 * 0.5 / np.sqrt(300)


def test_a_clock_makes_the_time_of_arrival_a_memory():
    """Red if who sees the view and the step, and nothing else, cannot know the side."""
    env = envs.make("fwp/MiniGrid-TMaze-v0", length=4, observation="symbolic")

    def by_the_clock(observation, memory, maze):
        assert memory is None
        step, saw_ball = maze.step_count, 6 in observation[0::3]
        if step == 0:
            return (LEFT if saw_ball else FORWARD), None  # turn away
        if step == 1 and maze.agent_pos[0] == 1:
            return RIGHT, None  # and back
        return walk_then_turn(maze, LEFT if step <= maze.length + 1 else RIGHT), None

    assert play(env, by_the_clock, 20) == env.unwrapped.anchors()["clock"] == 1.0


def test_random_actions_return_what_the_anchor_says():
    env = envs.make("fwp/MiniGrid-TMaze-v0", length=3)
    rng = np.random.default_rng(0)
    mean = play(env, lambda observation, memory, maze: (rng.integers(3), None), 400)
    assert abs(mean - env.unwrapped.anchors()["random"]) < 5 * 0.5 / np.sqrt(400)


def test_time_runs_out():
    env = envs.make("fwp/MiniGrid-TMaze-v0", length=5)
    env.reset(seed=0)
    assert [env.step(LEFT)[3] for _ in range(90)] == [False] * 89 + [True]
