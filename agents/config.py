"""What a run is made of, as frozen dataclasses that survive a round trip through strict JSON."""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch

import fwp_rl.memories  # noqa: F401  (registers the memory types)
from fwp_rl.memory import MemoryConfig
from fwp_rl.registry import memory_config, memory_configs, memory_name
from fwp_rl.sb3.policies import Critic

OptionValue: TypeAlias = bool | int | float | str | None
"""A value that an environment option may have: what JSON can say without nesting."""


Engine: TypeAlias = Literal["original", "envpool"]
"""What steps the environments of a training."""


class ConfigError(ValueError):
    """A config file with an unknown key, a wrong type or a value that is no number. The message names the place."""


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """The settings of MemoryPPO that we vary; names and meanings are Stable-Baselines3's, where it has them."""

    learning_rate: float = 3e-4
    """Step size of Adam."""
    learning_rate_schedule: Literal["constant", "linear"] = "constant"
    """Keep the learning rate, or let it fall linearly to zero at the end of training."""
    adam_eps: float = 1e-5
    """Gradients much smaller than this make smaller steps. With advantage_floor, 1e-4 helps to keep what is learned."""
    n_steps: int = 128
    """Steps that each environment takes between two updates."""
    sequence_length: int | None = None
    """Steps that a gradient reaches back through the memory; divides n_steps. None: n_steps."""
    batch_size: int | None = None
    """Transitions in a minibatch, a multiple of sequence_length. None: a quarter of the rollout."""
    n_epochs: int = 4
    """Passes over each rollout."""
    gamma: float = 0.99
    """Discount per step."""
    gae_lambda: float = 0.95
    """Trade-off between bias and variance of the advantages."""
    clip_range: float = 0.2
    """How far an update may move the probability ratio from 1."""
    clip_range_schedule: Literal["constant", "linear"] = "constant"
    """Keep the clip range, or let it fall linearly to zero at the end of training."""
    advantage_floor: float = 0.0
    """Advantages are divided by their spread in a minibatch, but by no less than this, in units of return. With 0, an
    agent without mistakes may unlearn what it can; 0.1 suits rewards of 1 for success."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus."""
    ent_coef_final: float | None = None
    """Weight of the entropy bonus at the end, reached linearly. None: stays at ent_coef."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    max_grad_norm: float = 0.5
    """Gradients are clipped to this norm."""
    target_kl: float | None = None
    """Stop the passes over a rollout once the policy has moved this far. None: never."""
    normalize_values: bool = True
    """Let the critic learn values in units of their own spread, so that its loss does not grow with the rewards."""
    normalize_reward: bool = False
    """Learn from rewards divided by the running spread of their discounted sum. Statistics and evaluations stay raw."""
    use_sde: bool = False
    """State-dependent exploration (continuous actions only)."""
    sde_sample_freq: int = -1
    """Steps after which state-dependent exploration draws its noise again. -1: once in a rollout."""
    log_std_init: float = 0.0
    """Logarithm of the initial standard deviation of continuous actions."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides what a training run does."""

    env_id: str = "fwp/MiniGrid-TMaze-v0"
    """Task to train on: an own task (fwp/...), MiniGrid-..., BabyAI-..., ...NoVel-..., or any Gymnasium id."""
    env_options: Mapping[str, OptionValue] = field(default_factory=dict)
    """Options of the environment, such as view_size or actions."""
    wrappers: tuple[str, ...] = ()
    """Wrappers around the environment, the first innermost, each NAME or NAME:OPTION=VALUE, such as
    flicker:probability=0.5 or mask:hide=1,3. `python -m agents list` names them."""
    memory: MemoryConfig = field(default_factory=lambda: memory_config("delta"))
    """The memory of the agent."""
    n_blocks: int = 1
    """How many memory blocks are stacked."""
    critic: Critic = "shared"
    """Memory of the critic: the actor's, trained by both losses (shared) or by the actor's alone (detached), or its own
    (separate)."""
    encoder_size: int | None = 128
    """Units of the layer between observation and memory. None: the memory reads the observation as it is."""
    net_arch: tuple[int, ...] = (64,)
    """Hidden layers after the memory, the same for policy and value. Empty: linear heads."""
    normalize_observations: bool | None = None
    """Standardise observations by the mean and spread of those seen so far; saved with the policy. None: unless a
    network reads pictures."""
    previous_action: bool = False
    """Whether the memory reads the previous action. It is a memory too: keep it equal in a comparison."""
    previous_reward: bool = False
    """Whether the memory reads the previous reward. It is a memory too: keep it equal in a comparison."""
    ppo: PPOConfig = PPOConfig()
    total_timesteps: int = 300_000
    """Environment steps to train for, over all environments together."""
    n_envs: int = 16
    """Environments that run side by side."""
    workers: int | None = None
    """Processes besides this one that step environments; the results are the same with any number. None: as many as
    should finish the run soonest, by the time that a step takes. Tasks written in NumPy run in this process."""
    engine: Engine = "original"
    """What steps the environments in training. envpool: EnvPool, faster where an environment is slow (BabyAI), with
    episodes of the same distribution; evaluation and pictures are always the original's."""
    seed: int = 0
    """Seed of the weights, of exploration and of the training environments."""
    eval_every: int = 0
    """Evaluate every so many steps on episodes with unseen seeds. 0: never."""
    eval_episodes: int = 50
    """Episodes of each evaluation."""
    stop_at_success: float | None = None
    """End the run once an evaluation reaches this success rate. None: never early."""
    stop_at_return: float | None = None
    """End the run once an evaluation reaches this mean return, for tasks without success. None: never early."""
    stop_at_seconds: float | None = None
    """End the run after so many seconds of training. None: train for all steps."""
    save_every: int = 100_000
    """Replace model.zip and checkpoint.zip every so many steps. All environments start new episodes there, which makes
    resuming exact: let it be many episodes of each."""
    device: str = "cpu"
    """Where to compute: cpu, cuda or auto."""
    threads: int | None = 1
    """Threads for computing. More help large networks on idle cores; runs side by side then wait for one another. None:
    as the libraries choose."""

    @property
    def planned_steps(self) -> int:
        """Steps that a run takes in the end: a rollout that has begun is finished."""
        rollout = self.n_envs * self.ppo.n_steps
        return -(-self.total_timesteps // rollout) * rollout


def config_problems(config: TrainConfig) -> list[str]:
    """What cannot work in `config`, one line per problem. The sizes of PPO are checked by MemoryPPO itself."""
    problems = [
        f"{name}={getattr(config, name)} must be at least {least}"
        for name, least in _LEAST.items()
        if getattr(config, name) is not None and getattr(config, name) < least
    ]
    if config.n_envs > 1000:
        problems.append(f"n_envs={config.n_envs} must be at most 1000")
    if config.workers is not None and config.n_envs > 0 and config.workers >= config.n_envs:
        problems.append(f"workers={config.workers} must be less than n_envs={config.n_envs}: this process has a share")
    if any(size < 1 for size in config.net_arch):
        problems.append(f"net_arch={config.net_arch} must hold sizes of at least 1")
    if config.stop_at_success is not None and not 0 < config.stop_at_success <= 1:
        problems.append(f"stop_at_success={config.stop_at_success} must lie in (0, 1]")
    for name in ("stop_at_success", "stop_at_return"):
        if getattr(config, name) is not None and config.eval_every <= 0:
            problems.append(f"{name} needs evaluations; set eval_every, for instance 20000")
    if config.stop_at_seconds is not None and not config.stop_at_seconds > 0:
        problems.append(f"stop_at_seconds={config.stop_at_seconds} must be more than 0")
    if not 0 < config.ppo.adam_eps < math.inf:
        problems.append(f"ppo.adam_eps={config.ppo.adam_eps} must be more than 0")
    if config.ppo.ent_coef_final is not None and not config.ppo.ent_coef_final >= 0:
        problems.append(f"ppo.ent_coef_final={config.ppo.ent_coef_final} must be at least 0")
    if problem := device_problem(config.device):
        problems.append(problem)
    return problems


def device_problem(device: str) -> str | None:
    """Why nothing can be computed there."""
    if device not in ("cpu", "auto", "cuda") and not re.fullmatch(r"cuda:\d+", device):
        return f"device={device!r} must be cpu, cuda, cuda:N or auto"
    if device.startswith("cuda"):
        index, there = int(device.partition(":")[2] or 0), torch.cuda.device_count()
        if index >= there:  # Stable-Baselines3 would compute on the CPU and not say so
            found = f"{there} GPUs" if there > 1 else "one GPU" if there else "no GPU"
            return f"device={device!r} must be there, PyTorch finds {found}; cpu and auto always work"
    return None


_LEAST = {
    "n_blocks": 1,
    "encoder_size": 1,
    "total_timesteps": 1,
    "n_envs": 1,
    "workers": 0,
    "seed": 0,
    "eval_every": 0,
    "eval_episodes": 1,
    "save_every": 1,
    "threads": 1,
}


def to_json(config: object) -> Any:
    """`config` as what `json.dumps` takes. A memory config carries its registered name as `type`."""
    if isinstance(config, MemoryConfig):
        return {"type": memory_name(config), **_fields_to_json(config)}
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return _fields_to_json(config)
    if isinstance(config, Mapping):
        return {str(key): to_json(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_json(value) for value in config]
    if isinstance(config, float) and not math.isfinite(config):
        raise ConfigError(f"{config} cannot be written to a config file")
    if config is None or isinstance(config, bool | int | float | str):
        return config
    raise ConfigError(f"a {type(config).__name__} cannot be written to a config file")


def train_config_from_json(data: object) -> TrainConfig:
    """The inverse of `to_json`; anything unknown, of a wrong type or not finite raises ConfigError."""
    return typing.cast(TrainConfig, _decode(TrainConfig, data, "config"))


def _fields_to_json(config: Any) -> dict[str, Any]:
    return {item.name: to_json(getattr(config, item.name)) for item in dataclasses.fields(config)}


def _decode(annotation: Any, value: object, place: str) -> Any:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is MemoryConfig:
        return _decode_memory(value, place)
    if dataclasses.is_dataclass(annotation):
        return _decode_dataclass(annotation, value, place)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(arguments, value, place)
    if origin is Literal:
        if value in arguments and type(value) in {type(choice) for choice in arguments}:
            return value
        raise ConfigError(f"{place}: expected one of {', '.join(map(repr, arguments))}, got {value!r}")
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{place}: expected a list, got {value!r}")
        items = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(items) != len(value):
            raise ConfigError(f"{place}: expected {len(items)} values, got {len(value)}")
        return tuple(
            _decode(item, part, f"{place}[{i}]") for i, (item, part) in enumerate(zip(items, value, strict=True))
        )
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise ConfigError(f"{place}: expected an object, got {value!r}")
        return {key: _decode(arguments[1], part, f"{place}.{key}") for key, part in value.items()}
    return _decode_plain(annotation, value, place)


def _decode_plain(annotation: Any, value: object, place: str) -> Any:
    if annotation is type(None) and value is None:
        return None
    if annotation is float and type(value) in (int, float):
        if not math.isfinite(typing.cast(float, value)):
            raise ConfigError(f"{place}: expected a finite number, got {value!r}")
        return float(typing.cast(float, value))
    if annotation in (bool, int, str) and type(value) is annotation:
        return value
    expected = "null" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))
    raise ConfigError(f"{place}: expected {expected}, got {value!r}")


