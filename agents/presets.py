"""Settings that work, by task. This table is the one place where they stand.

A preset is a complete `TrainConfig`; the command line overrides parts of it. Every preset says whether the memory also
reads the previous action or reward: both are memories outside the memory, so they belong to the task, and stay the same
for all memories in a comparison.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import envs
from agents.config import OptionValue, PPOConfig, TrainConfig
from agents.errors import UsageError

# The shared starting points; each preset below says only what differs.
_MINIGRID_PPO = PPOConfig(learning_rate=5e-4, n_steps=128, n_epochs=4, gamma=0.99, ent_coef=0.01)
# The match task of MiniGrid-Memory*: going to either object at once is a local optimum (success 0.5). Three things lead
# out of it. A strong entropy bonus for a long time, so that the agent keeps looking around. A small gae_lambda: with a
# large one every step of an episode gets the coin toss at its end as target, and the one step at which the outcome can
# be known, with cue and object compared, is lost among them. And a value loss that counts as much as the policy's.
_MATCH_PPO = PPOConfig(
    learning_rate=5e-4,
    n_steps=64,
    n_epochs=4,
    gamma=0.99,
    gae_lambda=0.5,
    ent_coef=0.1,
    ent_coef_final=0.02,
    vf_coef=1.0,
)
# An answer is rewarded at once: what comes later is noise to it.
_ANSWER_PPO = dataclasses.replace(_MINIGRID_PPO, learning_rate=1e-3, gamma=0.5, gae_lambda=0.5, ent_coef=0.001)
_CONTROL_PPO = PPOConfig(learning_rate=1e-3, n_steps=128, n_epochs=10, gamma=0.99, gae_lambda=0.95)


# Where nothing goes wrong any more, advantages are errors of the critic, and PPO scales them up to the size of those it
# learned from: an agent that goes on may unlearn in one update what it knew.
_UNTIL_SOLVED: Any = {"eval_every": 20_000, "stop_at_success": 1.0}


_CART_POLE = TrainConfig(
    env_id="CartPoleNoVel-v1",
    # Returns are large and all grow together: unnormalised, the value loss drowns the policy's in the memory that both
    # share.
    ppo=PPOConfig(
        learning_rate=2e-3,
        learning_rate_schedule="linear",
        n_steps=128,
        sequence_length=32,
        n_epochs=10,
        gamma=0.98,
        gae_lambda=0.9,
        vf_coef=0.25,
        normalize_reward=True,
    ),
    n_envs=8,
    total_timesteps=50_000,
    eval_every=5_000,
    stop_at_return=475.0,  # of 500
)
_PENDULUM = TrainConfig(
    env_id="PendulumNoVel-v1",
    ppo=dataclasses.replace(_CONTROL_PPO, n_steps=200, gamma=0.9),
    n_envs=8,
    total_timesteps=200_000,
)
_ENDLESS_T_MAZE = TrainConfig(
    env_id="fwp/EndlessTMaze-v0",
    ppo=dataclasses.replace(
        _MINIGRID_PPO,
        learning_rate=1e-3,
        learning_rate_schedule="linear",
        n_steps=64,
        # A turn in vain costs no more than its entropy is worth: the bonus has to go, or the most likely action at some
        # places stays such a turn, and an agent that always takes it stands there for ever.
        ent_coef_final=0.0,
    ),
    n_envs=32,
    total_timesteps=300_000,
    **_UNTIL_SOLVED,
)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings for one task or one family of tasks."""

    summary: str
    """One sentence: what the task asks for."""
    config: TrainConfig

    @property
    def description(self) -> str:
        """The summary, and which inputs the memory has besides the observation."""
        inputs = [
            name
            for name, is_input in (
                ("previous action", self.config.previous_action),
                ("previous reward", self.config.previous_reward),
            )
            if is_input
        ]
        return f"{self.summary} Memory also reads: {' and '.join(inputs) if inputs else 'nothing else'}."


def _answers(summary: str, env_id: str, *, n_steps: int = 64, **options: OptionValue) -> Preset:
    """One of the tiny vectorised tasks in which every right answer is rewarded at once.

    `n_steps` is a multiple of the length of an episode: whole episodes fill a rollout, so that gradient reaches back
    from every answer to what it is about.
    """
    config = TrainConfig(
        env_id=env_id,
        env_options=options,
        ppo=dataclasses.replace(_ANSWER_PPO, n_steps=n_steps),
        n_envs=32,
        total_timesteps=1_000_000,
        eval_every=50_000,
        stop_at_return=0.95,  # of 1
    )
    return Preset(summary=summary, config=config)


