"""`additive`: fast weights that only add (Schmidhuber 1991), which is linear attention without a denominator."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from fwp_rl.layers import DelayHeadsConfig, FastWeightBlock, HeadInputs, write_strength_bias
from fwp_rl.memory import Memory
from fwp_rl.registry import register
from fwp_rl.state import State


@register("additive")
@dataclass(frozen=True, kw_only=True)
class AdditiveConfig(DelayHeadsConfig):
    """Fast weights that only add: `delta` without the erase term."""

    def build(self, input_size: int) -> Memory:
        """The memory for inputs `[T, B, input_size]`."""
        return Additive(input_size, self)


class Additive(Memory):
    """Fast weights that never erase: a key that is written twice recalls the sum.

        k, q = unit(Wk z), unit(Wq z)     v = Wv z     beta = sigmoid(w z + b)
        S_t = S_{t-1} + beta k v^T
        y_t = S_t^T q + s v

    Schmidhuber 1991 (outer products of FROM and TO patterns), with the projections and the write strength of `delta`,
    so that a comparison of the two isolates the update rule. The share s of the present value is learned;
    half of the heads start at -1 and read change. State: S `[B, H, K, V]`.
    """

    def __init__(self, input_size: int, config: AdditiveConfig) -> None:
        super().__init__()
        self.input_size = input_size
        self.output_size = config.width
        bias = write_strength_bias(config.n_heads, config.key_size, 1.0)
        self.block = FastWeightBlock(input_size, config, gate_biases=bias[None])

    def initial_state(self, batch_size: int) -> State:
        """Empty fast weights `[B, H, K, V]`."""
        return self.block.empty_matrices(batch_size)

    def scan(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B O"], State]:
        """See `Memory.scan`."""
        return self.block(inputs, state, episode_starts, rule="additive")

    def head_inputs(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> HeadInputs:
        """See `fwp_rl.inspection.Inspectable`."""
        return self.block.head_inputs(inputs, state, rule="additive")
