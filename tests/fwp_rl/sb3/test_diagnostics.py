"""Numbers of a memory that learns: right on a memory that is known, there for all that have them, without a trace."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fwp_rl.registry import memory_configs
from fwp_rl.sb3 import RolloutSample, diagnose


def everywhere(memory: str) -> set[str]:
    """The numbers that this memory has."""
    names = {"gradient_reach"}
    if memory != "none":
        names |= {"state_norm", "state_drift"}
    if memory not in ("none", "rnn", "gru", "lstm", "attention"):
        names |= {"write_strength", "erased", "surprise"}
    return names


@pytest.mark.parametrize("memory", list(memory_configs()))
def test_every_memory_has_the_numbers_that_it_can_have(memory: str, make_model: Callable, collect: Callable) -> None:
    """Catches a memory whose trace cannot be made from a rollout, and a sample whose rows are not those of its state.

    Nothing has been learned since the rollout, so that nothing has drifted.
    """
    model = make_model(memory)
    collect(model)
    numbers = diagnose(model.policy, RolloutSample.of(model))
    assert set(numbers) == everywhere(memory)
    assert all(np.isfinite(value) for value in numbers.values())
    assert numbers.get("state_drift", 0.0) < 1e-5


def test_an_update_moves_the_states_that_were_stored(make_model: Callable, collect: Callable) -> None:
    """Catches a drift between two states of the same weights."""
    model = make_model("delta")
    collect(model)
    sample = RolloutSample.of(model)
    before = diagnose(model.policy, sample)
    with torch.no_grad():
        for parameter in model.policy.memory.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    after = diagnose(model.policy, sample)
    assert after["state_drift"] > 0.01
    assert after["state_norm"] == before["state_norm"]


def test_looking_changes_nothing(make_model: Callable, collect: Callable) -> None:
    """Catches random numbers that are drawn, and gradients that are left behind: training would not be the same."""
    model = make_model("delta")
    collect(model)
    states = [np.random.get_state()[1].copy(), torch.get_rng_state()]  # noqa: NPY002 (what SB3 draws from)
    diagnose(model.policy, RolloutSample.of(model))
    assert (np.random.get_state()[1] == states[0]).all()  # noqa: NPY002 (as above)
    assert torch.equal(torch.get_rng_state(), states[1])
    assert all(parameter.grad is None for parameter in model.policy.parameters())
