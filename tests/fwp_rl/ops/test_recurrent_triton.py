"""The Triton kernels of the recurrent fast-weight scans against the reference in float64: on a GPU where there is one,
else interpreted, in a process of its own because Triton decides on import."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from fwp_rl.ops import _recurrent_reference, _rnn_triton, _small_triton, recurrent_scan
from fwp_rl.ops._recurrent_check import example, largest_error
from tests.fwp_rl.ops.interpreter import load

INTERPRETED = _rnn_triton.INTERPRETED
ON_GPU = torch.cuda.is_available() and not INTERPRETED
DEVICE = torch.device("cuda:0" if ON_GPU else "cpu")
DTYPE = torch.float32 if ON_GPU else torch.float64
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-12}
# Few numbers, all different, none a power of two: interpreted kernels are slow.
SIZES = {
    "recurrent_delta": {"recurrent_delta": (3, 5)},
    "fast_rnn": {"fast_rnn": (1, 5)},
    "fast_lstm": {"fast_rnn": (3, 5)},
    "self_referential": {"self_referential": (3, 2)},
    "third_order": {"third_order": (2, 2, 3)},
}
LARGER = (
    *(("recurrent_delta", sizes) for sizes in ((1, 2), (16, 16), (5, 33))),
    *(("fast_rnn", sizes) for sizes in ((1, 33), (3, 17), (3, 1))),
    *(("self_referential", sizes) for sizes in ((5, 17), (16, 28), (1, 1))),
    *(("third_order", sizes) for sizes in ((1, 1, 2), (3, 9, 5), (1, 4, 8))),
)
STATE = ("matrix", "matrices", "y", "c", "difference")

kinds = pytest.mark.parametrize("kind", SIZES)
runs_kernels = pytest.mark.skipif(not (INTERPRETED or ON_GPU), reason="no GPU: runs in a process of test_triton")


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """New tensors are full of NaN: what a kernel reads before it is written shows. And there are chunks of 3 steps."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS refuses
    monkeypatch.setattr(_small_triton, "CHUNK", 3)
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3, device=DEVICE).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def case(kind: str, T: int, B: int, H: int) -> tuple[str, dict[str, Tensor], Tensor]:
    """The scan, its arguments in float64 and starts: the last row at its first step, and from a state that is not a
    number; the first row at the border of two chunks, or at its last step; one in the middle of a chunk."""
    ((scan, sizes),) = SIZES[kind].items()
    arguments = example(scan, sizes, T, B, H, torch.Generator().manual_seed(0))
    arguments = {name: x.double() for name, x in arguments.items()}
    if scan == "third_order":
        arguments["matrix"] *= 10  # beyond the bound
    starts = torch.zeros(T, B, dtype=torch.bool)
    starts[0, -1] = starts[min(3, T - 1), 0] = B > 1
    starts[1:2, -1] = True
    for name in STATE:
        if name in arguments and B > 1:
            arguments[name][-1] = torch.nan
    return scan, arguments, starts


def values_and_gradients(
    module: ModuleType,
    scan: str,
    arguments: dict[str, Tensor],
    starts: Tensor,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, Tensor]:
    """All results, the gradients of a generic function of them, and the outputs where none are asked for."""
    leaves = {name: x.to(device, dtype, copy=True).requires_grad_() for name, x in arguments.items()}
    function, starts = getattr(module, f"{scan}_scan"), starts.to(device)
    results = dict(enumerate(function(*leaves.values(), starts)))
    generator = torch.Generator().manual_seed(1)
    loss = torch.zeros((), device=device, dtype=dtype)
    for x in results.values():
        weights = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        loss = loss + (weights.to(device, dtype) * x).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True, allow_unused=True)
    with torch.no_grad():
        rollout, *_ = function(*leaves.values(), starts)
    found = {f"result {i}": x for i, x in results.items()} | {"outputs without gradients": rollout}
    found |= {f"gradient of {name}": x for name, x in zip(leaves, gradients, strict=True)}
    return {name: x.detach().cpu().double() for name, x in found.items()}


