"""The compiled recurrent fast-weight scans against the reference, and what writing and reading means in each."""

from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

from fwp_rl.ops import (
    _recurrent_check,
    fast_rnn_scan,
    fast_weight_scan,
    recurrent_delta_scan,
    self_referential_scan,
    third_order_scan,
)
from fwp_rl.ops.recurrent_scan import _resolve
from fwp_rl.state import State, state_leaves

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-10}
KINDS = ["recurrent_delta", "fast_rnn", "fast_lstm", "self_referential", "third_order"]
LARGE = 1000.0
"""A logit whose softmax or sigmoid is exactly 1, and those of the others 0."""

kinds = pytest.mark.parametrize("kind", KINDS)
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


def run(kind: str, leaves: list[Tensor], starts: Tensor, backend: str) -> list[Tensor]:
    """Outputs and all parts of the final state."""
    scans: dict[str, Callable[..., tuple[Tensor, State]]] = {
        "recurrent_delta": lambda p, r, s, y, **o: recurrent_delta_scan(p, r, (s, y), starts, **o),
        "fast_rnn": lambda k, v, b, z, r, y, **o: fast_rnn_scan(k, v, b, z, (r, y), starts, **o),
        "fast_lstm": lambda k, v, b, z, r, y, c, **o: fast_rnn_scan(k, v, b, z, (r, y, c), starts, **o),
        "self_referential": lambda x, w, d, **o: self_referential_scan(x, w, d, starts, **o),
        "third_order": lambda *x, **o: third_order_scan(*x, starts, **o),
    }
    outputs, state = scans[kind](*leaves, backend=backend)
    return [outputs, *state_leaves(state)]


def arguments(
    kind: str, T: int, B: int, H: int, K: int, V: int, dtype: torch.dtype = torch.float64
) -> tuple[list[Tensor], Tensor]:
    """Leaves that require a gradient, the state last, and random starts."""

    def leaf(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, dtype=dtype)).requires_grad_()

    if kind == "recurrent_delta":
        P = 2 * K + V + 1
        leaves = [leaf(T, B, H, P), leaf(H, V, P, scale=V**-0.5), leaf(B, H, K, V), leaf(B, H, V)]
    elif kind in ("fast_rnn", "fast_lstm"):
        G = 1 if kind == "fast_rnn" else 3
        keys = leaf(T, B, H, G, V).detach().softmax(-1).requires_grad_()
        leaves = [keys, leaf(T, B, H, G, V), leaf(T, B, H, G, scale=0.3), leaf(T, B, H, G, V), leaf(B, H, G, V, V)]
        leaves += [leaf(B, H, V) for _ in range(1 if G == 1 else 2)]
    elif kind == "self_referential":
        M = V + 2 * K + 4
        x = leaf(T, B, H, K).detach().softmax(-1).requires_grad_()
        leaves = [x, leaf(H, K, M), leaf(B, H, K, M, scale=0.3)]
    else:
        N = H + 1
        leaves = [leaf(T, B, V), leaf(T, B, K), leaf(T, B, V), leaf(T, B), leaf(T, B, V), leaf(T, B, N, K)]
        leaves += [leaf(B, V * K, V, scale=0.1)]
    return leaves, torch.rand(T, B) < 0.15


def results_and_gradients(kind: str, leaves: list[Tensor], starts: Tensor, backend: str) -> list[Tensor]:
    results = run(kind, leaves, starts, backend)
    generator = torch.Generator().manual_seed(1)
    loss = sum((x * torch.randn(x.shape, generator=generator, dtype=x.dtype)).sum() for x in results)
    return results + list(torch.autograd.grad(loss, leaves))


def assert_backends_agree(kind: str, leaves: list[Tensor], starts: Tensor) -> None:
    expected = results_and_gradients(kind, leaves, starts, "reference")
    actual = results_and_gradients(kind, leaves, starts, "numba")
    for mine, other in zip(actual, expected, strict=True):
        # Gradients add up over time and batch: relative to the largest, as rounding is.
        scale = max(1.0, other.abs().max().item())
        tolerance = TOLERANCE[leaves[0].dtype]
        if kind == "third_order":
            tolerance *= 10  # the norm of a small read magnifies its rounding
        torch.testing.assert_close(mine / scale, other / scale, rtol=0, atol=tolerance)


