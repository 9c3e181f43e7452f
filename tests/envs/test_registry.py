"""The door: which names are understood, and what is said about those that are not."""

import inspect
import subprocess
import sys

import gymnasium
import pytest
from stable_baselines3.common.env_checker import check_env

import envs
from envs.tasks import VECTOR_TASKS

# Box2D's SWIG types warn while they are made; as an error, that crashes the interpreter
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")


@pytest.mark.parametrize(
    ("spelling", "env_id"),
    [
        ("MiniGrid-MemoryS9-v0", "MiniGrid-MemoryS9-v0"),
        ("MiniGrid-MemoryS9", "MiniGrid-MemoryS9-v0"),
        ("MiniGrid-MultiRoom-N4-S5", "MiniGrid-MultiRoom-N4-S5-v1"),
        ("CartPoleNoVel", "CartPoleNoVel-v1"),
        ("MountainCarContinuousNoVel", "MountainCarContinuousNoVel-v0"),
        ("fwp/TMaze", "fwp/TMaze-v0"),
        ("CartPole", "CartPole-v1"),
    ],
)
def test_a_name_without_a_version_means_the_newest(spelling, env_id):
    assert envs.resolve(spelling) == env_id


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("MiniGrid-MemoryS10-v0", "unknown environment 'MiniGrid-MemoryS10-v0'; did you mean .*MiniGrid-MemoryS1"),
        ("MiniGrid-MemoryS9-v7", "did you mean MiniGrid-MemoryS9-v0 or"),
        ("BabyAI-GoToLocla-v0", "did you mean BabyAI-GoToLocal-v0 or"),
        ("Tmaze", "did you mean fwp/TMaze-v0"),
        ("CartPoleNoVell", "did you mean CartPoleNoVel-v1 or"),
        ("qqqqqqqq", "unknown environment 'qqqqqqqq'$"),
        ("os:CartPole-v1", "'module:id' is not supported"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(env_id, message):
    for ask in (envs.make, lambda name: envs.make_vector(name, 2)):
        with pytest.raises(envs.UnknownEnvironmentError, match=message) as error:
            ask(env_id)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("env_id", "options", "message"),
    [
        ("fwp/TMaze-v0", {"lenght": 3}, "fwp/TMaze-v0 has no option 'lenght'; did you mean length"),
        ("fwp/TMaze-v0", {"length": 0}, "length must be a positive whole number, got 0"),
        ("fwp/RepeatPrevious-v0", {"k": 40}, "episode_length=32 must exceed k=40"),
        ("fwp/Copy-v0", {"reverse": "yes"}, "reverse must be True or False, got 'yes'"),
        ("fwp/MiniGrid-TMaze-v0", {"length": 2}, "length must be at least view_size = 3, got 2"),
        ("fwp/MiniGrid-TMaze-v0", {"view_size": 9}, "length must be at least view_size = 9, got 7"),
        ("MiniGrid-MemoryS9-v0", {"view_sise": 3}, "has no option 'view_sise'; did you mean view_size"),
        ("MiniGrid-MemoryS9-v0", {"view_size": 4}, "view_size must be an odd number, at least 3, got 4"),
        ("MiniGrid-MemoryS9-v0", {"observation": "pixels"}, "observation must be one of onehot, symbolic, rgb"),
        ("CartPoleNoVel-v1", {"length": 3}, "CartPoleNoVel-v1 has no option 'length'"),
        ("CartPole-v1", {"length": 3}, "CartPole-v1 has no option 'length'"),
    ],
)
def test_an_unknown_or_impossible_option_is_named(env_id, options, message):
    with pytest.raises(ValueError, match=message):
        envs.make(env_id, **options)


def test_what_needs_box2d_says_so(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "Box2D", None)
    for env_id in ("LunarLanderNoVel-v3", "LunarLander-v3"):
        with pytest.raises(envs.MissingDependencyError, match=rf"{env_id} cannot run here: .*gymnasium\[box2d\]"):
            envs.make(env_id)


def test_other_environments_pass_through():
    env = envs.make("CartPole-v1", render_mode="rgb_array")
    assert repr(env) == repr(gymnasium.make("CartPole-v1", render_mode="rgb_array"))
    env.reset(seed=0)
    assert env.render().ndim == 3


def test_only_numpy_tasks_have_a_vector_form():
    assert envs.make_vector("fwp/TMaze", 5, length=3).n_envs == 5
    assert envs.make_vector("CartPole-v1", 5) is None
    with pytest.raises(ValueError, match="n_envs must be a positive whole number, got 0"):
        envs.make_vector("fwp/TMaze-v0", 0)


@pytest.mark.parametrize("env_id", envs.TASKS)
def test_every_task_passes_the_checkers_and_renders(env_id):
    env = envs.make(env_id, render_mode="rgb_array")
    assert env.spec is not None
    check_env(env, warn=False)
    env.reset(seed=0)
    assert env.render().shape[2] == 3
    env.close()


@pytest.mark.parametrize("env_id", envs.TASKS)
def test_gymnasium_makes_the_same_environment(env_id):
    ours, theirs = envs.make(env_id), gymnasium.make(env_id)
    assert theirs.observation_space == ours.observation_space
    ours.action_space.seed(0)
    observations = [env.reset(seed=3)[0] for env in (ours, theirs)]
    for _ in range(60):
        assert observations[0].tolist() == observations[1].tolist()
        action = ours.action_space.sample()
        steps = [env.step(action) for env in (ours, theirs)]
        assert steps[0][1:4] == steps[1][1:4]
        observations = [step[0] for step in steps]
        if steps[0][2] or steps[0][3]:
            observations = [env.reset()[0] for env in (ours, theirs)]


def test_the_records_tell_the_options_that_there_are():
    for env_id, task_class in VECTOR_TASKS.items():
        parameters = inspect.signature(task_class).parameters
        assert envs.TASKS[env_id].options == {n: p.default for n, p in parameters.items() if n != "n_envs"}
    for env_id, task in envs.TASKS.items():
        assert task.id == env_id
        if "LunarLander" not in env_id:
            envs.make(env_id, **task.options)


def test_importing_envs_imports_neither_learner_nor_minigrid():
    check = (
        "import sys, envs, envs.testing\n"
        "print(sorted({'torch', 'stable_baselines3', 'fwp_rl', 'agents', 'minigrid', 'numba'} & set(sys.modules)))\n"
        "import envs.minigrid\n"
        "print(sorted({'torch', 'stable_baselines3', 'fwp_rl', 'agents'} & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["[]", "[]"], result.stderr
