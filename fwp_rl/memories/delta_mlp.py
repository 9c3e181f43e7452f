"""`delta_mlp`: a fast net of several layers, programmed by the delta rule (Irie, Schlag et al. 2021)."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fwp_rl.layers import (
    FastWeightConfig,
    HeadInputs,
    ResidualBlock,
    SlowNet,
    normalised_reads,
    require_positive_sizes,
    run_heads,
    side_by_side,
)
from fwp_rl.memory import Memory
from fwp_rl.registry import register
from fwp_rl.state import State, state_leaves


@register("delta_mlp")
@dataclass(frozen=True, kw_only=True)
class DeltaMLPConfig(FastWeightConfig):
    """Fast weights with the delta rule in several layers, one after the other."""

    n_layers: int = 2
    """Fast layers."""
    expansion: int = 1
    """Width of the feed-forward layer, as a multiple of `width`; less than elsewhere, since the slow net is larger."""

    def build(self, input_size: int) -> Memory:
        """The memory for inputs `[T, B, input_size]`."""
        return DeltaMLP(input_size, self)


class DeltaMLP(Memory):
    """A feed-forward net of L layers whose weights are all fast.

        y^0 = q     S^l_t = delta(S^l_{t-1}, k^l, v^l, beta^l)     y^l = (S^l_t)^T softmax(y^(l-1))     y = y^L

    with keys from a softmax, strengths from a sigmoid, and delta(S, k, v, beta) = S + beta k (v - S^T k)^T. The Delta
    MLP of Irie et al. 2021 (arXiv 2106.06295), section 3.1. The block around it is that of `delta`. Nothing is fed
    back: each layer is one scan for all steps. State: S of each layer, `[B, H, K, V]` and then `[B, H, V, V]`.
    """

    def __init__(self, input_size: int, config: DeltaMLPConfig) -> None:
        super().__init__()
        c = self.config = config
        require_positive_sizes(input_size, c)
        self.input_size = input_size
        self.output_size = c.width
        self.key_sizes = [c.key_size] + [c.value_size] * (c.n_layers - 1)
        slots = c.key_size + sum(self.key_sizes) + c.n_layers * (c.value_size + 1)
        self.slow_net = SlowNet(c, slots)
        self.block = ResidualBlock(input_size, c.width, c.n_heads * c.value_size, c.expansion)

    def initial_state(self, batch_size: int) -> State:
        """Empty fast weights."""
        c, like = self.config, self.slow_net.norm.weight
        return tuple(like.new_zeros(batch_size, c.n_heads, size, c.value_size) for size in self.key_sizes)

    def scan(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B O"], State]:
        """See `Memory.scan`."""

        def heads(x: Tensor) -> tuple[Tensor, State]:
            layers = list(self._layers(x, state, episode_starts))
            return normalised_reads(layers[-1][1]), tuple(final for _, _, final in layers)

        return self.block(inputs, heads)

    def head_inputs(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> HeadInputs:
        """See `fwp_rl.inspection.Inspectable`: the first layer, then the next."""
        return side_by_side([heads for heads, _, _ in self._layers(self.block.encode(inputs), state, episode_starts)])

    def _layers(self, x: Tensor, state: State, episode_starts: Tensor) -> Iterator[tuple[HeadInputs, Tensor, Tensor]]:
        """What each layer is given, what it reads, and its final fast weights."""
        c = self.config
        sizes = [size for key_size in self.key_sizes for size in (key_size, c.value_size, 1)]
        y, *slots = self.slow_net(x).split([c.key_size, *sizes], dim=-1)
        for i, matrix in enumerate(state_leaves(state)):
            k, v, b = slots[3 * i : 3 * i + 3]
            heads = HeadInputs(y.softmax(-1), k.softmax(-1), v, torch.sigmoid(b)[..., 0], None, matrix, "delta")
            y, final = run_heads(heads, episode_starts)
            yield heads, y, final