@kinds
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("T", "B", "H", "K", "V"), [(37, 3, 2, 5, 11), (16, 1, 3, 33, 9), (1, 2, 1, 8, 41)])
def test_numba_equals_reference(kind: str, dtype: torch.dtype, T: int, B: int, H: int, K: int, V: int) -> None:
    # Catches: sizes that are no whole tile, or more than one; chunks that are not full, and the seam between two; a
    # wrong term of the hand-derived backward.
    assert_backends_agree(kind, *arguments(kind, T, B, H, K, V, dtype))


@kinds
@pytest.mark.parametrize("times", [(), (0,), (15,), (16,), (17,), (34,), tuple(range(35))])
def test_numba_equals_reference_with_starts(kind: str, times: tuple[int, ...]) -> None:
    # Catches: a start next to the seam of two chunks (16 steps) at which the stored matrix is one from before the
    # start; a start that clears its neighbour.
    leaves, starts = arguments(kind, 35, 2, 3, 4, 6)
    starts.zero_()
    starts[list(times), 1] = True
    assert_backends_agree(kind, leaves, starts)


@pytest.mark.parametrize(
    "kind", [KINDS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])]
)  # each takes 15 s to compile
def test_threads_change_nothing(kind: str, two_threads: None) -> None:
    # Catches: two threads that share scratch, or a program that none of them takes.
    assert_backends_agree(kind, *arguments(kind, 9, 5, 2, 3, 7))


@kinds
def test_gradient_is_the_derivative(kind: str) -> None:
    # Catches: a backward that agrees with a wrong reference.
    leaves, starts = arguments(kind, 4, 2, 1, 2, 3)
    starts[:] = torch.tensor([[False, True], [False, False], [True, False], [False, False]])
    for backend in ("reference", "numba"):
        assert torch.autograd.gradcheck(lambda *x, b=backend: tuple(run(kind, list(x), starts, b)), leaves)


@kinds
@backends
def test_a_start_forgets_everything(kind: str, backend: str) -> None:
    # Catches: a start that multiplies by zero, which keeps NaN; a gradient that leaks around it, however small.
    leaves, starts = arguments(kind, 5, 2, 2, 3, 4)
    parts = {"recurrent_delta": 2, "fast_rnn": 2, "fast_lstm": 3}.get(kind, 1)
    starts.zero_()
    starts[0, 1] = True
    fresh = [x.detach().clone() for x in leaves]
    for part in range(1, parts + 1):
        fresh[-part][1] = 0
    spoilt = [x.clone() for x in fresh]
    for part in range(1, parts + 1):
        spoilt[-part][1] = torch.nan
        spoilt[-part].requires_grad_()
    results = run(kind, spoilt, starts, backend)
    for mine, other in zip(results, run(kind, fresh, torch.zeros_like(starts), backend), strict=True):
        assert torch.equal(mine, other)
    for gradient in torch.autograd.grad(results[0].sum(), spoilt[-parts:], allow_unused=True, materialize_grads=True):
        assert not gradient[1].any()


@kinds
@backends
def test_arguments_are_left_alone(kind: str, backend: str) -> None:
    # Catches: a kernel that carries the state, or its gradient, in the tensor of the caller.
    leaves, starts = arguments(kind, 5, 2, 2, 3, 4)
    before = [x.detach().clone() for x in leaves]
    results = run(kind, leaves, starts, backend)
    gradients = [torch.randn_like(x) for x in results]
    given = [x.clone() for x in gradients]
    torch.autograd.grad(results, leaves, gradients)
    for mine, other in zip([*leaves, *gradients], [*before, *given], strict=True):
        assert torch.equal(mine, other)


@kinds
def test_half_precision_and_strides(kind: str) -> None:
    # Catches: a kernel that reads a transposed tensor as if it were dense, or bfloat16 as float32.
    leaves, starts = arguments(kind, 5, 3, 2, 4, 6, torch.float32)
    strided = [x.detach().transpose(0, 1).contiguous().transpose(0, 1) for x in leaves]
    for mine, other in zip(run(kind, strided, starts, "numba"), run(kind, leaves, starts, "numba"), strict=True):
        assert torch.equal(mine, other)
    half = [leaves[0].detach().bfloat16(), *leaves[1:]]
    rounded = [half[0].float(), *leaves[1:]]
    with torch.autocast("cpu", torch.bfloat16):
        results = run(kind, half, starts, "reference")
    for mine, other in zip(results, run(kind, rounded, starts, "numba"), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


@kinds
def test_wrong_arguments_are_named(kind: str) -> None:
    leaves, starts = arguments(kind, 5, 3, 2, 4, 6)
    # Catches: starts of other steps, or of another type, that would be read as whatever lies in memory.
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match="episode_starts"):
        run(kind, leaves, starts[1:], "reference")
    with pytest.raises((TypeError, jaxtyping.TypeCheckError), match="episode_starts"):
        run(kind, leaves, starts.long(), "reference")
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match="cuda"):
        run(kind, leaves, starts, "cuda")


