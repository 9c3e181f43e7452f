"""`srwm`: a weight matrix that changes all of itself (Irie, Schlag, Csordás & Schmidhuber 2022)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fwp_rl.layers import HeadInputs, ResidualBlock, normalised_reads, require_positive_sizes
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

    W_0 is 2 K times a parameter drawn from N(0, 1/K), where the authors take the parameter itself. What a softmax puts
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
        return self.matrix * (2 * self.matrix.shape[1])

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

    def head_inputs(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> HeadInputs:
        """See `fwp_rl.inspection.Inspectable`: D as four matrices for each head, those that make y, k, q and b.

            v = W_{t-1}^T softmax(q) - W_0^T softmax(k)

        under the key softmax(k), each with its own rate as the write strength. Two steps for each input: one that
        reads, one that writes. So the reads of D are exact sums of values; W_0 adds the same function of x to all.
        Narrower matrices have columns of zeros on their right.
        """
        c = self.config
        if not c.self_modifying:
            raise ValueError("self_modifying=False: nothing is written, so there is nothing to look into")
        x = self.block.encode(inputs).unflatten(-1, (c.n_heads, -1)).softmax(-1)
        key_size = x.shape[-1]
        sizes = [c.value_size, key_size, key_size, 4]

        def blocks(columns: Tensor) -> Tensor:  # [..., H, M] -> [..., 4 H, V]
            parts = [F.pad(part, (0, max(sizes) - part.shape[-1])) for part in columns.split(sizes, dim=-1)]
            return torch.stack(parts, dim=-2).flatten(-3, -2)

        def read(matrix: Tensor, key: Tensor) -> Tensor:
            return torch.einsum("...hkm,...hk->...hm", matrix, key)

        base, before, keys, values, rates = self.initial_matrix, state, [], [], []
        for t, starts in enumerate(episode_starts):
            difference = before.masked_fill(starts[:, None, None, None], 0)
            _, k, q, b = read(base + difference, x[t]).split(sizes, dim=-1)
            k, q = k.softmax(-1), q.softmax(-1)
            keys.append(k)
            values.append(blocks(read(base + difference, q) - read(base, k)))
            rates.append(torch.sigmoid(b).flatten(-2))
            _, before = self_referential_scan(x[t, None], base, before, episode_starts[t, None])
        q, k = (each.repeat_interleave(4, dim=2) for each in (x, torch.stack(keys)))
        v, beta = torch.stack(values), torch.stack(rates)
        matrices = blocks(state.transpose(1, 2)).transpose(1, 2)

        def alternate(of_read: Tensor, of_write: Tensor) -> Tensor:
            return torch.stack([of_read, of_write], dim=1).flatten(0, 1)

        return HeadInputs(
            q=alternate(q, torch.zeros_like(q)),
            k=alternate(torch.zeros_like(k), k),
            v=alternate(torch.zeros_like(v), v),
            beta=alternate(torch.zeros_like(beta), beta),
            log_decay=None,
            state=matrices,
            rule="delta",
        )
