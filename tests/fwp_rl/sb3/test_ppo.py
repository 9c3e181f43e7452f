"""MemoryPPO as SB3 users know it: callbacks, files, other environments; and bad input."""

import os
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecMonitor, VecNormalize

from fwp_rl.registry import memory_configs
from fwp_rl.sb3 import DivergedError, MemoryPPO, NonFiniteError
from fwp_rl.sb3.arguments import argument_problems
from fwp_rl.sb3.finite import has_finite_weights, require_finite_experience
from fwp_rl.state import state_leaves

MEMORIES = list(memory_configs())
BOX = spaces.Box(-1, 1, (5,))
DISCRETE = spaces.Discrete(4)


def weights(model: MemoryPPO) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}


def assert_equal_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def assert_same_behaviour(first: MemoryPPO, second: MemoryPPO, n_envs: int = 2) -> None:
    rng = np.random.default_rng(3)
    states = [None, None]
    for t in range(5):
        obs = rng.normal(size=(n_envs, 5)).astype(np.float32)
        starts = np.full(n_envs, t == 3)
        results = [m.predict(obs, s, starts, deterministic=True) for m, s in zip((first, second), states, strict=True)]
        np.testing.assert_array_equal(results[0][0], results[1][0])
        states = [state for _, state in results]
        for a, b in zip(leaves(states[0]), leaves(states[1]), strict=True):
            np.testing.assert_array_equal(a, b)


def leaves(state: Any) -> list[np.ndarray]:
    return [leaf for part in state for leaf in leaves(part)] if isinstance(state, tuple) else [state]


# ---- training


@pytest.mark.parametrize("memory", ["delta", "gru"])
def test_same_seed_same_weights(memory: str, make_model: Callable) -> None:
    first, second = (make_model(memory).learn(96) for _ in range(2))
    assert_equal_weights(weights(first), weights(second))
    other = make_model(memory, seed=2).learn(96)
    assert any(not torch.equal(tensor, other.policy.state_dict()[name]) for name, tensor in weights(first).items())


# Red if predict or the evaluation touched the state, the buffer or the mode of the training policy.
@pytest.mark.parametrize("memory", ["delta", "lstm"])
def test_evaluation_in_the_middle_of_a_rollout_changes_nothing(
    memory: str, make_model: Callable, random_envs: Callable
) -> None:
    plain = make_model(memory, VecMonitor(random_envs(BOX, DISCRETE))).learn(96)
    callback = EvalCallback(
        VecMonitor(random_envs(BOX, DISCRETE, n_envs=2)), n_eval_episodes=3, eval_freq=5, warn=False, verbose=0
    )
    evaluated = make_model(memory, VecMonitor(random_envs(BOX, DISCRETE))).learn(96, callback)
    assert callback.n_calls // callback.eval_freq == 6
    assert_equal_weights(weights(plain), weights(evaluated))


# Red if the state were lost between two calls of learn: the second would start its episodes anew.
@pytest.mark.parametrize("memory", ["delta", "lstm"])
def test_learning_in_two_calls_equals_learning_in_one(memory: str, make_model: Callable) -> None:
    whole = make_model(memory).learn(96)
    parts = make_model(memory).learn(48)
    assert not parts._last_episode_starts.all()
    parts.learn(48, reset_num_timesteps=False)
    assert parts.num_timesteps == whole.num_timesteps == 96
    assert_equal_weights(weights(whole), weights(parts))


# Red if a second learn() from the start read the observations after its reset with the state of the first.
def test_learning_again_from_the_start_resets_the_memory(
    counting_model: Callable, tape_envs: Callable, collect: Callable
) -> None:
    model = counting_model(tape_envs((9,), (9,)), n_steps=4, sequence_length=4)
    collect(model)
    collect(model)
    assert model.rollout_buffer.episode_starts[0].tolist() == [1, 1]
    steps = model.rollout_buffer.observations[..., 1]
    np.testing.assert_array_equal(model.rollout_buffer.values, model.rollout_buffer.observations.sum(-1) + steps + 1)


def test_set_env_resets_the_memory(counting_model: Callable, tape_envs: Callable, collect: Callable) -> None:
    model = counting_model(tape_envs((9,), (9,)), n_steps=4, sequence_length=4)
    collect(model)
    model.set_env(tape_envs((5,), (5,)))
    collect(model, is_first=False)
    observations = model.rollout_buffer.observations
    assert observations[0].tolist() == [[0, 0], [100, 0]]
    np.testing.assert_array_equal(model.rollout_buffer.values, observations.sum(-1) + observations[..., 1] + 1)