_PRESETS = {
    "fwp/MiniGrid-TMaze-v0": Preset(
        summary="Remember a cue seen at the start until the junction at the end of a corridor.",
        config=TrainConfig(
            env_id="fwp/MiniGrid-TMaze-v0",
            env_options={"length": 7},
            ppo=_MINIGRID_PPO,
            total_timesteps=300_000,
            **_UNTIL_SOLVED,
        ),
    ),
    "MiniGrid-MemoryS9-v0": Preset(
        summary="Look at an object, walk a corridor, choose its match; the view of 3 never shows both.",
        config=TrainConfig(
            env_id="MiniGrid-MemoryS9-v0",
            env_options={"view_size": 3, "actions": "moves"},
            ppo=_MATCH_PPO,
            n_envs=32,
            total_timesteps=5_000_000,
            eval_every=50_000,
            stop_at_success=0.98,
        ),
    ),
    "MiniGrid-MemoryS11-v0": Preset(
        summary="Look at an object, walk a corridor, choose its match; the view of 7 never shows both.",
        config=TrainConfig(
            env_id="MiniGrid-MemoryS11-v0",
            env_options={"actions": "moves"},
            ppo=_MATCH_PPO,
            n_envs=32,
            total_timesteps=5_000_000,
            eval_every=50_000,
            stop_at_success=0.98,
        ),
    ),
    "minigrid": Preset(
        summary="Default for every other MiniGrid-* and BabyAI-* id: one-hot view, all actions.",
        config=TrainConfig(env_id="MiniGrid-MemoryS7-v0", ppo=_MINIGRID_PPO, total_timesteps=2_000_000),
    ),
    "popgym": Preset(
        summary="Default for every popgym-* id, with the inputs and the layers around the memory that were published.",
        config=TrainConfig(
            env_id="popgym-RepeatPreviousEasy-v0",
            env_options={"antialias": True},
            previous_action=True,
            net_arch=(128, 128),
            ppo=PPOConfig(learning_rate=5e-4, n_steps=128, n_epochs=4, gamma=0.99),
            total_timesteps=1_000_000,
        ),
    ),
    "atari": Preset(
        summary="Default for every ALE/* id: frames, rates and budget of Irie et al. 2021, who used IMPALA.",
        config=TrainConfig(
            env_id="ALE/Pong-v5",
            wrappers=("frame_stack:size=4",),
            ppo=PPOConfig(
                learning_rate=6e-4,
                learning_rate_schedule="linear",
                n_steps=50,  # their length of back-propagation
                gamma=0.99,
                ent_coef=0.01,
                normalize_reward=True,  # they clip rewards
            ),
            n_envs=32,
            total_timesteps=50_000_000,  # 200M frames
        ),
    ),
    "CartPoleNoVel-v1": Preset(
        summary="Balance a pole without seeing any velocity.",
        config=_CART_POLE,
    ),
    "PendulumNoVel-v1": Preset(
        summary="Swing up a pendulum without seeing its velocity.",
        config=_PENDULUM,
    ),
    "MountainCarContinuousNoVel-v0": Preset(
        summary="Rock a car up a hill without seeing its velocity.",
        config=TrainConfig(
            env_id="MountainCarContinuousNoVel-v0",
            ppo=dataclasses.replace(_CONTROL_PPO, learning_rate=3e-4, use_sde=True, gamma=0.999, ent_coef=0.0),
            n_envs=8,
            total_timesteps=200_000,
        ),
    ),
    "LunarLanderNoVel-v3": Preset(
        summary="Land a rocket without seeing any velocity.",
        config=TrainConfig(
            env_id="LunarLanderNoVel-v3",
            ppo=dataclasses.replace(_CONTROL_PPO, learning_rate=5e-4, n_epochs=4, gamma=0.999, ent_coef=0.01),
            n_envs=16,
            total_timesteps=1_000_000,
        ),
    ),
    "fwp/TMaze-v0": Preset(
        summary="Remember one cue until the end of a corridor; tiny and vectorised.",
        config=TrainConfig(
            env_id="fwp/TMaze-v0",
            # Only two actions at one cell of a long corridor pay: with less entropy some never turn at all, and with as
            # much to the end some never settle.
            ppo=dataclasses.replace(_MINIGRID_PPO, n_steps=64, ent_coef=0.05, ent_coef_final=0.0),
            n_envs=32,
            total_timesteps=500_000,
            **_UNTIL_SOLVED,
        ),
    ),
    "fwp/EndlessTMaze-v0": Preset(
        summary="Remember one cue after the other, each until the end of its corridor, by the published rules.",
        config=_ENDLESS_T_MAZE,
    ),
    "endless-t-maze-10": Preset(
        summary="The same with ten corridors.",
        config=dataclasses.replace(_ENDLESS_T_MAZE, env_options={"n_corridors": 10}),
    ),
    "fwp/RepeatPrevious-v0": _answers("Say what was shown a few steps ago.", "fwp/RepeatPrevious-v0"),
    # As long as a rollout: with longer episodes updates are rare, and a delay is learned in four times as many steps.
    "repeat-previous-16": _answers("The same with 16 steps.", "fwp/RepeatPrevious-v0", k=16, episode_length=64),
    "repeat-previous-31": _answers("The same with 31 steps.", "fwp/RepeatPrevious-v0", k=31, episode_length=64),
    "fwp/KeyValueRecall-v0": _answers("Say what was written last under a key.", "fwp/KeyValueRecall-v0"),
    "key-value-8": _answers(
        "The same with twice as many keys.", "fwp/KeyValueRecall-v0", n_keys=8, n_writes=24, n_queries=8
    ),
    "key-value-16": _answers(
        "The same with four times as many keys.", "fwp/KeyValueRecall-v0", n_keys=16, n_writes=48, n_queries=16
    ),
    "fwp/GroupTracking-v0": _answers("Follow a ball under five cups that change places.", "fwp/GroupTracking-v0"),
    "parity": _answers("Say whether the number of ones so far is odd.", "fwp/GroupTracking-v0", group="parity"),
    "s3": _answers("Follow the order of three things that change places.", "fwp/GroupTracking-v0", group="S3"),
    "fwp/Tally-v0": _answers("Say how often a symbol was seen.", "fwp/Tally-v0"),
    "fwp/Copy-v0": _answers("Say a short sequence again.", "fwp/Copy-v0"),
    "copy-reverse": _answers("Say a sequence of twelve backwards.", "fwp/Copy-v0", n_steps=72, length=12, reverse=True),
    "fwp/MaskedCartPole-v0": Preset(
        summary="Balance a pole without seeing any velocity; many at once.",
        config=dataclasses.replace(_CART_POLE, env_id="fwp/MaskedCartPole-v0"),
    ),
    "fwp/MaskedPendulum-v0": Preset(
        summary="Swing up a pendulum without seeing its velocity; many at once.",
        config=dataclasses.replace(_PENDULUM, env_id="fwp/MaskedPendulum-v0"),
    ),
    "fwp/MemoryChain-v0": Preset(
        summary="Say a bit that was seen at the start; tiny and vectorised.",
        config=TrainConfig(
            env_id="fwp/MemoryChain-v0",
            ppo=dataclasses.replace(_MINIGRID_PPO, n_steps=64),
            n_envs=32,
            total_timesteps=300_000,
            **_UNTIL_SOLVED,
        ),
    ),
    "generic": Preset(
        summary="Default for any other Gymnasium id.",
        config=TrainConfig(env_id="CartPole-v1", ppo=PPOConfig(learning_rate=5e-4), n_envs=8, total_timesteps=500_000),
    ),
    "debug": Preset(
        summary="Runs through everything in seconds; learns nothing worth having.",
        config=TrainConfig(
            env_id="fwp/RepeatPrevious-v0",
            env_options={"k": 2, "episode_length": 8},
            ppo=PPOConfig(n_steps=32, n_epochs=1),
            n_envs=4,
            total_timesteps=512,
            eval_every=256,
            eval_episodes=4,
            threads=1,
        ),
    ),
}