def test_on_a_gpu_the_kernels_run_that_pass_their_check(monkeypatch: pytest.MonkeyPatch) -> None:
    # Catches: tensors on a GPU that go to the loops for the CPU; kernels that compute nonsense on a GPU nobody tried
    # them on; a fallback that does not say why, or says it at every call, or in place of an explicit backend.
    monkeypatch.setattr(pytest.importorskip("fwp_rl.ops._rnn_triton"), "self_check", lambda device: None)
    monkeypatch.setattr(_recurrent_check, "check_against_reference", lambda *_: None)
    monkeypatch.delenv("FWP_RL_BACKEND", raising=False)
    good, bad = torch.device("cuda", 93), torch.device("cuda", 94)
    for scan, sizes in (("recurrent_delta", (5, 6)), ("fast_rnn", (3, 5)), ("third_order", (2, 3, 4))):
        assert _resolve("auto", good, torch.float32, scan, sizes) == f"_{scan}_triton"

    def fail(*_: object) -> None:
        raise ArithmeticError("off by 3")

    monkeypatch.setattr(_recurrent_check, "check_against_reference", fail)
    arguments = (bad, torch.float32, "self_referential", (5, 6))
    with pytest.warns(
        UserWarning, match=r"self_referential_scan runs many times slower, .*: ArithmeticError: off by 3"
    ):
        assert _resolve("auto", *arguments) == "_recurrent_reference"
    assert _resolve("auto", *arguments) == "_recurrent_reference"
    with pytest.raises(
        RuntimeError, match="backend='triton' cannot run: ArithmeticError: off by 3; use backend='auto'"
    ):
        _resolve("triton", *arguments)
    with pytest.raises(RuntimeError, match="matrices of up to 16384 numbers, padded; got 65536"):
        _resolve("triton", good, torch.float32, "self_referential", (128, 8))


# ------------------------------------------------------------------------------------- what writing and reading means


def slots(q: int, k: int, v: Tensor, beta: float, K: int) -> Tensor:
    """Projections that make the recurrent delta net read at q, and write v at k, exactly."""
    logit = torch.tensor([torch.logit(torch.tensor(beta, dtype=torch.float64)).clamp(-LARGE, LARGE)])
    one_hot = LARGE * torch.eye(K, dtype=torch.float64)
    return torch.cat([one_hot[q], one_hot[k], v, logit.double()])


def read_after(writes: list[tuple[int, Tensor, float]], q: int, backend: str) -> Tensor:
    """What the recurrent delta net recalls at q after some writes (key, value, strength); no feedback."""
    K, V = 3, len(writes[0][1])
    steps = torch.stack([slots(q, k, v, beta, K) for k, v, beta in writes])[:, None, None]
    recurrent = torch.zeros(1, V, 2 * K + V + 1, dtype=torch.float64)
    state = torch.zeros(1, 1, K, V, dtype=torch.float64), torch.randn(1, 1, V, dtype=torch.float64)
    starts = torch.zeros(len(writes), 1, dtype=torch.bool)
    return recurrent_delta_scan(steps, recurrent, state, starts, backend=backend)[0][-1, 0, 0]


@backends
def test_delta_writes_are_read_back_replaced_and_mixed(backend: str) -> None:
    # Catches: a read before the write, a rule that adds, an erase along the wrong axis (which reaches another key).
    v, w, other = torch.randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(read_after([(1, v, 1.0)], 1, backend), v)
    torch.testing.assert_close(read_after([(1, v, 1.0), (2, other, 1.0)], 1, backend), v)
    torch.testing.assert_close(read_after([(1, v, 1.0), (1, w, 1.0)], 1, backend), w)
    torch.testing.assert_close(read_after([(1, v, 1.0), (1, w, 0.25)], 1, backend), 0.75 * v + 0.25 * w)
    assert not read_after([(1, v, 1.0)], 0, backend).any()


