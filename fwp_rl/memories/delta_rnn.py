"""`delta_rnn`: a recurrent fast net, programmed by the delta rule (Irie, Schlag, Csordás & Schmidhuber 2021)."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from fwp_rl.layers import (
    FastWeightConfig,
    HeadInputs,
    ResidualBlock,
    SlowNet,
    fast_rnn_head_inputs,
    fast_rnn_heads,
    require_positive_sizes,
)
from fwp_rl.memory import Memory
from fwp_rl.registry import register
from fwp_rl.state import State, state_leaves


@register("delta_rnn")
@dataclass(frozen=True, kw_only=True)
class DeltaRNNConfig(FastWeightConfig):
    """Fast weights with the delta rule, from the input and from the last output to the next: a recurrent fast net."""

    expansion: int = 1
    """Width of the feed-forward layer, as a multiple of `width`; less than elsewhere, since the slow net is larger."""

    def build(self, input_size: int) -> Memory:
        """The memory for inputs `[T, B, input_size]`."""
        return DeltaRNN(input_size, self)


class DeltaRNN(Memory):
    """A recurrent net whose weights are all fast.

        W_t = delta(W_{t-1}, k, v, beta)     R_t = delta(R_{t-1}, k', v', beta')
        y_t = W_t^T softmax(q) + R_t^T softmax(y_{t-1})

    with keys from a softmax, strengths from a sigmoid, and delta(S, k, v, beta) = S + beta k (v - S^T k)^T. The Delta
    RNN of Irie et al. 2021 (arXiv 2106.06295), section 3.1, in the form of the main table, where the softmax is the
    only activation. The block around it is that of `delta`. State: W `[B, H, 1, K, V]`, R `[B, H, 1, V, V]` and y
    `[B, H, V]`.
    """

    def __init__(self, input_size: int, config: DeltaRNNConfig) -> None:
        super().__init__()
        c = self.config = config
        require_positive_sizes(input_size, c)
        self.input_size = input_size
        self.output_size = c.width
        slots = 2 * c.key_size + 3 * c.value_size + 2
        self.slow_net = SlowNet(c, slots)
        self.block = ResidualBlock(input_size, c.width, c.n_heads * c.value_size, c.expansion)

    def initial_state(self, batch_size: int) -> State:
        """Empty fast weights, and no output yet."""
        c, like = self.config, self.slow_net.norm.weight
        return (
            like.new_zeros(batch_size, c.n_heads, 1, c.key_size, c.value_size),
            like.new_zeros(batch_size, c.n_heads, 1, c.value_size, c.value_size),
            like.new_zeros(batch_size, c.n_heads, c.value_size),
        )

    def scan(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B O"], State]:
        """See `Memory.scan`."""
        return self.block(inputs, lambda x: fast_rnn_heads(self.slow_net(x), state, episode_starts))

    def head_inputs(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> HeadInputs:
        """See `fwp_rl.inspection.Inspectable`: all W, then all R."""
        slots = self.slow_net(self.block.encode(inputs))
        return fast_rnn_head_inputs(slots, tuple(state_leaves(state)), episode_starts)
