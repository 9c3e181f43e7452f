"""MiniGrid's engine, several times faster, with the same episodes and the same observations bit for bit.

MiniGrid spends its time in `gen_obs`, which copies a grid of Python objects cell by cell, five times a step. Here the
grid is also kept as an array of codes that follows the objects, and a compiled kernel cuts the view out of it.
"""

from typing import Any, SupportsFloat

import numpy as np
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX
from minigrid.core.world_object import Ball, Box, Floor, Goal, Key, Lava, Wall, WorldObj
from minigrid.minigrid_env import MiniGridEnv

from envs import _minigrid_view as kernels

_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # one cell forward, by direction
_LEFT, _RIGHT, _FORWARD, _PICKUP, _DROP, _TOGGLE, _DONE = range(7)

_EMPTY = (kernels.EMPTY, 0, 0, 0)
_STATIC: tuple[type[WorldObj], ...] = (
    Wall,
    Floor,
    Goal,
    Lava,
    Key,
    Ball,
    Box,
)  # objects whose code never changes while they stay where they are
_STATIC_CODES = {
    (kind, color): (OBJECT_TO_IDX[kind.__name__.lower()], COLOR_TO_IDX[color], 0, int(kind is Wall))
    for kind in _STATIC
    for color in COLOR_TO_IDX
}
_STATIC_TABLE = np.array([_EMPTY, *_STATIC_CODES.values()], np.uint8)
_STATIC_ROWS = {static: row for row, static in enumerate(_STATIC_CODES, start=1)}


class GridCodes:
    """The codes of a grid of objects, uint8[height, width, 4], brought up to date as the objects change."""

    def __init__(self, width: int, height: int) -> None:
        self.cells = np.empty((height, width, 4), np.uint8)
        self._objects: list[WorldObj | None] = []
        self._changing: list[tuple[int, WorldObj]] = []

    def follow(self, objects: list[WorldObj | None]) -> None:
        """Encode what changed since the last call: cells that hold another object, and doors."""
        if not self._objects:
            self._encode_all(objects)
        elif objects != self._objects:  # identity decides, in C: a microsecond for a hundred cells
            for index, (cell, before) in enumerate(zip(objects, self._objects, strict=True)):
                if cell is not before:
                    self._encode(index, cell)
            self._remember(objects)
        for index, cell in self._changing:
            self._encode(index, cell)

    def _encode(self, index: int, cell: WorldObj | None) -> None:
        self.cells[divmod(index, self.cells.shape[1])] = _code(cell)

    def _encode_all(self, objects: list[WorldObj | None]) -> None:
        rows = [0 if cell is None else _STATIC_ROWS.get((type(cell), cell.color), 0) for cell in objects]
        self.cells[:] = _STATIC_TABLE[rows].reshape(self.cells.shape)
        self._remember(objects)  # from here on `follow` encodes the cells that are not static

    def _remember(self, objects: list[WorldObj | None]) -> None:
        self._objects = objects.copy()
        self._changing = [(i, cell) for i, cell in enumerate(objects) if cell is not None and type(cell) not in _STATIC]


class FastMiniGridEnv(MiniGridEnv):
    """Takes the place of `MiniGridEnv` behind a task (`class Fast(MemoryEnv, FastMiniGridEnv)`).

    `step` and `gen_obs` are MiniGrid's own, on plain integers and on `GridCodes`. What a task draws, rewards and
    renders is untouched.
    """

    _codes: GridCodes
    _view: np.ndarray
    carrying: WorldObj | None  # type: ignore[assignment]  # minigrid forgets None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._codes = GridCodes(self.width, self.height)
        self._view = np.empty((self.agent_view_size, self.agent_view_size, 3), np.uint8)
        return super().reset(seed=seed, options=options)

    def gen_obs(self) -> dict[str, Any]:
        return {"image": self.partial_view().copy(), "direction": self.agent_dir, "mission": self.mission}

    def partial_view(self) -> np.ndarray:
        """The codes in view, uint8[view, view, 3]; overwritten by the next call."""
        kernels.partial_view(*self._visual_state(), self._view)
        return self._view

    def one_hot_view(self) -> np.ndarray:
        """The one-hot codes in view, uint8[view * view * N_CODES]."""
        out = np.empty(self._view.shape[0] * self._view.shape[1] * kernels.N_CODES, np.uint8)
        kernels.one_hot_partial_view(*self._visual_state(), self._view, out)
        return out

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        self.step_count += 1
        reward: float = 0
        terminated = False
        if action == _LEFT:
            self.agent_dir = (self.agent_dir - 1) % 4
        elif action == _RIGHT:
            self.agent_dir = (self.agent_dir + 1) % 4
        elif action != _DONE:
            front = self._front()
            cell = self.grid.get(*front)
            if action == _FORWARD:
                reward, terminated = self._move(front, cell)
            else:
                self._handle(action, front, cell)
        truncated = self.step_count >= self.max_steps
        if self.render_mode == "human":
            self.render()
        return self.gen_obs(), reward, terminated, truncated, {}

    def _front(self) -> tuple[int, int]:
        forward_x, forward_y = _STEPS[self.agent_dir]
        x, y = self.agent_pos
        return int(x) + forward_x, int(y) + forward_y

    def _move(self, front: tuple[int, int], cell: WorldObj | None) -> tuple[float, bool]:
        if cell is None or cell.can_overlap():
            self.agent_pos = front
        if cell is not None and cell.type == "goal":
            return self._reward(), True
        return 0, cell is not None and cell.type == "lava"

    def _handle(self, action: int, front: tuple[int, int], cell: WorldObj | None) -> None:
        if action == _PICKUP:
            if cell and cell.can_pickup() and self.carrying is None:
                self.carrying = cell
                cell.cur_pos = np.array([-1, -1])  # type: ignore[assignment]  # as MiniGrid itself does
                self.grid.set(*front, None)
        elif action == _DROP:
            if not cell and self.carrying:
                self.grid.set(*front, self.carrying)
                self.carrying.cur_pos = np.array(front)  # type: ignore[assignment]  # minigrid says tuple, and stores arrays
                self.carrying = None
        elif action == _TOGGLE:
            if cell:
                cell.toggle(self, front)
        else:
            raise ValueError(f"Unknown action: {action}")

    def _visual_state(self) -> tuple[np.ndarray, int, int, int, tuple[int, int, int], bool]:
        self._codes.follow(self.grid.grid)
        x, y = self.agent_pos
        carried = _code(self.carrying)[:3] if self.carrying else _EMPTY[:3]
        return self._codes.cells, x, y, self.agent_dir, carried, self.see_through_walls


def _code(cell: WorldObj | None) -> tuple[int, int, int, int]:
    """Object, color and state of a cell, and whether it hides what is behind it."""
    if cell is None:
        return _EMPTY
    if type(cell) in _STATIC:
        return _STATIC_CODES[type(cell), cell.color]
    return (*cell.encode(), int(not cell.see_behind()))
