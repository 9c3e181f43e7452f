"""`gated_delta`: the delta rule with a forget gate (Gated DeltaNet; Yang, Kautz & Hatamizadeh 2025)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fwp_rl.layers import DelayHeadsConfig, FastWeightBlock, HeadInputs, spaced_time_constants, write_strength_bias
from fwp_rl.memory import Memory
from fwp_rl.registry import register
from fwp_rl.state import State


@register("gated_delta")
@dataclass(frozen=True, kw_only=True)
class GatedDeltaConfig(DelayHeadsConfig):
    """The delta rule with a forget gate: each head also decays, at a rate that the input controls."""

    negative_eigenvalues: bool = False
    """Write strength in (0, 2) instead of (0, 1): a write can flip what its key recalls (parity, state tracking)."""
    channel_decay: bool = False
    """Each channel of the keys fades at a rate of its own, not all of a head alike (Kimi delta attention)."""

    def build(self, input_size: int) -> Memory:
        """The memory for inputs `[T, B, input_size]`."""
        return GatedDelta(input_size, self)


class GatedDelta(Memory):
    """Fast weights that correct themselves and fade.

        k, q = unit(Wk z), unit(Wq z)     v = Wv z     beta = sigmoid(w z + b)     log alpha = -softplus(a z + c)
        S' = alpha S_{t-1}
        S_t = S' + beta k (v - S'^T k)^T
        y_t = S_t^T q + s v

    Yang et al. 2025 (arXiv 2412.06464), equation 10. With `channel_decay` S' = diag(alpha) S_{t-1}, an alpha for each
    channel of the keys (Kimi Linear, 2025, arXiv 2510.26692); those of a head start alike. Heads start with time
    constants 1 / (1 - alpha) from 64 to 8192 steps: the initialisation for language models forgets within 16 steps in
    the median head. The share s of the present value is learned; half of the heads start at -1 and read change. State:
    S `[B, H, K, V]`.
    """

    def __init__(self, input_size: int, config: GatedDeltaConfig) -> None:
        super().__init__()
        self.input_size = input_size
        self.output_size = config.width
        self.largest_strength = 2.0 if config.negative_eigenvalues else 1.0
        strength = write_strength_bias(config.n_heads, config.key_size, self.largest_strength)
        # softplus(c) = 1 / tau
        decay = (1 / spaced_time_constants(config.n_heads, 64.0, 8192.0)).expm1().log()
        decays = decay.expand(config.key_size if config.channel_decay else 1, -1)
        self.block = FastWeightBlock(input_size, config, gate_biases=torch.cat([strength[None], decays]))

    def initial_state(self, batch_size: int) -> State:
        """Empty fast weights `[B, H, K, V]`."""
        return self.block.empty_matrices(batch_size)

    def scan(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B O"], State]:
        """See `Memory.scan`."""
        return self.block(inputs, state, episode_starts, largest_strength=self.largest_strength)

    def head_inputs(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> HeadInputs:
        """See `fwp_rl.inspection.Inspectable`."""
        return self.block.head_inputs(inputs, state, largest_strength=self.largest_strength)
