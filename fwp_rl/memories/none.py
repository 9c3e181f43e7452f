"""`none`: no memory at all, the control that every claim about memory needs."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor, nn

from fwp_rl.layers import linear, require_positive
from fwp_rl.memory import Memory, MemoryConfig
from fwp_rl.registry import register
from fwp_rl.state import State


@register("none")
@dataclass(frozen=True, kw_only=True)
class NoneConfig(MemoryConfig):
    """No memory: a feed-forward network that sees the present observation only."""

    hidden_size: int = 128
    """Units in each of the two layers."""

    def build(self, input_size: int) -> Memory:
        """The memory for inputs `[T, B, input_size]`."""
        return NoMemory(input_size, self)


class NoMemory(Memory):
    """Two tanh layers on the present input. State: the empty tuple."""

    def __init__(self, input_size: int, config: NoneConfig) -> None:
        super().__init__()
        require_positive(hidden_size=config.hidden_size)
        self.input_size = input_size
        self.output_size = config.hidden_size
        gain = nn.init.calculate_gain("tanh")
        self.layers = nn.Sequential(
            linear(input_size, config.hidden_size, gain=gain),
            nn.Tanh(),
            linear(config.hidden_size, config.hidden_size, gain=gain),
            nn.Tanh(),
        )

    def initial_state(self, batch_size: int) -> State:
        """The empty tuple."""
        return ()

    def scan(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B O"], State]:
        """See `Memory.scan`."""
        return self.layers(inputs), state
