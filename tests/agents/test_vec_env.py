import gymnasium
import numpy as np
import pytest
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecTransposeImage

import envs
from agents.episodes import EVALUATION_SEED, make_env, training_seed
from agents.errors import EnvironmentFaultError, UsageError
from agents.vec_env import NativeVecEnv, NormalizedRewards, best_workers, make_vec_env, policy_name, soonest

# Tasks that end by success and failure, and by the limit of time (a policy that walks at random is slow in a corridor).
TASKS = [
    ("fwp/TMaze-v0", {"length": 2, "n_corridors": 2}),
    ("fwp/TMaze-v0", {"length": 30}),
    ("fwp/RepeatPrevious-v0", {"k": 2, "episode_length": 7}),
]


def tape(venv: VecEnv, n_steps: int, seed: int) -> list[tuple]:
    """All that a learner sees of row 0, with time stamps left out."""
    venv.seed(seed)
    rng = np.random.default_rng(5)
    seen: list[tuple] = [(venv.reset()[0].tolist(),)]
    for _ in range(n_steps):
        actions = np.tile(rng.integers(venv.action_space.n), venv.num_envs)
        observations, rewards, dones, infos = venv.step(actions)
        info = dict(infos[0])
        if "episode" in info:
            info["episode"] = {key: info["episode"][key] for key in ("r", "l")}
            info["terminal_observation"] = info["terminal_observation"].tolist()
        seen.append((observations[0].tolist(), float(rewards[0]), bool(dones[0]), info))
        assert (observations.dtype, rewards.dtype, dones.dtype) == (np.float32, np.float32, bool)
    return seen


@pytest.mark.parametrize(("env_id", "options"), TASKS)
def test_native_face_tells_what_dummy_and_monitor_tell(env_id: str, options: dict) -> None:
    native = NativeVecEnv(envs.make_vector(env_id, 1, **options))
    plain = DummyVecEnv([lambda: Monitor(make_env(env_id, options))])
    expected = tape(plain, 150, seed=11)
    assert tape(native, 150, seed=11) == expected
    assert any(step[2] for step in expected[1:])
    if options.get("length") == 30:
        assert any(step[3]["TimeLimit.truncated"] for step in expected[1:])


def test_row_lives_the_same_life_among_others() -> None:
    env_id, options = TASKS[0]
    alone, among = (NativeVecEnv(envs.make_vector(env_id, n, **options)) for n in (1, 3))
    assert tape(alone, 60, seed=3) == tape(among, 60, seed=3)


def test_native_face_has_the_whole_interface() -> None:
    venv = NativeVecEnv(envs.make_vector("fwp/TMaze-v0", 3, length=4))
    venv.reset()
    assert venv.get_attr("length") == [4, 4, 4]
    assert venv.get_attr("length", indices=1) == [4]
    venv.set_attr("note", "x")
    assert venv.has_attr("note")
    assert not venv.has_attr("nonsense")
    assert venv.env_is_wrapped(Monitor) == [True] * 3
    assert venv.env_is_wrapped(gymnasium.Wrapper, indices=[0]) == [False]
    assert len(venv.env_method("anchors", indices=[0, 2])) == 2
    picture = venv.render()
    assert picture is not None
    assert picture.dtype == np.uint8
    with pytest.raises(ValueError, match="share their attributes"):
        venv.set_attr("length", 9, indices=0)
    with pytest.raises(RuntimeError, match="without step_async"):
        venv.step_wait()
    venv.close()


def test_native_face_works_with_sb3s_own_evaluation() -> None:
    class Forward:
        def predict(self, observation: np.ndarray, **_: object) -> tuple[np.ndarray, None]:
            return np.ones(len(observation), dtype=int), None

    venv = NativeVecEnv(envs.make_vector("fwp/RepeatPrevious-v0", 2, k=1, episode_length=5))
    _, lengths = evaluate_policy(Forward(), venv, n_eval_episodes=5, return_episode_rewards=True)  # type: ignore[arg-type]  # all that is needed of a model
    assert lengths == [5] * 5


def test_previous_inputs_and_images_fit_their_policies() -> None:
    flat = make_vec_env("CartPole-v1", 2)
    assert policy_name(flat) == "MlpPolicy"
    extended = make_vec_env("fwp/TMaze-v0", 2, previous_action=True, previous_reward=True)
    assert policy_name(extended) == "MultiInputPolicy"
    assert set(extended.reset()) == {"observation", "previous_action", "previous_reward"}  # type: ignore[arg-type]  # a dict
    image = make_vec_env("MiniGrid-Empty-5x5-v0", 2, options={"observation": "rgb"})
    assert policy_name(image) == "CnnPolicy"
    assert isinstance(image, VecTransposeImage)


