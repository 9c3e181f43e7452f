"""What the policy computed in the rollout, it computes again in training; and `predict`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from fwp_rl import DeltaConfig, LSTMConfig, MemoryConfig
from fwp_rl.registry import memory_configs
from fwp_rl.sb3 import MemoryPPO, MlpPolicy
from fwp_rl.state import State

MEMORIES = list(memory_configs())
BOX = spaces.Box(-1, 1, (5,))
DISCRETE = spaces.Discrete(4)
IMAGE = spaces.Box(0, 255, (36, 36, 3), np.uint8)
ACTIONS = {
    "discrete": DISCRETE,
    "discrete_from_2": spaces.Discrete(3, start=2),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(3),
    "box": spaces.Box(-0.5, 2.0, (2,)),
    "gsde": spaces.Box(-0.5, 2.0, (2,)),
}
OBSERVATIONS = {
    "vector": BOX,
    "float64": spaces.Box(-1, 1, (5,), np.float64),
    "matrix": spaces.Box(-1, 1, (2, 3)),
    "image": IMAGE,
    "dict": spaces.Dict({"image": IMAGE, "vector": BOX, "task": spaces.Discrete(3)}),
    "discrete": spaces.Discrete(6),
    "multi_discrete": spaces.MultiDiscrete([3, 4]),
    "multi_binary": spaces.MultiBinary(5),
}
POLICIES = {"image": ("CnnPolicy", {"features_dim": 9}), "dict": ("MultiInputPolicy", {"cnn_output_dim": 9})}


def assert_training_repeats_the_rollout(model: MemoryPPO) -> None:
    starts = model.rollout_buffer.episode_starts
    assert starts[1:].any(), "the test needs episode starts inside the segments"
    for batch in model.rollout_buffer.get(model.batch_size):
        actions = batch.actions.long().flatten() if isinstance(model.action_space, spaces.Discrete) else batch.actions
        with torch.no_grad():
            values, log_probs, _ = model.policy.evaluate_actions(batch.observations, actions)
        torch.testing.assert_close(log_probs, batch.old_log_prob, atol=1e-5, rtol=0)
        torch.testing.assert_close(values.flatten(), batch.old_values, atol=1e-5, rtol=0)


def assert_trains(model: MemoryPPO) -> None:
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    model.learn(model.n_steps * model.n_envs)
    after = model.policy.state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("memory."))


# Red if a start resets one step late, if columns of actions, observations and states are permuted differently, or if an
# action is stored in a type that cannot hold it.
@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("memory", MEMORIES)
def test_training_repeats_the_rollout(
    memory: str, actions: str, make_model: Callable, random_envs: Callable, collect: Callable
) -> None:
    model = make_model(memory, random_envs(BOX, ACTIONS[actions]), use_sde=actions == "gsde")
    collect(model)
    assert_training_repeats_the_rollout(model)


# Red if the state of a segment is the one after its first step, or if a second rollout, which begins in the middle of
# episodes, forgets them.
@pytest.mark.parametrize("memory", MEMORIES)
def test_training_repeats_the_second_rollout(memory: str, make_model: Callable, collect: Callable) -> None:
    model = make_model(memory)
    collect(model)
    collect(model, is_first=False)
    assert not model.rollout_buffer.episode_starts[0].all()
    assert_training_repeats_the_rollout(model)
    assert_trains(model)


# Red if a space is stored in the wrong dtype or shape, or is preprocessed differently in rollout and training.
@pytest.mark.parametrize("observations", OBSERVATIONS)
@pytest.mark.parametrize("memory", ["delta", "lstm"])
def test_training_repeats_the_rollout_for_all_observations(
    memory: str, observations: str, make_model: Callable, random_envs: Callable, collect: Callable
) -> None:
    policy, extractor_kwargs = POLICIES.get(observations, ("MlpPolicy", {}))
    kwargs = {"features_extractor_kwargs": extractor_kwargs} if extractor_kwargs else {}
    envs = random_envs(OBSERVATIONS[observations], DISCRETE, n_envs=2)
    model = make_model(memory, envs, policy=policy, policy_kwargs=kwargs)
    collect(model)
    assert_training_repeats_the_rollout(model)
    assert_trains(model)


# Red if the state at the start of a later segment is not kept, or if whole rollouts were never cut.
@pytest.mark.parametrize("sequence_length", [1, 4, 16])
@pytest.mark.parametrize("memory", ["gated_delta", "gru"])
def test_training_repeats_the_rollout_for_every_length(
    memory: str, sequence_length: int, make_model: Callable, collect: Callable
) -> None:
    model = make_model(memory, sequence_length=sequence_length)
    collect(model)
    assert_training_repeats_the_rollout(model)


# Red if the nested state of a stack is cut or joined wrongly: an empty one, a pair, a matrix, a pair of two shapes.
@pytest.mark.parametrize("memory", ["none", "lstm", "delta", "recurrent_delta"])
def test_training_repeats_the_rollout_for_two_blocks(memory: str, make_model: Callable, collect: Callable) -> None:
    model = make_model(memory, policy_kwargs={"n_blocks": 2})
    collect(model)
    assert_training_repeats_the_rollout(model)
    assert_trains(model)


@pytest.mark.parametrize("squash_output", [False, True])
def test_gsde_with_new_noise_inside_the_rollout(
    squash_output: bool, make_model: Callable, random_envs: Callable, collect: Callable
) -> None:
    kwargs = {"squash_output": squash_output, "full_std": False, "net_arch": [32]}
    model = make_model(
        "delta", random_envs(BOX, ACTIONS["gsde"]), use_sde=True, sde_sample_freq=4, policy_kwargs=kwargs
    )
    collect(model)
    if not squash_output:  # squashed: the action is inverted with a tolerance of SB3's, and clipped near the bounds
        assert_training_repeats_the_rollout(model)
    assert_trains(model)
    low, high = model.action_space.low, model.action_space.high
    actions, _ = model.predict(np.zeros((3, 5), dtype=np.float32))
    assert ((actions >= low) & (actions <= high)).all()


def copy_state(state: Any) -> Any:
    return tuple(copy_state(part) for part in state) if isinstance(state, tuple) else state.copy()


def assert_states_equal(first: Any, second: Any) -> None:
    if isinstance(first, tuple):
        assert len(first) == len(second)
        for a, b in zip(first, second, strict=True):
            assert_states_equal(a, b)
    else:
        np.testing.assert_array_equal(first, second)


def tuple_of_arrays(state: State) -> Any:
    return state.numpy() if isinstance(state, torch.Tensor) else tuple(tuple_of_arrays(part) for part in state)


def observations(t: int, n: int) -> np.ndarray:
    return np.random.default_rng(t).normal(size=(n, 5)).astype(np.float32)


# Red if predict kept a state of its own, or changed the one it was given.
@pytest.mark.parametrize("memory", MEMORIES)
def test_predict_is_a_function_of_observation_and_state(memory: str, make_model: Callable) -> None:
    model = make_model(memory, policy_kwargs={"n_blocks": 2})
    _, state = model.predict(observations(0, 2), deterministic=True)
    before = copy_state(state)
    first = model.predict(observations(1, 2), state, deterministic=True)
    model.predict(observations(2, 2), deterministic=True)
    second = model.predict(observations(1, 2), state, deterministic=True)
    np.testing.assert_array_equal(first[0], second[0])
    assert_states_equal(first[1], second[1])
    assert_states_equal(state, before)


# Red if predict ignored the state, or gave back another one than the memory's.
@pytest.mark.parametrize("memory", [name for name in MEMORIES if name != "none"])
def test_predict_carries_the_state_of_the_memory(memory: str, make_model: Callable, random_envs: Callable) -> None:
    model = make_model(memory, random_envs(BOX, ACTIONS["box"]))
    tensor_state = model.policy.initial_state(2)
    numpy_state = None
    starts = torch.zeros(2, dtype=torch.bool)
    for t in range(4):
        obs = observations(t, 2)
        with torch.no_grad():
            expected, tensor_state = model.policy.get_distribution(torch.as_tensor(obs), tensor_state, starts)
        actions, numpy_state = model.predict(obs, numpy_state, deterministic=True)
        np.testing.assert_array_equal(actions, np.clip(expected.mode().numpy(), -0.5, 2.0))
    assert_states_equal(numpy_state, tuple_of_arrays(tensor_state))
    fresh, _ = model.predict(obs, deterministic=True)
    assert not np.array_equal(fresh, actions)


# Red if episode_start were ignored, applied to all rows, or applied after the observation is read.
@pytest.mark.parametrize("memory", MEMORIES)
def test_predict_restarts_the_rows_of_episode_start(memory: str, make_model: Callable) -> None:
    model = make_model(memory)
    _, state = model.predict(observations(0, 3))
    _, mixed = model.predict(observations(1, 3), state, np.array([True, False, True]))
    _, fresh = model.predict(observations(1, 3))
    _, carried = model.predict(observations(1, 3), state)
    for is_fresh, row in ((True, 0), (False, 1), (True, 2)):
        for leaf, f, c in zip(state_rows(mixed), state_rows(fresh), state_rows(carried), strict=True):
            np.testing.assert_array_equal(leaf[row], (f if is_fresh else c)[row])
            assert not np.array_equal(f[row], c[row])


def state_rows(state: Any) -> list[np.ndarray]:
    return [leaf for part in state for leaf in state_rows(part)] if isinstance(state, tuple) else [state]


# Red if a single observation came back as a batch, or an n_envs of training were assumed.
@pytest.mark.parametrize("action_space", [DISCRETE, spaces.MultiDiscrete([2, 3]), ACTIONS["box"]])
def test_predict_takes_one_observation_or_any_number(
    action_space: spaces.Space, make_model: Callable, random_envs: Callable
) -> None:
    model = make_model("lstm", random_envs(BOX, action_space))
    action, state = model.predict(observations(0, 1)[0])
    assert action.shape == action_space.shape
    assert [leaf.shape[0] for leaf in state_rows(state)] == [1, 1]
    action, _ = model.predict(observations(1, 1)[0], state, np.array([False]))
    assert action.shape == action_space.shape
    actions, state = model.predict(observations(0, 7))
    assert actions.shape == (7, *action_space.shape)
    assert [leaf.shape[0] for leaf in state_rows(state)] == [7, 7]


def test_predict_takes_dict_and_image_observations(make_model: Callable, random_envs: Callable) -> None:
    space = OBSERVATIONS["dict"]
    model = make_model("delta", random_envs(space, DISCRETE), policy="MultiInputPolicy")
    one = space.sample()  # channels last, as the environment gives it
    action, state = model.predict(one)
    assert action.shape == ()
    many = {key: np.stack([value] * 2) for key, value in one.items()}
    actions, _ = model.predict(many, deterministic=True)
    assert actions.shape == (2,)
    with pytest.raises(ValueError, match="state is for 1 environments, observation for 2"):
        model.predict(many, state)


def test_predict_refuses_the_state_of_another_number_of_environments(make_model: Callable) -> None:
    model = make_model("lstm")
    _, state = model.predict(observations(0, 3))
    with pytest.raises(ValueError, match=r"state is for 3 environments, observation for 2; pass state=None"):
        model.predict(observations(0, 2), state)


# Red if `deterministic` were lost on the way to the distribution.
def test_deterministic_predictions_do_not_vary(make_model: Callable) -> None:
    model = make_model()
    obs = observations(0, 64)
    first, second = (model.predict(obs, deterministic=True)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    first, second = (model.predict(obs)[0] for _ in range(2))
    assert not np.array_equal(first, second)


# Red if memory, n_blocks or any other argument were missing from the constructor parameters (sb3-contrib forgets
# lstm_hidden_size).
@pytest.mark.parametrize(
    "memory", [DeltaConfig(width=12, n_heads=3, negative_eigenvalues=True), LSTMConfig(hidden_size=9)]
)
def test_policy_file_keeps_arguments_that_are_not_the_defaults(
    memory: MemoryConfig, make_model: Callable, tmp_path: Any
) -> None:
    kwargs = {"n_blocks": 2, "net_arch": {"pi": [6, 4], "vf": []}, "activation_fn": torch.nn.ELU, "ortho_init": False}
    policy = make_model(memory, policy_kwargs=kwargs).policy
    policy.save(tmp_path / "policy.pth")
    loaded = MlpPolicy.load(tmp_path / "policy.pth", device="cpu")
    assert loaded.memory_config == memory
    assert loaded.n_blocks == 2
    assert loaded.activation_fn is torch.nn.ELU
    state = None
    for t in range(3):
        expected, expected_state = policy.predict(observations(t, 2), state, deterministic=True)
        actions, state = loaded.predict(observations(t, 2), state, deterministic=True)
        np.testing.assert_array_equal(actions, expected)
        assert_states_equal(state, expected_state)


def test_refuses_separate_feature_extractors(make_model: Callable) -> None:
    with pytest.raises(ValueError, match=r"share_features_extractor=False: .* critic='separate' gives each"):
        make_model(policy_kwargs={"share_features_extractor": False})


def test_names_the_nearest_memory(make_model: Callable) -> None:
    with pytest.raises(ValueError, match=r"unknown memory 'dleta': did you mean 'delta'\?"):
        make_model(policy_kwargs={"memory": "dleta"})


def test_default_policy_has_one_layer_for_actor_and_critic(random_envs: Callable) -> None:
    model = MemoryPPO("MlpPolicy", random_envs(BOX, DISCRETE), device="cpu")
    assert model.policy.net_arch == {"pi": [64], "vf": [64]}
    assert model.policy.memory_config == DeltaConfig()


@pytest.mark.parametrize(("size", "expected"), [(2, 0.25), (8, 0.25), (128, 1.0), (500, 1.0)])
def test_what_a_unit_of_the_encoder_gets(size: int, expected: float, random_envs: Callable) -> None:
    """Red if few features saturate the encoder, or get lost in it: control is learned later."""
    model = MemoryPPO("MlpPolicy", random_envs(spaces.Box(-1, 1, (size,)), DISCRETE), device="cpu")
    layer = model.policy.encoder[0]  # type: ignore[index]  # a Sequential
    with torch.no_grad():
        inputs = torch.randn(2000, size)
        spread = (layer(inputs) - layer.bias).square().mean().sqrt()
    assert spread == pytest.approx(expected, rel=0.2)
