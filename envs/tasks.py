"""The environments that are our own, in words and in code."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from envs.repeat_previous import RepeatPrevious
from envs.t_maze import TMaze
from envs.task import VectorTask


@dataclass(frozen=True, kw_only=True)
class Task:
    """One of our environments, in words."""

    id: str
    description: str
    isolates: str
    options: Mapping[str, Any]  # name: default


VECTOR_TASKS: Mapping[str, type[VectorTask]] = MappingProxyType(
    {
        "fwp/TMaze-v0": TMaze,
        "fwp/RepeatPrevious-v0": RepeatPrevious,
    }
)

_RECORDS = (
    Task(
        id="fwp/TMaze-v0",
        description="a cue, a corridor, a turn to the side that the cue told; several in a row if you like",
        isolates="retention of one bit; with n_corridors > 1, overwriting it",
        options={"length": 10, "n_corridors": 1, "uniform": False},
    ),
    Task(
        id="fwp/RepeatPrevious-v0",
        description="name the symbol that was shown k steps ago, every step",
        isolates="ordered recall of the last k symbols",
        options={"k": 4, "n_symbols": 4, "episode_length": 32},
    ),
    Task(
        id="fwp/MiniGrid-TMaze-v0",
        description="the T-maze with MiniGrid's walls, turns and pictures",
        isolates="retention of one bit, with navigation",
        options={"length": 7, "view_size": 3, "observation": "onehot", "mission": "auto", "max_steps": None},
    ),
    Task(
        id="CartPoleNoVel-v1",
        description="balance a pole, seeing positions but no velocities",
        isolates="estimating velocities (two steps)",
        options={},
    ),
    Task(
        id="PendulumNoVel-v1",
        description="swing a pendulum up, seeing its angle but not its velocity",
        isolates="estimating velocities (two steps), continuous actions",
        options={},
    ),
    Task(
        id="MountainCarContinuousNoVel-v0",
        description="drive out of a valley, seeing the position but not the velocity",
        isolates="estimating velocities (two steps), exploration",
        options={},
    ),
    Task(
        id="LunarLanderNoVel-v3",
        description="land on the moon, seeing positions but no velocities (needs Box2D)",
        isolates="estimating velocities (two steps)",
        options={},
    ),
)

TASKS: Mapping[str, Task] = MappingProxyType({task.id: task for task in _RECORDS})
