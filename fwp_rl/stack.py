"""Several memories on top of one another."""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from fwp_rl.memory import Memory, MemoryConfig
from fwp_rl.registry import memory_config
from fwp_rl.state import State


def build_memory(memory: str | MemoryConfig, input_size: int, n_blocks: int = 1) -> Memory:
    """Build the named or configured memory; `n_blocks` of them on top of one another if more than one."""
    config = memory_config(memory)
    if n_blocks < 1:
        raise ValueError(f"n_blocks must be at least 1, got {n_blocks}")
    if n_blocks == 1:
        return config.build(input_size)
    return MemoryStack(config, input_size, n_blocks)


class MemoryStack(Memory):
    """Memories in series: each reads the outputs of the one below. State: the tuple of their states."""

    def __init__(self, config: MemoryConfig, input_size: int, n_blocks: int) -> None:
        super().__init__()
        blocks = [config.build(input_size)]
        while len(blocks) < n_blocks:
            blocks.append(config.build(blocks[-1].output_size))
        self.blocks = nn.ModuleList(blocks)
        self.input_size = input_size
        self.output_size = blocks[-1].output_size

    def initial_state(self, batch_size: int) -> State:
        """The initial states of the blocks."""
        return tuple(block.initial_state(batch_size) for block in self.blocks if isinstance(block, Memory))

    def scan(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B O"], State]:
        """See `Memory.scan`."""
        new_state = []
        for block, block_state in zip(self.blocks, state, strict=True):
            assert isinstance(block, Memory)  # for the type checker: ModuleList forgets it
            inputs, block_state = block.scan(inputs, block_state, episode_starts)
            new_state.append(block_state)
        return inputs, tuple(new_state)
