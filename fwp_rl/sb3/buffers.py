"""The rollout as sequences: what PPO's minibatches are cut from."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import PyTorchObs, RolloutBufferSamples
from torch import Tensor

from fwp_rl.sb3.normalization import ValueNorm
from fwp_rl.state import State, concatenate_rows, select_rows


class SequenceBatch(NamedTuple):
    """What the policy needs to run over B sequences of L steps; stands where SB3 has the observations."""

    observations: PyTorchObs
    """`[L * B, ...]`, time-major (a dict of such tensors for a Dict space), in the dtype of the space."""
    state: State
    """State of the memory before the first step of each sequence, leaves `[B, ...]`."""
    episode_starts: Tensor
    """bool `[L, B]`: the memory restarts before this step is read."""


class SequenceRolloutBuffer(RolloutBuffer):
    """A rollout `[T, N, ...]`, sampled as columns of `sequence_length` steps.

    A column is (segment, environment). All columns are equally long, so there is no padding and no mask: resets inside
    a column are the memory's business. The state is kept at the first step of each segment only, T / L states and not
    T: for fast weights that is the difference between megabytes and gigabytes.

    Values and returns are kept in units of reward; see `normalise_values`.

    :param sequence_length: L, a divisor of `buffer_size`.
    :param advantage_floor: If not 0, the advantages of a minibatch are centred and divided by their standard deviation,
        but never by less than this.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        gae_lambda: float = 1,
        gamma: float = 0.99,
        n_envs: int = 1,
        *,
        sequence_length: int,
        advantage_floor: float = 0.0,
    ) -> None:
        if buffer_size % sequence_length:
            raise ValueError(f"sequence_length={sequence_length} does not divide n_steps={buffer_size}")
        self.sequence_length, self.advantage_floor = sequence_length, advantage_floor
        self._value_norm: ValueNorm | None = None
        super().__init__(buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs)

    def reset(self) -> None:
        """Forget the rollout. Arrays are allocated once and reused."""
        if not hasattr(self, "rewards"):
            self._allocate()
        self.states: list[State] = []
        self._columns: dict[str, Any] | None = None
        self.pos = 0
        self.full = False

    def _allocate(self) -> None:
        size = (self.buffer_size, self.n_envs)
        if isinstance(self.observation_space, spaces.Dict):
            self.observations = {  # type: ignore[assignment]  # a dict only for Dict spaces
                key: np.zeros((*size, *self.obs_shape[key]), dtype=space.dtype)  # type: ignore[call-overload]  # a Dict: shapes by key
                for key, space in self.observation_space.spaces.items()
            }
        else:
            self.observations = np.zeros((*size, *self.obs_shape), dtype=self.observation_space.dtype)
        self.actions = np.zeros((*size, self.action_dim), dtype=self.action_space.dtype)
        self.episode_starts = np.zeros(size, dtype=np.float32)
        for name in ("rewards", "returns", "values", "log_probs", "advantages"):
            setattr(self, name, np.zeros(size, dtype=np.float32))

    def add(  # type: ignore[override]  # with a state
        self,
        obs: np.ndarray | dict[str, np.ndarray],
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: Tensor,
        log_prob: Tensor,
        state: State,
    ) -> None:
        """Append one step of all environments.

        :param state: State of the memory before this step (before a reset at this step, too).
        """
        t = self.pos
        if t % self.sequence_length == 0:
            self.states.append(state)
        if isinstance(obs, dict):
            for key, array in self.observations.items():  # type: ignore[attr-defined]  # a dict where these are
                array[t] = obs[key].reshape(array[t].shape)
        else:
            self.observations[t] = obs.reshape(self.observations[t].shape)
        self.actions[t] = action.reshape(self.actions[t].shape)
        self.rewards[t] = reward
        self.episode_starts[t] = episode_start
        self.values[t] = value.flatten().numpy()
        self.log_probs[t] = log_prob.flatten().numpy()
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def normalise_values(self, norm: ValueNorm) -> None:
        """Hand out values and returns normalised from now on; for each change of the statistics."""
        self._value_norm, self._columns = norm, None

    def get(self, batch_size: int | None = None) -> Iterator[RolloutBufferSamples]:  # type: ignore[override]  # in sequences
        """Yield minibatches of whole columns in random order.

        :param batch_size: Transitions per minibatch, a multiple of the sequence length; everything at once if None.
        """
        if not self.full:
            raise RuntimeError(f"the rollout holds {self.pos} of {self.buffer_size} steps; fill it before sampling")
        n_columns = self.buffer_size // self.sequence_length * self.n_envs
        per_batch = n_columns if batch_size is None else batch_size // self.sequence_length
        order = torch.from_numpy(np.random.permutation(n_columns)).to(self.device)  # noqa: NPY002 (seeded by SB3)
        for first in range(0, n_columns, per_batch):
            yield self.columns(order[first : first + per_batch])

    def columns(self, columns: Tensor) -> RolloutBufferSamples:
        """These columns of a full rollout as a minibatch; s * n_envs + n is segment s of environment n.

        :param columns: int64 `[B]`.
        """
        if self._columns is None:
            self._columns = self._as_columns()
        c = self._columns

        def pick(x: Tensor) -> Tensor:  # [L, S * N, ...] -> [L * B, ...]
            return x.index_select(1, columns).flatten(0, 1)

        observations = c["observations"]
        batch = SequenceBatch(
            {key: pick(x) for key, x in observations.items()} if isinstance(observations, dict) else pick(observations),
            select_rows(c["state"], columns),
            c["episode_starts"].index_select(1, columns),
        )
        advantages = pick(c["advantages"])
        if self.advantage_floor and len(advantages) > 1:
            advantages = (advantages - advantages.mean()) / advantages.std().clamp(min=self.advantage_floor)
        # PPO.train only hands `observations` on to policy.evaluate_actions
        return RolloutBufferSamples(
            batch,  # type: ignore[arg-type]  # SB3 hands it on as it is
            pick(c["actions"]).float(),  # distributions of MultiBinary actions need float
            pick(c["values"]),
            pick(c["log_probs"]),
            advantages,
            pick(c["returns"]),
        )

    def _as_columns(self) -> dict[str, Any]:
        """The finished rollout on the device, as `[L, S * N, ...]`: column s * N + n is segment s of environment n."""

        def columns(array: np.ndarray) -> Tensor:
            x = torch.from_numpy(array).to(self.device).unflatten(0, (-1, self.sequence_length))  # [S, L, N, ...]
            return x.transpose(0, 1).flatten(1, 2)

        observations = self.observations
        scalars = {
            name: columns(getattr(self, name)) for name in ("actions", "values", "log_probs", "advantages", "returns")
        }
        if self._value_norm is not None:
            scalars |= {name: self._value_norm.normalise(scalars[name]) for name in ("values", "returns")}
        return {
            "observations": {key: columns(x) for key, x in observations.items()}
            if isinstance(observations, dict)
            else columns(observations),
            "state": concatenate_rows(self.states),
            "episode_starts": columns(self.episode_starts).bool(),
            **scalars,
        }
