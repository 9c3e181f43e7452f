"""The recurrent scans for the CPU against the reference, the rules of episode starts, and the choice of a backend."""

import sys
from collections.abc import Iterator

import jaxtyping
import pytest
import torch
from torch import Tensor

from fwp_rl.ops.rnn_scan import gru_scan, lstm_scan, resolve_backend, rnn_scan
from fwp_rl.state import State, map_state, state_leaves

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
SCANS = {"rnn": rnn_scan, "gru": gru_scan, "lstm": lstm_scan}
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-10}
CPU = torch.device("cpu")

kinds = pytest.mark.parametrize("kind", GATES)
backends = pytest.mark.parametrize("backend", ["reference", "numba"])


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two threads, also for the small sizes of a test."""
    kernels = pytest.importorskip("fwp_rl.ops._numba")
    monkeypatch.setattr(kernels, "SERIAL_BELOW", 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def arguments(
    kind: str, T: int, B: int, H: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, State, Tensor]:
    """projected, weight_hh, bias_hh, state (all leaves that require a gradient) and random starts."""
    gates = GATES[kind] * H

    def leaf(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, dtype=dtype)).requires_grad_()

    state = (leaf(B, H), leaf(B, H)) if kind == "lstm" else leaf(B, H)
    return leaf(T, B, gates), leaf(gates, H, scale=H**-0.5), leaf(gates), state, torch.rand(T, B) < 0.2


def outputs_and_gradients(
    kind: str, given: tuple[Tensor, Tensor, Tensor, State, Tensor], backend: str
) -> tuple[list[Tensor], list[Tensor]]:
    """All results of a scan, and the gradients of a generic function of them with respect to all leaves."""
    outputs, final = SCANS[kind](*given, backend=backend)
    results = [outputs, *state_leaves(final)]
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(result.shape, generator=generator, dtype=result.dtype) for result in results]
    loss = sum((result * weight).sum() for result, weight in zip(results, weights, strict=True))
    return results, list(torch.autograd.grad(loss, [*given[:3], *state_leaves(given[3])]))


def assert_backends_agree(kind: str, given: tuple[Tensor, Tensor, Tensor, State, Tensor]) -> None:
    expected_results, expected_gradients = outputs_and_gradients(kind, given, "reference")
    results, gradients = outputs_and_gradients(kind, given, "numba")
    tolerance = TOLERANCE[given[0].dtype]
    for mine, other in zip(results + gradients, expected_results + expected_gradients, strict=True):
        # Gradients add up over time and batch: relative to the largest, as rounding is.
        scale = max(1.0, other.abs().max().item())
        torch.testing.assert_close(mine / scale, other / scale, rtol=0, atol=tolerance)


@kinds
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("T", "B", "H"), [(1, 2, 8), (5, 7, 13), (33, 3, 37), (6, 1, 5), (4, 9, 16)])
def test_numba_equals_reference(kind: str, dtype: torch.dtype, T: int, B: int, H: int) -> None:
    # Catches: columns beyond the last full panel (13, 37, 5), batches that do not fill a tile of four rows (7 = 4 + 2 +
    # 1), depths that are no multiple of the independent sums, a wrong term of the hand-derived backward.
    assert_backends_agree(kind, arguments(kind, T, B, H, dtype))


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "lstm" else pytest.mark.slow) for kind in GATES]
)  # each takes 10 s to compile for two threads
@pytest.mark.parametrize("B", [2, 5, 11])
def test_threads_change_nothing(kind: str, B: int, two_threads: None) -> None:
    # Catches: two threads that share rows or scratch, or a row that none of them takes.
    assert_backends_agree(kind, arguments(kind, 9, B, 13))


@kinds
@pytest.mark.parametrize("pattern", ["none", "first", "last row", "last step", "back to back", "all"])
def test_numba_equals_reference_with_starts(kind: str, pattern: str) -> None:
    # Catches: boundaries at t = 0 and t = T - 1, a start that clears its neighbour, a carry that survives two starts.
    projected, weight, bias, state, starts = arguments(kind, 6, 5, 7)
    starts.fill_(pattern == "all")
    if pattern == "first":
        starts[0, 1:3] = True
    elif pattern == "last row":
        starts[2, -1] = True
    elif pattern == "last step":
        starts[-1] = True
    elif pattern == "back to back":
        starts[2:5, 1] = True
    assert_backends_agree(kind, (projected, weight, bias, state, starts))


@kinds
@backends
def test_gradient_is_the_derivative(kind: str, backend: str) -> None:
    # Catches: a backward that agrees with a wrong reference.
    *leaves, starts = arguments(kind, 4, 2, 3)
    starts[:] = torch.tensor([[False, True], [False, False], [True, False], [False, False]])
    projected, weight, bias, state = leaves

    def scan(projected: Tensor, weight: Tensor, bias: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        state = states if kind == "lstm" else states[0]
        outputs, final = SCANS[kind](projected, weight, bias, state, starts, backend=backend)
        return outputs, *state_leaves(final)

    assert torch.autograd.gradcheck(scan, (projected, weight, bias, *state_leaves(state)))


@kinds
@backends
def test_no_gradient_crosses_a_start(kind: str, backend: str) -> None:
    # Catches: a leak around the start, however small: the mask is exact.
    projected, weight, bias, state, starts = arguments(kind, 7, 3, 5)
    starts.fill_(False)
    starts[4, 1] = True
    outputs, final = SCANS[kind](projected, weight, bias, state, starts, backend=backend)
    loss = outputs[4:, 1].sum() + sum(leaf[1].sum() for leaf in state_leaves(final))
    gradient, *state_gradients = torch.autograd.grad(loss, [projected, *state_leaves(state)])
    assert not gradient[:4].any()
    assert all(not leaf.any() for leaf in state_gradients)
    assert gradient[4:, 1].any(dim=-1).all()


@kinds
@backends
@pytest.mark.parametrize("at", [0, 2])
def test_a_start_forgets_what_is_not_a_number(kind: str, backend: str, at: int) -> None:
    # Catches: clearing by multiplication (0 * nan = nan), in the outputs and in the gradients.
    projected, weight, bias, state, starts = arguments(kind, 5, 3, 9)
    starts.fill_(False)
    starts[at, 1] = True
    spoiled = map_state(lambda leaf: leaf.detach().clone(), state)
    for leaf in state_leaves(spoiled):
        leaf[1] = float("nan")
    outputs, _ = SCANS[kind](projected, weight, bias, state, starts, backend=backend)
    spoiled_outputs, final = SCANS[kind](projected, weight, bias, spoiled, starts, backend=backend)
    torch.testing.assert_close(spoiled_outputs[at:], outputs[at:], rtol=0, atol=0)
    assert all(leaf.isfinite().all() for leaf in state_leaves(final))
    if at == 0:
        gradients = torch.autograd.grad(spoiled_outputs.sum(), [projected, weight, bias])
        assert all(gradient.isfinite().all() for gradient in gradients)


@kinds
def test_a_number_that_diverged_stays_visible(kind: str) -> None:
    # Catches: fast-math that assumes there are no NaN, an activation whose clamp turns NaN into 1.
    projected, weight, bias, state, starts = arguments(kind, 5, 3, 9, torch.float32)
    starts.fill_(False)
    spoiled = projected.detach().clone()
    spoiled[2, 1] = float("nan")
    outputs, _ = SCANS[kind](spoiled, weight, bias, state, starts, backend="numba")
    assert outputs[2:, 1].isnan().all()
    assert outputs[:, [0, 2]].isfinite().all()


@kinds
def test_large_inputs_saturate(kind: str) -> None:
    # Catches: an activation that is a good fit only near zero.
    projected, weight, bias, state, starts = arguments(kind, 5, 3, 17, torch.float32)
    given = ((30 * projected).detach().requires_grad_(), weight, bias, state, starts)
    assert_backends_agree(kind, given)


@kinds
def test_arguments_need_not_be_contiguous(kind: str) -> None:
    # Catches: a kernel that walks memory instead of strides, and expanded gradients (those of a sum).
    projected, weight, bias, state, starts = arguments(kind, 6, 5, 7)

    def strided(x: Tensor) -> Tensor:
        return x.detach().repeat_interleave(2, dim=-1)[..., ::2].transpose(0, -1).contiguous().transpose(0, -1)

    views = (strided(projected), strided(weight), strided(bias), map_state(strided, state), starts.t().contiguous().t())
    views = tuple(map_state(lambda leaf: leaf.requires_grad_(leaf.is_floating_point()), view) for view in views)
    given = (projected, weight, bias, state, starts)
    actual, expected = (outputs_and_gradients(kind, leaves, "numba") for leaves in (views, given))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    outputs, _ = SCANS[kind](*views, backend="numba")
    expected, _ = SCANS[kind](*given, backend="reference")
    (gradient,) = torch.autograd.grad(outputs.sum(), views[0])
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), projected)[0])


@kinds
def test_only_the_final_state_is_used(kind: str) -> None:
    # Catches: a backward that needs a gradient of the outputs.
    given = arguments(kind, 6, 3, 5)
    gradients = []
    for backend in ("reference", "numba"):
        _, final = SCANS[kind](*given, backend=backend)
        last = list(state_leaves(final))[-1]
        gradients.append(torch.autograd.grad(last.sum(), given[0])[0])
    torch.testing.assert_close(*gradients)


@kinds
@backends
def test_nothing_is_mutated_and_backward_can_run_twice(kind: str, backend: str) -> None:
    # Catches: a state that is advanced in place, saved gates that the backward overwrites.
    given = arguments(kind, 6, 3, 5)
    before = [leaf.detach().clone() for leaf in (*given[:3], *state_leaves(given[3]), given[4])]
    outputs, _ = SCANS[kind](*given, backend=backend)
    first = torch.autograd.grad(outputs.square().sum(), given[:3], retain_graph=True)
    second = torch.autograd.grad(outputs.square().sum(), given[:3])
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    after = [leaf.detach() for leaf in (*given[:3], *state_leaves(given[3]), given[4])]
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_backends_are_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    # Catches: a request that is silently replaced, on the wrong device or misspelt.
    monkeypatch.delenv("FWP_RL_BACKEND", raising=False)
    assert resolve_backend("auto", CPU) == "numba"
    assert resolve_backend("auto", torch.device("meta")) == "reference"
    assert resolve_backend("reference", CPU) == "reference"
    with pytest.raises(RuntimeError, match="backend='numba' cannot run: it runs on the CPU, the state is on meta"):
        resolve_backend("numba", torch.device("meta"))
    with pytest.raises(RuntimeError, match=r"backend='triton' cannot run: it runs on GPUs .*, the state is on cpu"):
        resolve_backend("triton", CPU)
    with pytest.raises(ValueError, match="backend='chunked' is no backend: expected auto, reference, numba, triton"):
        resolve_backend("chunked", CPU)


def test_on_a_gpu_the_kernels_run_that_pass_their_check(monkeypatch: pytest.MonkeyPatch) -> None:
    # Catches: kernels that compute nonsense on a GPU nobody tried them on, a fallback that does not say why, or says it
    # at every call, or in place of an explicit backend.
    kernels = pytest.importorskip("fwp_rl.ops._rnn_triton")
    monkeypatch.delenv("FWP_RL_BACKEND", raising=False)
    checked: list[torch.device] = []
    monkeypatch.setattr(kernels, "self_check", checked.append)
    good, bad = torch.device("cuda", 90), torch.device("cuda", 91)
    assert [resolve_backend(backend, good) for backend in ("auto", "auto", "triton")] == ["triton"] * 3
    assert checked == [good]

    def fail(device: torch.device) -> None:
        raise ArithmeticError(f"off by 3 on {device}")

    monkeypatch.setattr(kernels, "self_check", fail)
    reason = r"triton kernels failed \(ArithmeticError: off by 3 on cuda:91"
    with pytest.warns(UserWarning, match=reason):
        assert resolve_backend("auto", bad) == "reference"
    assert resolve_backend("auto", bad) == "reference"
    with pytest.raises(RuntimeError, match="backend='triton' cannot run: ArithmeticError: off by 3"):
        resolve_backend("triton", bad)
    with pytest.warns(UserWarning, match="float32 on a GPU, the state is torch.float64"):
        assert resolve_backend("auto", good, torch.float64) == "reference"


def test_a_gpu_without_triton_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    # Catches: an import of triton where it is not installed.
    monkeypatch.delenv("FWP_RL_BACKEND", raising=False)
    for name in ("triton", "fwp_rl.ops._rnn_triton"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delattr("fwp_rl.ops._rnn_triton", raising=False)
    with pytest.warns(UserWarning, match="triton kernels failed .*Error"):
        assert resolve_backend("auto", torch.device("cuda", 92)) == "reference"


@pytest.mark.parametrize(
    ("value", "expected"),
    [("reference", "reference"), ("numba", "numba"), ("chunked", "reference")],
)
def test_environment_forces_a_backend(monkeypatch: pytest.MonkeyPatch, value: str, expected: str) -> None:
    # Catches: a variable that also overrules an explicit argument; values of other operators that raise here.
    monkeypatch.setenv("FWP_RL_BACKEND", value)
    assert resolve_backend("auto", CPU) == expected
    assert resolve_backend("reference", CPU) == "reference"


def test_environment_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FWP_RL_BACKEND", "nunba")
    with pytest.raises(ValueError, match="FWP_RL_BACKEND='nunba' is no backend"):
        resolve_backend("auto", CPU)
    monkeypatch.setenv("FWP_RL_BACKEND", "triton")
    with pytest.raises(RuntimeError, match="FWP_RL_BACKEND='triton' cannot run: it runs on GPUs"):
        resolve_backend("auto", CPU)


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """As for users: the annotations are not checked, the door has to."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"projected": torch.zeros(5, 3)}, r"projected must be \[T, B, gates\]"),
        ({"projected": torch.zeros(0, 3, 8)}, "with T >= 1"),
        ({"projected": torch.zeros(5, 3, 7)}, r"projected must be \[5, 3, 8\] for hidden size 2, got \(5, 3, 7\)"),
        ({"weight_hh": torch.zeros(6, 2)}, r"weight_hh must be \[8, 2\]"),
        ({"bias_hh": torch.zeros(6)}, r"bias_hh must be \[8\]"),
        ({"state": (torch.zeros(4, 2), torch.zeros(3, 2))}, r"state must be \[B, H\] = \[3, 2\], got \(4, 2\)"),
        ({"state": (torch.zeros(3, 2).half(), torch.zeros(3, 2))}, "state must be float32"),
        ({"episode_starts": torch.zeros(3, 5, dtype=torch.bool)}, r"episode_starts must be \[5, 3\]"),
        ({"episode_starts": torch.zeros(5, 3)}, r"episode_starts must be bool\[T, B\], got torch.float32"),
        ({"weight_hh": torch.zeros(8, 2, device="meta")}, "weight_hh is on meta, the state on cpu"),
    ],
)
def test_the_door_names_what_is_wrong(changes: dict[str, State], message: str, unchecked_shapes: None) -> None:
    given = {
        "projected": torch.zeros(5, 3, 8),
        "weight_hh": torch.zeros(8, 2),
        "bias_hh": torch.zeros(8),
        "state": (torch.zeros(3, 2), torch.zeros(3, 2)),
        "episode_starts": torch.zeros(5, 3, dtype=torch.bool),
    }
    with pytest.raises(ValueError, match=message):
        lstm_scan(**(given | changes))
