"""What the buffer holds, step by step, and how it is cut into minibatches."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize

from fwp_rl.registry import memory_configs
from fwp_rl.sb3 import MemoryPPO, SequenceRolloutBuffer
from fwp_rl.state import State, state_leaves

MEMORIES = list(memory_configs())
BOX = spaces.Box(-1, 1, (2,))
DISCRETE = spaces.Discrete(2)


# Red if a start is noted at the last step of an episode instead of the first one of the next.
def test_tape_of_episodes_of_two_environments(counting_model: Callable, tape_envs: Callable, collect: Callable) -> None:
    model = counting_model(tape_envs((3, 2, 4), (1, 6)), n_steps=8, sequence_length=4)
    collect(model)
    buffer = model.rollout_buffer
    assert [tuple(o) for o in buffer.observations[:, 0].tolist()] == [
        *[(0, 0), (0, 1), (0, 2)],
        *[(1, 0), (1, 1)],
        *[(2, 0), (2, 1), (2, 2)],
    ]
    assert [tuple(o) for o in buffer.observations[:, 1].tolist()] == [
        (100, 0),
        *[(101, 0), (101, 1), (101, 2), (101, 3), (101, 4), (101, 5)],
        (102, 0),
    ]
    assert buffer.episode_starts[:, 0].tolist() == [1, 0, 0, 1, 0, 1, 0, 0]
    assert buffer.episode_starts[:, 1].tolist() == [1, 1, 0, 0, 0, 0, 0, 1]
    # The next rollout continues the episodes.
    collect(model, is_first=False)
    assert [tuple(o) for o in buffer.observations[:3, 0].tolist()] == [(2, 3), (3, 0), (3, 1)]
    assert buffer.episode_starts[:3, 0].tolist() == [0, 1, 0]


# Red if the state given to the policy, or the one kept for training, belongs to another step.
def test_tape_of_states(counting_model: Callable, tape_envs: Callable, collect: Callable) -> None:
    model = counting_model(tape_envs((3, 2, 4), (1, 6)), n_steps=8, sequence_length=2)
    collect(model)
    buffer = model.rollout_buffer
    # Steps read so far when the segments begin; a reset at a segment's first step is still to come.
    assert [state.flatten().tolist() for state in buffer.states] == [[0, 0], [2, 1], [1, 3], [1, 5]]
    # value = sum(observation) + steps read, this one included, and a step's number counts from 0
    episode, step = buffer.observations[..., 0], buffer.observations[..., 1]
    np.testing.assert_array_equal(buffer.values, episode + step + step + 1)
    collect(model, is_first=False)
    assert buffer.states[0].flatten().tolist() == [3, 1]
    episode, step = buffer.observations[..., 0], buffer.observations[..., 1]
    np.testing.assert_array_equal(buffer.values, episode + step + step + 1)


# Red if anything of an earlier episode reaches a later one: late resets, states of the wrong row.
@pytest.mark.parametrize("memory", MEMORIES)
def test_episode_is_the_same_whatever_came_before(
    memory: str, make_model: Callable, tape_envs: Callable, collect: Callable
) -> None:
    tapes = []
    for junk in (0.0, 50.0):
        envs = tape_envs((4, 30), (4, 30))
        for env in envs.envs:
            env._observation = lambda env=env, junk=junk: np.array(
                [junk if env.episode == 0 else 1.0, env.t], dtype=np.float32
            )
        model = make_model(memory, envs)
        collect(model)
        tapes.append((model.rollout_buffer.values.copy(), model.rollout_buffer.log_probs.copy()))
        fresh = model.policy.predict_values(
            torch.tensor([[1.0, 0.0]] * 2), model.policy.initial_state(2), torch.zeros(2, dtype=torch.bool)
        )
        np.testing.assert_array_equal(model.rollout_buffer.values[4], fresh.detach().flatten().numpy())
    np.testing.assert_array_equal(tapes[0][0][4:], tapes[1][0][4:])
    assert not np.array_equal(tapes[0][0][:4], tapes[1][0][:4])


class Record(BaseCallback):
    """What the environments returned, and the state after each step."""

    def _on_training_start(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        self.steps.append({key: self.locals[key] for key in ("rewards", "dones", "infos", "new_state")})
        return True


# Red if the bootstrap used a fresh state, the state before the step, the first observation of the next episode, or no
# discount; and if it were given to an episode that really ended.
@pytest.mark.parametrize(("ending", "is_cut"), [("terminated", False), ("truncated", True), ("both", False)])
def test_truncated_episode_is_worth_its_terminal_observation(
    ending: str, is_cut: bool, counting_model: Callable, tape_envs: Callable, collect: Callable
) -> None:
    # Both environments end at step 6 together, so two of three rows are bootstrapped at once.
    envs = tape_envs((3, 3), (6,), (4,), ending=ending)
    model = counting_model(envs, n_steps=8, sequence_length=4, gamma=0.9)
    collect(model)
    expected = np.ones((8, 3), dtype=np.float32)
    if is_cut:
        # reward + gamma * (episode + length + steps read: the whole episode and its terminal observation)
        for step, env, episode, length in ((2, 0, 0, 3), (5, 0, 1, 3), (5, 1, 100, 6), (3, 2, 200, 4), (7, 2, 201, 4)):
            expected[step, env] += 0.9 * (episode + length + length + 1)
    np.testing.assert_allclose(model.rollout_buffer.rewards, expected, rtol=1e-6)


# Red if several rows that end together are given one another's states, or a terminal observation is normalised twice.
@pytest.mark.parametrize("memory", MEMORIES)
def test_bootstrap_equals_one_environment_after_the_other(
    memory: str, make_model: Callable, tape_envs: Callable, collect: Callable
) -> None:
    envs = VecNormalize(tape_envs((3, 4), (3, 2), (4, 4), ending="truncated"), norm_reward=False)
    envs.obs_rms.mean[:] = [80, 2]
    envs.obs_rms.var[:] = [60**2, 4]
    envs.training = False
    model = make_model(memory, envs)
    record = Record()
    collect(model, record)
    n_cuts = 0
    for t, step in enumerate(record.steps):
        for i in range(3):
            reward = 1.0
            if step["dones"][i]:
                n_cuts += 1
                terminal = step["infos"][i]["terminal_observation"]
                length = {0: (3, 4), 1: (3, 2), 2: (4, 4)}[i]
                assert np.isclose(terminal[1], (length[0] - 2) / 2) or np.isclose(terminal[1], (length[1] - 2) / 2)
                state = row_of(step["new_state"], i)
                value = model.policy.predict_values(
                    torch.as_tensor(terminal)[None], state, torch.zeros(1, dtype=torch.bool)
                )
                reward += 0.99 * value.item()
            assert model.rollout_buffer.rewards[t, i] == pytest.approx(reward, abs=1e-5)
    assert n_cuts > 6


def row_of(state: State, row: int) -> State:
    return state[row : row + 1] if isinstance(state, torch.Tensor) else tuple(row_of(part, row) for part in state)


# Red if the value after the rollout were computed with the state before its last step, or given to an ended episode.
def test_returns_end_with_the_value_of_the_next_observation(
    counting_model: Callable, tape_envs: Callable, collect: Callable
) -> None:
    # The first environment is in the middle of an episode after 4 steps, the second begins one.
    model = counting_model(tape_envs((9,), (4,)), n_steps=4, sequence_length=4, gamma=0.5, gae_lambda=1.0)
    collect(model)
    discounted_rewards = 1 + 0.5 + 0.25 + 0.125
    next_value = 0 + 4 + 5
    np.testing.assert_allclose(
        model.rollout_buffer.returns[0], [discounted_rewards + 0.5**4 * next_value, discounted_rewards]
    )


def filled_buffer(observation_space: spaces.Space, sequence_length: int = 4) -> SequenceRolloutBuffer:
    """12 steps of 3 environments; everything in it says which step of which environment it is: 10 * t + n."""
    buffer = SequenceRolloutBuffer(
        12, observation_space, spaces.Discrete(999), "cpu", n_envs=3, sequence_length=sequence_length
    )
    for t in range(12):
        number = 10.0 * t + np.arange(3, dtype=np.float32)
        obs: Any = np.stack([number, -number], axis=1)
        if isinstance(observation_space, spaces.Dict):
            obs = {"a": obs, "b": number[:, None, None] * np.ones((1, 2, 2), dtype=np.float32)}
        tensor = torch.as_tensor(number)
        state = (tensor[:, None], (tensor[:, None, None].expand(3, 2, 2), ()))
        buffer.add(
            obs, number[:, None].astype(int), number, (number % 3 == 0).astype(np.float32), tensor, tensor, state
        )
    buffer.compute_returns_and_advantage(torch.zeros(3), np.zeros(3))
    return buffer


# Red if columns were drawn with replacement, a step were lost, time ran backwards, or rows of state, starts and
# observations did not belong together.
@pytest.mark.parametrize("n_columns", [1, 3, 9, None])
@pytest.mark.parametrize("is_dict", [False, True])
def test_minibatches_partition_the_rollout(n_columns: int | None, is_dict: bool) -> None:
    space = spaces.Dict({"a": BOX, "b": spaces.Box(-1, 1, (2, 2))}) if is_dict else BOX
    buffer = filled_buffer(space)
    orders = []
    for _ in range(2):
        seen = []
        for batch in buffer.get(n_columns and 4 * n_columns):
            observations, state, starts = batch.observations
            numbers = (observations["a"] if is_dict else observations)[:, 0].reshape(4, -1)
            if is_dict:
                assert observations["b"].shape == (numbers.numel(), 2, 2)
                assert torch.equal(observations["b"][:, 1, 0], numbers.flatten())
            assert numbers.shape[1] == (n_columns or 9)
            assert torch.equal(numbers, numbers[0] + 10 * torch.arange(4)[:, None])
            assert (numbers[0] // 10 % 4 == 0).all()
            assert torch.equal(starts, numbers % 3 == 0)
            assert starts.dtype == torch.bool
            for leaf in state_leaves(state):
                assert torch.equal(leaf.flatten(1)[:, 0], numbers[0])
            for name in ("actions", "old_values", "old_log_prob"):
                assert torch.equal(getattr(batch, name).flatten(), numbers.flatten())
            for name in ("advantages", "returns"):
                table = torch.from_numpy(getattr(buffer, name))
                t, n = numbers.flatten().long() // 10, numbers.flatten().long() % 10
                assert torch.equal(getattr(batch, name), table[t, n])
            seen += numbers.flatten().tolist()
        assert sorted(seen) == [10 * t + n for t in range(12) for n in range(3)]
        orders.append(seen)
    assert orders[0] != orders[1]  # another order in every epoch


def test_buffer_keeps_the_dtypes_of_the_spaces() -> None:
    space = spaces.Dict({"image": spaces.Box(0, 255, (4, 4, 3), np.uint8), "task": spaces.Discrete(3)})
    buffer = SequenceRolloutBuffer(4, space, spaces.MultiBinary(2), "cpu", n_envs=2, sequence_length=2)
    assert {key: array.dtype for key, array in buffer.observations.items()} == {"image": np.uint8, "task": np.int64}
    assert buffer.actions.dtype == np.int8


def test_unfinished_rollout_cannot_be_sampled() -> None:
    buffer = SequenceRolloutBuffer(4, BOX, DISCRETE, "cpu", n_envs=2, sequence_length=2)
    with pytest.raises(RuntimeError, match="the rollout holds 0 of 4 steps; fill it before sampling"):
        next(buffer.get(4))


def test_sequences_must_fill_the_rollout() -> None:
    with pytest.raises(ValueError, match="sequence_length=3 does not divide n_steps=4"):
        SequenceRolloutBuffer(4, BOX, DISCRETE, "cpu", n_envs=2, sequence_length=3)


# Red if a second rollout saw columns or states of the first.
def test_reset_forgets_the_rollout() -> None:
    buffer = filled_buffer(BOX)
    assert len(list(buffer.get(12))) == 3
    buffer.reset()
    assert not buffer.full
    assert buffer.states == []
    for t in range(12):
        x = torch.full((3,), float(t))
        buffer.add(np.full((3, 2), t), np.full((3, 1), t), x.numpy(), np.zeros(3), x, x, (x[:, None], ()))
    (batch,) = buffer.get()
    assert torch.equal(batch.observations.observations[:, 0].unique(), torch.arange(12.0))
    assert torch.equal(batch.observations.state[0].unique(), torch.tensor([0.0, 4.0, 8.0]))


# Red if columns influenced one another.
@pytest.mark.parametrize("memory", ["delta", "lstm"])
def test_gradient_is_the_sum_over_the_columns(memory: str, make_model: Callable, collect: Callable) -> None:
    model = make_model(memory)
    collect(model)
    policy = model.policy

    def gradients(batch_size: int) -> list[torch.Tensor]:
        policy.zero_grad()
        n_batches = 0
        for batch in model.rollout_buffer.get(batch_size):
            values, log_probs, entropy = policy.evaluate_actions(batch.observations, batch.actions.long().flatten())
            (values.square().sum() + (log_probs * batch.advantages).sum() + entropy.sum()).backward()
            n_batches += 1
        assert n_batches == model.n_steps * model.n_envs // batch_size
        return [p.grad.clone() for p in policy.parameters()]

    for whole, summed in zip(gradients(48), gradients(8), strict=True):
        torch.testing.assert_close(whole, summed, rtol=1e-4, atol=1e-4)


# Red if states were kept per step, or if the tensors of passed steps stayed referenced.
@pytest.mark.parametrize(("sequence_length", "n_states"), [(512, 1), (128, 4)])
def test_rollout_keeps_one_state_per_segment(sequence_length: int, n_states: int) -> None:
    n_steps, n_envs, floats = 512, 32, 8 * 64 * 64
    buffer = SequenceRolloutBuffer(n_steps, BOX, DISCRETE, "cpu", n_envs=n_envs, sequence_length=sequence_length)
    x = torch.zeros(n_envs)
    alive = []
    for _ in range(n_steps):
        state = torch.empty(n_envs, 8, 64, 64)
        alive.append(weakref.ref(state))
        buffer.add(np.zeros((n_envs, 2)), np.zeros((n_envs, 1)), x.numpy(), x.numpy(), x, x, state)
    del state
    assert sum(reference() is not None for reference in alive) == n_states
    kept = sum(leaf.nbytes for state in buffer.states for leaf in state_leaves(state))
    assert kept == n_states * n_envs * floats * 4
    assert 100 * kept <= n_steps * n_envs * floats * 4


# Red if the buffer forgot which steps a segment starts with: the same counts with a real memory.
@pytest.mark.parametrize("memory", MEMORIES)
def test_kept_states_are_those_of_the_rollout(
    memory: str, make_model: Callable, tape_envs: Callable, collect: Callable
) -> None:
    model = make_model(memory, tape_envs((3, 5), (7,)), n_steps=12, sequence_length=4)
    record = Record()
    collect(model, record)
    states = model.rollout_buffer.states
    assert len(states) == 3
    for t, kept in ((4, states[1]), (8, states[2])):
        expected = record.steps[t - 1]["new_state"]
        for ours, theirs in zip(state_leaves(kept), state_leaves(expected), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("scale", "spread"), [(10.0, 1.0), (0.01, 0.1)])
def test_small_advantages_are_not_made_large(scale: float, spread: float, make_model: Callable) -> None:
    """Red if the floor is a ceiling, if large advantages are not scaled as PPO does, or if PPO does it once more."""
    model = make_model(advantage_floor=0.1)
    model.learn(48)
    assert not model.normalize_advantage
    buffer = model.rollout_buffer
    buffer.advantages[:] = scale * np.random.default_rng(0).normal(size=buffer.advantages.shape)
    buffer._columns = None
    ((*_, advantages, _),) = buffer.get()
    assert advantages.std().item() == pytest.approx(spread, rel=0.2)
    assert advantages.mean().item() == pytest.approx(0, abs=1e-6)


def test_a_floor_and_no_normalization_exclude_each_other(make_model: Callable, tmp_path: Path) -> None:
    """Red if advantages are normalised against one's word, or not at all once a model lost its floor."""
    with pytest.raises(ValueError, match=r"advantage_floor=0\.1: needs normalize_advantage=True"):
        make_model(advantage_floor=0.1, normalize_advantage=False)
    make_model(advantage_floor=0.1).save(tmp_path / "model.zip")
    assert MemoryPPO.load(tmp_path / "model.zip", advantage_floor=0.0).normalize_advantage


def test_a_floor_below_all_advantages_is_ppo(make_model: Callable) -> None:
    """Red if advantages are normalised in another way than PPO's."""
    plain, floored = (make_model(advantage_floor=floor).learn(96) for floor in (0.0, 1e-12))
    for name, weight in plain.policy.state_dict().items():
        torch.testing.assert_close(floored.policy.state_dict()[name], weight)
