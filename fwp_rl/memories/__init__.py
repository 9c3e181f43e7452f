"""The memory types, one file each; importing this package registers them."""

from fwp_rl.memories.additive import AdditiveConfig
from fwp_rl.memories.attention import AttentionConfig
from fwp_rl.memories.continuous_delta import ContinuousDeltaConfig
from fwp_rl.memories.delta import DeltaConfig
from fwp_rl.memories.delta_lstm import DeltaLSTMConfig
from fwp_rl.memories.delta_mlp import DeltaMLPConfig
from fwp_rl.memories.delta_product import DeltaProductConfig
from fwp_rl.memories.delta_rnn import DeltaRNNConfig
from fwp_rl.memories.fast_weight_memory import FastWeightMemoryConfig
from fwp_rl.memories.gated_delta import GatedDeltaConfig
from fwp_rl.memories.gru import GRUConfig
from fwp_rl.memories.hebb import HebbConfig
from fwp_rl.memories.linear_attention import LinearAttentionConfig
from fwp_rl.memories.lstm import LSTMConfig
from fwp_rl.memories.none import NoneConfig
from fwp_rl.memories.oja import OjaConfig
from fwp_rl.memories.paper_delta import Irie2021Config, Schlag2021Config
from fwp_rl.memories.recurrent_delta import RecurrentDeltaConfig
from fwp_rl.memories.rnn import RNNConfig
from fwp_rl.memories.srwm import SRWMConfig

__all__ = [
    "AdditiveConfig",
    "AttentionConfig",
    "ContinuousDeltaConfig",
    "DeltaConfig",
    "DeltaLSTMConfig",
    "DeltaMLPConfig",
    "DeltaProductConfig",
    "DeltaRNNConfig",
    "FastWeightMemoryConfig",
    "GRUConfig",
    "GatedDeltaConfig",
    "HebbConfig",
    "Irie2021Config",
    "LSTMConfig",
    "LinearAttentionConfig",
    "NoneConfig",
    "OjaConfig",
    "RNNConfig",
    "RecurrentDeltaConfig",
    "SRWMConfig",
    "Schlag2021Config",
]
