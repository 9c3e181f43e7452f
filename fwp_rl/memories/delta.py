"""`delta`: fast weights programmed by the delta rule (Schlag, Irie & Schmidhuber 2021; Widrow & Hoff 1960)."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from fwp_rl.layers import DelayHeadsConfig, FastWeightBlock, HeadInputs, write_strength_bias
from fwp_rl.memory import Memory
from fwp_rl.registry import register
from fwp_rl.state import State


@register("delta")
@dataclass(frozen=True, kw_only=True)
class DeltaConfig(DelayHeadsConfig):
    """Fast weights with the delta rule: a write replaces what its key recalled."""

    negative_eigenvalues: bool = False
    """Write strength in (0, 2) instead of (0, 1): a write can flip what its key recalls (parity, state tracking)."""

    def build(self, input_size: int) -> Memory:
        """The memory for inputs `[T, B, input_size]`."""
        return Delta(input_size, self)


class Delta(Memory):
    """Fast weights that correct themselves.

        k, q = unit(Wk z), unit(Wq z)     v = Wv z     beta = sigmoid(w z + b)
        S_t = S_{t-1} + beta k (v - S_{t-1}^T k)^T
        y_t = S_t^T q + s v

    Schlag et al. 2021 (arXiv 2102.11174), equations 23 to 25, with L2-normalised keys (Yang et al. 2024, arXiv
    2406.06484) in the place of sum-normalised ones. The share s of the present value is learned;
    half of the heads start at -1 and read change. State: S `[B, H, K, V]`.
    """

    def __init__(self, input_size: int, config: DeltaConfig) -> None:
        super().__init__()
        self.input_size = input_size
        self.output_size = config.width
        self.largest_strength = 2.0 if config.negative_eigenvalues else 1.0
        bias = write_strength_bias(config.n_heads, config.key_size, self.largest_strength)
        self.block = FastWeightBlock(input_size, config, gate_biases=bias[None])

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
