"""The memory types, one file each; importing this package registers them."""

from fwp_rl.memories.additive import AdditiveConfig
from fwp_rl.memories.delta import DeltaConfig
from fwp_rl.memories.gated_delta import GatedDeltaConfig
from fwp_rl.memories.gru import GRUConfig
from fwp_rl.memories.lstm import LSTMConfig
from fwp_rl.memories.none import NoneConfig
from fwp_rl.memories.rnn import RNNConfig

__all__ = [
    "AdditiveConfig",
    "DeltaConfig",
    "GRUConfig",
    "GatedDeltaConfig",
    "LSTMConfig",
    "NoneConfig",
    "RNNConfig",
]