class StopAt(BaseCallback):
    def __init__(self, n_calls: int) -> None:
        super().__init__()
        self.last_call = n_calls

    def _on_step(self) -> bool:
        return self.n_calls < self.last_call


@pytest.mark.parametrize("n_calls", [1, 10, 17])
def test_callback_can_stop_at_any_step(n_calls: int, make_model: Callable) -> None:
    model = make_model()
    before = weights(model)
    model.learn(1000, StopAt(n_calls))
    assert model.num_timesteps == 3 * n_calls
    if n_calls <= 16:
        assert_equal_weights(before, weights(model))
    model.learn(48, reset_num_timesteps=False)
    assert all(torch.isfinite(tensor).all() for tensor in weights(model).values())


def test_learning_for_no_steps_does_nothing(make_model: Callable) -> None:
    model = make_model()
    before = weights(model)
    model.learn(0)
    assert_equal_weights(before, weights(model))


def test_one_environment_that_is_no_vec_env(make_model: Callable, random_envs: Callable) -> None:
    env = random_envs(BOX, DISCRETE, n_envs=1).envs[0]
    model = make_model("lstm", env).learn(32)
    assert model.n_envs == 1
    assert model.num_timesteps == 32
    assert model.ep_info_buffer, "SB3 wraps a single environment in a Monitor"


@pytest.mark.parametrize(
    "kwargs",
    [
        {"clip_range_vf": 0.2, "policy_kwargs": {"normalize_values": False}},
        {"target_kl": 1e-9},
        {"normalize_advantage": False},
    ],
)
def test_options_of_ppo(kwargs: dict[str, Any], make_model: Callable) -> None:
    model = make_model(**kwargs).learn(48)
    assert all(torch.isfinite(tensor).all() for tensor in weights(model).values())


def test_schedules(make_model: Callable) -> None:
    model = make_model(learning_rate=lambda left: 1e-3 * left, clip_range=lambda left: 0.1 + 0.1 * left).learn(96)
    assert model.policy.optimizer.param_groups[0]["lr"] == pytest.approx(0.0)


