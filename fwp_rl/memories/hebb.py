"""`hebb`: fast weights programmed by Hebb's rule (Hebb 1949; Irie, Faccio & Schmidhuber 2022)."""

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
from fwp_rl.registry import register
from fwp_rl.state import State


@register("hebb")
@dataclass(frozen=True, kw_only=True)
class HebbConfig(FastWeightConfig):
    """Fast weights with Hebb's rule: what occurs together is joined, and nothing is ever erased."""

    def build(self, input_size: int) -> Memory:
        """The memory for inputs `[T, B, input_size]`."""
        return Hebb(input_size, self)


class Hebb(Memory):
    """Fast weights that join what occurs together.

        k, q = softmax(Wk z), softmax(Wq z)     v = tanh(Wv z)     beta = sigmoid(w z + b)
        S_t = S_{t-1} + beta k v^T
        y_t = S_t^T q

    The discrete form of the Hebb rule of Irie et al. 2022 (arXiv 2206.01649). `additive` is the same update with the
    keys and values of `delta`. State: S `[B, H, K, V]`.
    """

    def __init__(self, input_size: int, config: HebbConfig) -> None:
        super().__init__()
        c = self.config = config
        require_positive_sizes(input_size, c)
        self.input_size = input_size
        self.output_size = c.width
        self.slow_net = SlowNet(c, 2 * c.key_size + c.value_size + 1, write_strength_bias(c.n_heads, c.key_size, 1.0))
        self.block = ResidualBlock(input_size, c.width, c.n_heads * c.value_size, c.expansion)

    def initial_state(self, batch_size: int) -> State:
        """Empty fast weights `[B, H, K, V]`."""
        return empty_fast_weights(self.config, self.slow_net.norm.weight, batch_size)

    def scan(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B O"], State]:
        """See `Memory.scan`."""

        def heads(x: Tensor) -> tuple[Tensor, State]:
            y, final = run_heads(self._program(x, state), episode_starts)
            return normalised_reads(y), final

        return self.block(inputs, heads)

    def head_inputs(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> HeadInputs:
        """See `fwp_rl.inspection.Inspectable`."""
        return self._program(self.block.encode(inputs), state)

    def _program(self, x: Tensor, state: State) -> HeadInputs:
        c = self.config
        q, k, v, b = self.slow_net(x).split([c.key_size, c.key_size, c.value_size, 1], dim=-1)
        beta = torch.sigmoid(b)[..., 0]
        return HeadInputs(q.softmax(-1), k.softmax(-1), v.tanh(), beta, None, state, "additive")
