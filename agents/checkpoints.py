"""What a run that was cut off needs to go on: checkpoint.zip.

A run is a chain of stretches. Wherever one ends (every `save_every` steps, between two rollouts), all environments
start new episodes, and all random numbers start anew from a seed that is a function of the run's seed and of the steps
taken. So a checkpoint holds what has been learned and counted, and no state of a task or of a random generator: those
would need a pickle, and whoever resumes a stranger's run would run the stranger's code. And on a CPU a run that was
killed and resumed is, bit for bit, the run that was not.

The price is an episode of each environment, cut off every `save_every` steps. The learner is not misled by it: as at
the end of every rollout, the value of the last observation stands for the rewards that were still to come.

    checkpoint.zip/state.json        counters, statistics, metrics that wait to be written
                   state.safetensors weights and the moments of the optimizer

It is written at once or not at all (`replace_file`); the CRC-32 of the zip tells whether it is still what was written.
"""

import io
import json
import zipfile
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor

from agents.errors import RunFileError
from agents.runs import finite, strict_json
from agents.vec_env import NormalizedRewards, seed_training
from fwp_rl.files import replace_file
from fwp_rl.sb3 import MemoryPPO

VERSION = 1
_STATE, _TENSORS = "state.json", "state.safetensors"
_LARGEST = {_STATE: 2**22, _TENSORS: 2**34}  # bytes


def stretch_seed(seed: int, step: int) -> int:
    """Seed of what is random after `step` steps of the run `seed`, in 0..2^32 - 1."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1)[0])


def begin_stretch(model: MemoryPPO, seed: int) -> None:
    """Start new episodes, and all random numbers anew, between two rollouts of the run `seed`."""
    fresh = stretch_seed(seed, model.num_timesteps)
    model.set_random_seed(fresh)
    seed_training(model.env, fresh)  # type: ignore[arg-type]  # a model that learns has environments
    model.restart_episodes()


def save_checkpoint(path: Path, model: MemoryPPO, *, seconds: float) -> None:
    """Write down all that decides how `model` goes on after `begin_stretch`, and the seconds that it has trained."""
    rewards = _reward_statistics(model)
    logger = model.logger
    state = {
        "version": VERSION,
        "steps": model.num_timesteps,
        "updates": model._n_updates,
        "seconds": seconds,
        "episodes": [{key: finite(value) for key, value in info.items()} for info in model.ep_info_buffer or ()],
        "successes": [finite(success) for success in model.ep_success_buffer or ()],
        # SB3 writes the metrics of an update after the next rollout.
        "waiting": {key: [finite(value), logger.name_to_excluded[key]] for key, value in logger.name_to_value.items()},
        "rewards": None if rewards is None else [float(rewards.mean), float(rewards.var), float(rewards.count)],
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_STATE, json.dumps(state, allow_nan=False))
        archive.writestr(_TENSORS, write_tensors(_tensors(model)))
    replace_file(path, buffer.getvalue())


def load_checkpoint(path: Path, model: MemoryPPO) -> float:
    """Put `model` where it was when the checkpoint was written, and return the seconds that it had trained.

    Its environments are left alone: `begin_stretch` follows. RunFileError in one line if the file is damaged or belongs
    to another model.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if any(archive.getinfo(name).file_size > largest for name, largest in _LARGEST.items()):
                raise ValueError("it is larger than any that we write")
            state = strict_json(archive.read(_STATE).decode())
            tensors = read_tensors(archive.read(_TENSORS))
        if state["version"] != VERSION:
            raise ValueError(f"it has version {state['version']}, this program reads version {VERSION}")
        _restore_tensors(model, tensors)
        _restore_counters(model, state)
        return float(state["seconds"])
    except Exception as error:  # whatever a damaged file can make these readers raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RunFileError(f"{path} cannot be resumed from: {reason}; --overwrite starts the run anew") from None


def _tensors(model: MemoryPPO) -> dict[str, Tensor]:
    moments = model.policy.optimizer.state_dict()["state"]
    return {
        **{f"policy.{name}": tensor.detach().contiguous() for name, tensor in _policy_tensors(model).items()},
        **{
            f"optimizer.{index}.{name}": torch.as_tensor(value).contiguous()
            for index, values in moments.items()
            for name, value in values.items()
        },
    }


def _policy_tensors(model: MemoryPPO) -> dict[str, Tensor]:
    """Parameters and buffers; those that SB3 reaches by several names, once."""
    return {**dict(model.policy.named_parameters()), **dict(model.policy.named_buffers())}


def _restore_tensors(model: MemoryPPO, tensors: dict[str, Tensor]) -> None:
    own = {f"policy.{name}": tensor for name, tensor in _policy_tensors(model).items()}
    theirs = {name: tensor.shape for name, tensor in tensors.items() if name.startswith("policy.")}
    if theirs != {name: tensor.shape for name, tensor in own.items()}:
        raise ValueError("its weights are those of another policy")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, part = name.split(".")
            moments.setdefault(int(index), {})[part] = tensor
    optimizer = model.policy.optimizer
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def _restore_counters(model: MemoryPPO, state: dict[str, Any]) -> None:
    model.num_timesteps = state["steps"]
    model._n_updates = state["updates"]
    model.ep_info_buffer = deque(state["episodes"], maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(state["successes"], maxlen=model._stats_window_size)
    for key, (value, excluded) in state["waiting"].items():
        model.logger.record(key, value, exclude=tuple(excluded))
    rewards = _reward_statistics(model)
    if rewards is not None:
        rewards.mean, rewards.var, rewards.count = (np.float64(number) for number in state["rewards"])


def _reward_statistics(model: MemoryPPO) -> Any:
    """The running moments of rewards that are normalised; None if they are not."""
    return model.env.ret_rms if isinstance(model.env, NormalizedRewards) else None