def test_normalized_rewards_leave_statistics_and_previous_reward_raw() -> None:
    options = {"k": 1, "episode_length": 20}
    raw = make_vec_env("fwp/RepeatPrevious-v0", 2, options=options, previous_reward=True)
    normalized = NormalizedRewards(
        make_vec_env("fwp/RepeatPrevious-v0", 2, options=options, previous_reward=True), gamma=0.9
    )
    raw.reset()
    normalized.reset()
    differ = ended = False
    for _ in range(40):
        observations, rewards, dones, infos = normalized.step(np.ones(2, dtype=int))
        raw_observations, raw_rewards, _, raw_infos = raw.step(np.ones(2, dtype=int))
        for key in raw_observations:  # type: ignore[union-attr]  # a dict
            np.testing.assert_array_equal(observations[key], raw_observations[key])  # type: ignore[call-overload]  # a dict
        for row in np.flatnonzero(dones):
            assert infos[row]["episode"]["r"] == raw_infos[row]["episode"]["r"]
            ended = True
        differ = differ or not np.allclose(rewards, raw_rewards)
    assert differ
    assert ended


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_normalized_rewards_hide_no_fault_and_blame_nobody_else(bad: float) -> None:
    venv = NormalizedRewards(make_vec_env("CartPole-v1", 3), gamma=0.9)
    np.testing.assert_array_equal(venv.normalize_reward(np.array([1.0, bad, 1.0])), [1.0, bad, 1.0])
    venv._update_reward(np.array([1.0, bad, 1.0]))
    assert np.isfinite(venv.normalize_reward(np.ones(3))).all()


def test_seeds_of_training_and_evaluation_never_meet() -> None:
    longest_evaluation = EVALUATION_SEED + 9_000_000
    assert all(training_seed(seed) >= longest_evaluation for seed in (0, 1, 999, 123_456, 2**31))
    assert training_seed(1) - training_seed(0) >= 1000  # runs of up to 1000 environments share no seed
    venv = make_vec_env("CartPole-v1", 2, seed=1)
    assert venv._seeds == [training_seed(1), training_seed(1) + 1]


@pytest.mark.parametrize(
    ("seconds_of_step", "n_envs", "n_steps", "n_cores", "workers"),
    [
        (1e-3, 16, 10**6, 2, 1),
        (1e-3, 16, 10**6, 4, 3),
        (1e-3, 16, 10**6, 1, 0),  # no core to spare
        (1e-3, 3, 10**6, 64, 2),  # no more processes than environments
        (1e-3, 1, 10**6, 64, 0),
        (8e-6, 16, 10**7, 2, 0),  # the message takes longer than the step
        (8e-6, 256, 10**7, 2, 1),
        (1e-3, 16, 5_000, 2, 0),  # over before the workers have started
        (1e-4, 16, 10**7, 64, 3),  # each more costs more than it brings
    ],
)
def test_as_many_workers_as_pay(seconds_of_step: float, n_envs: int, n_steps: int, n_cores: int, workers: int) -> None:
    """Red if cores, environments, the length of the run or the price of a message are forgotten."""
    assert soonest(seconds_of_step, n_envs, n_steps, n_cores) == workers


def test_workers_by_measurement() -> None:
    """Red if a task of NumPy is measured at all, or a fast one gets workers."""
    assert best_workers("fwp/TMaze-v0", 16, 10**9) == 0
    assert best_workers("CartPole-v1", 2, 10**4) == 0
    with pytest.raises(UsageError, match="CartPole-v1"):
        best_workers("CartPol-v1", 16, 10**6)


def test_a_task_of_numpy_has_no_workers() -> None:
    with pytest.raises(UsageError, match="workers=2: fwp/TMaze-v0 is written in NumPy"):
        make_vec_env("fwp/TMaze-v0", 4, workers=2)


class _Broken(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        return np.zeros(2, np.float32), {}

    def step(self, action: int) -> tuple:
        raise ZeroDivisionError("no such floor")


def test_a_task_that_raises_is_named_with_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envs, "make", lambda *_, **__: _Broken())
    env = make_env("Tower-v0", {})
    env.reset()
    with pytest.raises(
        EnvironmentFaultError, match=r"^Tower-v0: step raised ZeroDivisionError: no such floor \(test_vec_env.py:\d+\)$"
    ):
        env.step(0)


@pytest.mark.parametrize(
    ("env_id", "options", "message"),
    [
        ("CartPol-v1", {}, "CartPole-v1"),
        ("fwp/TMaze-v0", {"lenght": 3}, "length"),
        ("fwp/TMaze-v0", {"length": 0}, "length"),
        ("os:system", {}, "not supported"),
    ],
)
def test_wrong_ids_and_options_are_one_line(env_id: str, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        make_vec_env(env_id, 2, options=options)
    assert "\n" not in str(caught.value)
