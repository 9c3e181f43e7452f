"""`check_memory` rejects memories that are wrong on purpose, each for the law that it breaks.

Not here: errors that agree with themselves, such as reading before writing, adding instead of replacing, or a
transposed read. They obey the whole contract; the tests of `fwp_rl.ops` compare with known values and catch them.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fwp_rl.memory import Memory
from fwp_rl.state import State
from fwp_rl.testing import LAWS, MemoryContractError, check_memory

FRESH = "a start is a fresh episode"
STEPS = "steps are scan"
ROWS = "rows are strangers"
GRADIENT = "gradient reaches back"
PURITY = "purity"
FIXED = "shapes and dtypes are fixed points"


class DeltaLoop(Memory):
    """The delta rule as a loop: correct. The wrong memories below change one line of it."""

    KEY_SIZE, VALUE_SIZE = 4, 6

    def __init__(self, input_size: int) -> None:
        super().__init__()
        self.input_size, self.output_size = input_size, self.VALUE_SIZE
        self.project = nn.Linear(input_size, 2 * self.KEY_SIZE + self.VALUE_SIZE + 1)

    def initial_state(self, batch_size: int) -> State:
        return self.project.weight.new_zeros(batch_size, self.KEY_SIZE, self.VALUE_SIZE)

    def scan(self, inputs: Tensor, state: State, episode_starts: Tensor) -> tuple[Tensor, State]:
        outputs = []
        for t in range(len(inputs)):
            state = self.restart(state, episode_starts[t], t)
            output, state = self.write_and_read(inputs[t], state)
            outputs.append(output)
        return torch.stack(outputs), state

    def restart(self, state: Tensor, starts: Tensor, t: int) -> Tensor:
        return torch.where(starts[:, None, None], 0.0, state)

    def write_and_read(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v, strength = (
            self.project(inputs).to(state.dtype).split([self.KEY_SIZE, self.KEY_SIZE, self.VALUE_SIZE, 1], -1)
        )
        q, k = self.unit(q), self.unit(k)
        recalled = (state * k[:, :, None]).sum(1)
        state = state + (strength.sigmoid() * (v - recalled))[:, None] * k[:, :, None]
        return (state * q[:, :, None]).sum(1), state

    def unit(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=-1)


class RestartsAfterTheWrite(DeltaLoop):
    def scan(self, inputs, state, episode_starts):
        outputs = []
        for t in range(len(inputs)):
            output, state = self.write_and_read(inputs[t], state)
            state = self.restart(state, episode_starts[t], t)
            outputs.append(output)
        return torch.stack(outputs), state


class NeverRestarts(DeltaLoop):
    def restart(self, state, starts, t):
        return state


class IgnoresItsState(DeltaLoop):
    def scan(self, inputs, state, episode_starts):
        return super().scan(inputs, self.initial_state(inputs.shape[1]), episode_starts)


class RestartsAtTheFirstStepOnly(DeltaLoop):
    def restart(self, state, starts, t):
        return super().restart(state, starts, t) if t == 0 else state


class OneStartRestartsAllRows(DeltaLoop):
    def restart(self, state, starts, t):
        return super().restart(state, starts.any().expand_as(starts), t)


class RestartsOneStepLate(DeltaLoop):
    def scan(self, inputs, state, episode_starts):
        late = torch.cat([torch.zeros_like(episode_starts[:1]), episode_starts[:-1]])
        return super().scan(inputs, state, late)


class CarriesTheStartToTheNextStep(DeltaLoop):
    """One step late again, but consistently: the pending start travels in the state."""

    def initial_state(self, batch_size):
        return super().initial_state(batch_size), self.project.weight.new_zeros(batch_size, 1)

    def scan(self, inputs, state, episode_starts):
        matrix, pending = state
        late = torch.cat([pending[:, 0].bool()[None], episode_starts])
        outputs, matrix = super().scan(inputs, matrix, late[:-1])
        return outputs, (matrix, late[-1:].T.to(matrix.dtype))


class DetachesEveryStep(DeltaLoop):
    def restart(self, state, starts, t):
        return super().restart(state, starts, t).detach()


class DetachesTheErasedValue(DeltaLoop):
    """The gradient still reaches every step, but not on all ways."""

    def write_and_read(self, inputs, state):
        output, new_state = super().write_and_read(inputs, state)
        decayed = new_state - state
        return output, state + decayed.detach() + 0.5 * (decayed - decayed.detach())


class LeaksGradientAcrossStarts(DeltaLoop):
    def restart(self, state, starts, t):
        return torch.where(starts[:, None, None], state - state.detach(), state)

    def scan(self, inputs, state, episode_starts):
        # Values after a start are clean, also of NaN; only the gradient passes.
        state = torch.where(state.isfinite(), state, torch.zeros_like(state))
        return super().scan(torch.where(inputs.isfinite(), inputs, torch.zeros_like(inputs)), state, episode_starts)


class RestartsByMultiplication(DeltaLoop):
    def restart(self, state, starts, t):
        return state * (~starts)[:, None, None]


class NormalisesOverRows(DeltaLoop):
    def write_and_read(self, inputs, state):
        return super().write_and_read(inputs - inputs.mean(0), state)


class TracksBatchStatistics(DeltaLoop):
    def __init__(self, input_size):
        super().__init__(input_size)
        self.norm = nn.BatchNorm1d(input_size)

    def write_and_read(self, inputs, state):
        return super().write_and_read(self.norm(inputs), state)


class LooksAhead(DeltaLoop):
    """Acausal memories cannot agree with their own steps ..."""

    def scan(self, inputs, state, episode_starts):
        return super().scan(inputs + inputs.roll(-1, 0), state, episode_starts)


class LooksAheadAtOneRow(DeltaLoop):
    """... unless they look only at starts that the other laws do not set: of row 3, which has none."""

    def scan(self, inputs, state, episode_starts):
        outputs, state = super().scan(inputs, state, episode_starts)
        starts = episode_starts[:, 3:4].sum(1)
        later = starts.sum() - starts.cumsum(0)
        return outputs + later[:, None, None], state


class WritesIntoItsArgument(DeltaLoop):
    def write_and_read(self, inputs, state):
        output, new_state = super().write_and_read(inputs, state)
        return output, state.copy_(new_state.detach())

    def restart(self, state, starts, t):
        return state.masked_fill_(starts[:, None, None], 0.0)


class WritesIntoItsArgumentWhenSteppingWithoutGradient(DeltaLoop):
    def step(self, inputs, state, episode_starts):
        output, new_state = super().step(inputs, state, episode_starts)
        return output, new_state if torch.is_grad_enabled() else state.copy_(new_state)


class KeepsStateOnTheModule(DeltaLoop):
    kept = 0.0

    def scan(self, inputs, state, episode_starts):
        outputs, state = super().scan(inputs, state + self.kept, episode_starts)
        self.kept = state.detach().mean()
        return outputs, state


class DriftsToBfloat16UnderAutocast(DeltaLoop):
    def write_and_read(self, inputs, state):
        return super().write_and_read(inputs, state.to(self.project(inputs).dtype))


class IsAlwaysFloat32(DeltaLoop):
    def initial_state(self, batch_size):
        return super().initial_state(batch_size).float()


class StartsOnTheWrongDevice(DeltaLoop):
    def initial_state(self, batch_size):
        return torch.zeros(batch_size, self.KEY_SIZE, self.VALUE_SIZE, dtype=self.project.weight.dtype)


class ExplodesWithLongKeys(DeltaLoop):
    def unit(self, x):
        return 4 * x


class StepDiffersFromScan(DeltaLoop):
    def step(self, inputs, state, episode_starts):
        output, state = super().step(inputs, state, episode_starts)
        return 1.001 * output, state


class StepDiffersFromScanWithoutGradient(DeltaLoop):
    def step(self, inputs, state, episode_starts):
        output, state = super().step(inputs, state, episode_starts)
        return output if torch.is_grad_enabled() else 1.001 * output, state


class InitialStateIsNotZero(DeltaLoop):
    def initial_state(self, batch_size):
        return super().initial_state(batch_size) + 1


class LearnsAnInitialStateForStartsOnly(DeltaLoop):
    def __init__(self, input_size):
        super().__init__(input_size)
        self.learned = nn.Parameter(torch.zeros(self.KEY_SIZE, self.VALUE_SIZE))

    def restart(self, state, starts, t):
        return torch.where(starts[:, None, None], self.learned, state)


class HasAStateThatNobodyReads(DeltaLoop):
    def initial_state(self, batch_size):
        return super().initial_state(batch_size), self.project.weight.new_zeros(batch_size, 3)

    def scan(self, inputs, state, episode_starts):
        outputs, matrix = super().scan(inputs, state[0], episode_starts)
        spare = torch.where(episode_starts.any(0)[:, None], 0.0, state[1])
        return outputs, (matrix, spare)


class ForgetsAtTheEndOfAScan(DeltaLoop):
    """Every scan of more than one step ends in an empty state."""

    def scan(self, inputs, state, episode_starts):
        outputs, state = super().scan(inputs, state, episode_starts)
        return outputs, state if len(inputs) == 1 else self.initial_state(inputs.shape[1])


class ForgetsWhenAScanIsCut(DeltaLoop):
    """Steps and whole scans are right; a scan of few steps reads its state a little too small."""

    def scan(self, inputs, state, episode_starts):
        return super().scan(inputs, state * 0.99 if 1 < len(inputs) < 7 else state, episode_starts)


class HasNoStateButMixesTime(DeltaLoop):
    def initial_state(self, batch_size):
        return ()

    def scan(self, inputs, state, episode_starts):
        outputs, _ = super().scan(inputs, super().initial_state(inputs.shape[1]), episode_starts)
        return outputs, ()


REJECTED: list[tuple[Callable[[int], Memory], str]] = [
    (RestartsAfterTheWrite, FRESH),
    (NeverRestarts, FRESH),
    (CarriesTheStartToTheNextStep, FRESH),
    (LeaksGradientAcrossStarts, FRESH),
    (RestartsByMultiplication, FRESH),
    (LearnsAnInitialStateForStartsOnly, FRESH),
    (IgnoresItsState, STEPS),
    (RestartsAtTheFirstStepOnly, STEPS),
    (RestartsOneStepLate, STEPS),
    (StepDiffersFromScan, STEPS),
    (StepDiffersFromScanWithoutGradient, STEPS),
    (LooksAhead, STEPS),
    (ForgetsAtTheEndOfAScan, STEPS),
    (HasNoStateButMixesTime, STEPS),
    (ForgetsWhenAScanIsCut, "scans compose"),
    (HasAStateThatNobodyReads, "the state matters"),
    (OneStartRestartsAllRows, ROWS),
    (NormalisesOverRows, ROWS),
    (LooksAheadAtOneRow, "causality"),
    (DetachesEveryStep, GRADIENT),
    (DetachesTheErasedValue, GRADIENT),
    (TracksBatchStatistics, PURITY),
    (WritesIntoItsArgument, PURITY),
    (WritesIntoItsArgumentWhenSteppingWithoutGradient, PURITY),
    (KeepsStateOnTheModule, PURITY),
    (DriftsToBfloat16UnderAutocast, FIXED),
    (IsAlwaysFloat32, FIXED),
    (StartsOnTheWrongDevice, FIXED),
    (InitialStateIsNotZero, FIXED),
    (ExplodesWithLongKeys, "stability"),
]


def test_the_correct_loop_keeps_the_contract() -> None:
    check_memory(DeltaLoop)


@pytest.mark.parametrize(("memory", "law"), REJECTED, ids=lambda case: getattr(case, "__name__", "by"))
def test_wrong_memory_is_rejected_by_the_law_that_it_breaks(memory: Callable[[int], Memory], law: str) -> None:
    with pytest.raises(MemoryContractError) as error:
        check_memory(memory)
    assert error.value.law == law, str(error.value)


def test_every_law_rejects_something() -> None:
    assert {law for _, law in REJECTED} == set(LAWS)


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    with pytest.raises(MemoryContractError):
        check_memory(NeverRestarts)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_exception_of_the_memory_tells_which_law_was_checked() -> None:
    class Broken(DeltaLoop):
        def step(self, inputs, state, episode_starts):
            raise RuntimeError("no step today")

    with pytest.raises(RuntimeError, match="no step today") as error:
        check_memory(Broken)
    assert "shapes and dtypes" in error.value.__notes__[0]
