"""The actor-critic: features, then a memory, then SB3's heads."""

import math
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common import distributions
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    MlpExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from fwp_rl.layers import require_positive
from fwp_rl.memory import Memory, MemoryConfig
from fwp_rl.registry import memory_config
from fwp_rl.sb3.buffers import SequenceBatch
from fwp_rl.sb3.distributions import CategoricalDistribution
from fwp_rl.sb3.normalization import RunningNorm, ValueNorm
from fwp_rl.stack import build_memory
from fwp_rl.state import State, state_leaves

Critic: TypeAlias = Literal["shared", "detached", "separate"]
"""Choices of what the critic shares with the actor."""


class MemoryActorCriticPolicy(ActorCriticPolicy):
    """Actor and critic that read memory; by default they share one, trained by both losses.

        observation -> features extractor [-> norm] -> encoder -+-> memory -+-> net_arch -> action distribution, value
                                                                 +-----------+

    What to do often depends on what is seen now *and* what is remembered (is this the object that I saw?), so the
    heads read both.

    The policy itself holds no run-time state: the state of the memory goes in and comes out of every call, so an
    evaluation in the middle of a rollout disturbs nothing.

    :param memory: A registered name ("delta", "lstm", ...) or a config object (`DeltaConfig(n_heads=8)`).
    :param n_blocks: Memories on top of one another.
    :param critic: "shared": encoder and memory are the actor's, and both losses train them. "detached": the same, but
        only the actor's loss trains them. "separate": the critic has its own encoder and memory, which costs time; what
        looks inside an agent looks at the actor's.
    :param encoder_size: Units of the layer between features and memory, so that every memory reads the same kind of
        input whatever the observation; None feeds the features as they are.
    :param normalize_features: Standardise the features by what earlier rollouts have seen (`RunningNorm`), so that it
        does not matter how large observations are. The statistics are part of the policy. None: unless the features
        come from a network, whose features change as it learns (`MemoryPPO`: or `VecNormalize` does it already).
    :param normalize_values: Let the critic learn values in units of their own spread (`ValueNorm`). What `forward` and
        `predict_values` return is in units of reward all the same; what `evaluate_actions` returns is not.
    :param net_arch: Layers between memory and heads; by default one of 64 units for each of actor and critic.
    :param kwargs: As for SB3's `ActorCriticPolicy`.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        *,
        memory: str | MemoryConfig = "delta",
        n_blocks: int = 1,
        critic: str = "shared",
        encoder_size: int | None = 128,
        normalize_features: bool | None = None,
        normalize_values: bool = True,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not kwargs.get("share_features_extractor", True):
            raise ValueError(
                "share_features_extractor=False: actor and critic read the same features; "
                "critic='separate' gives each an encoder and a memory"
            )
        if critic not in get_args(Critic):
            raise ValueError(f"critic={critic!r} must be one of {', '.join(map(repr, get_args(Critic)))}")
        # Set before super().__init__, which builds the networks.
        self.memory_config = memory_config(memory)
        self.n_blocks = n_blocks
        self.critic = critic
        self.encoder_size = encoder_size
        self.normalize_features = normalize_features
        self.normalize_values = normalize_values
        if optimizer_kwargs is None and optimizer_class is torch.optim.Adam:
            # eps as in SB3; the fused step is several times faster for many small tensors
            optimizer_kwargs = {"eps": 1e-5, "fused": True}
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch={"pi": [64], "vf": [64]} if net_arch is None else net_arch,
            features_extractor_class=features_extractor_class,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            **kwargs,
        )

    def _build_mlp_extractor(self) -> None:
        # Called by SB3 after the features extractor and before heads and optimizer exist: the memory belongs here.
        if type(self.action_dist) is distributions.CategoricalDistribution:
            self.action_dist = CategoricalDistribution(self.action_dist.action_dim)
        size = int(self.features_dim)  # SB3 reports a NumPy integer for MultiDiscrete observations
        self.norm: nn.Module = nn.Identity()
        is_learned = any(True for _ in self.features_extractor.parameters())
        if self.normalize_features is None:
            self.normalize_features = not is_learned
        if self.normalize_features:
            if is_learned:
                raise ValueError(
                    "normalize_features=True needs features that do not change while they are learned from; "
                    f"{type(self.features_extractor).__name__} has weights"
                )
            self.norm = RunningNorm(size)
        self.encoder, self.memory = self._encoder_and_memory(size)
        if self.critic == "separate":
            self.critic_encoder, self.critic_memory = self._encoder_and_memory(size)
        self.value_norm = ValueNorm() if self.normalize_values else None
        self.mlp_extractor = MlpExtractor(
            (size if self.encoder_size is None else self.encoder_size) + self.memory.output_size,
            net_arch=self.net_arch,
            activation_fn=self.activation_fn,
            device=self.device,
        )

    def _encoder_and_memory(self, size: int) -> tuple[nn.Module, Memory]:
        encoder: nn.Module = nn.Identity()
        if self.encoder_size is not None:
            require_positive(encoder_size=self.encoder_size)
            # torch's random bias, not zero: behind a norm, a map without bias would lose the size of observations
            layer = nn.Linear(size, self.encoder_size)
            # Few features: each unit gets a quarter of their spread beside its bias, so that it is nearly linear, even
            # behind a norm. With four times as much units saturate, and control is learned later (docs/defaults.md).
            nn.init.orthogonal_(layer.weight, gain=max(1.0, math.sqrt(self.encoder_size / size) / 4))
            encoder = nn.Sequential(layer, self.activation_fn())
            size = self.encoder_size
        return encoder, build_memory(self.memory_config, size, self.n_blocks)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {
            "memory": self.memory_config,
            "n_blocks": self.n_blocks,
            "critic": self.critic,
            "encoder_size": self.encoder_size,
            "normalize_features": self.normalize_features,
            "normalize_values": self.normalize_values,
        }

    def encode(self, obs: PyTorchObs) -> Tensor:
        """Inputs `[N, D]` of the actor's memory and head, from observations `[N, ...]`."""
        return self.encoder(self._features(obs))

    def _features(self, obs: PyTorchObs) -> Tensor:
        return self.norm(self.extract_features(obs))

    def _latents(self, obs: PyTorchObs, state: State, episode_starts: Tensor) -> tuple[Tensor, Tensor, State]:
        """Inputs `[N, ...]` of the heads of actor and critic, and the new state.

        `episode_starts` is `[B]` for one step, `[L, B]` for sequences.
        """
        features = self._features(obs)
        if self.critic == "separate":
            actor, critic = state
            latent_pi, actor = _read(self.encoder(features), self.memory, actor, episode_starts)
            latent_vf, critic = _read(self.critic_encoder(features), self.critic_memory, critic, episode_starts)
            return latent_pi, latent_vf, (actor, critic)
        latent, state = _read(self.encoder(features), self.memory, state, episode_starts)
        return latent, latent.detach() if self.critic == "detached" else latent, state

    def update_norm(self, obs: PyTorchObs) -> None:
        """Add observations `[N, ...]` to the statistics of the features, if the policy keeps any."""
        if isinstance(self.norm, RunningNorm):
            with torch.no_grad():
                self.norm.update(self.extract_features(obs))  # type: ignore[arg-type]  # one extractor, one tensor

    def initial_state(self, batch_size: int) -> State:
        """State at the start of an episode, for `batch_size` environments: a pair of them if the critic is separate."""
        state = self.memory.initial_state(batch_size)
        return (state, self.critic_memory.initial_state(batch_size)) if self.critic == "separate" else state

    def actor_state(self, state: State) -> State:
        """The part of a state that is the actor's."""
        return state[0] if self.critic == "separate" else state

    def forward(  # type: ignore[override]  # with a state
        self, obs: PyTorchObs, state: State, episode_starts: Tensor, deterministic: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, State]:
        """One step of all environments.

        :param obs: Observations `[B, ...]`.
        :param state: State of the memory, leaves `[B, ...]`.
        :param episode_starts: bool `[B]`; where true the memory restarts before it reads `obs`.
        :return: Actions `[B, ...]`, values `[B, 1]`, log-probabilities `[B]` and the new state.
        """
        latent_pi, latent_vf, state = self._latents(obs, state, episode_starts)
        distribution = self._distribution(latent_pi)
        actions = distribution.get_actions(deterministic=deterministic)
        log_prob = distribution.log_prob(actions)
        return actions.reshape((-1, *self.action_space.shape)), self._values(latent_vf), log_prob, state  # type: ignore[misc]  # a Box or like one

    def evaluate_actions(  # type: ignore[override]  # sequences
        self, obs: SequenceBatch, actions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values, log-probabilities and entropies of `actions`, over whole sequences.

        :param obs: The sequences; PPO hands them on as the minibatch's observations.
        :param actions: `[L * B, ...]`, time-major.
        :return: Values `[L * B, 1]`, normalised if the policy does that, log-probabilities and entropies `[L * B]`.
        """
        latent_pi, latent_vf, _ = self._latents(obs.observations, obs.state, obs.episode_starts)
        distribution = self._distribution(latent_pi)
        return (
            self.value_net(self.mlp_extractor.forward_critic(latent_vf)),
            distribution.log_prob(actions),
            distribution.entropy(),
        )

    def get_distribution(  # type: ignore[override]  # with a state
        self, obs: PyTorchObs, state: State, episode_starts: Tensor
    ) -> tuple[distributions.Distribution, State]:
        """Action distribution for one step of all environments, and the new state."""
        latent_pi, _, state = self._latents(obs, state, episode_starts)
        return self._distribution(latent_pi), state

    def predict_values(self, obs: PyTorchObs, state: State, episode_starts: Tensor) -> Tensor:  # type: ignore[override]  # with a state
        """Values `[B, 1]` for one step of all environments."""
        _, latent_vf, _ = self._latents(obs, state, episode_starts)
        return self._values(latent_vf)

    def _distribution(self, latent_pi: Tensor) -> distributions.Distribution:
        return self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(latent_pi))

    def _values(self, latent_vf: Tensor) -> Tensor:
        values: Tensor = self.value_net(self.mlp_extractor.forward_critic(latent_vf))
        return values if self.value_norm is None else self.value_norm(values)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """Actions for the environment, and the state to pass to the next call.

        :param observation: One observation or a batch of them.
        :param state: What the last call returned; None for a fresh memory.
        :param episode_start: bool `[B]`: the memory of these rows restarts before it reads the observation. None: none.
        :param deterministic: The mode of the distribution instead of a sample.
        :return: Actions, and the state of the actor's memory as nested tuples of arrays `[B, ...]`.
        """
        self.set_training_mode(False)
        obs, vectorized = self.obs_to_tensor(observation)
        batch_size = len(next(iter(obs.values())) if isinstance(obs, dict) else obs)
        if state is None:
            memory_state = self.memory.initial_state(batch_size)
        else:
            memory_state = _state_from_numpy(state, self.device)
            if any(len(leaf) != batch_size for leaf in state_leaves(memory_state)):
                raise ValueError(
                    f"state is for {len(next(state_leaves(memory_state)))} environments, observation for {batch_size}; "
                    "pass state=None to start afresh"
                )
        starts = np.zeros(batch_size, dtype=bool) if episode_start is None else np.asarray(episode_start, dtype=bool)
        with torch.no_grad():
            latent_pi, memory_state = _read(
                self.encode(obs),
                self.memory,
                memory_state,
                torch.as_tensor(starts.reshape(batch_size), device=self.device),
            )
            distribution = self._distribution(latent_pi)
            actions = distribution.get_actions(deterministic=deterministic)
        array = self.environment_actions(actions)
        return array if vectorized else array.squeeze(axis=0), _state_to_numpy(memory_state)

    def environment_actions(self, actions: Tensor) -> np.ndarray:
        """Actions of the distribution `[B, ...]` as the environment takes them: within bounds, counted from `start`."""
        array = actions.cpu().numpy().reshape((-1, *self.action_space.shape))  # type: ignore[misc, arg-type]  # a Box or like one
        if isinstance(self.action_space, spaces.Box):
            if self.squash_output:
                return self.unscale_action(array)
            return np.clip(array, self.action_space.low, self.action_space.high)
        if isinstance(self.action_space, spaces.Discrete | spaces.MultiDiscrete):
            return array + self.action_space.start
        return array


class MemoryActorCriticCnnPolicy(MemoryActorCriticPolicy):
    """The same for images: NatureCNN as features extractor."""

    def __init__(self, *args: Any, features_extractor_class: Any = NatureCNN, **kwargs: Any) -> None:
        super().__init__(*args, features_extractor_class=features_extractor_class, **kwargs)


class MultiInputMemoryActorCriticPolicy(MemoryActorCriticPolicy):
    """The same for Dict observations: one extractor for each key, concatenated."""

    def __init__(self, *args: Any, features_extractor_class: Any = CombinedExtractor, **kwargs: Any) -> None:
        super().__init__(*args, features_extractor_class=features_extractor_class, **kwargs)


def _read(inputs: Tensor, memory: Memory, state: State, episode_starts: Tensor) -> tuple[Tensor, State]:
    """Inputs `[N, D]` beside what the memory puts out for them, and its new state; one step or sequences."""
    if episode_starts.ndim == 1:
        outputs, state = memory.step(inputs, state, episode_starts)
    else:
        outputs, state = memory.scan(inputs.unflatten(0, episode_starts.shape), state, episode_starts)
        outputs = outputs.flatten(0, 1)
    return torch.cat([inputs, outputs], dim=-1), state


def _state_to_numpy(state: State) -> Any:
    if isinstance(state, Tensor):
        return state.cpu().numpy()
    return tuple(_state_to_numpy(part) for part in state)


def _state_from_numpy(state: Any, device: torch.device) -> State:
    if isinstance(state, tuple):
        return tuple(_state_from_numpy(part, device) for part in state)
    return torch.as_tensor(state, device=device)
