"""`oja`: fast weights programmed by Oja's rule (Oja 1982; Irie, Faccio & Schmidhuber 2022)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fwp_rl.layers import (
    FastWeightConfig,
    HeadInputs,
    ResidualBlock,
    SlowNet,
    empty_fast_weights,
    normalised_reads,
    require_positive_sizes,
    run_heads,
    write_strength_bias,
)
from fwp_rl.memory import Memory
from fwp_rl.ops import oja_keys, unit
from fwp_rl.ops.fast_weight_heads import UNIT_EPSILON
from fwp_rl.registry import register
from fwp_rl.state import State


@register("oja")
@dataclass(frozen=True, kw_only=True)
class OjaConfig(FastWeightConfig):
    """Fast weights with Oja's rule: a write replaces the key under which its value was stored."""

    def build(self, input_size: int) -> Memory:
        """The memory for inputs `[T, B, input_size]`."""
        return Oja(input_size, self)


class Oja(Memory):
    """Fast weights that correct themselves by value: the delta rule on the other side.

        k, q = unit(Wk z), unit(Wq z)     v = unit(Wv z)     beta = sigmoid(w z + b)
        S_t = S_{t-1} + beta (k - S_{t-1} v) v^T
        y_t = S_t^T q

    The discrete form of the Oja rule of Irie et al. 2022 (arXiv 2206.01649), where v is a tanh: here it has length 1,
    else steps of this size would diverge. State: S `[B, H, K, V]`.
    """

    def __init__(self, input_size: int, config: OjaConfig) -> None:
        super().__init__()
        c = self.config = config
        require_positive_sizes(input_size, c)
        self.input_size = input_size
        self.output_size = c.width
        self.slow_net = SlowNet(c, 2 * c.key_size + c.value_size + 1, write_strength_bias(c.n_heads, c.value_size, 1.0))
        self.block = ResidualBlock(input_size, c.width, c.n_heads * c.value_size, c.expansion)

    def initial_state(self, batch_size: int) -> State:
        """Empty fast weights `[B, H, K, V]`."""
        return empty_fast_weights(self.config, self.slow_net.norm.weight, batch_size)

    def scan(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B O"], State]:
        """See `Memory.scan`."""

        def heads(x: Tensor) -> tuple[Tensor, State]:
            y, final = run_heads(self._program(x, state, episode_starts), episode_starts)
            return normalised_reads(y), final

        return self.block(inputs, heads)

    def head_inputs(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> HeadInputs:
        """See `fwp_rl.inspection.Inspectable`."""
        return self._program(self.block.encode(inputs), state, episode_starts)

    def _program(self, x: Tensor, state: State, episode_starts: Tensor) -> HeadInputs:
        c = self.config
        q, k, v, b = self.slow_net(x).split([c.key_size, c.key_size, c.value_size, 1], dim=-1)
        q, k, v = (unit(part, part.shape[-1], epsilon=UNIT_EPSILON) for part in (q, k, v))
        beta = torch.sigmoid(b)[..., 0]
        written = oja_keys(k, v, beta, state, episode_starts)
        return HeadInputs(q, written, v, torch.ones_like(beta), None, state, "additive")