def _decode_union(choices: tuple[Any, ...], value: object, place: str) -> Any:
    # An int is also a valid float: ask for the exact type first, so that 3 stays 3.
    for choice in sorted(choices, key=lambda choice: choice is not type(value)):
        try:
            return _decode(choice, value, place)
        except ConfigError:
            continue
    names = " or ".join(
        "null" if choice is type(None) else getattr(choice, "__name__", str(choice)) for choice in choices
    )
    raise ConfigError(f"{place}: expected {names}, got {value!r}")


def _decode_dataclass(config_class: Any, value: object, place: str) -> Any:
    if not isinstance(value, dict):
        raise ConfigError(f"{place}: expected an object, got {value!r}")
    hints = typing.get_type_hints(config_class)
    known = {item.name: hints[item.name] for item in dataclasses.fields(config_class) if item.init}
    unknown = [key for key in value if key not in known]
    if unknown:
        raise ConfigError(f"{place}: unknown key {unknown[0]!r}; known are {', '.join(known)}")
    return config_class(**{key: _decode(known[key], part, f"{place}.{key}") for key, part in value.items()})


def _decode_memory(value: object, place: str) -> MemoryConfig:
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise ConfigError(f"{place}: expected an object with a type, got {value!r}")
    config_class = memory_configs().get(value["type"])
    if config_class is None:
        known = ", ".join(memory_configs())
        raise ConfigError(f"{place}: unknown memory {value['type']!r}; registered are {known}")
    options = {**config_class.absent, **{key: part for key, part in value.items() if key != "type"}}
    return typing.cast(MemoryConfig, _decode_dataclass(config_class, options, place))
