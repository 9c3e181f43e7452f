"""`continuous_delta`: the delta rule in continuous time, solved exactly over each step."""

from dataclasses import dataclass, replace

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
from fwp_rl.ops import unit
from fwp_rl.ops.fast_weight_heads import UNIT_EPSILON
from fwp_rl.registry import register
from fwp_rl.state import State

SMALL = 1e-4


@register("continuous_delta")
@dataclass(frozen=True, kw_only=True)
class ContinuousDeltaConfig(FastWeightConfig):
    """The delta rule as a differential equation, whose exact solution takes the time that a step lasted."""

    elapsed_time: int | None = None
    """Index of the input that says how long the step lasted (at least 0; it may be negative to count from the end, and
    a policy needs `encoder_size=None` for its inputs to get here as they are). None: every step lasts 1."""

    def build(self, input_size: int) -> Memory:
        """The memory for inputs `[T, B, input_size]`."""
        return ContinuousDelta(input_size, self)


class ContinuousDelta(Memory):
    """Fast weights that flow: dS/dt = beta k (v - S^T k)^T, with k, v and beta constant over a step of length dt.

        a = (1 - exp(-beta dt |k|^2)) / |k|^2
        S_t = S_{t-1} + a k (v - S_{t-1}^T k)^T
        y_t = S_t^T q,     q = unit(Wq z)

    The continuous-time delta rule of Irie et al. 2022 (arXiv 2206.01649), for inputs that are constant between two
    observations: then the solution is exact, no solver is needed, and no key is too long (also Lei et al. 2025, arXiv
    2512.12602). For environments whose steps last unequally long. State: S `[B, H, K, V]`.
    """

    def __init__(self, input_size: int, config: ContinuousDeltaConfig) -> None:
        super().__init__()
        c = self.config = config
        require_positive_sizes(input_size, replace(c, elapsed_time=None))  # an index may be 0 or negative
        if c.elapsed_time is not None and not -input_size <= c.elapsed_time < input_size:
            raise ValueError(f"elapsed_time={c.elapsed_time} is no index of {input_size} inputs")
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
            y, final = run_heads(self._program(x, inputs, state), episode_starts)
            return normalised_reads(y), final

        return self.block(inputs, heads)

    def head_inputs(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> HeadInputs:
        """See `fwp_rl.inspection.Inspectable`."""
        return self._program(self.block.encode(inputs), inputs, state)

    def _program(self, x: Tensor, inputs: Tensor, state: State) -> HeadInputs:
        c = self.config
        q, k, v, b = self.slow_net(x).split([c.key_size, c.key_size, c.value_size, 1], dim=-1)
        beta = torch.sigmoid(b)[..., 0]
        if c.elapsed_time is not None:
            beta = beta * inputs[..., c.elapsed_time, None].clamp_min(0)
        q = unit(q, c.key_size, epsilon=UNIT_EPSILON)
        return HeadInputs(q, k, v, exact_strength(beta, k), None, state, "delta")


def exact_strength(beta: Float[Tensor, "T B H"], k: Float[Tensor, "T B H K"]) -> Float[Tensor, "T B H"]:
    """(1 - exp(-beta |k|^2)) / |k|^2: the strength of one delta step that does what the flow does in the time beta."""
    x = beta * k.square().sum(-1)
    small = x < SMALL
    # beta (1 - exp(-x)) / x, by its series where the quotient would lose its digits
    safe = torch.where(small, torch.ones_like(x), x)
    return beta * torch.where(small, 1 - x / 2 + x.square() / 6, -torch.expm1(-safe) / safe)