def test_logs_the_keys_of_ppo(make_model: Callable, random_envs: Callable, tmp_path: Path) -> None:
    model = make_model(env=VecMonitor(random_envs(BOX, DISCRETE)))
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(96)  # the first line is written before the first update
    model.logger.close()
    header = (tmp_path / "progress.csv").read_text().splitlines()[0].split(",")
    assert {"train/approx_kl", "train/clip_fraction", "train/value_loss", "train/explained_variance"} <= set(header)
    assert {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps", "time/total_timesteps"} <= set(header)


@pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning")
def test_tensorboard_and_progress_bar(make_model: Callable, tmp_path: Path) -> None:
    make_model(tensorboard_log=str(tmp_path)).learn(48, progress_bar=True)
    assert list((tmp_path / "MemoryPPO_1").glob("events.out.tfevents.*"))


def test_says_how_far_the_gradient_reaches(make_model: Callable, capsys: pytest.CaptureFixture) -> None:
    model = make_model("delta", verbose=1, policy_kwargs={"n_blocks": 2})
    lines = capsys.readouterr().out
    assert "delta x 2 blocks" in lines
    assert "state of 60 numbers" in lines  # 2 blocks x 2 heads x 3 x 5
    assert "3 environments x 16 steps = 48 steps" in lines
    assert "6 sequences of sequence_length=8: gradient reaches back 8 steps at most" in lines
    assert "3 minibatches of 2 sequences, 2 epochs" in lines
    assert model.batch_size == 16


# ---- evaluation and callbacks


# Red if the state were not reset where an episode starts, or if rows were mixed up: compare with one loop per episode.
@pytest.mark.parametrize("memory", ["none", "delta", "lstm"])
def test_evaluate_policy_equals_a_loop_by_hand(memory: str, make_model: Callable) -> None:
    model = make_model(memory, DummyVecEnv([lambda: Recall(4)] * 2))
    rewards, lengths = evaluate_policy(
        model, DummyVecEnv([lambda: VecSeed(Recall(4), 5)]), 6, return_episode_rewards=True, warn=False
    )
    env = VecSeed(Recall(4), 5)
    expected = []
    for _ in range(6):
        obs, _ = env.reset()
        state, start, total, is_over = None, np.array([True]), 0.0, False
        while not is_over:
            action, state = model.predict(obs, state, start, deterministic=True)
            obs, reward, is_over, _, _ = env.step(action)
            total, start = total + reward, np.array([False])
        expected.append(total)
    np.testing.assert_allclose(rewards, expected)
    assert lengths == [4] * 6


class Recall(gym.Env):
    """Reward: how the action fits the first observation of the episode."""

    def __init__(self, length: int) -> None:
        self.observation_space, self.action_space, self.length = BOX, DISCRETE, length

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t = 0
        self.first = self.np_random.uniform(-1, 1, 5).astype(np.float32)
        return self.first, {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        obs = self.np_random.uniform(-1, 1, 5).astype(np.float32)
        return obs, float(self.first[action]), self.t == self.length, False, {}


class VecSeed(gym.Wrapper):
    """Seeds the first reset."""

    def __init__(self, env: gym.Env, seed: int) -> None:
        super().__init__(env)
        self.next_seed: int | None = seed

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        seed, self.next_seed = self.next_seed, None
        return self.env.reset(seed=seed, options=options)


def test_best_model_of_eval_callback_can_be_loaded(make_model: Callable, random_envs: Callable, tmp_path: Path) -> None:
    callback = EvalCallback(
        VecMonitor(random_envs(BOX, DISCRETE, n_envs=2)),
        n_eval_episodes=2,
        eval_freq=16,
        best_model_save_path=str(tmp_path),
        log_path=str(tmp_path),
        verbose=0,
    )
    make_model("gru", VecMonitor(random_envs(BOX, DISCRETE))).learn(96, callback)
    loaded = MemoryPPO.load(tmp_path / "best_model.zip", device="cpu")
    actions, _ = loaded.predict(np.zeros((2, 5), dtype=np.float32))
    assert actions.shape == (2,)
    assert (tmp_path / "evaluations.npz").exists()


def test_checkpoints_with_vec_normalize(make_model: Callable, random_envs: Callable, tmp_path: Path) -> None:
    model = make_model("delta", VecNormalize(random_envs(BOX, DISCRETE)))
    model.learn(96, CheckpointCallback(16, str(tmp_path), name_prefix="m", save_vecnormalize=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "m_48_steps.zip",
        "m_96_steps.zip",
        "m_vecnormalize_48_steps.pkl",
        "m_vecnormalize_96_steps.pkl",
    ]
    env = VecNormalize.load(str(tmp_path / "m_vecnormalize_96_steps.pkl"), random_envs(BOX, DISCRETE))
    np.testing.assert_array_equal(env.obs_rms.mean, model.get_vec_normalize_env().obs_rms.mean)
    resumed = MemoryPPO.load(tmp_path / "m_96_steps.zip", env, device="cpu")
    resumed.learn(48, reset_num_timesteps=False)
    assert resumed.num_timesteps == 144


def test_evaluates_on_another_number_of_environments(make_model: Callable, random_envs: Callable) -> None:
    model = make_model("lstm")
    for n_envs in (1, 5):
        env = VecMonitor(random_envs(BOX, DISCRETE, n_envs=n_envs))
        rewards, lengths = evaluate_policy(model, env, 7, return_episode_rewards=True)
        assert len(rewards) == len(lengths) == 7
        assert np.isfinite(rewards).all()


def test_stops_on_the_callbacks_of_sb3(make_model: Callable) -> None:
    model = make_model().learn(10_000, StopTrainingOnMaxEpisodes(max_episodes=4, verbose=0))
    assert model.num_timesteps < 10_000


# ---- files


# Red if anything of the policy (memory, blocks, heads, optimizer) were not in the file, or a state were.
@pytest.mark.parametrize("memory", MEMORIES)
def test_saved_model_behaves_as_before(
    memory: str, make_model: Callable, random_envs: Callable, tmp_path: Path
) -> None:
    kwargs = {"n_blocks": 2, "net_arch": {"pi": [6], "vf": [5]}, "activation_fn": torch.nn.ReLU}
    model = make_model(memory, policy_kwargs=kwargs, gamma=0.9).learn(48)
    model.save(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]
    loaded = MemoryPPO.load(tmp_path / "model", random_envs(BOX, DISCRETE), device="cpu")
    assert_equal_weights(weights(model), weights(loaded))
    assert_same_behaviour(model, loaded)
    assert loaded.gamma == 0.9
    assert loaded.sequence_length == 8
    assert loaded.policy.n_blocks == 2
    loaded.learn(48)
    data, _, _ = load_from_zip_file(tmp_path / "model")
    assert not [key for key in data if "state" in key]


# Red if the model remembered the number of environments: buffer, states or minibatches of the wrong size.
@pytest.mark.parametrize("n_envs", [1, 2, 7])
@pytest.mark.parametrize("batch_size", [None, 24])
def test_loads_for_another_number_of_environments(
    batch_size: int | None, n_envs: int, make_model: Callable, random_envs: Callable, tmp_path: Path
) -> None:
    make_model("lstm", batch_size=batch_size).learn(48).save(tmp_path / "model.zip")
    env = random_envs(BOX, DISCRETE, n_envs=n_envs)
    if batch_size == 24:  # 3 columns of 8 steps; the rollouts of n_envs environments have 2 * n_envs columns
        with pytest.warns(UserWarning, match=rf"batch_size=24 does not cut the rollout \({n_envs} environments"):
            loaded = MemoryPPO.load(tmp_path / "model.zip", env, device="cpu")
    else:
        loaded = MemoryPPO.load(tmp_path / "model.zip", env, device="cpu")
    assert (16 * n_envs) % loaded.batch_size == 0
    loaded.learn(2 * 16 * n_envs)
    assert loaded.num_timesteps == 2 * 16 * n_envs
    assert loaded.rollout_buffer.values.shape == (16, n_envs)


# Red if what is passed to load were overwritten by what is in the file.
def test_load_takes_other_arguments(make_model: Callable, random_envs: Callable, tmp_path: Path) -> None:
    make_model(batch_size=24).save(tmp_path / "model.zip")
    env = random_envs(BOX, DISCRETE, n_envs=2)
    loaded = MemoryPPO.load(tmp_path / "model.zip", env, device="cpu", batch_size=16, n_epochs=1, learning_rate=1e-4)
    assert (loaded.batch_size, loaded.n_epochs) == (16, 1)
    loaded.learn(32)
    with pytest.warns(UserWarning, match=r"batch_size=20 does not cut .* try 16 or 32; for now it is 8"):
        MemoryPPO.load(tmp_path / "model.zip", env, device="cpu", batch_size=20)


def test_set_parameters_and_get_parameters(make_model: Callable) -> None:
    model, other = make_model(seed=1).learn(48), make_model(seed=2)
    other.set_parameters(model.get_parameters())
    assert_equal_weights(weights(model), weights(other))
    assert_same_behaviour(model, other)
    first, second = (m.policy.optimizer.state_dict()["state"] for m in (model, other))
    assert first.keys() == second.keys()
    with pytest.raises(ValueError, match=r"Names of parameters do not match agents"):
        other.set_parameters({"policy": model.policy.state_dict()}, exact_match=True)


# SB3's structure: what a tool for SB3 files expects to find.
def test_file_is_an_sb3_zip(make_model: Callable, tmp_path: Path) -> None:
    model = make_model()
    model.save(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert archive.testzip() is None
        names = archive.namelist()
    assert {"data", "policy.pth", "policy.optimizer.pth", "pytorch_variables.pth", "_stable_baselines3_version"} < set(
        names
    )
    assert len(names) == len(set(names))
    _, parameters, _ = load_from_zip_file(tmp_path / "model.zip", device="cpu")
    assert_equal_weights(weights(model), parameters["policy"])


def test_saves_into_a_stream_and_with_excluded_parts(make_model: Callable, tmp_path: Path) -> None:
    model = make_model()
    with open(tmp_path / "model.zip", "wb") as stream:
        model.save(stream)
    assert_same_behaviour(model, MemoryPPO.load(tmp_path / "model.zip", device="cpu"))
    with open(tmp_path / "model.zip", "rb") as stream:
        assert_same_behaviour(model, MemoryPPO.load(stream, device="cpu"))
    model.save(tmp_path / "folder" / "with dot.v2", exclude=["ep_info_buffer"])
    assert_same_behaviour(model, MemoryPPO.load(tmp_path / "folder" / "with dot.v2", device="cpu"))


# Red if the old file were opened for writing before the new one is complete (SB3 destroys it).
@pytest.mark.parametrize("call", ["fsync", "replace", "fdopen"])
def test_failing_write_leaves_the_old_file(
    call: str, make_model: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    model.save(tmp_path / "model.zip")
    before = (tmp_path / "model.zip").read_bytes()
    model.learn(48)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match="No space left on device"):
            model.save(tmp_path / "model.zip")
    assert (tmp_path / "model.zip").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]
    model.save(tmp_path / "model.zip")
    assert_same_behaviour(model, MemoryPPO.load(tmp_path / "model.zip", device="cpu"))


# ---- bad input


# Red if a message named values that do not work either.
@pytest.mark.parametrize(
    ("sizes", "name"),
    [
        ({"n_steps": 16, "sequence_length": 5}, "sequence_length"),
        ({"n_steps": 16, "sequence_length": 32}, "sequence_length"),
        ({"n_steps": 16, "sequence_length": 8, "batch_size": 20}, "batch_size"),
        ({"n_steps": 16, "sequence_length": 8, "batch_size": 4}, "batch_size"),
        ({"n_steps": 16, "sequence_length": 8, "batch_size": 32}, "batch_size"),
        ({"n_steps": 16, "sequence_length": None, "batch_size": 1000}, "batch_size"),
        ({"n_steps": 15, "sequence_length": 4, "batch_size": 7}, "sequence_length"),
    ],
)
def test_sizes_that_do_not_divide_name_those_that_do(sizes: dict[str, Any], name: str, make_model: Callable) -> None:
    with pytest.raises(ValueError) as error:
        make_model(**sizes)
    message = str(error.value)
    assert "\n" not in message
    assert f"{name}={sizes[name]}" in message
    suggestions = [int(number) for number in re.findall(r"\d+", message.rsplit("try ", 1)[1])]
    assert suggestions
    for value in suggestions:
        fixed = sizes | {name: value}
        if name == "sequence_length":
            fixed["batch_size"] = None
        make_model(**fixed).learn(1)


# Red if an argument were checked only where it is used, or one error hid the next.
def test_names_all_bad_arguments_at_once(make_model: Callable) -> None:
    bad = {
        "batch_size": 0,
        "n_epochs": 0,
        "gamma": 2.0,
        "gae_lambda": -0.1,
        "learning_rate": -1e-3,
        "clip_range": -0.2,
        "clip_range_vf": -0.2,
        "advantage_floor": -0.1,
        "ent_coef": float("nan"),
        "vf_coef": float("inf"),
        "max_grad_norm": -1.0,
        "target_kl": -0.1,
        "n_steps": 1,
        "sequence_length": -3,
    }
    with pytest.raises(ValueError) as error:
        make_model(**bad)
    lines = str(error.value).splitlines()
    assert len(lines) == len(bad)
    for name, value in bad.items():
        assert any(line.startswith(f"{name}={value}: expected ") for line in lines), name


# Red if a wrong type were an error of its own (int(nan), 2 <= None). Not through the constructor: in tests, jaxtyping
# would be there first.
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_steps", 16.0),
        ("n_steps", None),
        ("n_epochs", None),
        ("n_epochs", 2.5),
        ("n_epochs", float("nan")),
        ("n_epochs", float("inf")),
        ("batch_size", "24"),
        ("gamma", "high"),
        ("gamma", None),
        ("learning_rate", None),
        ("sequence_length", True),
    ],
)
def test_names_arguments_of_the_wrong_type(name: str, value: Any) -> None:
    assert argument_problems(**{name: value})[name].startswith(f"{name}={value}: expected a ")


def test_numbers_of_numpy_and_schedules_are_welcome() -> None:
    assert not argument_problems(
        n_steps=np.int64(16), batch_size=np.int32(8), gamma=np.float32(0.5), learning_rate=lambda _: 0
    )
    assert not argument_problems(
        sequence_length=None, batch_size=None, target_kl=None, clip_range_vf=None, gamma=1, ent_coef=0
    )


class Poison(VecEnvWrapper):
    """Writes `value` into one place at one step; step 0 is the reset."""

    def __init__(self, venv: VecEnv, step: int, place: str, value: float, terminal: bool = False) -> None:
        super().__init__(venv)
        self.poisoned_step, self.place, self.value, self.t = step, place, value, 0

    def _poison(self, obs: Any) -> Any:
        if self.t == self.poisoned_step and self.place != "reward":
            array = obs[self.place] if isinstance(obs, dict) else obs
            array[1, -1] = self.value
        return obs

    def reset(self) -> Any:
        return self._poison(self.venv.reset())

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = self.venv.step_wait()
        self.t += 1
        if self.t == self.poisoned_step and self.place == "reward":
            rewards[1] = self.value
        return self._poison(obs), rewards, dones, infos


# Red if what an environment returns were used before it is checked, or if the message pointed elsewhere.
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", ["observation", "reward"])
@pytest.mark.parametrize("step", [1, 7, 16, 40])
def test_non_finite_numbers_never_reach_the_weights(
    step: int, place: str, value: float, make_model: Callable, random_envs: Callable
) -> None:
    model = make_model(env=Poison(random_envs(BOX, DISCRETE), step, place, value), n_epochs=1)
    trained = []
    model.train = lambda train=model.train: (train(), trained.append(weights(model)))  # type: ignore[method-assign]  # to see its calls
    before = weights(model)
    entry = r" \(entry 4\)" if place == "observation" else ""
    with pytest.raises(NonFiniteError, match=rf"environment 1 returned {value} in '{place}'{entry} at step {step};"):
        model.learn(480)
    assert len(trained) == (step - 1) // 16
    assert_equal_weights(weights(model), trained[-1] if trained else before)
    assert all(torch.isfinite(tensor).all() for tensor in weights(model).values())
    assert model._last_state is None or all(torch.isfinite(leaf).all() for leaf in state_leaves(model._last_state))


def test_non_finite_number_in_a_dict_names_the_key(make_model: Callable, random_envs: Callable) -> None:
    space = spaces.Dict({"left": BOX, "right": BOX})
    env = Poison(random_envs(space, DISCRETE), 3, "right", float("nan"))
    model = make_model(env=env, policy="MultiInputPolicy")
    with pytest.raises(NonFiniteError, match=r"environment 1 returned nan in 'right' \(entry 4\) at step 3;"):
        model.learn(48)


# Red if the observation of a reset were trusted: the first, and those of later calls of learn.
def test_non_finite_number_in_the_first_observation(make_model: Callable, random_envs: Callable) -> None:
    model = make_model(env=Poison(random_envs(BOX, DISCRETE), 0, "observation", float("nan")))
    with pytest.raises(NonFiniteError, match="environment 1 returned nan in 'observation'"):
        model.learn(48)
    model = make_model().learn(48)
    before = weights(model)
    model.set_env(Poison(random_envs(BOX, DISCRETE), 0, "observation", float("nan")))
    with pytest.raises(NonFiniteError, match="environment 1 returned nan in 'observation'"):
        model.learn(48)
    assert_equal_weights(before, weights(model))


# Red if the sum that makes the check cheap were taken for its result, or its overflow warned.
def test_infinities_that_cancel_and_large_numbers(make_model: Callable, random_envs: Callable) -> None:
    class Opposite(Poison):
        def _poison(self, obs: Any) -> Any:
            if self.t == self.poisoned_step:
                obs[1, :2] = [self.value, -self.value]
            return obs

    model = make_model(env=Opposite(random_envs(BOX, DISCRETE), 2, "observation", float("inf")))
    with pytest.raises(NonFiniteError, match=r"environment 1 returned inf in 'observation' \(entry 0\) at step 2"):
        model.learn(48)
    large = np.float32(3e38)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        require_finite_experience(np.full((2, 3), large), step=0)


# Red if an update could break the weights, of the critic alone too, and the next rollout went on with them.
@pytest.mark.parametrize("name", ["value_net.bias", "action_net.weight"])
def test_weights_that_an_update_broke(name: str, make_model: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken_update(model: PPO) -> None:
        model.policy.get_parameter(name).data.view(-1)[-1] = float("nan")

    monkeypatch.setattr(PPO, "train", broken_update)
    with pytest.raises(DivergedError, match="the update after step 48 made weights NaN or infinite"):
        make_model().learn(480)


# Red if weights that are large, whose sum overflows, were called infinite.
def test_large_weights_are_finite() -> None:
    layer = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(layer.weight, 3e38)
    assert has_finite_weights(layer)


# Red if the terminal observation, which only the bootstrap reads, were not checked.
def test_non_finite_number_in_a_terminal_observation(make_model: Callable, tape_envs: Callable) -> None:
    class Terminal(VecEnvWrapper):
        def reset(self) -> Any:
            return self.venv.reset()

        def step_wait(self) -> Any:
            obs, rewards, dones, infos = self.venv.step_wait()
            if dones[1]:
                infos[1]["terminal_observation"][1] = np.nan
            return obs, rewards, dones, infos

    model = make_model(env=Terminal(tape_envs((3,), (4,), ending="truncated")))
    before = weights(model)
    with pytest.raises(NonFiniteError, match=r"environment 1 returned nan in 'observation' \(entry 1\) at step 4"):
        model.learn(32)
    assert_equal_weights(before, weights(model))
