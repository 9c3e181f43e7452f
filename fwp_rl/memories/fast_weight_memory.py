"""`fast_weight_memory`: an LSTM that writes associations into a third-order tensor (Schlag et al. 2021)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from fwp_rl.layers import HeadInputs, linear, require_positive_sizes
from fwp_rl.memories.lstm import LSTMConfig
from fwp_rl.memory import Memory, MemoryConfig
from fwp_rl.ops import third_order_scan
from fwp_rl.ops.recurrent_scan import NORM_EPSILON
from fwp_rl.registry import register
from fwp_rl.state import State, state_leaves


@register("fast_weight_memory")
@dataclass(frozen=True, kw_only=True)
class FastWeightMemoryConfig(MemoryConfig):
    """An LSTM with a fast-weight memory of associations, which it writes and follows over several reads."""

    hidden_size: int = 120
    """Number of cells of the LSTM; also the output size."""
    entity_size: int = 16
    """Size of what is associated."""
    relation_size: int = 16
    """Size of what tells the associations of one entity apart."""
    n_reads: int = 3
    """Reads per step, each from where the last one led."""

    def build(self, input_size: int) -> Memory:
        """The memory for inputs `[T, B, input_size]`."""
        return FastWeightMemory(input_size, self)


class FastWeightMemory(Memory):
    """An LSTM, and a tensor F of associations (entity, relation) -> entity that it controls.

        h_t = LSTM(x_t, h_{t-1})
        s, r, v = tanh(Ws h), tanh(Wr h), tanh(Wv h)     beta = sigmoid(w h + b)
        F' = F_{t-1} + beta / V (v - F_{t-1}(s, r)) x s x r     F_t = F' / max(1, |F'|)
        n_0 = Wn h     n_i = norm(F_t(n_{i-1}, We_i h))
        y_t = h_t + Wo n_N

    Schlag, Munkhdalai & Schmidhuber 2021 ("Learning associative inference using fast weight memory", ICLR), section 3;
    as in the authors' code writes are divided by V, the keys of reads are linear, the norm has no parameters, and b
    starts at 1. State: F `[B, V R, V]`, and h and c of the LSTM.
    """

    def __init__(self, input_size: int, config: FastWeightMemoryConfig) -> None:
        super().__init__()
        c = self.config = config
        require_positive_sizes(input_size, c)
        self.input_size = input_size
        self.output_size = c.hidden_size
        self.controller = LSTMConfig(hidden_size=c.hidden_size).build(input_size)
        self.writes = linear(c.hidden_size, 2 * c.entity_size + c.relation_size + 1)
        self.reads = linear(c.hidden_size, c.entity_size + c.n_reads * c.relation_size)
        with torch.no_grad():
            self.writes.bias[-1] = 1
        # Small, not zero: else the memory would get no gradient in the first update.
        self.readout = linear(c.entity_size, c.hidden_size, gain=0.5)

    def initial_state(self, batch_size: int) -> State:
        """No associations, and a fresh LSTM."""
        c, (h, cell) = self.config, self.controller.initial_state(batch_size)
        return h.new_zeros(batch_size, c.entity_size * c.relation_size, c.entity_size), h, cell

    def scan(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B O"], State]:
        """See `Memory.scan`."""
        matrix, *controller_state = state
        h, controller = self.controller.scan(inputs, tuple(controller_state), episode_starts)
        y, matrix = third_order_scan(*self._program(h), matrix, episode_starts)
        return h + self.readout(y), (matrix, *controller)

    def head_inputs(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> HeadInputs:
        """See `fwp_rl.inspection.Inspectable`: one head with the pairs s x r as keys, and 1 + N steps for each input.

        The first one writes with strength beta / V. In the others F has faded to a norm of at most 1, and they read.
        So each read is an exact sum of values; the norms between the reads of a chain are not linear.
        """
        matrix, *controller_state = state_leaves(state)
        h, _ = self.controller.scan(inputs, tuple(controller_state), episode_starts)
        entity, relation, v, strength, query, relations = program = self._program(h)
        value_size = v.shape[-1]
        k = _pairs(entity, relation)
        queries, left, before = [], [], matrix
        for t, starts in enumerate(episode_starts):
            e, r, x, b, q, rs = (each[t, None] for each in program)
            _, after = third_order_scan(e, r, x, b, q, rs, before, starts[None])
            old = before.masked_fill(starts[:, None, None], 0)
            error = v[t] - _read(old, k[t])
            written = old + k[t, :, :, None] * (strength[t, :, None] / value_size * error)[:, None]
            left.append(written.square().sum((-1, -2)).clamp(min=1).rsqrt())
            x, of_step = query[t], [torch.zeros_like(k[t])]
            for relation_of_read in relations[t].unbind(1):
                of_step.append(_pairs(x, relation_of_read))
                x = F.layer_norm(_read(after, of_step[-1]), [value_size], eps=NORM_EPSILON)
            queries.append(torch.stack(of_step))
            before = after
        n_reads = relations.shape[2]

        def steps(first: Tensor, second: Tensor | None = None) -> Tensor:  # [T, B, ...] -> [(1 + N) T, B, 1, ...]
            nothing = torch.zeros_like(first)
            rest = [nothing if second is None else second] + [nothing] * (n_reads - 1)
            return torch.stack([first, *rest], dim=1).flatten(0, 1).unsqueeze(2)

        return HeadInputs(
            q=torch.stack(queries).flatten(0, 1).unsqueeze(2),
            k=steps(k),
            v=steps(v),
            beta=steps(strength / value_size),
            log_decay=steps(torch.zeros_like(strength), torch.stack(left).log()),
            state=matrix[:, None],
            rule="delta",
        )

    def _program(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Entity, relation, value and strength of the write, query and relations of the reads."""
        c = self.config
        write = self.writes(h).split([c.entity_size, c.relation_size, c.entity_size, 1], dim=-1)
        entity, relation, value = (torch.tanh(x) for x in write[:3])
        query, relations = self.reads(h).split([c.entity_size, c.n_reads * c.relation_size], dim=-1)
        relations = relations.unflatten(-1, (c.n_reads, c.relation_size))
        return entity, relation, value, torch.sigmoid(write[3])[..., 0], query, relations


def _pairs(x: Tensor, y: Tensor) -> Tensor:
    """The products of all pairs `[..., X Y]`."""
    return (x[..., None] * y[..., None, :]).flatten(-2)


def _read(matrix: Tensor, x: Tensor) -> Tensor:
    """matrix^T x."""
    return torch.einsum("...kv,...k->...v", matrix, x)
