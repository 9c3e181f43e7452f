"""The operators; each has one door, and its backends stand behind it in files with an underscore."""

from fwp_rl.ops.block_step import BlockWeights, block_step
from fwp_rl.ops.fast_weight_heads import fast_weight_heads
from fwp_rl.ops.fast_weight_scan import fast_weight_scan, resolve_backend
from fwp_rl.ops.oja import oja_keys
from fwp_rl.ops.recurrent_scan import fast_rnn_scan, recurrent_delta_scan, self_referential_scan, third_order_scan
from fwp_rl.ops.unit import unit

__all__ = [
    "BlockWeights",
    "block_step",
    "fast_rnn_scan",
    "fast_weight_heads",
    "fast_weight_scan",
    "oja_keys",
    "recurrent_delta_scan",
    "resolve_backend",
    "self_referential_scan",
    "third_order_scan",
    "unit",
]
