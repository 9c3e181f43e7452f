"""The agent: PPO of Stable-Baselines3 with a memory from this package. Needs the extra `fwp-rl[sb3]`."""

from fwp_rl.sb3.audit import audit_policy
from fwp_rl.sb3.buffers import SequenceBatch, SequenceRolloutBuffer
from fwp_rl.sb3.diagnostics import RolloutSample, diagnose
from fwp_rl.sb3.finite import DivergedError, NonFiniteError
from fwp_rl.sb3.policies import (
    MemoryActorCriticCnnPolicy,
    MemoryActorCriticPolicy,
    MultiInputMemoryActorCriticPolicy,
)
from fwp_rl.sb3.portable import ModelFileError, NotPortableError, load_policy
from fwp_rl.sb3.ppo import MemoryPPO
from fwp_rl.sb3.previous import PreviousInputs
from fwp_rl.sb3.workers import WorkerError, WorkerVecEnv

MlpPolicy = MemoryActorCriticPolicy
CnnPolicy = MemoryActorCriticCnnPolicy
MultiInputPolicy = MultiInputMemoryActorCriticPolicy

__all__ = [
    "CnnPolicy",
    "DivergedError",
    "MemoryActorCriticCnnPolicy",
    "MemoryActorCriticPolicy",
    "MemoryPPO",
    "MlpPolicy",
    "ModelFileError",
    "MultiInputMemoryActorCriticPolicy",
    "MultiInputPolicy",
    "NonFiniteError",
    "NotPortableError",
    "PreviousInputs",
    "RolloutSample",
    "SequenceBatch",
    "SequenceRolloutBuffer",
    "WorkerError",
    "WorkerVecEnv",
    "audit_policy",
    "diagnose",
    "load_policy",
]