def presets() -> Mapping[str, Preset]:
    """All presets by name (read-only)."""
    return MappingProxyType(_PRESETS)


def preset_named(name: str) -> Preset:
    """The preset called `name`; UsageError with the nearest names if there is none."""
    if name not in _PRESETS:
        near = difflib.get_close_matches(name, _PRESETS, n=3, cutoff=0.5) or list(_PRESETS)
        raise UsageError(f"unknown preset {name!r}: nearest are {', '.join(near)}")
    return _PRESETS[name]


def preset_for(env_id: str) -> str:
    """The name of the preset that `env_id` gets when none is asked for."""
    if env_id in _PRESETS:
        return env_id
    return _PRESET_OF_PACKAGE.get(_family(env_id), "generic")


def preset_config(env_id: str | None, preset: str | None) -> TrainConfig:
    """The config that the command line starts from. Options and wrappers go with the package of the task."""
    name = preset or preset_for(env_id or TrainConfig().env_id)
    config = preset_named(name).config
    if env_id is None or env_id == config.env_id:
        return config
    if _family(env_id) == _family(config.env_id):
        return dataclasses.replace(config, env_id=env_id)
    return dataclasses.replace(config, env_id=env_id, env_options={}, wrappers=())


_PRESET_OF_PACKAGE = {"minigrid": "minigrid", "popgym": "popgym", "ale_py": "atari"}


def _family(env_id: str) -> str:
    """The package that the task comes from, or the task itself."""
    package = envs.package_of(env_id)
    return env_id if package is None else package.name
