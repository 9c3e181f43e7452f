"""The contract of `Memory` as code: `check_memory` runs its ten laws on any memory, also on yours.

    from fwp_rl.testing import check_memory

    def test_my_memory_keeps_the_contract():
        check_memory(MyMemoryConfig(width=16))

The laws catch what disagrees with itself: steps with scans, a start with a fresh episode, a gradient with its value.
A memory that is wrong but consistent (that reads before it writes, or adds where it should replace) obeys all of them;
only a test against known values tells, such as those of `fwp_rl.ops`.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from fwp_rl.memory import Memory, MemoryConfig
from fwp_rl.state import State, map_state, select_rows, state_leaves

T, B = 11, 5
"""Length and rows of the test sequences; like every size in a test, unlike the others."""

STABILITY_STEPS = 10_000

TOLERANCE = 1e-10
"""Absolute and relative, in float64: rounding, but no approximation."""


class MemoryContractError(AssertionError):
    """A memory broke a law of the contract; `law` is the name of the law in `LAWS`."""

    def __init__(self, law: str, message: str) -> None:
        super().__init__(f"{law}: {message}")
        self.law = law


def check_memory(memory: MemoryConfig | Callable[[int], Memory], *, input_size: int = 9, seed: int = 0) -> None:
    """Check every law of the contract in `fwp_rl.memory`; raise `MemoryContractError` for the first that is broken.

    Args:
        memory: The config of the memory, or a function that builds one from its input size.
        input_size: Size D of the inputs. Choose it unlike the sizes of the memory.
        seed: Of the parameters and of all data. The global random state is left alone.

    The parameters are moved a little at random first, so that parts which start at zero cannot hide a mistake.
    """
    build = memory.build if isinstance(memory, MemoryConfig) else memory
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        trial = Trial(build, input_size)
        for name, law in LAWS.items():
            try:
                law(trial)
            except _BrokenLawError as broken:
                raise MemoryContractError(name, str(broken)) from None
            except Exception as error:
                error.add_note(f"raised while the memory contract was checked, law {name!r}")
                raise


class Trial:
    """A memory in float64, and the sequences on which the laws are tried."""

    def __init__(self, build: Callable[[int], Memory], input_size: int) -> None:
        self.build = lambda: _with_moved_parameters(build(input_size))
        self.memory = self.build().double()
        self.input_size = input_size
        self.inputs = torch.randn(T, B, input_size, dtype=torch.float64)
        self.no_starts = torch.zeros(T, B, dtype=torch.bool)
        self.episode_starts = self.no_starts.clone()
        for row, times in enumerate([(0,), (5,), (3, 4), (), (0, 6, T - 1)]):  # row 3 has no start
            self.episode_starts[list(times), row] = True
        with torch.no_grad():
            warm_up = torch.randn(7, B, input_size, dtype=torch.float64)
            self.state = self.memory.scan(warm_up, self.memory.initial_state(B), self.no_starts[:7])[1]

    @property
    def has_state(self) -> bool:
        """Whether anything is carried from step to step."""
        return any(True for _ in state_leaves(self.state))

    def in_dtype(self, dtype: torch.dtype) -> tuple[Memory, Tensor, State]:
        """The memory, the inputs and the state in `dtype`."""
        memory = copy.deepcopy(self.memory).to(dtype)
        return memory, self.inputs.to(dtype), map_state(lambda leaf: leaf.to(dtype), self.state)


# The laws, in the words and with the numbers of `fwp_rl.memory`.


def _steps_are_scan(trial: Trial) -> None:
    memory = trial.memory
    outputs, final = memory.scan(trial.inputs, trial.state, trial.episode_starts)
    for with_grad in (True, False):
        with torch.set_grad_enabled(with_grad):
            state, stepped = trial.state, []
            for t in range(T):
                output, state = memory.step(trial.inputs[t], state, trial.episode_starts[t])
                stepped.append(output)
        mode = "with gradients" if with_grad else "under torch.no_grad()"
        _require_close(torch.stack(stepped), outputs, f"{T} steps {mode} do not give the outputs of one scan")
        _require_same_state(state, final, f"{T} steps {mode} do not end in the state of one scan")


def _scans_compose(trial: Trial) -> None:
    inputs, starts = trial.inputs, trial.episode_starts
    outputs, final = trial.memory.scan(inputs, trial.state, starts)
    for t in (1, 4, 5, T - 1):
        first, state = trial.memory.scan(inputs[:t], trial.state, starts[:t])
        second, state = trial.memory.scan(inputs[t:], state, starts[t:])
        _require_close(torch.cat([first, second]), outputs, f"two scans, cut at t={t}, do not give the outputs of one")
        _require_same_state(state, final, f"two scans, cut at t={t}, do not end in the state of one")


def _rows_are_strangers(trial: Trial) -> None:
    outputs, final = trial.memory.scan(trial.inputs, trial.state, trial.episode_starts)
    for row in range(B):
        rows, state = slice(row, row + 1), select_rows(trial.state, torch.tensor([row]))
        alone, state = trial.memory.scan(trial.inputs[:, rows], state, trial.episode_starts[:, rows])
        _require_close(outputs[:, rows], alone, f"row {row} alone does not give its outputs in the batch")
        of_row = select_rows(final, torch.tensor([row]))
        _require_same_state(of_row, state, f"row {row} alone does not end in its state in the batch")


def _start_is_fresh_episode(trial: Trial) -> None:
    _starts_equal_new_episodes(trial)
    for dtype in (torch.float64, torch.float32):
        _nothing_survives_a_start(*trial.in_dtype(dtype), trial.episode_starts)
    _no_gradient_crosses_a_start(trial)


def _starts_equal_new_episodes(trial: Trial) -> None:
    memory = trial.memory
    outputs, final = memory.scan(trial.inputs, trial.state, trial.episode_starts)
    for row, t in _starts(trial.episode_starts, last=True):
        rows = slice(row, row + 1)
        fresh, state = memory.scan(trial.inputs[t:, rows], memory.initial_state(1), trial.no_starts[t:, rows])
        what = f"what follows a start at t={t} differs from a new episode in its"
        _require_close(outputs[t:, rows], fresh, f"{what} outputs")
        _require_same_state(select_rows(final, torch.tensor([row])), state, f"{what} final state")


def _nothing_survives_a_start(memory: Memory, inputs: Tensor, state: State, starts: Tensor) -> None:
    """Bit for bit, whatever stood before the start: numbers, infinities or NaN, in the inputs and in the state."""
    outputs, final = memory.scan(inputs, state, starts)
    for last in (False, True):
        for junk in (100.0, torch.inf, torch.nan):
            spoilt, spoilt_state = inputs.clone(), map_state(torch.clone, state)
            for row, t in _starts(starts, last):
                spoilt[:t, row] = junk
                for leaf in state_leaves(spoilt_state):
                    leaf[row] = junk
            after, after_final = memory.scan(spoilt, spoilt_state, starts)
            for row in range(B):
                t = dict(_starts(starts, last)).get(row, 0)
                what = f"{junk} before the start of row {row} at t={t}" if starts[:, row].any() else f"{junk} elsewhere"
                _require(torch.equal(after[t:, row], outputs[t:, row]), f"{what} changed the outputs after it")
                same = map_state(lambda a, b, r=row: (a[r] == b[r]).all(), after_final, final)
                _require(all(state_leaves(same)), f"{what} changed the final state")
    everywhere = torch.ones(B, dtype=torch.bool)
    nothing = map_state(lambda leaf: torch.full_like(leaf, torch.nan), state)
    for with_grad in (True, False):
        with torch.set_grad_enabled(with_grad):
            fresh, _ = memory.step(inputs[0], memory.initial_state(B), ~everywhere)
            started, _ = memory.step(inputs[0], nothing, everywhere)
        _require(torch.equal(started, fresh), "a step that starts an episode is not the first step of a fresh one")


def _no_gradient_crosses_a_start(trial: Trial) -> None:
    inputs, state = _leaf(trial.inputs), map_state(_leaf, trial.state)
    outputs, final = trial.memory.scan(inputs, state, trial.episode_starts)
    for row, t in _starts(trial.episode_starts, last=True):
        loss = _weighed(outputs[t:, row], *(leaf[row] for leaf in state_leaves(final)))
        for gradient, what in _gradients(loss, inputs, state):
            before = gradient[:t, row] if what == "inputs" else gradient[row]
            _require(not before.any(), f"gradient crosses the start of row {row} at t={t}, into the {what} before it")


def _state_matters(trial: Trial) -> None:
    if not trial.has_state:
        return _past_does_not_matter(trial)
    outputs, _ = trial.memory.scan(trial.inputs, trial.state, trial.no_starts)
    for index, leaf in enumerate(state_leaves(trial.state)):
        other = map_state(lambda x, leaf=leaf: x + torch.randn_like(x) if x is leaf else x, trial.state)
        changed, _ = trial.memory.scan(trial.inputs, other, trial.no_starts)
        for row in range(B):
            differs = not torch.equal(changed[:, row], outputs[:, row])
            _require(differs, f"the outputs of row {row} are the same, whatever leaf {index} of the state holds")


def _past_does_not_matter(trial: Trial) -> None:
    outputs, _ = trial.memory.scan(trial.inputs, trial.state, trial.no_starts)
    alone, _ = trial.memory.scan(trial.inputs[T - 1 :], trial.state, trial.no_starts[T - 1 :])
    _require_close(outputs[T - 1 :], alone, "the memory has no state, but its outputs depend on the past")


def _causality(trial: Trial) -> None:
    outputs, _ = trial.memory.scan(trial.inputs, trial.state, trial.episode_starts)
    for t in range(1, T):
        inputs, starts = trial.inputs.clone(), trial.episode_starts.clone()
        inputs[t:] = torch.randn_like(inputs[t:])
        starts[t:] = ~starts[t:]
        changed, _ = trial.memory.scan(inputs, trial.state, starts)
        _require_close(changed[:t], outputs[:t], f"outputs before t={t} depend on inputs or starts from t={t} on")


def _fixed_points(trial: Trial) -> None:
    memory = trial.memory
    _require(isinstance(memory, Memory), f"the config built a {type(memory).__qualname__}, which is no Memory")
    _require(memory.input_size == trial.input_size, f"input_size is {memory.input_size}, not {trial.input_size}")
    on_meta = list(state_leaves(copy.deepcopy(memory).to("meta").initial_state(B)))
    _require(all(leaf.is_meta for leaf in on_meta), "initial_state is not on the device of the module")
    for dtype in (torch.float64, torch.float32):
        _check_shapes(*trial.in_dtype(dtype), trial.episode_starts, dtype, "")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        memory, inputs, state = trial.in_dtype(torch.float32)
        _check_shapes(memory, inputs, state, trial.episode_starts, None, " under autocast")
        _check_shapes(memory, inputs.bfloat16(), state, trial.episode_starts, None, " under autocast, inputs bfloat16,")


def _check_shapes(
    memory: Memory, inputs: Tensor, state: State, starts: Tensor, dtype: torch.dtype | None, where: str
) -> None:
    initial = memory.initial_state(B)
    expected = dtype or torch.float32
    for leaf in state_leaves(initial):
        _require(leaf.dim() > 0 and leaf.shape[0] == B, f"a leaf of initial_state is not batch first: {_kinds(leaf)}")
        _require(leaf.dtype == expected, f"a leaf of initial_state{where} is {leaf.dtype}, not {expected}")
        _require(not leaf.any(), f"initial_state{where} is not zero: carry the difference to a learned one")
    runs = {
        "scan": (memory.scan(inputs, initial, starts), (T, B, memory.output_size)),
        "scan from a used state": (memory.scan(inputs, state, starts), (T, B, memory.output_size)),
        "step": (memory.step(inputs[0], initial, starts[0]), (B, memory.output_size)),
    }
    for name, ((outputs, final), shape) in runs.items():
        _require(outputs.shape == shape, f"{name}{where} returns outputs {tuple(outputs.shape)}, not {shape}")
        good_dtype = outputs.dtype == dtype if dtype else outputs.is_floating_point()
        _require(good_dtype, f"{name}{where} returns outputs of {outputs.dtype}, not {dtype or 'floating point'}")
        before, after = _kinds(initial), _kinds(final)
        _require(before == after, f"{name}{where} turns a state {before} into a state {after}")


def _purity(trial: Trial) -> None:
    memory, inputs, starts = trial.memory, trial.inputs, trial.episode_starts
    given = (inputs.clone(), map_state(torch.clone, trial.state), starts.clone())
    weights = copy.deepcopy(memory.state_dict())
    twin = copy.deepcopy(memory)
    outputs, final = memory.scan(inputs, trial.state, starts)
    kept = (outputs.clone(), map_state(torch.clone, final))
    with torch.no_grad():
        memory.scan(-inputs, memory.initial_state(B), ~starts)
        memory.step(inputs[1], trial.state, starts[1])
    _require(torch.equal(inputs, given[0]), "scan or step changed its inputs in place")
    _require_same_state(trial.state, given[1], "scan or step changed its state argument in place", exactly=True)
    _require(torch.equal(starts, given[2]), "scan or step changed episode_starts in place")
    for name, value in memory.state_dict().items():
        _require(torch.equal(value, weights[name]), f"scan or step changed {name!r} of the module")
    _require(torch.equal(outputs, kept[0]), "a later scan changed outputs that an earlier one had returned")
    _require_same_state(final, kept[1], "a later scan changed the state that an earlier one had returned", exactly=True)
    loaded = trial.build().double()
    loaded.load_state_dict(weights)
    for other, what in [
        (memory, "the same call after other calls gives other results: the module keeps something between calls"),
        (twin, "a deepcopy of the module gives other results"),
        (loaded, "a new module with the same state_dict gives other results"),
    ]:
        again, state = other.scan(inputs, trial.state, starts)
        _require_close(again, outputs, what)
        _require_same_state(state, final, what)


def _stability(trial: Trial) -> None:
    memory, _, _ = trial.in_dtype(torch.float32)
    noise = torch.randn(STABILITY_STEPS, 2, trial.input_size)
    with torch.no_grad():
        outputs, state = memory.scan(noise, memory.initial_state(2), torch.zeros(STABILITY_STEPS, 2, dtype=torch.bool))
    finite = outputs.isfinite().flatten(1).all(1)
    _require(bool(finite.all()), f"outputs are no longer finite at step {int(finite.int().argmin())} of white noise")
    for leaf in state_leaves(state):
        _require(
            bool(leaf.isfinite().all()), f"the state is no longer finite after {STABILITY_STEPS} steps of white noise"
        )


def _gradient_reaches_back(trial: Trial) -> None:
    if not trial.has_state:
        return
    inputs, state = _leaf(trial.inputs), map_state(_leaf, trial.state)
    outputs, _ = trial.memory.scan(inputs, state, trial.no_starts)
    gradients = list(_gradients(_weighed(outputs[-1]), inputs, state))

    def unchanged(other_inputs: Tensor, other_state: State) -> Tensor:
        """Rows whose last outputs stay: nothing depends on what a window has left, say, so no gradient leads there."""
        with torch.no_grad():
            others, _ = trial.memory.scan(other_inputs, other_state, trial.no_starts)
        return torch.isclose(others[-1], outputs[-1], rtol=TOLERANCE, atol=TOLERANCE).all(-1)

    for n in range(1, T):
        reached = gradients[0][0][T - 1 - n].any(-1)
        if not reached.all():
            other = inputs.detach().clone()
            other[T - 1 - n] = torch.randn_like(other[T - 1 - n])
            reached |= unchanged(other, state)
        _require(bool(reached.all()), f"no gradient from outputs[t] to inputs[t - {n}]: it is cut on the way")
    for (gradient, what), leaf in zip(gradients[1:], state_leaves(state), strict=True):
        if not gradient.any():
            other_state = map_state(lambda x, leaf=leaf: x + torch.randn_like(x) if x is leaf else x, state)
            _require(bool(unchanged(inputs, other_state).all()), f"no gradient from the last outputs to the {what}")
    for starts in (trial.no_starts, trial.episode_starts):
        _gradient_is_slope(trial, starts)


def _gradient_is_slope(trial: Trial, starts: Tensor) -> None:
    """Catch a gradient that is cut on some of its ways only: along a random direction it must be the slope.

    Three directions, of which one must agree: a wrong gradient is wrong in all, while the slope of a right one may be
    off where the step happens to cross the kink of a ReLU.
    """
    pairs = [_gradient_and_slope(trial, starts) for _ in range(3)]
    along, slope, _ = pairs[0]
    _require(
        any(abs(along - slope) <= 1e-6 * (scale + abs(slope)) for along, slope, scale in pairs),
        f"the gradient says {along:.8g}, the slope is {slope:.8g}",
    )


def _gradient_and_slope(trial: Trial, starts: Tensor) -> tuple[float, float, float]:
    """Both along a random direction, and the size of what the gradient sums up."""
    memory = copy.deepcopy(trial.memory)
    inputs, state = _leaf(trial.inputs), map_state(_leaf, trial.state)
    variables = [inputs, *state_leaves(state), *(p for p in memory.parameters() if p.requires_grad)]
    direction = [torch.randn_like(variable) for variable in variables]

    def loss() -> Tensor:
        outputs, final = memory.scan(inputs, state, starts)
        return _weighed(outputs, *state_leaves(final))

    gradients = torch.autograd.grad(loss(), variables, materialize_grads=True)
    along = float(sum((g * d).sum() for g, d in zip(gradients, direction, strict=True)))
    scale = sum(float((g * d).abs().sum()) for g, d in zip(gradients, direction, strict=True))
    small, ends = 1e-8, []  # so small a step rarely crosses a kink
    with torch.no_grad():
        for move in (small, -2 * small):
            for variable, d in zip(variables, direction, strict=True):
                variable += move * d
            ends.append(float(loss()))
    return along, (ends[0] - ends[1]) / (2 * small), scale


LAWS: Mapping[str, Callable[[Trial], None]] = MappingProxyType(
    {
        # The first laws first: the later ones take them for granted.
        "shapes and dtypes are fixed points": _fixed_points,
        "purity": _purity,
        "steps are scan": _steps_are_scan,
        "scans compose": _scans_compose,
        "rows are strangers": _rows_are_strangers,
        "a start is a fresh episode": _start_is_fresh_episode,
        "the state matters": _state_matters,
        "causality": _causality,
        "gradient reaches back": _gradient_reaches_back,
        "stability": _stability,
    }
)
"""The laws by name, in the order in which they are checked."""


class _BrokenLawError(Exception):
    """What broke; `check_memory` adds the law."""


def _require(kept: bool | Tensor, message: str) -> None:
    if not kept:
        raise _BrokenLawError(message)


def _require_close(actual: Tensor, expected: Tensor, message: str) -> None:
    _require(actual.shape == expected.shape, f"{message}: shapes {tuple(actual.shape)} and {tuple(expected.shape)}")
    if not torch.allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE):
        raise _BrokenLawError(f"{message} (largest difference {float((actual - expected).detach().abs().max()):.3g})")


def _require_same_state(actual: State, expected: State, message: str, *, exactly: bool = False) -> None:
    _require(_kinds(actual) == _kinds(expected), f"{message}: {_kinds(actual)} and {_kinds(expected)}")
    for one, other in zip(state_leaves(actual), state_leaves(expected), strict=True):
        if exactly:
            _require(torch.equal(one, other), message)
        else:
            _require_close(one, other, message)


def _kinds(state: State) -> str:
    """Structure, shapes and dtypes of a state, in words that can be compared."""
    if isinstance(state, Tensor):
        return f"{str(state.dtype).removeprefix('torch.')}{list(state.shape)}"
    return f"({', '.join(_kinds(part) for part in state)})"


def _starts(episode_starts: Tensor, last: bool) -> Iterator[tuple[int, int]]:
    """Row and time of the first (or last) start of each row that has one."""
    for row in range(episode_starts.shape[1]):
        times = episode_starts[:, row].nonzero().flatten().tolist()
        if times:
            yield row, times[-1 if last else 0]


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


def _weighed(*tensors: Tensor) -> Tensor:
    """A sum in which every element counts differently, so that no two mistakes cancel."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    return flat @ torch.arange(1, len(flat) + 1, dtype=flat.dtype).cos()


def _gradients(loss: Tensor, inputs: Tensor, state: State) -> Iterator[tuple[Tensor, str]]:
    """Gradients of `loss`, zero where there is none, and what they are gradients of: first the inputs."""
    variables = [inputs, *state_leaves(state)]
    names = ["inputs", *(f"incoming state (leaf {index})" for index in range(len(variables) - 1))]
    if loss.requires_grad:
        gradients = torch.autograd.grad(loss, variables, retain_graph=True, materialize_grads=True)
    else:
        gradients = tuple(torch.zeros_like(variable) for variable in variables)
    yield from zip(gradients, names, strict=True)


def _with_moved_parameters(memory: Memory) -> Memory:
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return memory
