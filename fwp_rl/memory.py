"""`Memory`: the one abstraction of this package, and its contract.

A memory reads a sequence and carries a state. It knows where episodes start, so nobody else has to pad, split or
mask sequences.

The contract (`fwp_rl.testing.check_memory` is the same list as code):

1.  Steps are scan. Stepping T times equals one scan over T: outputs and final state.
2.  Scans compose. `scan(a ++ b)` equals `scan(b)` started from the final state of `scan(a)`.
3.  A start is a fresh episode. Where `episode_starts[t, b]`, row b continues from `initial_state`, bit for bit,
    whatever came before, and exactly zero gradient crosses the start.
4.  The state matters. Without a start, different states give different outputs (for a memory that has a state).
5.  Rows are strangers. Row b alone gives what row b gives in the batch.
6.  Causality. Changing `inputs[t:]` leaves `outputs[:t]` alone.
7.  Shapes and dtypes are fixed points. A state goes in and comes out with the same structure, shapes and dtype.
8.  Purity. Nothing is mutated; the module holds no run-time state.
9.  Stability. Outputs and state stay finite over 10 000 steps of unit-variance noise.
10. Gradient reaches back. Where `outputs[t]` depends on `inputs[t - n]`, n < T, the gradient is not cut on the way.

Detaching a state between segments is the caller's act, never the memory's.
"""

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from jaxtyping import Bool, Float
from torch import Tensor, nn

from fwp_rl.state import State


class Memory(nn.Module, abc.ABC):
    """A recurrent module that knows where episodes start.

    Abstract or final: a concrete memory is never subclassed.
    """

    input_size: int
    output_size: int

    @abc.abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """State at the start of an episode: zeros `[batch_size, ...]` on the module's device.

        Leaves are float32 (float64 for a module in float64), also under autocast. A memory whose initial state is
        learned carries the difference to it, so that zero is always a fresh state.
        """

    @abc.abstractmethod
    def scan(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B O"], State]:
        """Run over time.

        Where `episode_starts[t, b]` is true, row b restarts from `initial_state` *before* `inputs[t, b]` is read.
        Returns the outputs and the state after the last step.
        """

    def step(
        self, inputs: Float[Tensor, "B D"], state: State, episode_starts: Bool[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B O"], State]:
        """One step: `scan` with T = 1. Override only for speed."""
        outputs, state = self.scan(inputs[None], state, episode_starts[None])
        return outputs[0], state


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(abc.ABC):
    """Sizes and choices of one type of memory; builds it once the input size is known."""

    absent: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Fields that older files lack, with the value that those files mean. For a new field whose default changes what an
    agent does: an old agent must stay what it was."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**self.absent, **state})

    @abc.abstractmethod
    def build(self, input_size: int) -> Memory:
        """A freshly initialised memory that reads inputs `[T, B, input_size]`."""
