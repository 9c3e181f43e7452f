"""The state of a memory, and the few things everybody does with one.

Letters used in every shape of this package:

    T time        B batch (environments)   D input features    O output features
    H heads       K key size               V value size        C chunk length
    L segment length                       W width of a block (residual stream)
"""

from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor

State: TypeAlias = Tensor | tuple["State", ...]
"""Nested tuples of tensors, batch first: every leaf is `[B, ...]`. Its meaning is private to the memory."""


def map_state(function: Callable[..., Tensor], state: State, *others: State) -> State:
    """Apply `function` to each leaf of `state` (and to the matching leaves of `others`)."""
    if isinstance(state, Tensor):
        return function(state, *others)
    return tuple(map_state(function, *parts) for parts in zip(state, *others, strict=True))


def state_leaves(state: State) -> Iterator[Tensor]:
    """The tensors of `state`, left to right."""
    if isinstance(state, Tensor):
        yield state
    else:
        for part in state:
            yield from state_leaves(part)


def select_rows(state: State, rows: Tensor) -> State:
    """The state of the batch rows `rows` (int64 `[N]`, or bool `[B]`)."""
    return map_state(lambda leaf: leaf[rows], state)


def concatenate_rows(states: list[State]) -> State:
    """Join states along the batch axis."""
    return map_state(lambda *leaves: torch.cat(leaves), states[0], *states[1:])
