"""`delta_product`: several delta-rule writes for each input (DeltaProduct; Siems et al. 2025)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fwp_rl.layers import (
    DelayHeadsConfig,
    HeadInputs,
    ResidualBlock,
    empty_fast_weights,
    inner_starts,
    linear,
    present_values,
    require_delay_heads,
    require_positive,
    write_strength_bias,
    write_to_first_row,
)
from fwp_rl.memory import Memory
from fwp_rl.ops import fast_weight_heads
from fwp_rl.ops.fast_weight_heads import head_arguments
from fwp_rl.registry import register
from fwp_rl.state import State, state_leaves


@register("delta_product")
@dataclass(frozen=True, kw_only=True)
class DeltaProductConfig(DelayHeadsConfig):
    """Fast weights with several delta-rule writes for each input: one step can permute, not only replace."""

    n_writes: int = 2
    """Writes for each input, one after the other; two reflections make a rotation."""
    negative_eigenvalues: bool = True
    """Write strength in (0, 2) instead of (0, 1): a write can flip what its key recalls."""
    expansion: int = 1
    """Width of the feed-forward layer, as a multiple of `width`; less than elsewhere, since the slow net is larger."""

    def build(self, input_size: int) -> Memory:
        """The memory for inputs `[T, B, input_size]`."""
        return DeltaProduct(input_size, self)


class DeltaProduct(Memory):
    """Fast weights that take several corrections for each input.

        for j = 1 ... n:     S <- S + beta_j k_j (v_j - S^T k_j)^T     with k_j, v_j, beta_j as in `delta`
        y_t = S_t^T q + s v_n

    Siems et al. 2025 (arXiv 2502.10297): the transition is a product of n generalised Householder
    matrices. To the operator it is a sequence of n T steps, of which every n-th is read. With one write it is `delta`.
    State: S `[B, H, K, V]`.
    """

    def __init__(self, input_size: int, config: DeltaProductConfig) -> None:
        super().__init__()
        c = self.config = config
        require_positive(
            input_size=input_size,
            width=c.width,
            n_heads=c.n_heads,
            key_size=c.key_size,
            value_size=c.value_size,
            expansion=c.expansion,
            n_writes=c.n_writes,
        )
        require_delay_heads(c)
        self.input_size = input_size
        self.output_size = c.width
        self.largest_strength = 2.0 if c.negative_eigenvalues else 1.0
        self.query_size = c.n_heads * c.key_size
        self.write_size = c.n_heads * (c.key_size + c.value_size + 1)
        self.norm = nn.LayerNorm(c.width)
        self.project = linear(c.width, self.query_size + c.n_writes * self.write_size)
        with torch.no_grad():
            for j in range(c.n_writes):
                end = self.query_size + (j + 1) * self.write_size
                nn.init.orthogonal_(self.project.weight[end - c.n_heads : end], gain=0.1)
                bias = write_strength_bias(c.n_heads, c.key_size, self.largest_strength)
                self.project.bias[end - c.n_heads : end] = bias
                write_to_first_row(self.project.bias[end - self.write_size : end - c.n_heads * (c.value_size + 1)], c)
        self.skip = nn.Parameter(present_values(c.n_heads))
        self.block = ResidualBlock(input_size, c.width, c.n_heads * c.value_size, c.expansion)

    def initial_state(self, batch_size: int) -> State:
        """Empty fast weights `[B, H, K, V]`."""
        return empty_fast_weights(self.config, self.norm.weight, batch_size)

    def scan(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B O"], State]:
        """See `Memory.scan`."""

        def heads(x: Tensor) -> tuple[Tensor, State]:
            y, final = fast_weight_heads(
                self._inner_steps(x),
                self.skip,
                state,
                inner_starts(episode_starts, self.config.n_writes),
                largest_strength=self.largest_strength,
                delay_heads=self.config.delay_heads,
                n_inner=self.config.n_writes,
            )
            return y.unflatten(0, (-1, self.config.n_writes))[:, -1], final

        return self.block(inputs, heads)

    def head_inputs(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> HeadInputs:
        """See `fwp_rl.inspection.Inspectable`: n steps for each input, of which the last one reads."""
        c, (matrix,) = self.config, state_leaves(state)
        sizes = c.n_heads, c.key_size, c.value_size
        q, k, v, beta, _ = head_arguments(self._inner_steps(self.block.encode(inputs)), *sizes, self.largest_strength)
        return HeadInputs(q, k, v, beta, None, matrix, "delta", c.delay_heads)

    def _inner_steps(self, x: Tensor) -> Tensor:
        """Projections `[n T, B, P]` as `fast_weight_heads` takes them; those that read nothing have a query of 0."""
        n = self.config.n_writes
        q, *writes = self.project(self.norm(x)).split([self.query_size, *[self.write_size] * n], dim=-1)
        queries = [torch.zeros_like(q)] * (n - 1) + [q]
        inner = [torch.cat(pair, dim=-1) for pair in zip(queries, writes, strict=True)]
        return torch.stack(inner, dim=1).flatten(0, 1)
