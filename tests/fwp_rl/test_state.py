"""States are nested tuples of tensors; everybody else only maps over them."""

import pytest
import torch

from fwp_rl.state import State, concatenate_rows, map_state, select_rows, state_leaves


@pytest.fixture
def state() -> State:
    """Three rows; leaves of different rank, one of them less deep than the others, as in a stack of memories.

    Not deeper: the type checker that runs in tests follows the recursive type `State` for two levels.
    """
    return (torch.arange(3.0), (torch.arange(6.0).reshape(3, 2), torch.arange(24.0).reshape(3, 4, 2)))


def flat(state: State) -> list[list[float]]:
    return [leaf.flatten().tolist() for leaf in state_leaves(state)]


def test_leaves_come_from_left_to_right(state: State) -> None:
    assert [leaf.shape for leaf in state_leaves(state)] == [(3,), (3, 2), (3, 4, 2)]


def test_a_tensor_is_its_own_leaf() -> None:
    leaf = torch.ones(2)
    assert next(state_leaves(leaf)) is leaf


def test_nothing_has_no_leaves() -> None:
    assert list(state_leaves(())) == []


def test_map_keeps_the_structure(state: State) -> None:
    doubled = map_state(lambda leaf: 2 * leaf, state)
    assert isinstance(doubled, tuple)
    assert isinstance(doubled[1], tuple)
    assert flat(doubled) == [[2 * x for x in leaf] for leaf in flat(state)]


def test_map_takes_matching_leaves_of_several_states(state: State) -> None:
    assert flat(map_state(torch.sub, state, state)) == [[0.0] * 3, [0.0] * 6, [0.0] * 24]


def test_map_refuses_states_of_different_structure(state: State) -> None:
    with pytest.raises(ValueError, match="zip"):
        map_state(torch.add, state, state[:1])


@pytest.mark.parametrize("rows", [torch.tensor([2, 0]), torch.tensor([True, False, True])], ids=["indices", "mask"])
def test_rows_are_selected_in_every_leaf(state: State, rows: torch.Tensor) -> None:
    for leaf, selected in zip(state_leaves(state), state_leaves(select_rows(state, rows)), strict=True):
        assert torch.equal(selected, leaf[rows])


def test_rows_that_were_taken_apart_are_joined_again(state: State) -> None:
    parts = [select_rows(state, torch.tensor([row])) for row in range(3)]
    assert flat(concatenate_rows(parts)) == flat(state)
