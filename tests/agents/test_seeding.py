import contextlib
from typing import Any

import pytest
import torch

from agents.seeding import own_random_numbers


def test_the_callers_numbers_go_on() -> None:
    """Red if an evaluation changed the training around it, or did not play the same each time."""
    torch.manual_seed(0)
    before, after = torch.rand(2)
    torch.manual_seed(0)
    assert torch.rand(()) == before
    drawn = []
    for _ in range(2):
        with own_random_numbers(7):
            drawn.append(torch.rand(()))
    assert drawn[0] == drawn[1]
    assert torch.rand(()) == after


@pytest.mark.parametrize(("is_used", "devices"), [(True, [0, 1]), (False, [])])
def test_so_do_those_of_all_gpus(is_used: bool, devices: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if all runs on a GPU explored alike after their first evaluation, or one on the CPU started it."""
    asked: list[list[int]] = []

    def fork_rng(devices: list[int]) -> Any:
        asked.append(devices)
        return contextlib.nullcontext()

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: is_used)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.random, "fork_rng", fork_rng)
    with own_random_numbers(0):
        pass
    assert asked == [devices]
