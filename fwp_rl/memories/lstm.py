"""`lstm`: gates and a cell (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fwp_rl.memory import Memory, MemoryConfig
from fwp_rl.ops.rnn_scan import lstm_scan, project_inputs
from fwp_rl.registry import register
from fwp_rl.state import State


@register("lstm")
@dataclass(frozen=True, kw_only=True)
class LSTMConfig(MemoryConfig):
    """Long short-term memory."""

    hidden_size: int = 128
    """number of cells; also the output size"""

    def __post_init__(self) -> None:
        if self.hidden_size < 1:
            raise ValueError(f"hidden_size must be at least 1, got {self.hidden_size}")

    def build(self, input_size: int) -> "LSTMMemory":
        return LSTMMemory(input_size, self)


class LSTMMemory(Memory):
    """One layer of `torch.nn.LSTM`: same parameters, gate order i, f, g, o and equations. The state is (h, c)."""

    def __init__(self, input_size: int, config: LSTMConfig) -> None:
        super().__init__()
        if input_size < 1:
            raise ValueError(f"input_size must be at least 1, got {input_size}")
        self.input_size = input_size
        self.output_size = config.hidden_size
        self.weight_ih = nn.Parameter(torch.empty(4 * config.hidden_size, input_size))
        self.weight_hh = nn.Parameter(torch.empty(4 * config.hidden_size, config.hidden_size))
        self.bias_ih = nn.Parameter(torch.zeros(4 * config.hidden_size))
        self.bias_hh = nn.Parameter(torch.zeros(4 * config.hidden_size))
        with torch.no_grad():
            for gate in (*self.weight_ih.chunk(4), *self.weight_hh.chunk(4)):
                nn.init.orthogonal_(gate)
            # sigmoid(1) = 0.73 instead of 0.5: a fresh cell keeps its content, and its gradient, for several steps
            # more, so that there is something to learn from (Gers et al. 2000; Jozefowicz et al. 2015).
            self.bias_ih.chunk(4)[1].fill_(1.0)

    def initial_state(self, batch_size: int) -> State:
        dtype = torch.promote_types(self.weight_hh.dtype, torch.float32)
        shape = (batch_size, self.output_size)
        device = self.weight_hh.device
        return torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device)

    def scan(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B O"], State]:
        projected = project_inputs(inputs, self.weight_ih, self.bias_ih, state[0].dtype)
        return lstm_scan(projected, self.weight_hh, self.bias_hh, state, episode_starts)
