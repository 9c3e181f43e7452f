"""MiniGrid and BabyAI as flat, fast, partially observable tasks.

    env = make_minigrid("MiniGrid-MemoryS11-v0", actions="moves")

The stock task class draws the grids and the rewards; `FastMiniGridEnv` stands behind it as the engine, and
`_MiniGridTask` in front of it turns views into observations. One object, no wrappers.
"""

import contextlib
import functools
import inspect
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, get_args

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from minigrid.core.grid import Grid
from minigrid.core.world_object import WorldObj
from minigrid.envs.babyai.core.roomgrid_level import RoomGridLevel
from minigrid.minigrid_env import MiniGridEnv

from envs._minigrid_engine import FastMiniGridEnv
from envs._minigrid_mission import MissionEncoder, mission_encoder
from envs._minigrid_view import EMPTY, N_CODES, one_hot_views
from envs.minigrid_tmaze import MiniGridTMaze

Observation = Literal["onehot", "symbolic", "rgb"]
Actions = Literal["all", "moves"]
Mission = Literal["auto", "drop", "tokens"]

_OWN_CLASSES: dict[str, type[MiniGridEnv]] = {"fwp/MiniGrid-TMaze-v0": MiniGridTMaze}
_MOVES = 3  # left, right, forward
_MIN_PIXELS = 36  # side of the smallest image that Stable-Baselines3's convolutional network takes


