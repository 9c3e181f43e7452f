"""`linear_attention`: fast weights that only add, read as an average (Katharopoulos et al. 2020)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fwp_rl.feature_maps import FeatureMap, Normalization, feature_map, feature_size, require_feature_map
from fwp_rl.layers import (
    FastWeightConfig,
    HeadInputs,
    ResidualBlock,
    SlowNet,
    normalised_reads,
    require_positive_sizes,
    run_heads,
)
from fwp_rl.memory import Memory
from fwp_rl.registry import register
from fwp_rl.state import State

DENOMINATOR_EPSILON = 1e-5


@register("linear_attention")
@dataclass(frozen=True, kw_only=True)
class LinearAttentionConfig(FastWeightConfig):
    """Fast weights that only add, with the feature maps of the literature and attention's normalisation."""

    feature_map: FeatureMap = "elu"
    """Of keys and queries: "elu" (elu(x) + 1), "dpfp" (twice the size), "softmax", "silu" or "identity"."""
    normalization: Normalization = "none"
    """Of the features: divide by their "sum", by their length ("l2"), or by "none"."""
    attention_normalization: bool = True
    """Divide what is read by the weight of all that was written, so that it is an average of values."""

    def build(self, input_size: int) -> Memory:
        """The memory for inputs `[T, B, input_size]`."""
        return LinearAttention(input_size, self)


class LinearAttention(Memory):
    """Attention over all that was seen, with a kernel in the place of the exponential, in constant memory.

        k, q = phi(Wk z), phi(Wq z)     v = Wv z
        S_t = S_{t-1} + k v^T     n_t = n_{t-1} + k
        y_t = S_t^T q / (n_t . q)

    Katharopoulos et al. 2020 (arXiv 2006.16236), equations 18 to 20. Without attention's normalisation y = S^T q,
    scaled to a mean square of 1 as in the other memories: the sum update of Schlag et al. 2021. The normaliser n is
    one more column of S. The block around it is that of `delta`. State: S `[B, H, F, V]`, or `[B, H, F, V + 1]` with n.
    """

    def __init__(self, input_size: int, config: LinearAttentionConfig) -> None:
        super().__init__()
        c = self.config = config
        require_positive_sizes(input_size, c)
        require_feature_map(c.feature_map, c.normalization)
        if c.attention_normalization and c.feature_map in ("identity", "silu"):
            raise ValueError(
                f"attention_normalization=True needs features that are not negative, those of {c.feature_map!r} can be"
            )
        self.input_size = input_size
        self.output_size = c.width
        self.slow_net = SlowNet(c, 2 * c.key_size + c.value_size)
        self.block = ResidualBlock(input_size, c.width, c.n_heads * c.value_size, c.expansion)

    def initial_state(self, batch_size: int) -> State:
        """Empty fast weights."""
        c = self.config
        shape = (feature_size(c.key_size, c.feature_map), c.value_size + c.attention_normalization)
        return self.slow_net.norm.weight.new_zeros(batch_size, c.n_heads, *shape)

    def scan(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B O"], State]:
        """See `Memory.scan`."""

        def heads(x: Tensor) -> tuple[Tensor, State]:
            y, final = run_heads(self._program(x, state), episode_starts)
            if self.config.attention_normalization:
                return (y[..., :-1] / (y[..., -1:] + DENOMINATOR_EPSILON)).flatten(-2), final
            return normalised_reads(y), final

        return self.block(inputs, heads)

    def head_inputs(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> HeadInputs:
        """See `fwp_rl.inspection.Inspectable`."""
        return self._program(self.block.encode(inputs), state)

    def _program(self, x: Tensor, state: State) -> HeadInputs:
        c = self.config
        q, k, v = self.slow_net(x).split([c.key_size, c.key_size, c.value_size], dim=-1)
        q, k = (feature_map(part, c.feature_map, c.normalization) for part in (q, k))
        one = torch.ones_like(v[..., 0])
        if c.attention_normalization:
            v = torch.cat([v, one[..., None]], dim=-1)
        return HeadInputs(q, k, v, one, None, state, "additive")
