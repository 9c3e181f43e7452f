"""Partially observable tasks behind one door.

    import envs

    env = envs.make("MiniGrid-MemoryS11-v0", actions="moves")
    env = envs.make("fwp/TMaze-v0", length=20)
    tasks = envs.make_vector("fwp/TMaze-v0", 64, length=20)

Importing this package registers our environments with Gymnasium.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium

from envs.envpool_task import EnvPoolTask, pool_of
from envs.masked_control import MASKED_TASKS, make_masked
from envs.packages import MAKERS
from envs.registry import (
    MissingDependencyError,
    UnknownEnvironmentError,
    check_options,
    missing_dependency,
    option_names,
    package_of,
    resolve,
)
from envs.task import VectorTask, make_task_env, make_task_vector_env
from envs.tasks import TASKS, VECTOR_TASKS, Task
from envs.variants import VARIANT_OPTIONS, build_task
from envs.wrappers import WRAPPERS, with_supported_spaces, wrap

__all__ = [
    "TASKS",
    "WRAPPERS",
    "EnvPoolTask",
    "MissingDependencyError",
    "Task",
    "UnknownEnvironmentError",
    "VectorTask",
    "make",
    "make_pool",
    "make_vector",
    "package_of",
    "resolve",
]

_MINIGRID_PREFIXES = ("MiniGrid-", "BabyAI-", "fwp/MiniGrid-")


def make(env_id: str, *, render_mode: str | None = None, wrappers: Sequence[str] = (), **options: Any) -> gymnasium.Env:
    """The environment of that name, for training, evaluation and rendering alike.

    A name without a version means the newest one. `options` are the environment's own: those in `TASKS` for our tasks
    (and those of `envs.variants` for all that are written in NumPy), `envs.minigrid.MiniGridOptions` for MiniGrid and
    BabyAI, those of `envs.packages` for other packages, the constructor's for everything else that is registered with
    Gymnasium, which passes through `gymnasium.make`. `wrappers` are those of `envs.wrappers`, the first innermost.
    Observations that Stable-Baselines3 does not take are flattened.
    """
    env_id = resolve(env_id)
    with missing_dependency(env_id):
        env = _make(env_id, render_mode, options)
    try:
        return wrap(with_supported_spaces(env), wrappers)
    except ValueError:
        env.close()
        raise


def _make(env_id: str, render_mode: str | None, options: dict[str, Any]) -> gymnasium.Env:
    if env_id.startswith(_MINIGRID_PREFIXES):
        from envs import minigrid  # half a second of imports that no other environment needs

        check_options(env_id, options, minigrid.task_options(env_id))
        return minigrid.make_minigrid(env_id, render_mode=render_mode, **options)
    if env_id in VECTOR_TASKS:
        check_options(env_id, options, _task_options(env_id))
        env = make_task_env(_builder(env_id), render_mode=render_mode, **options)
        return _labelled(env, env_id, options)
    if env_id in MASKED_TASKS:
        check_options(env_id, options, option_names(MASKED_TASKS[env_id].full_id))
        return make_masked(env_id, render_mode=render_mode, **options)
    package = package_of(env_id)
    if package is not None and package.name in MAKERS:
        return MAKERS[package.name](env_id, render_mode=render_mode, **options)
    check_options(env_id, options, option_names(env_id))
    return gymnasium.make(env_id, render_mode=render_mode, **options)


def make_vector(env_id: str, n_envs: int, *, wrappers: Sequence[str] = (), **options: Any) -> VectorTask | None:
    """`n_envs` copies of one of our NumPy tasks in one object; None for an environment that has no such form.

    Wrappers are for one environment: nothing inside one has such a form.
    """
    env_id = resolve(env_id)
    if env_id not in VECTOR_TASKS or wrappers:
        return None
    check_options(env_id, options, _task_options(env_id))
    return _builder(env_id)(n_envs, **options)


def make_pool(env_id: str, n_envs: int, *, wrappers: Sequence[str] = (), **options: Any) -> EnvPoolTask:
    """`n_envs` copies of an environment that EnvPool steps, much faster where it steps slowly (`envs.envpool_task`).

    Raises what `make` raises, and the same where EnvPool is not installed or lacks the environment or an option.
    """
    original = make(env_id, wrappers=wrappers, **options)
    if wrappers:
        raise ValueError(f"EnvPool has no wrappers, got {wrappers[0]}: leave the wrappers or engine out")
    return pool_of(original, resolve(env_id), n_envs, options)


def _builder(env_id: str) -> Callable[..., VectorTask]:
    return functools.partial(build_task, VECTOR_TASKS[env_id])


def _task_options(env_id: str) -> list[str]:
    own = [name for name in inspect.signature(VECTOR_TASKS[env_id]).parameters if name != "n_envs"]
    return [*own, *VARIANT_OPTIONS]


def _labelled(env: gymnasium.Env, env_id: str, options: dict[str, Any]) -> gymnasium.Env:
    """With the spec that `gymnasium.make` would have given it."""
    env.spec = copy.deepcopy(gymnasium.spec(env_id))
    env.spec.kwargs.update(options)
    return env


def _register() -> None:
    for env_id in VECTOR_TASKS:
        gymnasium.register(
            env_id,
            entry_point=functools.partial(make_task_env, _builder(env_id)),
            vector_entry_point=functools.partial(make_task_vector_env, _builder(env_id)),
        )
    gymnasium.register("fwp/MiniGrid-TMaze-v0", entry_point="envs.minigrid:make_tmaze")
    for env_id in MASKED_TASKS.keys() - gymnasium.registry.keys():  # RL Zoo has the same names
        gymnasium.register(env_id, entry_point=functools.partial(make_masked, env_id))


_register()