@dataclass(frozen=True, kw_only=True)
class MiniGridOptions:
    """What an agent sees of a MiniGrid task, and what it can do.

    view_size: side of the square in view, odd, at least 3; None keeps the task's own (7).
    observation: "onehot" (object, color and state of each cell in view as one-hot uint8, flat; all zeros for a cell
        that is empty or out of sight, only the object for a wall), "symbolic" (the three numbers of each cell, flat)
        or "rgb" (the view as an image, at least 36 pixels wide).
    actions: "all" (the task's own) or "moves" (left, right, forward: all that a navigation task needs).
    mission: "tokens" makes the observation a dict of "view" and "mission", the mission's words as one-hot uint8, word
        by word, flat; "drop" leaves it out; "auto" keeps it where it varies between episodes, and for all of BabyAI.
    max_steps: length of the longest episode; None keeps the task's own.
    """

    view_size: int | None = None
    observation: Observation = "onehot"
    actions: Actions = "all"
    mission: Mission = "auto"
    max_steps: int | None = None

    def __post_init__(self) -> None:
        size = self.view_size
        if size is not None and (not isinstance(size, int) or size < 3 or size % 2 == 0):
            raise ValueError(f"view_size must be an odd number, at least 3, got {size!r}")
        steps = self.max_steps
        if steps is not None and (not isinstance(steps, int) or steps < 1):
            raise ValueError(f"max_steps must be a positive whole number, got {steps!r}")
        for name, choices in (("observation", Observation), ("actions", Actions), ("mission", Mission)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, got {getattr(self, name)!r}")


OPTION_NAMES = tuple(field.name for field in fields(MiniGridOptions))


def make_minigrid(env_id: str, *, render_mode: str | None = None, **options: Any) -> gymnasium.Env:
    """The registered MiniGrid or BabyAI task with `MiniGridOptions`; other options go to the task itself."""
    spec = gymnasium.spec(env_id)
    env = make_task(_stock_class(env_id), render_mode=render_mode, **{**spec.kwargs, **options})
    env.spec = spec
    return env


def make_tmaze(*, render_mode: str | None = None, **options: Any) -> gymnasium.Env:
    """`MiniGridTMaze` with `MiniGridOptions`: what `gymnasium.make` calls."""
    return make_task(MiniGridTMaze, render_mode=render_mode, **options)


def make_task(stock_class: type[MiniGridEnv], *, render_mode: str | None = None, **options: Any) -> gymnasium.Env:
    """The task defined by a stock MiniGrid class, with `MiniGridOptions`; other options go to the class."""
    ours = MiniGridOptions(**{name: options.pop(name) for name in OPTION_NAMES if name in options})
    if ours.max_steps is not None:
        options["max_steps"] = ours.max_steps
    if ours.view_size is not None:
        options["agent_view_size"] = ours.view_size
    return _task_class(stock_class)(ours, render_mode=render_mode, **options)  # type: ignore[arg-type]  # a class made here


def task_options(env_id: str) -> tuple[str, ...]:
    """Names of the options that the task takes: `MiniGridOptions` and those of the task's own class."""
    own = inspect.signature(_stock_class(env_id)).parameters.values()
    named = [parameter.name for parameter in own if parameter.kind is not parameter.VAR_KEYWORD]
    return tuple(dict.fromkeys((*OPTION_NAMES, *(name for name in named if name != "agent_view_size"))))


def _stock_class(env_id: str) -> type[MiniGridEnv]:
    if env_id in _OWN_CLASSES:
        return _OWN_CLASSES[env_id]
    entry_point = gymnasium.spec(env_id).entry_point
    stock_class: Any = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    if not (isinstance(stock_class, type) and issubclass(stock_class, MiniGridEnv)):
        raise ValueError(f"{env_id} is not registered as a subclass of MiniGridEnv, but as {stock_class!r}")
    return stock_class


class _MiniGridTask(FastMiniGridEnv):
    """Stands in front of the stock class: observations, actions and `info["is_success"]`."""

    _stock_class: ClassVar[type[MiniGridEnv]]

    def __init__(self, options: MiniGridOptions, **stock_options: Any) -> None:
        super().__init__(**stock_options)
        if options.actions == "moves":
            self.action_space = spaces.Discrete(_MOVES)
        assert isinstance(self.action_space, spaces.Discrete)
        self._n_actions = int(self.action_space.n)
        self._observation = options.observation
        self.mission_encoder = _mission_encoder_of(self, options.mission)
        self._tokens: tuple[str | None, np.ndarray] = (None, np.zeros(0, np.uint8))  # a mission and its encoding
        self.observation_space = _view_space(options.observation, self.agent_view_size)
        if self.mission_encoder is not None:
            self.observation_space = spaces.Dict(
                {"view": self.observation_space, "mission": self.mission_encoder.space}
            )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        # BabyAI prints every grid that it rejects
        quiet = contextlib.redirect_stdout(None) if isinstance(self, RoomGridLevel) else contextlib.nullcontext()
        with quiet:
            observation, _ = super().reset(seed=seed, options=options)
        return observation, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        action = int(action)
        if not 0 <= action < self._n_actions:
            raise ValueError(f"action must be in 0..{self._n_actions - 1}, got {action}")
        observation, reward, terminated, truncated, _ = super().step(action)
        reward = float(reward)
        return observation, reward, terminated, truncated, {"is_success": terminated and reward > 0}

    def gen_obs(self) -> Any:
        view = self._observe()
        if self.mission_encoder is None:
            return view
        mission, tokens = self._tokens
        if mission != self.mission:
            tokens = self.mission_encoder.encode(self.mission)
            self._tokens = (self.mission, tokens)
        return {"view": view, "mission": tokens.copy()}

    def _observe(self) -> np.ndarray:
        if self._observation == "onehot":
            return self.one_hot_view()
        return self.encode_views(self.partial_view()[None])[0]

    def encode_views(self, views: np.ndarray) -> np.ndarray:
        """What is observed of views in MiniGrid's own codes, uint8[n, side, side, 3]: a new array `[n, ...]`."""
        if self._observation == "onehot":
            return one_hot_views(views)
        return (
            views.reshape(len(views), -1).copy()
            if self._observation == "symbolic"
            else np.stack([*map(render_view, views)])
        )

    def __reduce__(self):  # the class is made at run time, so pickle has to be told how to find it
        return _blank_task, (self._stock_class,), self.__dict__


def render_view(view: np.ndarray) -> np.ndarray:
    """The picture of a view, uint8[side, side, 3]: what `MiniGridEnv.get_pov_render` draws, from cached tiles."""
    size = view.shape[0]
    tile_size = _tile_size(size)
    rows = [
        np.concatenate(
            [_tile(*view[i, j].tolist(), i == size // 2 and j == size - 1, tile_size) for i in range(size)], axis=1
        )
        for j in range(size)
    ]
    return np.concatenate(rows)


@functools.cache
def _tile(object_index: int, color: int, state: int, is_agent: bool, tile_size: int) -> np.ndarray:
    cell = WorldObj.decode(object_index, color, state)
    agent_direction = 3 if is_agent else None
    return Grid.render_tile(cell, agent_direction, highlight=object_index >= EMPTY, tile_size=tile_size).astype(
        np.uint8
    )


def _tile_size(view_size: int) -> int:
    return max(8, -(-_MIN_PIXELS // view_size))


def _view_space(observation: Observation, view_size: int) -> spaces.Box:
    if observation == "onehot":
        return spaces.Box(0, 1, (view_size * view_size * N_CODES,), np.uint8)
    if observation == "symbolic":
        return spaces.Box(0, 255, (view_size * view_size * 3,), np.uint8)
    side = view_size * _tile_size(view_size)
    return spaces.Box(0, 255, (side, side, 3), np.uint8)


def _mission_encoder_of(env: MiniGridEnv, mission: Mission) -> MissionEncoder | None:
    if mission == "drop":
        return None
    encoder = mission_encoder(env)
    return encoder if mission == "tokens" or encoder.varies else None


@functools.cache
def _task_class(stock_class: type) -> type[_MiniGridTask]:
    """`_MiniGridTask` in front of the stock class, `FastMiniGridEnv` behind it and behind all that it inherits."""
    lineage = [base for base in stock_class.__mro__ if issubclass(base, MiniGridEnv) and base is not MiniGridEnv]
    members = {"_stock_class": stock_class, "__module__": __name__, "__doc__": stock_class.__doc__}
    return type(f"Fast{stock_class.__name__}", (_MiniGridTask, *lineage, FastMiniGridEnv), members)


def _blank_task(stock_class: type[MiniGridEnv]) -> _MiniGridTask:
    return object.__new__(_task_class(stock_class))  # type: ignore[arg-type]  # a class made here
