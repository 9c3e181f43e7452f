"""MiniGrid behind our engine is MiniGrid: same grids, same observations, same rewards, bit for bit."""

import contextlib
import io
import pickle

import gymnasium
import minigrid  # noqa: F401  (registers its environments)
import numpy as np
import pytest
from gymnasium import spaces
from minigrid.wrappers import OneHotPartialObsWrapper, RGBImgPartialObsWrapper
from stable_baselines3.common.env_checker import check_env

import envs
from envs._minigrid_mission import mission_encoder

IDS = [
    "MiniGrid-MemoryS7-v0",
    "MiniGrid-MemoryS13Random-v0",
    "MiniGrid-DoorKey-6x6-v0",
    "MiniGrid-Dynamic-Obstacles-6x6-v0",
    "MiniGrid-KeyCorridorS3R2-v0",
    "MiniGrid-RedBlueDoors-6x6-v0",
    "MiniGrid-ObstructedMaze-1Dlhb-v0",
    "MiniGrid-LavaGapS5-v0",
    "MiniGrid-PutNear-6x6-N2-v0",
    "MiniGrid-MultiRoom-N2-S4-v0",
    "BabyAI-GoToLocal-v0",
    "BabyAI-KeyInBox-v0",
    "BabyAI-PutNextS5N2Carrying-v0",
]


def stock(env_id: str, view_size: int) -> gymnasium.Env:
    env = gymnasium.make(env_id, disable_env_checker=True).unwrapped
    env.agent_view_size = view_size
    return env


def quietly(function, *args, **kwargs):
    """BabyAI prints every grid that it rejects."""
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*args, **kwargs)


def random_action(rng: np.random.Generator, n_actions: int) -> int:
    """Half of the moves forward, so that the agent gets somewhere."""
    return 2 if rng.random() < 0.4 else int(rng.integers(n_actions))


@pytest.mark.parametrize("view_size", [3, 5, 7])
@pytest.mark.parametrize("env_id", IDS)
def test_episodes_equal_those_of_stock_minigrid(env_id, view_size):
    check_episodes(env_id, view_size)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")
@pytest.mark.parametrize("view_size", [3, 7])
@pytest.mark.parametrize("env_id", [i for i in gymnasium.registry if i.startswith(("MiniGrid-", "BabyAI-"))])
def test_episodes_of_every_registered_task_equal_those_of_stock_minigrid(env_id, view_size):
    if "-WFC-" in env_id:
        pytest.importorskip("imageio", reason="MiniGrid's WFC tasks need minigrid[wfc]")
    check_episodes(env_id, view_size)


def check_episodes(env_id: str, view_size: int) -> None:
    expected = stock(env_id, view_size)
    env = envs.make(env_id, view_size=view_size, observation="symbolic", mission="drop")
    rng = np.random.default_rng(view_size)
    image = quietly(expected.reset, seed=3)[0]["image"]
    np.testing.assert_array_equal(env.reset(seed=3)[0], image.ravel())
    for _ in range(80):
        action = random_action(rng, expected.action_space.n)
        before, *outcome, _ = expected.step(action)
        after, *our_outcome, info = env.step(action)
        np.testing.assert_array_equal(after, before["image"].ravel())
        assert our_outcome == outcome
        assert info["is_success"] == (outcome[1] and outcome[0] > 0)
        if outcome[1] or outcome[2]:
            image = quietly(expected.reset)[0]["image"]
            np.testing.assert_array_equal(env.reset()[0], image.ravel())


@pytest.mark.parametrize(("observation", "wrapper"), [("onehot", OneHotPartialObsWrapper), ("rgb", None)])
def test_other_observations_equal_minigrids_wrappers(observation, wrapper):
    env_id, view_size = "MiniGrid-DoorKey-5x5-v0", 5
    expected = gymnasium.make(env_id, disable_env_checker=True, agent_view_size=view_size)
    expected = wrapper(expected) if wrapper else RGBImgPartialObsWrapper(expected, tile_size=8)
    adapt = without_nothing if observation == "onehot" else np.ravel
    env = envs.make(env_id, view_size=view_size, observation=observation)
    rng = np.random.default_rng(0)
    image = expected.reset(seed=4)[0]["image"]
    np.testing.assert_array_equal(env.reset(seed=4)[0].ravel(), adapt(image))
    for _ in range(150):
        action = random_action(rng, 7)
        np.testing.assert_array_equal(env.step(action)[0].ravel(), adapt(expected.step(action)[0]["image"]))


