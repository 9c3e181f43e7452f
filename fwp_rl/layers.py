"""What fast-weight memories share: everything around the update rule, and how its gates start."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fwp_rl.memory import MemoryConfig


def linear(input_size: int, output_size: int, *, gain: float = 1.0, bias: bool = True) -> nn.Linear:
    """A linear layer with orthogonal weights and zero bias."""
    layer = nn.Linear(input_size, output_size, bias=bias)
    nn.init.orthogonal_(layer.weight, gain)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def unit(x: Float[Tensor, "*batch K"], epsilon: float = 1e-6) -> Float[Tensor, "*batch K"]:
    """`x / sqrt(|x|^2 + epsilon)`: unit length, with a gradient also at zero. Computed in float32 at least.

    Keys must not be longer than 1: the delta rule erases by I - beta k k^T, which explodes for beta |k|^2 > 2.
    """
    return _Unit.apply(x.to(torch.promote_types(x.dtype, torch.float32)), epsilon)


class _Unit(torch.autograd.Function):
    """A third of the passes over memory that the same formula takes when torch differentiates it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, epsilon: float) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().add_(epsilon).rsqrt_()
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        y, scale = ctx.saved_tensors
        along = (grad * y).sum(-1, keepdim=True)
        return torch.addcmul(grad, y, along, value=-1).mul_(scale), None


@dataclass(frozen=True, kw_only=True)
class FastWeightConfig(MemoryConfig):
    """The sizes that every fast-weight memory has. Abstract: the memories add their own choices."""

    width: int = 128
    """Width of the residual stream, and size of the output."""
    n_heads: int = 4
    """Separate fast-weight matrices; each starts with its own time constant."""
    key_size: int = 32
    """Size of keys and queries: about as many things as one head can hold apart."""
    value_size: int = 32
    """Size of what is stored under a key."""
    expansion: int = 2
    """Width of the feed-forward layer, as a multiple of `width`."""


class FastWeightBlock(nn.Module):
    """All of a fast-weight memory but its update rule.

    A pre-norm residual block. The memory calls `enter`, computes what its heads read, and calls `leave`:

        x = encode(inputs);   q, k, v = project(norm(x))
        x = x + readout(y);   x = x + feed_forward(norm(x))
    """

    def __init__(self, input_size: int, config: FastWeightConfig) -> None:
        super().__init__()
        c = self.config = config
        require_positive(
            input_size=input_size,
            width=c.width,
            n_heads=c.n_heads,
            key_size=c.key_size,
            value_size=c.value_size,
            expansion=c.expansion,
        )
        self.encode = nn.Identity() if input_size == c.width else linear(input_size, c.width)
        self.norm = nn.LayerNorm(c.width)
        # One layer for queries, keys and values: fewer and larger matrix products.
        self.project = linear(c.width, c.n_heads * (2 * c.key_size + c.value_size), bias=False)
        # Small, not zero: else the memory would get no gradient in the first update.
        self.readout = linear(c.n_heads * c.value_size, c.width, gain=0.5, bias=False)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(c.width),
            linear(c.width, c.expansion * c.width),
            nn.ReLU(),
            linear(c.expansion * c.width, c.width, gain=0.5),
        )

    def empty_matrices(self, batch_size: int) -> Float[Tensor, "B H K V"]:
        """Fast weights that hold nothing."""
        c = self.config
        return self.norm.weight.new_zeros(batch_size, c.n_heads, c.key_size, c.value_size)

    def enter(
        self, inputs: Float[Tensor, "T B D"]
    ) -> tuple[
        Float[Tensor, "T B W"],
        Float[Tensor, "T B W"],
        Float[Tensor, "T B H K"],
        Float[Tensor, "T B H K"],
        Float[Tensor, "T B H V"],
    ]:
        """The residual stream x, its norm z, and from z the unit queries q, unit keys k and values v of the heads."""
        x = self.encode(inputs)
        z = self.norm(x)
        c = self.config
        qk, v = self.project(z).split((2 * c.n_heads * c.key_size, c.n_heads * c.value_size), dim=-1)
        q, k = unit(qk.unflatten(-1, (2, c.n_heads, c.key_size))).unbind(-3)
        return x, z, q, k, v.unflatten(-1, (c.n_heads, c.value_size))

    def leave(self, x: Float[Tensor, "T B W"], y: Float[Tensor, "T B H V"]) -> Float[Tensor, "T B W"]:
        """Add to the residual stream what the heads read, then the feed-forward layer."""
        # RMS norm of each head, with a large epsilon: an almost empty memory is not blown up to full scale.
        size = self.config.value_size
        x = x + self.readout(unit(y, 1e-3 * size).flatten(-2) * size**0.5)
        return x + self.feed_forward(x)


class HeadGate(nn.Module):
    """One number for each head: `w_h z + b_h`, with small `w` so that the bias rules at the start."""

    def __init__(self, width: int, bias: Float[Tensor, " H"]) -> None:
        super().__init__()
        self.linear = linear(width, len(bias), gain=0.1)
        with torch.no_grad():
            self.linear.bias.copy_(bias)

    def forward(self, z: Float[Tensor, "T B W"]) -> Float[Tensor, "T B H"]:
        """The logits of the gate."""
        return self.linear(z)


def spaced_time_constants(n_heads: int, shortest: float, longest: float) -> Float[Tensor, " H"]:
    """One time constant (steps) for each head, spaced logarithmically: some heads start short, some long."""
    if n_heads == 1:
        return torch.tensor([math.sqrt(shortest * longest)])
    return torch.logspace(math.log10(shortest), math.log10(longest), n_heads)


def write_strength_bias(n_heads: int, key_size: int, largest: float) -> Float[Tensor, " H"]:
    """Bias b such that `largest * sigmoid(b)` gives each head its time constant at the start.

    With random unit keys a write of strength beta erases a stored value by 1 - beta / K per step, so beta = K / tau
    remembers for about tau steps: a forget-gate bias for the delta rule.
    """
    tau = spaced_time_constants(n_heads, 16.0, 1024.0)
    beta = (key_size / tau).clamp(max=largest / 2)
    return torch.logit(beta / largest)


def require_positive(**sizes: int) -> None:
    """Raise one `ValueError` that names every size below 1."""
    wrong = [f"{name}={value}" for name, value in sizes.items() if value < 1]
    if wrong:
        raise ValueError(f"sizes must be at least 1, got {', '.join(wrong)}")
