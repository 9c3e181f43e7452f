"""`recurrent_delta`: the delta rule, programmed by a recurrent slow net (Irie, Schlag, Csordás & Schmidhuber 2021)."""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fwp_rl.layers import (
    FastWeightConfig,
    HeadInputs,
    ResidualBlock,
    SlowNet,
    empty_fast_weights,
    last_outputs,
    normalised_reads,
    require_positive_sizes,
)
from fwp_rl.memory import Memory
from fwp_rl.ops import recurrent_delta_scan
from fwp_rl.registry import register
from fwp_rl.state import State, state_leaves


@register("recurrent_delta")
@dataclass(frozen=True, kw_only=True)
class RecurrentDeltaConfig(FastWeightConfig):
    """Fast weights with the delta rule; what to write and to read also depends on what was read last."""

    def build(self, input_size: int) -> Memory:
        """The memory for inputs `[T, B, input_size]`."""
        return RecurrentDelta(input_size, self)


class RecurrentDelta(Memory):
    """Fast weights whose slow net sees the last output of its fast net.

        h = tanh(y_{t-1})
        k, q = softmax(Wk z + Rk h), softmax(Wq z + Rq h)     v = Wv z + Rv h     beta = sigmoid(w z + r h + b)
        S_t = S_{t-1} + beta k (v - S_{t-1}^T k)^T
        y_t = S_t^T q

    The Recurrent Delta Net of Irie et al. 2021 (arXiv 2106.06295), section 3.2; each head sees its own output, as in
    the authors' code. The block around it is that of `delta`. State: S `[B, H, K, V]` and y `[B, H, V]`.
    """

    def __init__(self, input_size: int, config: RecurrentDeltaConfig) -> None:
        super().__init__()
        c = self.config = config
        require_positive_sizes(input_size, c)
        self.input_size = input_size
        self.output_size = c.width
        slots = 2 * c.key_size + c.value_size + 1
        self.slow_net = SlowNet(c, slots)
        self.block = ResidualBlock(input_size, c.width, c.n_heads * c.value_size, c.expansion)
        # As in the authors' code: of variance 1 / V.
        self.recurrent = nn.Parameter(torch.randn(c.n_heads, c.value_size, slots) * c.value_size**-0.5)

    def initial_state(self, batch_size: int) -> State:
        """Empty fast weights `[B, H, K, V]`, and no output yet `[B, H, V]`."""
        c, like = self.config, self.slow_net.norm.weight
        return empty_fast_weights(c, like, batch_size), like.new_zeros(batch_size, c.n_heads, c.value_size)

    def scan(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B O"], State]:
        """See `Memory.scan`."""
        return self.block(inputs, partial(self._heads, state=state, episode_starts=episode_starts))

    def head_inputs(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> HeadInputs:
        """See `fwp_rl.inspection.Inspectable`."""
        c, (matrix, y) = self.config, state_leaves(state)
        slots = self.slow_net(self.block.encode(inputs))
        outputs, _ = recurrent_delta_scan(slots, self.recurrent, state, episode_starts)
        last = last_outputs(outputs, y, episode_starts)
        slots = slots + torch.einsum("tbhv,hvs->tbhs", last.tanh(), self.recurrent)
        q, k, v, b = slots.split([c.key_size, c.key_size, c.value_size, 1], dim=-1)
        return HeadInputs(q.softmax(-1), k.softmax(-1), v, torch.sigmoid(b)[..., 0], None, matrix, "delta")

    def _heads(self, x: Tensor, state: State, episode_starts: Tensor) -> tuple[Tensor, State]:
        y, state = recurrent_delta_scan(self.slow_net(x), self.recurrent, state, episode_starts)
        return normalised_reads(y), state