def assert_agrees(
    kind: str, T: int, B: int, H: int, *, dtype: torch.dtype = DTYPE, module: ModuleType | None = None
) -> None:
    scan, arguments, starts = case(kind, T, B, H)
    module = module or importlib.import_module(f"fwp_rl.ops._{scan}_triton")
    expected = values_and_gradients(_recurrent_reference, scan, arguments, starts, torch.float64, torch.device("cpu"))
    mine = values_and_gradients(module, scan, arguments, starts, dtype, DEVICE)
    for name, x in expected.items():
        error = (mine[name] - x).abs().max() / x.abs().max().clamp(min=1e-30)
        assert error < TOLERANCE[dtype], f"error {error:.1e} in the {name}"


@runs_kernels
@kinds
def test_results_and_gradients_are_those_of_the_reference(kind: str) -> None:
    """Red: a wrong term of the backward; a chunk that is not full; a start at the border of two chunks or inside one
    that lets something through, be it NaN; rows or heads that are mixed up; padding that is not zero; memory that
    nobody has written; a rollout that computes something else than training."""
    assert_agrees(kind, 4, 2, 2)


@runs_kernels
@kinds
@pytest.mark.slow
def test_sequences_of_several_chunks(kind: str) -> None:
    """Red: a chunk that begins at the wrong step, scratch of a chunk that another has not yet read."""
    assert_agrees(kind, 10, 3, 1)


@runs_kernels
@pytest.mark.slow
@pytest.mark.parametrize(("scan", "sizes"), LARGER)
def test_sizes_in_float32(scan: str, sizes: tuple[int, ...]) -> None:
    """Red: one size taken for another in a stride or a mask; a sum that is rounded more than float32 is."""
    starts = torch.zeros(5, 2, dtype=torch.bool, device=DEVICE)
    starts[2, 1] = True
    arguments = example(scan, sizes, 5, 2, 1, torch.Generator(DEVICE).manual_seed(0))
    error, where = largest_error(scan, arguments, starts)
    # One number less its mean is zero, but for rounding, and its norm magnifies what is left.
    assert error < (1e-4 if scan == "third_order" else 5e-6), where


@runs_kernels
@kinds
def test_nothing_is_mutated_and_every_run_is_bitwise_the_same(kind: str) -> None:
    """Red: a state, or its gradient, that is advanced in the tensor of the caller; sums in the order of arrival; a
    backward that needs the gradient of a result that the loss does not see."""
    scan, arguments, starts = case(kind, 2, 1, 1)
    leaves = [x.to(DEVICE, DTYPE).requires_grad_() for x in arguments.values()]
    given = [*leaves, starts.to(DEVICE)]
    before = [x.detach().clone() for x in given]
    module = importlib.import_module(f"fwp_rl.ops._{scan}_triton")
    outputs, *_ = getattr(module, f"{scan}_scan")(*given)
    options = {"allow_unused": True, "materialize_grads": True}
    first = torch.autograd.grad(outputs.square().sum(), leaves, retain_graph=True, **options)
    second = torch.autograd.grad(outputs.square().sum(), leaves, **options)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close([x.detach() for x in given], before, rtol=0, atol=0)


@runs_kernels
@kinds
def test_the_operators_keep_what_they_promise_to_torch(kind: str) -> None:
    """Red: a shape or stride of the fake results that is not that of the real ones, results that share memory."""
    scan, arguments, starts = case(kind, 1, 1, 1)
    given = [x.to(DEVICE, DTYPE).requires_grad_() for x in arguments.values()]
    module = importlib.import_module(f"fwp_rl.ops._{scan}_triton")
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(module._scan, (*given, starts.to(DEVICE), True), test_utils=tests)


