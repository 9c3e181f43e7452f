"""The picture of a T-maze: the corridor, its two arms, the cue, and how many corridors are done."""

import numpy as np

from envs import _drawing as draw

FORWARD, LEFT, RIGHT = range(3)
ACTION_NAMES = ("forward", "left", "right")
_WIDTH = 720


def t_maze_picture(
    *, longest: int, junction: int, position: int, side: int, turn: int, corridor: int, n_corridors: int
) -> np.ndarray:
    """The present corridor, uint8[height, width, 3].

    `longest` sets the width, `junction` is where the corridor ends, `side` its correct turn, `turn` the last one taken
    (`FORWARD` for none). The cue is in color while the agent stands in the first cell and sees it.
    """
    cell = float(np.clip(_WIDTH / (longest + 3), 6, 56))
    width, height = round(cell * (longest + 3)), round(24 + 3.4 * cell)
    canvas = draw.Canvas(width, height)
    spacing = min(16.0, (_WIDTH - 24) / n_corridors)
    for number in range(n_corridors):  # a dot for each: behind the agent, around it, ahead of it
        color = draw.GOOD if number < corridor else draw.INK if number == corridor else draw.FAINT
        canvas.disc(14 + number * spacing, 14, 0.3 * spacing, color)
    middle = height - 1.7 * cell

    def tile(column: float, row_offset: float, color: draw.Color) -> None:
        x, y = (column + 1) * cell, middle + row_offset * cell
        canvas.rectangle(x - 0.46 * cell, y - 0.46 * cell, x + 0.46 * cell, y + 0.46 * cell, color, radius=0.1 * cell)

    for column in range(junction + 1):
        tile(column, 0, draw.FLOOR)
    arrived = turn != FORWARD and position == junction  # the episode ended in an arm
    for arm in (LEFT, RIGHT):
        entered = draw.GOOD if arm == side else draw.BAD
        tile(junction, _offset(arm), entered if arrived and arm == turn else draw.FAINT)
    cue = draw.CUE if position == 0 else draw.FAINT
    canvas.arrow(cell, middle + _offset(side) * cell, 0.8 * cell, (0, _offset(side)), cue)
    agent_y = middle + (_offset(turn) * cell if arrived else 0)
    canvas.disc((position + 1) * cell, agent_y, 0.3 * cell, draw.AGENT)
    return canvas.picture()


def _offset(side: int) -> int:
    """Rows from the corridor to the arm on that side; the agent walks to the right."""
    return {LEFT: -1, RIGHT: 1}.get(side, 0)
