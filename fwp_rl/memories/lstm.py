"""`lstm`: gates and a cell (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fwp_rl.layers import spaced_time_constants
from fwp_rl.memory import Memory, MemoryConfig
from fwp_rl.ops.rnn_scan import full_precision, lstm_scan, project_inputs
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
        """See `MemoryConfig.build`."""
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
        for parameter in self.parameters():  # as torch.nn.LSTM
            nn.init.uniform_(parameter, -(config.hidden_size**-0.5), config.hidden_size**-0.5)
        # Chrono initialisation (Tallec & Ollivier 2018) of a quarter of the cells: with a forget bias of log(tau - 1) a
        # cell keeps what it holds for about tau steps, so that a cue far back is found. With more of them, or with the
        # paper's bias of the input gate, control is learned later.
        long = -(-config.hidden_size // 4)
        with torch.no_grad():
            self.bias_ih.chunk(4)[1][-long:] = torch.log(spaced_time_constants(long, 40.0, 100.0) - 1)

    def initial_state(self, batch_size: int) -> State:
        """See `Memory.initial_state`."""
        dtype = torch.promote_types(self.weight_hh.dtype, torch.float32)
        shape = (batch_size, self.output_size)
        device = self.weight_hh.device
        return torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device)

    def scan(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B O"], State]:
        """See `Memory.scan`."""
        projected = project_inputs(inputs, self.weight_ih, self.bias_ih, state[0].dtype)
        return lstm_scan(projected, self.weight_hh, self.bias_hh, state, episode_starts)

    def step(
        self, inputs: Float[Tensor, "B D"], state: State, episode_starts: Bool[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B O"], State]:
        """See `Memory.step`; torch's cell, which need not lay out the weights for a whole sequence."""
        restart = episode_starts[:, None]
        h, c = (leaf.masked_fill(restart, 0) for leaf in state)
        with full_precision(inputs.device):
            parameters = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
            h, c = torch.lstm_cell(inputs.to(h.dtype), (h, c), *(parameter.to(h.dtype) for parameter in parameters))
        return h, (h, c)
