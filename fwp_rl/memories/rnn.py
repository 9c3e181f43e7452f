"""`rnn`: the simple recurrent network (Elman 1990)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fwp_rl.memory import Memory, MemoryConfig
from fwp_rl.ops.rnn_scan import full_precision, project_inputs, rnn_scan
from fwp_rl.registry import register
from fwp_rl.state import State


@register("rnn")
@dataclass(frozen=True, kw_only=True)
class RNNConfig(MemoryConfig):
    """Simple recurrent network: tanh, no gates."""

    hidden_size: int = 128
    """number of units; also the output size"""

    def __post_init__(self) -> None:
        if self.hidden_size < 1:
            raise ValueError(f"hidden_size must be at least 1, got {self.hidden_size}")

    def build(self, input_size: int) -> "RNNMemory":
        """See `MemoryConfig.build`."""
        return RNNMemory(input_size, self)


class RNNMemory(Memory):
    """One layer of `torch.nn.RNN` (tanh): same parameters and equation. The state is h."""

    def __init__(self, input_size: int, config: RNNConfig) -> None:
        super().__init__()
        if input_size < 1:
            raise ValueError(f"input_size must be at least 1, got {input_size}")
        self.input_size = input_size
        self.output_size = config.hidden_size
        self.weight_ih = nn.Parameter(torch.empty(config.hidden_size, input_size))
        self.weight_hh = nn.Parameter(torch.empty(config.hidden_size, config.hidden_size))
        self.bias_ih = nn.Parameter(torch.zeros(config.hidden_size))
        self.bias_hh = nn.Parameter(torch.zeros(config.hidden_size))
        nn.init.orthogonal_(self.weight_ih)
        # Orthogonal: the linear part neither shrinks nor grows what is remembered (Le et al. 2015).
        nn.init.orthogonal_(self.weight_hh)

    def initial_state(self, batch_size: int) -> State:
        """See `Memory.initial_state`."""
        dtype = torch.promote_types(self.weight_hh.dtype, torch.float32)
        return torch.zeros(batch_size, self.output_size, dtype=dtype, device=self.weight_hh.device)

    def scan(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B O"], State]:
        """See `Memory.scan`."""
        projected = project_inputs(inputs, self.weight_ih, self.bias_ih, state.dtype)
        return rnn_scan(projected, self.weight_hh, self.bias_hh, state, episode_starts)

    def step(
        self, inputs: Float[Tensor, "B D"], state: State, episode_starts: Bool[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B O"], State]:
        """See `Memory.step`; torch's cell, which need not lay out the weights for a whole sequence."""
        h = state.masked_fill(episode_starts[:, None], 0)
        with full_precision(inputs.device):
            parameters = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
            h = torch.rnn_tanh_cell(inputs.to(h.dtype), h, *(parameter.to(h.dtype) for parameter in parameters))
        return h, h
