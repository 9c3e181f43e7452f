"""CUDA graphs of what a policy computes: launched at once, not operation by operation.

A step of a policy, or its evaluation of a minibatch, is some fifty to two hundred kernels of a few microseconds each.
Launched one after the other, most of the time the GPU waits for Python. What can't be captured is launched as before,
and what was captured is tried before it is trusted.
"""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from fwp_rl.sb3.distributions import CategoricalDistribution

logger = logging.getLogger(__name__)

N_WARM_UPS = 3
"""Runs before a capture, in which kernels are compiled and libraries take their workspace, as PyTorch advises."""
TOLERANCE = 1e-3
"""Of the largest entry, for what a graph computes when it is first used: libraries may choose other kernels for it."""


def capture(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """What `function` launches, as one launch that is waited for; it has to read and write the same tensors each time.

    :raises RuntimeError: it waits for the GPU in between.
    """
    graph, current, warm_up = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device), torch.cuda.Stream(device)
    warm_up.wait_stream(current)
    with torch.cuda.stream(warm_up):
        for _ in range(N_WARM_UPS):
            function()
        refuse_waiting(function)
    current.wait_stream(warm_up)
    with torch.cuda.device(device), torch.cuda.graph(graph):  # which captures on a stream of the current device
        function()

    def replay() -> None:
        graph.replay()
        torch.cuda.current_stream(device).synchronize()

    return replay


def refuse_waiting(function: Callable[[], object]) -> None:
    """Run `function`.

    What cannot be captured is found out here: an attempt would leave the generator of the device unusable.

    :raises RuntimeError: it waits for the GPU in between.
    """
    mode = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings(action="ignore"):  # PyTorch says that this mode does not see everything
            torch.cuda.set_sync_debug_mode("error")
        function()
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def require_equal(replayed: Sequence[Tensor], launched: Sequence[Tensor]) -> None:
    """Raise a RuntimeError unless a graph computes the same as what it was captured from."""
    for a, b in zip(replayed, launched, strict=True):
        if b.numel() == 0:
            continue
        error = ((a - b).abs().max() / b.abs().max().clamp(min=1e-3)).item()
        if not error <= TOLERANCE:
            raise RuntimeError(f"replayed, it is off by {error:.1e}")


def warn_of(error: RuntimeError, what: str) -> None:
    """Say that `what` of a policy can't be captured, and why."""
    reason = str(error).partition("\n")[0]
    logger.warning("training is slower than need be: %s of this policy can't be captured (%s)", what, reason)


@contextlib.contextmanager
def unchecked(policy: ActorCriticPolicy) -> Iterator[None]:
    """Without a look at the parameters of the distribution, for which the GPU would have to be waited for."""
    distribution, validate = policy.action_dist, torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    if isinstance(distribution, CategoricalDistribution):
        distribution.checks_logits = False
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(validate)
        if isinstance(distribution, CategoricalDistribution):
            distribution.checks_logits = True