@runs_kernels
@pytest.mark.slow
@pytest.mark.parametrize("transposed", [False, True])
def test_the_door_leads_to_the_kernels_without_a_graph_break(transposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red: a choice of backend that is traced instead of made; strides that are taken for dense."""
    door = load(Path(recurrent_scan.__file__))
    monkeypatch.setitem(sys.modules, door.__name__, door)
    _, arguments, starts = case("recurrent_delta", 2, 1, 2)
    leaves = [x.to(DEVICE, DTYPE).requires_grad_() for x in arguments.values()]
    if transposed:
        leaves = [x.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for x in leaves]

    def loss(projected: Tensor, starts: Tensor) -> Tensor:
        _, recurrent, matrix, y = leaves
        outputs, _ = door.recurrent_delta_scan(2 * projected, recurrent, (matrix, y), starts, backend="triton")
        return outputs.square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    losses = [function(leaves[0], starts.to(DEVICE)) for function in (loss, compiled)]
    torch.testing.assert_close(*(torch.autograd.grad(value, leaves) for value in losses))


# What is broken, the text that is replaced, and by what.
START = "state = tl.where(tl.load(starts + t * B + b), 0.0, state)\n            tl.store(matrices"
SQUASHED = "d_y * (1 - squashed * squashed)"
CENTRED = "place - tl.sum(place, 0) / V"
MUTATIONS = {
    "recurrent_delta": (
        ("y crosses a start", "tl.where(start, 0.0, tanh(y))", "tanh(y)"),
        ("the gradient of y crosses a start", f"tl.where(start, 0.0, {SQUASHED})", SQUASHED),
        ("matrices are rebuilt across a start", START, "tl.store(matrices"),
        ("checkpoints of another chunk", "(chunk * programs + program)", "(0 * programs + program)"),
        ("values get no feedback", "read(to_v, squashed)", "0 * read(to_v, squashed)"),
        ("feedback of values is not transposed", "read_transposed(to_v, d_v)", "read(to_v, d_v)"),
        ("reads before it writes", "state + outer(k, beta * error), d_y", "state, d_y"),
        ("strength without its sigmoid", "d_beta * beta * (1 - beta)", "d_beta"),
    ),
    "fast_rnn": (
        ("the state crosses a start", "tl.where(start, 0.0, state), tl.where", "state, tl.where"),
        ("the queries lack the softmax", "softmax_gradient(query, d_query)", "d_query"),
    ),
    "fast_lstm": (
        ("the cell crosses a start", "tl.where(start, 0.0, c)", "c"),
        ("the gradient of the cell crosses a start", "d_c = tl.where(start, 0.0, d_c)", "pass"),
        ("gates are mixed up", "_pick(a, gate, 1) - c, _pick(a, gate, 2)", "_pick(a, gate, 2) - c, _pick(a, gate, 1)"),
    ),
    "self_referential": (
        ("key and query are swapped", "read(matrix, q - k)", "read(matrix, k - q)"),
        ("rates of another block", "(columns >= V + K)", "(columns > V + K)"),
        ("the base gets nothing at a start", "d_initial_matrix += tl.where(start, d_state, 0.0)", "pass"),
        ("the base gets what the state gets", "d_initial_matrix = -d_state", "d_initial_matrix = 0 * d_state"),
        ("matrices without their base", "initial_matrix + state, inside", "state, inside"),
    ),
    "third_order": (
        ("no bound", "state *= _bound(state)\n        place", "place"),
        ("the bound has no gradient", "tl.where(factor < 1, along, 0.0)", "0.0"),
        ("the bound is always on", "tl.where(squares > 1, squares, 1.0)", "squares"),
        ("the mean reaches the padding", f"tl.where(in_columns, {CENTRED}, 0.0)", CENTRED),
        ("the strength is not shared", "d_strength / V", "d_strength"),
        ("relations get twice their gradient", "y), read(d_pairs, x)", "y), 2 * read(d_pairs, x)"),
    ),
}
FAST = ("matrices are rebuilt across a start", "gates are mixed up", "rates of another block", "no bound")


def mutants() -> Iterator[object]:
    for kind, broken in MUTATIONS.items():
        for name, right, wrong in broken:
            marks = () if name in FAST else pytest.mark.slow
            yield pytest.param(kind, right, wrong, id=f"{kind}-{name}", marks=marks)


@runs_kernels
@pytest.mark.skipif(ON_GPU, reason="compiling mutants proves nothing more")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize(("kind", "right", "wrong"), list(mutants()))
def test_a_wrong_kernel_is_noticed(kind: str, right: str, wrong: str, tmp_path: Path) -> None:
    """Red: a comparison too weak to see this mutation of the source."""
    (scan,) = SIZES[kind]
    source = Path(importlib.import_module(f"fwp_rl.ops._{scan}_triton").__file__).read_text(encoding="utf-8")
    assert right in source
    path = tmp_path / f"mutant_{abs(hash(wrong))}.py"
    path.write_text(source.replace(right, wrong, 1).replace('"fwp_rl::', f'"{path.stem}::'), encoding="utf-8")
    with pytest.raises(AssertionError, match="error"):
        assert_agrees(kind, 4, 2, 1, module=load(path))
