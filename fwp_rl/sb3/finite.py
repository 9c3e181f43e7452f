"""NaN and infinity: found in what an environment returns before it is learned from, and in the weights at once."""

import math
from typing import Any

import numpy as np
import torch
from torch import nn


class NonFiniteError(ValueError):
    """The environment returned NaN or infinity; nothing was learned from it."""


class DivergedError(ValueError):
    """The weights, or what the policy computes with them, are NaN or infinite: nothing more can be learned."""


def require_finite_experience(
    obs: Any, rewards: np.ndarray | None = None, *, step: int, rows: list[Any] | None = None
) -> None:
    """Stop before a NaN reaches the weights, and say where it came from.

    :param obs: Observations `[B, ...]`: an array, or a dict of them.
    :param step: Of each environment, for the message.
    :param rows: The environments that `obs` is from, if not all of them.
    :raises NonFiniteError: an observation or a reward is NaN or infinite.
    """
    arrays = list(obs.items()) if isinstance(obs, dict) else [("observation", obs)]
    if rewards is not None:
        arrays.append(("reward", rewards))
    for key, array in arrays:
        if array.dtype.kind != "f":
            continue
        # Finite only if all entries are: one pass instead of two. (It may also overflow: then look at all of them.)
        if math.isfinite(np.vdot(array, array)) or np.isfinite(array).all():
            continue
        row = int(np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))[0])
        bad = array[row].reshape(-1)
        where = int(np.flatnonzero(~np.isfinite(bad))[0])
        entry = f" (entry {where})" if bad.size > 1 else ""
        raise NonFiniteError(
            f"environment {row if rows is None else rows[row]} returned {bad[where]} in {key!r}{entry} at step {step}; "
            "the weights were not updated with it"
        )


def has_finite_weights(module: nn.Module) -> bool:
    """Whether no parameter is NaN or infinite."""
    parameters = [parameter.detach() for parameter in module.parameters()]
    # One look at the sum of all, for which a GPU is waited for once. (It may also overflow: then look at all of them.)
    sums = torch.stack([parameter.sum() for parameter in parameters])
    return math.isfinite(sums.sum().item()) or all(bool(parameter.isfinite().all()) for parameter in parameters)
