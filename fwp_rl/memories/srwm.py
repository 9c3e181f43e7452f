"""`srwm`: a weight matrix that changes all of itself (Irie, Schlag, Csordás & Schmidhuber 2022)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fwp_rl.layers import ResidualBlock, normalised_reads, require_positive_sizes
from fwp_rl.memory import Memory, MemoryConfig
from fwp_rl.ops import self_referential_scan
from fwp_rl.registry import register
from fwp_rl.state import State


@register("srwm")
@dataclass(frozen=True, kw_only=True)
class SRWMConfig(MemoryConfig):
    """A self-referential weight matrix: it makes the output, and also the keys and rates by which it changes."""

    width: int = 128
    """Width of the residual stream, and size of the output."""
    n_heads: int = 4
    """Separate matrices; each reads `width / n_heads` numbers of the residual stream."""
    value_size: int = 32
    """Size of what one head puts out."""
    expansion: int = 3
    """Width of the feed-forward layer, as a multiple of `width`; more than elsewhere, since there is no slow net."""
    self_modifying: bool = True
    """Otherwise the output alone reads the matrix, and nothing changes it ("fake SR" in the paper): no memory."""

    def build(self, input_size: int) -> Memory:
        """The memory for inputs `[T, B, input_size]`."""
        return SRWM(input_size, self)


class SRWM(Memory):
    """A matrix W = W_0 + D for each head, of which W_0 is learned and D carried.

        [y, k, q, b] = W_{t-1}^T softmax(x)                                        read before write
        W_t = W_{t-1} + softmax(k) (rate W_{t-1}^T (softmax(q) - softmax(k)))^T

    The rates of the four blocks of columns, those that make y, k, q and b, are sigmoid(b_1), ... sigmoid(b_4). Irie et
    al. 2022 (arXiv 2202.05780), section 3, with four learning rates; as in the authors' reinforcement learning,
    without norm before the softmax, and b starts around 0. State: D `[B, H, K, V + 2 K + 4]`; zero is a fresh W_0.

    W_0 is K times a parameter drawn from N(0, 1/K), where the authors take the parameter itself. What a softmax puts
    out is about 1/K: with their matrix all keys and queries start alike, softmax(q) - softmax(k) is next to nothing,
    and the gradient through the memory is a few 10^-4 of the one through the present.

    Without self-modification y = W_0^T x, and the state is `()`.
    """

    def __init__(self, input_size: int, config: SRWMConfig) -> None:
        super().__init__()
        c = self.config = config
        require_positive_sizes(input_size, c)
        if c.width % c.n_heads:
            raise ValueError(f"width must be a multiple of n_heads, got width={c.width}, n_heads={c.n_heads}")
        self.input_size = input_size
        self.output_size = c.width
        key_size = c.width // c.n_heads
        columns = c.value_size + (2 * key_size + 4 if c.self_modifying else 0)
        self.matrix = nn.Parameter(torch.randn(c.n_heads, key_size, columns) * key_size**-0.5)
        self.block = ResidualBlock(input_size, c.width, c.n_heads * c.value_size, c.expansion)

    @property
    def initial_matrix(self) -> Float[Tensor, "H K C"]:
        """W_0 of each head; with self-modification of C = V + 2 K + 4 columns, else of V."""
        return self.matrix * self.matrix.shape[1]

    def initial_state(self, batch_size: int) -> State:
        """No difference to the learned matrix."""
        if not self.config.self_modifying:
            return ()
        return self.initial_matrix.new_zeros(batch_size, *self.initial_matrix.shape)

    def scan(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B O"], State]:
        """See `Memory.scan`."""

        def heads(x: Tensor) -> tuple[Tensor, State]:
            x = x.unflatten(-1, (self.config.n_heads, -1))
            if not self.config.self_modifying:
                return normalised_reads(torch.einsum("tbhk,hkv->tbhv", x, self.initial_matrix)), ()
            y, difference = self_referential_scan(x.softmax(-1), self.initial_matrix, state, episode_starts)
            return normalised_reads(y), difference

        return self.block(inputs, heads)
