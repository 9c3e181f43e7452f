"""The environments that are our own, in words and in code."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from envs.copy_sequence import Copy
from envs.endless_t_maze import EndlessTMaze
from envs.group_tracking import GroupTracking
from envs.key_value_recall import KeyValueRecall
from envs.masked_cart_pole import MaskedCartPole
from envs.masked_pendulum import MaskedPendulum
from envs.memory_chain import MemoryChain
from envs.repeat_previous import RepeatPrevious
from envs.t_maze import TMaze
from envs.tally import Tally
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
        "fwp/EndlessTMaze-v0": EndlessTMaze,
        "fwp/RepeatPrevious-v0": RepeatPrevious,
        "fwp/KeyValueRecall-v0": KeyValueRecall,
        "fwp/GroupTracking-v0": GroupTracking,
        "fwp/Tally-v0": Tally,
        "fwp/Copy-v0": Copy,
        "fwp/MaskedCartPole-v0": MaskedCartPole,
        "fwp/MaskedPendulum-v0": MaskedPendulum,
        "fwp/MemoryChain-v0": MemoryChain,
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
        id="fwp/EndlessTMaze-v0",
        description="T-mazes in a row by the published rules (arXiv 2601.15086): each correct turn leads to a new cue",
        isolates="retention of one bit, and overwriting it",
        options={"length": 10, "n_corridors": 3, "uniform": False},
    ),
    Task(
        id="fwp/RepeatPrevious-v0",
        description="name the symbol that was shown k steps ago, every step",
        isolates="ordered recall of the last k symbols",
        options={"k": 4, "n_symbols": 4, "episode_length": 32},
    ),
    Task(
        id="fwp/KeyValueRecall-v0",
        description="read pairs of key and value, then name the value that was written last under a key",
        isolates="association, and overwriting one of many things",
        options={
            "n_keys": 4,
            "n_values": 8,
            "n_writes": 12,
            "n_queries": 4,
            "mode": "write_then_query",
            "skew": 0.0,
        },
    ),
    Task(
        id="fwp/GroupTracking-v0",
        description="see a state once and then the moves that change it; say where it stands",
        isolates="state tracking: running products in a group",
        options={"group": "cups", "order": 5, "episode_length": 16, "asked": "always"},
    ),
    Task(
        id="fwp/Tally-v0",
        description="say how often a symbol was seen, or which of two was seen more often",
        isolates="counting, for which adding is enough",
        options={"n_symbols": 4, "episode_length": 16, "question": "count"},
    ),
    Task(
        id="fwp/Copy-v0",
        description="see a sequence of symbols, then name them in the same order, or backwards",
        isolates="ordered recall of a whole sequence",
        options={"length": 4, "n_symbols": 4, "reverse": False},
    ),
    Task(
        id="fwp/MaskedCartPole-v0",
        description="balance a pole, seeing positions but no velocities, with noise if you like",
        isolates="estimating velocities (two steps; more with noise)",
        options={"noise": 0.0, "episode_length": 500},
    ),
    Task(
        id="fwp/MaskedPendulum-v0",
        description="swing a pendulum up, seeing its angle but not its velocity, with noise if you like",
        isolates="estimating velocities (two steps; more with noise), continuous actions",
        options={"noise": 0.0, "episode_length": 200},
    ),
    Task(
        id="fwp/MemoryChain-v0",
        description="see bits, wait, tell the one that is asked for: memory_len and memory_size of bsuite",
        isolates="retention, of one bit over a delay or of many for two steps",
        options={"memory_length": 10, "n_bits": 1},
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