@backends
def test_recurrent_delta_without_feedback_is_the_delta_rule(backend: str) -> None:
    # Catches: queries, keys, values and strengths in another order or with another activation.
    (projected, recurrent, matrix, y), starts = arguments("recurrent_delta", 20, 3, 2, 5, 7)
    outputs, (final, _) = recurrent_delta_scan(projected, 0 * recurrent, (matrix, y), starts, backend=backend)
    q, k, v, b = projected.split([5, 5, 7, 1], dim=-1)
    beta = torch.sigmoid(b)[..., 0]
    expected = fast_weight_scan(q.softmax(-1), k.softmax(-1), v, beta, matrix, starts, backend="reference")
    torch.testing.assert_close((outputs, final), expected, rtol=1e-12, atol=1e-12)


@backends
def test_fast_recurrent_weights_map_one_output_to_the_next(backend: str) -> None:
    # Catches: R that is read before it is written, or at the output of the same step.
    V = 4
    one_hot = torch.eye(V, dtype=torch.float64)
    # At each step the transition i -> i + 1 is written once more; the output must walk along.
    k = one_hot[[0, 1, 2]].reshape(3, 1, 1, 1, V)
    v = LARGE * one_hot[[1, 2, 3]].reshape(3, 1, 1, 1, V)
    state = torch.zeros(1, 1, 1, V, V, dtype=torch.float64), LARGE * one_hot[0].reshape(1, 1, V)
    starts = torch.zeros(3, 1, dtype=torch.bool)
    outputs, _ = fast_rnn_scan(k, v, torch.ones_like(k[..., 0]), 0 * k, state, starts, backend=backend)
    torch.testing.assert_close(outputs[:, 0, 0], LARGE * one_hot[1:])


@backends
def test_self_reference_makes_one_row_recall_what_another_did(backend: str) -> None:
    # Catches: a read after the write; key and query swapped; a block that keeps its old weights.
    K, V = 3, 2
    base = torch.randn(1, K, V + 2 * K + 4, dtype=torch.float64)
    y, k, q, b = base[0, 0].split([V, K, K, 4])
    k[:], q[:], b[:] = LARGE * torch.eye(K, dtype=torch.float64)[1], LARGE * torch.eye(K, dtype=torch.float64)[2], LARGE
    x = torch.tensor([1.0, 0, 0], dtype=torch.float64).reshape(1, 1, 1, K)
    state, starts = torch.zeros(1, *base.shape, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.bool)
    outputs, difference = self_referential_scan(x, base, state, starts, backend=backend)
    torch.testing.assert_close(outputs[0, 0, 0], y)
    after = (base + difference)[0, 0]
    torch.testing.assert_close(after[1], base[0, 2])
    torch.testing.assert_close(after[[0, 2]], base[0, [0, 2]])


@backends
def test_third_order_memory_follows_chains_and_stays_bounded(backend: str) -> None:
    # Catches: entity and relation swapped, a read before the write, a bound that is missing or always on.
    V, R = 5, 3
    entities, relations = torch.eye(V, dtype=torch.float64), torch.eye(R, dtype=torch.float64)
    kwargs: dict[str, Any] = {"backend": backend}
    state = torch.zeros(1, V * R, V, dtype=torch.float64)
    # (0, r) -> 1, then (1, s) -> 2: two reads from 0 along r and s lead to 2.
    entity, relation, value = entities[[0, 1]][:, None], relations[[1, 2]][:, None], entities[[1, 2]][:, None]
    query, chain = entities[[0, 0]][:, None], relations[[1, 2]].expand(2, 1, 2, R)
    starts, strength = torch.zeros(2, 1, dtype=torch.bool), torch.ones(2, 1, dtype=torch.float64)
    outputs, final = third_order_scan(entity, relation, value, strength, query, chain, state, starts, **kwargs)
    assert outputs[-1, 0].argmax() == 2
    expected = torch.zeros(V, R, V, dtype=torch.float64)
    expected[0, 1, 1] = expected[1, 2, 2] = 1 / V
    torch.testing.assert_close(final, expected.reshape(1, V * R, V))
    loud = 10 * value
    _, final = third_order_scan(entity, relation, loud, strength, query, chain, state, starts, **kwargs)
    torch.testing.assert_close(final.norm(), torch.ones((), dtype=torch.float64))
