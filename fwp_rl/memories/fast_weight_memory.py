"""`fast_weight_memory`: an LSTM that writes associations into a third-order tensor (Schlag et al. 2021)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fwp_rl.layers import linear, require_positive_sizes
from fwp_rl.memories.lstm import LSTMConfig
from fwp_rl.memory import Memory, MemoryConfig
from fwp_rl.ops import third_order_scan
from fwp_rl.registry import register
from fwp_rl.state import State


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
        c, (matrix, *controller_state) = self.config, state
        h, controller = self.controller.scan(inputs, tuple(controller_state), episode_starts)
        write = self.writes(h).split([c.entity_size, c.relation_size, c.entity_size, 1], dim=-1)
        entity, relation, value = (torch.tanh(x) for x in write[:3])
        query, relations = self.reads(h).split([c.entity_size, c.n_reads * c.relation_size], dim=-1)
        relations = relations.unflatten(-1, (c.n_reads, c.relation_size))
        strength = torch.sigmoid(write[3])[..., 0]
        y, matrix = third_order_scan(entity, relation, value, strength, query, relations, matrix, episode_starts)
        return h + self.readout(y), (matrix, *controller)
