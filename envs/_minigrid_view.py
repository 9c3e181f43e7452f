"""Numba kernels for what a MiniGrid agent sees.

A grid is `cells`, uint8[height, width, 4]: object, color, state (MiniGrid's own encoding) and whether the cell hides
what is behind it. A view is uint8[size, size, 3], first axis left to right, second axis far to near, with the agent in
the middle of the last column, looking at smaller indices: the layout of `MiniGridEnv.gen_obs()["image"]`.
"""

import numba
import numpy as np

OBJECT, COLOR, STATE, OPAQUE = range(4)
EMPTY, WALL, GREY = 1, 2, 5
N_OBJECTS, N_COLORS, N_STATES = 11, 6, 3
N_CODES = (N_OBJECTS - WALL) + N_COLORS + N_STATES

_FORWARD_X, _FORWARD_Y = (1, 0, -1, 0), (0, 1, 0, -1)  # one cell forward, by direction


@numba.njit(cache=True)
def partial_view(cells, x, y, direction, carried, sees_through_walls, view):
    """Write what an agent at (x, y) sees into `view`; `carried` (object, color, state) lies in the agent's own cell."""
    size = view.shape[0]
    forward_x, forward_y = _FORWARD_X[direction], _FORWARD_Y[direction]
    right_x, right_y = -forward_y, forward_x
    opaque = np.zeros((size, size), np.bool_)
    for i in range(size):
        for j in range(size):
            ahead, aside = size - 1 - j, i - size // 2
            column = x + forward_x * ahead + right_x * aside
            row = y + forward_y * ahead + right_y * aside
            if 0 <= row < cells.shape[0] and 0 <= column < cells.shape[1]:
                for code in range(3):
                    view[i, j, code] = cells[row, column, code]
                opaque[i, j] = cells[row, column, OPAQUE] != 0
            else:
                view[i, j, OBJECT], view[i, j, COLOR], view[i, j, STATE] = WALL, GREY, 0
                opaque[i, j] = True
    for code in range(3):
        view[size // 2, size - 1, code] = carried[code]
    if not sees_through_walls:
        visible = _visible(opaque)
        for i in range(size):
            for j in range(size):
                if not visible[i, j]:
                    view[i, j, :] = 0


@numba.njit(cache=True)
def one_hot_view(view, out):
    """Write the codes of `view` as one-hot vectors into `out`, uint8[size * size * N_CODES].

    Only what is there is written: nothing for a cell that is empty or out of sight, no color and no state for a wall.
    With three ones for each cell, views of a key and of a ball would differ in 2 of 147 ones, hard for a network to
    notice.
    """
    out[:] = 0
    offset = 0
    for i in range(view.shape[0]):
        for j in range(view.shape[1]):
            kind = view[i, j, OBJECT]
            if kind >= WALL:
                out[offset + kind - WALL] = 1
            if kind > WALL:
                out[offset + N_OBJECTS - WALL + view[i, j, COLOR]] = 1
                out[offset + N_OBJECTS - WALL + N_COLORS + view[i, j, STATE]] = 1
            offset += N_CODES


@numba.njit(cache=True)
def one_hot_views(views):
    """`one_hot_view` of every view, uint8[n, size * size * N_CODES]."""
    out = np.empty((views.shape[0], views.shape[1] * views.shape[2] * N_CODES), np.uint8)
    for row in range(views.shape[0]):
        one_hot_view(views[row], out[row])
    return out


@numba.njit(cache=True)
def one_hot_partial_view(cells, x, y, direction, carried, sees_through_walls, view, out):
    """`partial_view`, then `one_hot_view`: one call from Python instead of two."""
    partial_view(cells, x, y, direction, carried, sees_through_walls, view)
    one_hot_view(view, out)


@numba.njit(cache=True)
def _visible(opaque):
    """Light spreads from the agent, row by row away from it, sideways and diagonally (`Grid.process_vis`)."""
    size = opaque.shape[0]
    visible = np.zeros((size, size), np.bool_)
    visible[size // 2, size - 1] = True
    for j in range(size - 1, -1, -1):
        for i in range(size - 1):
            if visible[i, j] and not opaque[i, j]:
                visible[i + 1, j] = True
                if j > 0:
                    visible[i + 1, j - 1] = True
                    visible[i, j - 1] = True
        for i in range(size - 1, 0, -1):
            if visible[i, j] and not opaque[i, j]:
                visible[i - 1, j] = True
                if j > 0:
                    visible[i - 1, j - 1] = True
                    visible[i, j - 1] = True
    return visible
