"""`MemoryPPO`: SB3's PPO for policies with a memory.

Only set-up and rollout differ from PPO: the rollout carries the state of the memory, the minibatches are sequences
(`fwp_rl.sb3.buffers`), and what `train` does is inherited.
"""

import io
import pathlib
import warnings
import zipfile
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, PyTorchObs, Schedule
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from fwp_rl.files import replace_file
from fwp_rl.memory import MemoryConfig
from fwp_rl.registry import memory_config, memory_name, older_memory_config
from fwp_rl.sb3.arguments import argument_problems, quarter, size_problems
from fwp_rl.sb3.buffers import SequenceRolloutBuffer
from fwp_rl.sb3.captured_evaluation import CapturedEvaluation
from fwp_rl.sb3.finite import DivergedError, has_finite_weights, require_finite_experience
from fwp_rl.sb3.policies import (
    MemoryActorCriticCnnPolicy,
    MemoryActorCriticPolicy,
    MultiInputMemoryActorCriticPolicy,
)
from fwp_rl.sb3.portable import NotPortableError, write_portable
from fwp_rl.sb3.rollout_step import RolloutStep, rollout_step
from fwp_rl.state import State, select_rows, state_leaves


class MemoryPPO(PPO):
    """PPO (Schulman et al. 2017) for policies with a memory.

    :param policy: "MlpPolicy", "CnnPolicy", "MultiInputPolicy" or a `MemoryActorCriticPolicy` class.
    :param env: A Gymnasium environment, its id, or a VecEnv.
    :param n_steps: Steps per environment and rollout.
    :param sequence_length: Length of the training sequences, a divisor of `n_steps` (None: `n_steps`). Gradient
        reaches back through the memory over at most so many steps, and never beyond the start of an episode; the
        state at the start of a sequence is the one that the rollout had there.
    :param batch_size: Transitions per minibatch, a multiple of `sequence_length` that divides the rollout (None: a
        quarter of the rollout, or as near to that as whole sequences allow).
    :param advantage_floor: In units of return: advantages of a minibatch are divided by their standard deviation or
        by this, whichever is larger. 0 is PPO as it is, which takes the errors of the critic for large advantages once
        nothing goes wrong any more, and may unlearn a task within one update.
    :param policy_kwargs: `memory` (a registered name or a config object), `n_blocks`, `net_arch` and whatever else
        `MemoryActorCriticPolicy` takes.

    The other parameters are those of `stable_baselines3.PPO`, with `n_epochs=4` by default.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MemoryActorCriticPolicy,
        "CnnPolicy": MemoryActorCriticCnnPolicy,
        "MultiInputPolicy": MultiInputMemoryActorCriticPolicy,
    }
    policy: MemoryActorCriticPolicy
    rollout_buffer: SequenceRolloutBuffer

    def __init__(
        self,
        policy: str | type[MemoryActorCriticPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 128,
        sequence_length: int | None = None,
        batch_size: int | None = None,
        n_epochs: int = 4,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        advantage_floor: float = 0.0,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        problems = argument_problems(
            n_steps=n_steps,
            sequence_length=sequence_length,
            batch_size=batch_size,
            n_epochs=n_epochs,
            learning_rate=learning_rate,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_range=clip_range,
            advantage_floor=advantage_floor,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            clip_range_vf=clip_range_vf,
            target_kl=target_kl,
        )
        sizes_are_valid = not any(name in problems for name in ("n_steps", "sequence_length", "batch_size"))
        if env is not None and sizes_are_valid:
            n_envs = env.num_envs if isinstance(env, VecEnv) else 1
            problems |= size_problems(n_steps, n_envs, sequence_length or n_steps, batch_size)
        policy_kwargs = _explicit(
            policy,
            policy_kwargs,
            memory_config,
            normalize_features=False if _normalizes_observations(env) else None,
            normalize_values=True,
        )
        if clip_range_vf is not None and policy_kwargs.get("normalize_values") and "clip_range_vf" not in problems:
            problems["clip_range_vf"] = (
                f"clip_range_vf={clip_range_vf} is in units of reward, but values are learned normalised: "
                "leave it out, or give policy_kwargs={'normalize_values': False}"
            )
        if advantage_floor and not normalize_advantage:
            problems["normalize_advantage"] = f"advantage_floor={advantage_floor}: needs normalize_advantage=True"
        if problems:
            raise ValueError("\n".join(problems.values()))
        self.sequence_length = sequence_length or n_steps
        self.advantage_floor = advantage_floor
        self._batch_size_argument = batch_size
        super().__init__(
            policy,
            env,  # type: ignore[arg-type]  # None: from `load`
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=n_steps,  # the real one needs the number of environments: see _setup_model
            n_epochs=n_epochs,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_range=clip_range,
            clip_range_vf=clip_range_vf,
            normalize_advantage=normalize_advantage and not advantage_floor,  # else the buffer does it
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            target_kl=target_kl,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        # Also called by `load`, perhaps with another number of environments than before, and with choices that are not
        # there: then by an older file, for __init__ and so a newer file says all of them.
        self.policy_kwargs = _explicit(
            self.policy_class, self.policy_kwargs, older_memory_config, normalize_features=False, normalize_values=False
        )
        problems = size_problems(self.n_steps, self.n_envs, self.sequence_length, self._batch_size_argument)
        if "sequence_length" in problems:
            raise ValueError(problems["sequence_length"])
        default = quarter(self.n_steps, self.n_envs, self.sequence_length)
        if "batch_size" in problems:
            warnings.warn(f"{problems['batch_size']}; for now it is {default}", stacklevel=2)
        self.batch_size = default if problems or self._batch_size_argument is None else self._batch_size_argument
        self.rollout_buffer_class = SequenceRolloutBuffer
        self.rollout_buffer_kwargs = {
            "sequence_length": self.sequence_length,
            "advantage_floor": self.advantage_floor,
        }
        super()._setup_model()
        if not isinstance(self.policy, MemoryActorCriticPolicy):
            raise ValueError(f"policy must be a MemoryActorCriticPolicy, got {type(self.policy).__name__}")
        self._last_state: State | None = None
        self._step: RolloutStep | None = None
        self._evaluation: CapturedEvaluation | None = None
        if self.verbose >= 1:
            print(self.describe())

    @classmethod
    def load(cls, *args: Any, **kwargs: Any) -> "MemoryPPO":
        """As `PPO.load`. A batch size that does not suit the number of environments is replaced, with a warning."""
        if "batch_size" in kwargs:
            kwargs["_batch_size_argument"] = kwargs["batch_size"]
        if "advantage_floor" in kwargs:
            kwargs.setdefault("normalize_advantage", not kwargs["advantage_floor"])
        return super().load(*args, **kwargs)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_last_state", "_step", "_evaluation"]

    def describe(self) -> str:
        """Memory, its size, and how far back the gradient reaches: three lines."""
        memory = self.policy.memory
        blocks = f" x {self.policy.n_blocks} blocks" if self.policy.n_blocks > 1 else ""
        n_floats = sum(leaf.numel() for leaf in state_leaves(memory.initial_state(1)))
        n_sequences = self.n_steps // self.sequence_length * self.n_envs
        per_batch = self.batch_size // self.sequence_length
        return (
            f"memory        {memory_name(self.policy.memory_config)}{blocks}: {_count(memory):,} parameters "
            f"({_count(self.policy):,} in the whole policy), state of {n_floats:,} numbers\n"
            f"rollout       {self.n_envs} environments x {self.n_steps} steps = {self.n_envs * self.n_steps:,} steps\n"
            f"training      {n_sequences} sequences of sequence_length={self.sequence_length}: gradient reaches back "
            f"{self.sequence_length} steps at most, or to the start of the episode; {n_sequences // per_batch} "
            f"minibatches of {per_batch} sequences, {self.n_epochs} epochs"
        )

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Fill the buffer with `n_rollout_steps` steps of every environment, carrying the state of the memory.

        :return: False if the callback asked to stop.
        :raises NonFiniteError: an observation or a reward is NaN or infinite.
        """
        # One observation of each environment is too little work to share: a second thread only costs.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return self._collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        finally:
            torch.set_num_threads(threads)

    def _collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        if self._last_obs is None:
            raise RuntimeError("collect_rollouts needs a last observation: call learn()")
        self.policy.set_training_mode(False)
        n_steps = 0
        if rollout_buffer.full:
            self.policy.update_norm(self._observations_of(rollout_buffer))
        rollout_buffer.reset()
        if self.use_sde:
            self.policy.reset_noise(env.num_envs)
        callback.on_rollout_start()
        state = self._last_state
        if state is None:
            state = self.policy.initial_state(env.num_envs)
        obs: Any = self._last_obs
        starts: Any = self._last_episode_starts
        require_finite_experience(obs, step=self._steps_of_each)

        while n_steps < n_rollout_steps:
            if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                self.policy.reset_noise(env.num_envs)
            if self._step is None or self._step.policy is not self.policy:
                self._step = rollout_step(self.policy, obs, state, starts)
            actions_tensor, values, log_probs, new_state = self._step(obs, state, starts)
            actions = actions_tensor.numpy()
            new_obs, rewards, dones, infos = env.step(self.policy.environment_actions(actions_tensor))
            self.num_timesteps += env.num_envs
            require_finite_experience(new_obs, rewards, step=self._steps_of_each)
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            self._update_info_buffer(infos, dones)
            n_steps += 1
            rewards = self._bootstrap_truncated(rewards, dones, infos, new_state)
            rollout_buffer.add(  # type: ignore[call-arg]  # with a state
                obs,
                actions,
                rewards,
                starts,
                values,
                log_probs,
                state,
            )
            self._last_obs = obs = new_obs  # type: ignore[assignment]  # SB3 has it narrower
            self._last_episode_starts = starts = dones
            self._last_state = state = new_state

        with torch.no_grad():
            values = self.policy.predict_values(
                obs_as_tensor(new_obs, self.device),  # type: ignore[arg-type]  # of a VecEnv, never a tuple
                state,
                torch.as_tensor(dones, device=self.device),
            )
        rollout_buffer.compute_returns_and_advantage(last_values=values, dones=dones)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def restart_episodes(self) -> None:
        """Cut all episodes off and start new ones; between two rollouts, where a value already stands for their rest.

        Nothing of the environments and of the memory is left then: what follows depends on what has been learned, on
        the random numbers, and on the seeds that the environments were given.
        """
        self._last_obs = self.env.reset()  # type: ignore[assignment, union-attr]  # as in SB3's `_setup_learn`
        self._last_episode_starts = np.ones(self.n_envs, dtype=bool)
        self._last_state = None
        if self.use_sde:
            self.policy.reset_noise(self.n_envs)

    def train(self) -> None:
        """As `PPO.train`; on a GPU, what that asks of the policy is launched as a whole.

        :raises DivergedError: the weights, or what is computed with them, are not finite any more.
        """
        norm = self.policy.value_norm
        self._normalise_values()
        self._train()
        logged = self.logger.name_to_value
        if norm is not None and "train/value_loss" in logged:  # in units of reward, as without normalisation
            self.logger.record("train/value_loss", logged["train/value_loss"] * float(norm.spread) ** 2)
        if not has_finite_weights(self.policy):
            raise DivergedError(f"the update after step {self.num_timesteps:,} made weights NaN or infinite")

    def _normalise_values(self) -> None:
        """Add the rollout to the statistics of values, and learn from it in their units."""
        if (norm := self.policy.value_norm) is not None:
            norm.update(torch.from_numpy(self.rollout_buffer.returns).to(norm.mean), self.policy.value_net)
            self.rollout_buffer.normalise_values(norm)

    def _train(self) -> None:
        # gSDE learns through noise in new tensors, which a graph would not see.
        if self.device.type != "cuda" or self.use_sde:
            return super().train()
        if self._evaluation is None or self._evaluation.policy is not self.policy:
            self._evaluation = CapturedEvaluation(self.policy)
        self.policy.evaluate_actions = self._evaluation  # type: ignore[method-assign]  # PPO.train calls this
        try:
            super().train()
        finally:
            del self.policy.evaluate_actions

    def _observations_of(self, rollout: RolloutBuffer) -> PyTorchObs:
        """All observations `[T * N, ...]` of a rollout."""
        arrays: Any = rollout.observations
        if isinstance(arrays, dict):
            arrays = {key: array.reshape(-1, *array.shape[2:]) for key, array in arrays.items()}
        else:
            arrays = arrays.reshape(-1, *arrays.shape[2:])
        return obs_as_tensor(arrays, self.device)

    @property
    def _steps_of_each(self) -> int:
        """How many steps each environment has taken."""
        return self.num_timesteps // self.n_envs

    def _bootstrap_truncated(
        self, rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]], state: State
    ) -> np.ndarray:
        """Add the discounted value of the terminal observation where an episode was cut off by a limit of time.

        The memory reads that observation with the state after this step, not with the fresh one of the next episode.
        One call for all of them.
        """
        if not dones.any():
            return rewards
        rows = [i for i in np.flatnonzero(dones) if infos[i].get("TimeLimit.truncated", False)]
        if not rows:
            return rewards
        terminal = [infos[i]["terminal_observation"] for i in rows]
        if isinstance(terminal[0], dict):
            stacked: Any = {key: np.stack([obs[key] for obs in terminal]) for key in terminal[0]}
        else:
            stacked = np.stack(terminal)
        require_finite_experience(stacked, step=self._steps_of_each, rows=rows)
        index = torch.as_tensor(rows, device=self.device)
        with torch.no_grad():
            values = self.policy.predict_values(
                self.policy.obs_to_tensor(stacked)[0],
                select_rows(state, index),
                torch.zeros(len(rows), dtype=torch.bool, device=self.device),
            )
        rewards = rewards.copy()
        rewards[rows] += self.gamma * values.flatten().cpu().numpy()
        return rewards

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "MemoryPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> "MemoryPPO":
        """As `PPO.learn`."""
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Save as an SB3 zip that also carries the portable, pickle-free policy (`fwp_rl.sb3.load_policy`).

        A file is written under a temporary name and renamed, so that a crash leaves the old one intact.
        """
        buffer = io.BytesIO()
        super().save(buffer, exclude, include)
        with zipfile.ZipFile(buffer, "a") as archive:
            try:
                write_portable(archive, self.policy)
            except NotPortableError as error:
                warnings.warn(f"saved without the portable part: {error}", stacklevel=2)
        if isinstance(path, str | pathlib.Path):
            file = pathlib.Path(path)
            # As SB3 does, and as `load` expects
            file = file if file.suffix else file.with_suffix(".zip")
            file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(file, buffer.getvalue())
        else:
            path.write(buffer.getvalue())


def _explicit(
    policy: Any,
    kwargs: dict[str, Any] | None,
    configure: Callable[[str | MemoryConfig], MemoryConfig],
    **choices: bool | None,
) -> dict[str, Any]:
    """Arguments of the policy that say all that a saved model must not leave to defaults, which change."""
    kwargs = dict(kwargs or {})
    ours = (*MemoryPPO.policy_aliases, *MemoryPPO.policy_aliases.values())
    if "memory" in kwargs or policy in ours:  # a policy of one's own may choose for itself
        kwargs["memory"] = configure(kwargs.get("memory", "delta"))
        kwargs = choices | kwargs
    return kwargs


def _normalizes_observations(env: Any) -> bool:
    """Whether `VecNormalize` does what the policy would do."""
    wrapper = unwrap_vec_normalize(env) if isinstance(env, VecEnv) else None
    return wrapper is not None and wrapper.norm_obs


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
