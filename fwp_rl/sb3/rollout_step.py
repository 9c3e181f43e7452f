"""The policy's step in a rollout, from arrays to arrays; on a GPU it is one launch."""

import math
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.utils import obs_as_tensor
from torch import Tensor

from fwp_rl.sb3.cuda_graphs import capture, require_equal, unchecked, warn_of
from fwp_rl.sb3.policies import MemoryActorCriticPolicy
from fwp_rl.state import State, map_state, state_leaves


class RolloutStep:
    """`MemoryActorCriticPolicy.forward`, without gradient, for what an environment puts out."""

    def __init__(self, policy: MemoryActorCriticPolicy) -> None:
        self.policy = policy

    def __call__(self, obs: Any, state: State, episode_starts: np.ndarray) -> tuple[Tensor, Tensor, Tensor, State]:
        """One step of all environments.

        :param obs: Observations `[B, ...]`: an array, or a dict of them.
        :param state: State of the memory, leaves `[B, ...]`.
        :param episode_starts: bool `[B]`; where true the memory restarts before it reads `obs`.
        :return: Actions `[B, ...]`, values `[B, 1]` and log-probabilities `[B]`, on the host, and the new state; later
            steps overwrite none of it.
        :raises ValueError: the distribution of actions is not finite.
        """
        device = self.policy.device
        with torch.no_grad():
            starts = torch.as_tensor(episode_starts, device=device)
            *outputs, state = self.policy(obs_as_tensor(obs, device), state, starts)
        actions, values, log_probs = (output.cpu() for output in outputs)
        return actions, values, log_probs, state


class CapturedStep(RolloutStep):
    """The step on a GPU as one CUDA graph, for always as many environments.

    It computes with the weights as they are when it is called: optimisers and `load_state_dict` change them in place.
    Actions are drawn from torch's generator of the device, which goes on with each call.

    The arguments but the policy are examples of what it will be called with.

    :raises RuntimeError: the policy waits for the GPU somewhere, to look at what was computed; that can't be captured.
    """

    def __init__(self, policy: MemoryActorCriticPolicy, obs: Any, state: State, episode_starts: np.ndarray) -> None:
        super().__init__(policy)
        self._obs, self._starts = _host_like(obs), _host_like(episode_starts)
        self._state = map_state(torch.empty_like, state)
        self._read(obs, state, episode_starts)
        self._outputs: list[Tensor] = []  # actions, values and log-probabilities, on the host
        with unchecked(policy):
            self._replay = capture(self._run, policy.device)

    def __call__(self, obs: Any, state: State, episode_starts: np.ndarray) -> tuple[Tensor, Tensor, Tensor, State]:
        """As `RolloutStep`."""
        self._read(obs, state, episode_starts)
        self._replay()
        actions, values, log_probs = (buffer.clone() for buffer in self._outputs)
        if not math.isfinite(log_probs.sum()):
            return super().__call__(obs, state, episode_starts)  # which says what is wrong
        return actions, values, log_probs, map_state(torch.clone, self._new_state)

    def _read(self, obs: Any, state: State, episode_starts: np.ndarray) -> None:
        _write(self._obs, obs)
        _write(self._starts, episode_starts)
        for leaf, value in zip(state_leaves(self._state), state_leaves(state), strict=True):
            leaf.copy_(value)

    @torch.no_grad()
    def _run(self) -> None:
        device = self.policy.device
        obs, starts = _on_device(self._obs, device), _on_device(self._starts, device)
        *outputs, self._new_state = self.policy(obs, self._state, starts)
        self._outputs = self._outputs or [_host_like(output) for output in outputs]
        for buffer, output in zip(self._outputs, outputs, strict=True):
            buffer.copy_(output, non_blocking=True)


def rollout_step(policy: MemoryActorCriticPolicy, obs: Any, state: State, episode_starts: np.ndarray) -> RolloutStep:
    """The fastest step of this policy, for observations and so on like these."""
    # gSDE draws its noise into new tensors, which a graph would not see.
    if policy.device.type == "cuda" and not policy.use_sde:
        try:
            with torch.random.fork_rng([policy.device]):  # what this draws is given back
                step = CapturedStep(policy, obs, state, episode_starts)
                check_against_launched(step, obs, state, episode_starts)
            return step
        except RuntimeError as error:
            warn_of(error, "the step")
    return RolloutStep(policy)


def check_against_launched(step: CapturedStep, obs: Any, state: State, episode_starts: np.ndarray) -> None:
    """Two steps leave the same values and state.

    In the second every environment sees what another one saw, and the other ones restart.

    :raises RuntimeError: they do not.
    """
    others = (
        {key: np.roll(x, 1, axis=0) for key, x in obs.items()} if isinstance(obs, dict) else np.roll(obs, 1, axis=0)
    )
    found = []
    for run in (step, super(CapturedStep, step).__call__):
        *_, first = run(obs, state, episode_starts)
        _, values, _, final = run(others, first, ~episode_starts)
        found.append([values, *state_leaves(final)])
    require_equal(*found)


def _host_like(x: Any) -> Any:
    """Room for such an array or tensor, or a dict of them, on the host, where the GPU reads and writes it unaided."""
    if isinstance(x, dict):
        return {key: _host_like(value) for key, value in x.items()}
    if isinstance(x, np.ndarray):
        x = torch.from_numpy(x)
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=torch.cuda.is_available())


def _write(buffer: Any, x: Any) -> None:
    if isinstance(x, dict):
        for key, value in x.items():
            _write(buffer[key], value)
    else:
        buffer.numpy()[...] = x


def _on_device(x: Any, device: torch.device) -> Any:
    if isinstance(x, dict):
        return {key: _on_device(value, device) for key, value in x.items()}
    return x.to(device, non_blocking=True)