def without_nothing(image):
    """MiniGrid's one-hot view less what says nothing: empty and unseen cells, colors and states of walls."""
    cells = image.reshape(-1, 20).copy()
    cells[cells[:, :3].any(axis=1), 11:] = 0
    return cells[:, 2:].ravel()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"observation": "symbolic", "actions": "moves"},
        {"observation": "rgb", "view_size": 3},
        {"mission": "tokens", "view_size": 5},
    ],
)
@pytest.mark.parametrize("env_id", ["MiniGrid-MemoryS7-v0", "BabyAI-GoToLocal-v0"])
def test_environments_pass_the_checker(env_id, options):
    check_env(envs.make(env_id, **options))


def test_an_image_is_large_enough_for_a_convolutional_network():
    for view_size, side in [(3, 36), (5, 40), (7, 56)]:
        space = envs.make("MiniGrid-MemoryS7-v0", view_size=view_size, observation="rgb").observation_space
        assert space.shape == (side, side, 3)


def test_moves_are_all_that_remains_of_the_actions():
    env = envs.make("MiniGrid-MemoryS7-v0", actions="moves")
    assert env.action_space == spaces.Discrete(3)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action must be in 0\.\.2, got 3"):
        env.step(3)


def test_the_mission_is_seen_where_it_varies():
    assert isinstance(envs.make("MiniGrid-MemoryS7-v0").observation_space, spaces.Box)
    assert isinstance(envs.make("MiniGrid-ObstructedMaze-1Dl-v0").observation_space, spaces.Box)
    for env_id in ("MiniGrid-GoToDoor-5x5-v0", "BabyAI-GoToLocal-v0"):
        assert set(envs.make(env_id).observation_space) == {"view", "mission"}
        assert isinstance(envs.make(env_id, mission="drop").observation_space, spaces.Box)


@pytest.mark.parametrize("env_id", ["MiniGrid-Fetch-5x5-N2-v0", "BabyAI-OpenTwoDoors-v0", "BabyAI-BossLevel-v0"])
def test_mission_tokens_spell_the_mission(env_id):
    encoder = mission_encoder(stock(env_id, 7))
    env = envs.make(env_id)
    missions = set()
    for seed in range(4):
        rows = env.reset(seed=seed)[0]["mission"].reshape(-1, len(encoder.vocabulary))
        spelled = [encoder.vocabulary[row.argmax()] for row in rows if row.any()]
        assert spelled == env.unwrapped.mission.replace(",", "").split()
        missions.add(" ".join(spelled))
    assert len(missions) > 1


def test_every_task_of_minigrid_and_babyai_runs_and_its_missions_can_be_told():
    """Red if an installed task cannot be made or stepped, or sets a mission with a word that its encoding lacks."""
    env_ids = [i for i in gymnasium.registry if i.startswith(("MiniGrid-", "BabyAI-")) and "-WFC-" not in i]
    assert len(env_ids) > 150
    for env_id in env_ids:
        env = envs.make(env_id, mission="tokens")
        env.action_space.seed(0)
        for seed in range(5):
            observation, _ = env.reset(seed=seed)
            assert observation["mission"].any() == bool(env.unwrapped.mission), env_id
        observation, *_ = env.step(env.action_space.sample())
        assert env.observation_space.contains(observation), env_id


def test_max_steps_truncates():
    for env_id in ("MiniGrid-MemoryS7-v0", "BabyAI-GoToLocal-v0"):
        env = envs.make(env_id, max_steps=5)
        env.reset(seed=0)
        assert [env.step(6)[3] for _ in range(5)] == [False] * 4 + [True]


def test_a_copy_goes_on_alike():
    env = envs.make("MiniGrid-Dynamic-Obstacles-6x6-v0")
    env.reset(seed=1)
    env.step(0)
    copy = pickle.loads(pickle.dumps(env))
    for action in (1, 2, 0, 1):
        np.testing.assert_array_equal(copy.step(action)[0], env.step(action)[0])


def test_rendering():
    env = envs.make("MiniGrid-MemoryS7-v0", render_mode="rgb_array")
    env.reset(seed=0)
    expected = gymnasium.make("MiniGrid-MemoryS7-v0", render_mode="rgb_array")
    expected.reset(seed=0)
    np.testing.assert_array_equal(env.render(), expected.render())
