"""Fast-weight memories for reinforcement learning.

`Memory` is the one abstraction; `fwp_rl.memories` holds the types, `fwp_rl.ops.fast_weight_scan` the operator that
the fast-weight ones share, `fwp_rl.testing.check_memory` the contract as code. The agent for Stable-Baselines3 is in
`fwp_rl.sb3`, which is imported only by those who want it.
"""

from fwp_rl.inspection import audit_gradients, inspect_memory
from fwp_rl.matching import matched, memory_size
from fwp_rl.memories import (
    AdditiveConfig,
    AttentionConfig,
    DeltaConfig,
    DeltaLSTMConfig,
    DeltaMLPConfig,
    DeltaRNNConfig,
    FastWeightMemoryConfig,
    GatedDeltaConfig,
    GRUConfig,
    LSTMConfig,
    NoneConfig,
    RecurrentDeltaConfig,
    RNNConfig,
    SRWMConfig,
)
from fwp_rl.memory import Memory, MemoryConfig
from fwp_rl.ops import fast_weight_scan
from fwp_rl.registry import memory_configs, register
from fwp_rl.stack import build_memory
from fwp_rl.state import State

__version__ = "0.1.0"

__all__ = [
    "AdditiveConfig",
    "AttentionConfig",
    "DeltaConfig",
    "DeltaLSTMConfig",
    "DeltaMLPConfig",
    "DeltaRNNConfig",
    "FastWeightMemoryConfig",
    "GRUConfig",
    "GatedDeltaConfig",
    "LSTMConfig",
    "Memory",
    "MemoryConfig",
    "NoneConfig",
    "RNNConfig",
    "RecurrentDeltaConfig",
    "SRWMConfig",
    "State",
    "audit_gradients",
    "build_memory",
    "fast_weight_scan",
    "inspect_memory",
    "matched",
    "memory_configs",
    "memory_size",
    "register",
]
