"""From the settings of a run to its environments and its learner."""

import contextlib
from dataclasses import asdict

from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from agents.config import TrainConfig
from agents.errors import AgentsError, UsageError
from agents.vec_env import NormalizedRewards, make_vec_env, policy_name, seed_training
from fwp_rl.sb3 import MemoryPPO

WINDOW = 100
"""Of how many of the last episodes of training the metrics `rollout/*` are means, once there are so many."""


def make_training_env(config: TrainConfig) -> VecEnv:
    """The environments of `config`, with all that it puts between them and the learner."""
    venv = make_vec_env(
        config.env_id,
        config.n_envs,
        seed=config.seed,
        options=config.env_options,
        wrappers=config.wrappers,
        previous_action=config.previous_action,
        previous_reward=config.previous_reward,
        workers=config.workers or 0,
        engine=config.engine,
    )
    return NormalizedRewards(venv, config.ppo.gamma) if config.ppo.normalize_reward else venv


def build_model(config: TrainConfig, venv: VecEnv) -> MemoryPPO:
    """The learner of `config` on `venv`; UsageError with one line for each setting that cannot work."""
    special = ("ent_coef_final", "log_std_init", "normalize_reward", "normalize_values", "adam_eps")
    settings = {name: value for name, value in asdict(config.ppo).items() if name not in special}
    for name in ("learning_rate", "clip_range"):
        if settings.pop(f"{name}_schedule") == "linear" and settings[name] > 0:  # else MemoryPPO says what is wrong
            settings[name] = LinearSchedule(settings[name], 0.0, 1.0)
    try:
        model = MemoryPPO(
            policy_name(venv),
            venv,
            **settings,
            policy_kwargs={
                "memory": config.memory,
                "n_blocks": config.n_blocks,
                "critic": config.critic,
                "encoder_size": config.encoder_size,
                "net_arch": list(config.net_arch),
                "normalize_features": config.normalize_observations,
                "normalize_values": config.ppo.normalize_values,
                "log_std_init": config.ppo.log_std_init,
                "optimizer_kwargs": {"eps": config.ppo.adam_eps, "fused": True},  # fused as by default
            },
            stats_window_size=WINDOW,
            seed=config.seed,
            device=config.device,
        )
    except (ValueError, AssertionError) as error:
        raise UsageError(str(error)) from error
    seed_training(venv, config.seed)  # SB3 has just seeded the environments with the seed of the weights
    return model


def ppo_problems(config: TrainConfig) -> list[str]:
    """What MemoryPPO has to say about its settings, where a model can be built at all."""
    if not 1 <= config.n_envs <= 1000:
        return []
    try:
        # With its other settings at their defaults, whose problems are told elsewhere.
        names = ("env_id", "env_options", "wrappers", "ppo", "n_envs")
        config = TrainConfig(**{name: getattr(config, name) for name in names}, device="cpu", workers=0)
        with contextlib.closing(make_training_env(config)) as venv:
            build_model(config, venv)
    except (AgentsError, RuntimeError) as error:
        return str(error).splitlines()
    return []
