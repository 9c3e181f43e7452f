"""Partially observable tasks behind one door.

    import envs

    env = envs.make("MiniGrid-MemoryS11-v0", actions="moves")
    env = envs.make("fwp/TMaze-v0", length=20)

Importing this package registers our environments with Gymnasium.
"""

from typing import Any

import gymnasium

from envs.registry import (
    TASKS,
    MissingDependencyError,
    Task,
    UnknownEnvironmentError,
    check_options,
    make_registered,
    resolve,
)

__all__ = ["TASKS", "MissingDependencyError", "Task", "UnknownEnvironmentError", "make", "resolve"]

_MINIGRID_PREFIXES = ("MiniGrid-", "BabyAI-", "fwp/MiniGrid-")


def make(env_id: str, *, render_mode: str | None = None, **options: Any) -> gymnasium.Env:
    """The environment of that name, for training, evaluation and rendering alike.

    A name without a version means the newest one. `options` are the environment's own: those of `TASKS` for our tasks,
    `envs.minigrid.MiniGridOptions` for MiniGrid and BabyAI, the constructor's for everything else that is registered
    with Gymnasium, which passes through `gymnasium.make`.
    """
    env_id = resolve(env_id)
    if env_id.startswith(_MINIGRID_PREFIXES):
        from envs import minigrid  # half a second of imports that no other environment needs

        check_options(env_id, options, minigrid.task_options(env_id))
        return minigrid.make_minigrid(env_id, render_mode=render_mode, **options)
    return make_registered(env_id, render_mode=render_mode, options=options)
