"""The Triton kernels of the recurrent scans against the reference in float64: on a GPU where there is one, else
interpreted, in a process of its own because Triton decides on import."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")

from fwp_rl.ops import _rnn_reference, _rnn_triton, rnn_scan  # noqa: E402 - after importorskip
from tests.fwp_rl.ops.interpreter import load  # noqa: E402 - after importorskip

INTERPRETED = _rnn_triton.INTERPRETED
ON_GPU = torch.cuda.is_available() and not INTERPRETED
DEVICE = torch.device("cuda:0" if ON_GPU else "cpu")
DTYPE = torch.float32 if ON_GPU else torch.float64
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}
GATES = {"rnn": 1, "gru": 3, "lstm": 4}

kinds = pytest.mark.parametrize("kind", GATES)
runs_kernels = pytest.mark.skipif(not (INTERPRETED or ON_GPU), reason="no GPU: runs in a process of test_triton")


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """New tensors are full of NaN: what a kernel reads before it is written shows."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS refuses
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3, device=DEVICE).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def arguments(kind: str, T: int, B: int, H: int) -> tuple[list[Tensor], Tensor]:
    """projected, weight_hh, bias_hh and the state in float64, and starts: on every third row none, first and last, all
    but the second, and back to back on the very last row."""
    gates = GATES[kind] * H
    shapes = [(T, B, gates), (gates, H), (gates,), (B, H)] + [(B, H)] * (kind == "lstm")
    leaves = [torch.randn(shape, dtype=torch.float64) * (H**-0.5 if shape == (gates, H) else 1) for shape in shapes]
    starts = torch.zeros(T, B, dtype=torch.bool)
    starts[0, 1::3] = starts[-1, 1::3] = True
    starts[:, 2::3] = True
    starts[1:2, 2::3] = False
    starts[1:3, -1] = True
    return leaves, starts


def values_and_gradients(
    module: ModuleType, kind: str, leaves: list[Tensor], starts: Tensor, used: slice = slice(None)
) -> list[Tensor]:
    """All results, and the gradients with respect to all leaves of a generic function of the results that are used."""
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    results = getattr(module, f"{kind}_scan")(*leaves, starts)
    generator = torch.Generator().manual_seed(1)
    loss = torch.zeros((), device=starts.device)
    for result in results[used]:
        weights = torch.randn(result.shape, generator=generator, dtype=torch.float64)
        loss = loss + (weights.to(result.device, result.dtype) * result).sum()
    return [value.detach() for value in (*results, *torch.autograd.grad(loss, leaves))]


def assert_agrees(
    kind: str,
    leaves: list[Tensor],
    starts: Tensor,
    *,
    module: ModuleType = _rnn_triton,
    dtype: torch.dtype = DTYPE,
    used: slice = slice(None),
) -> None:
    expected = values_and_gradients(_rnn_reference, kind, leaves, starts, used)
    mine = values_and_gradients(module, kind, [leaf.to(DEVICE, dtype) for leaf in leaves], starts.to(DEVICE), used)
    for value, other in zip(mine, expected, strict=True):
        error = (value.cpu() - other).abs().max() / other.abs().max().clamp(min=1e-30)
        assert error < TOLERANCE[dtype], f"error {error:.1e}"


@runs_kernels
@kinds
@pytest.mark.parametrize(("T", "B", "H"), [(1, 2, 5), (2, 19, 16), (3, 5, 33)])
def test_results_and_gradients_are_those_of_the_reference(kind: str, T: int, B: int, H: int) -> None:
    """Red: a wrong term of the backward; one step (1); a second block of rows that is not full (19 = 16 + 3); a second
    tile of units that is not full, and its depth (33 = 32 + 1)."""
    assert_agrees(kind, *arguments(kind, T, B, H))


@runs_kernels
@kinds
def test_float32_is_as_exact_as_it_can_be(kind: str) -> None:
    """Red: products rounded to TF32 or bfloat16, an activation that is a rough fit."""
    assert_agrees(kind, *arguments(kind, 6, 3, 22), dtype=torch.float32)


@runs_kernels
@kinds
def test_arguments_and_gradients_need_not_be_contiguous(kind: str) -> None:
    """Red: a kernel that walks memory instead of strides; expanded gradients (those of a sum)."""
    leaves, starts = arguments(kind, 3, 5, 6)
    leaves = [leaf.repeat_interleave(2, dim=-1)[..., ::2] for leaf in leaves]
    leaves = [leaf.transpose(0, -1).contiguous().transpose(0, -1) for leaf in leaves]
    starts = starts.t().contiguous().t()
    assert_agrees(kind, leaves, starts)
    gradients = []
    for module, device, dtype in ((_rnn_reference, "cpu", torch.float64), (_rnn_triton, DEVICE, DTYPE)):
        projected, *others = (leaf.to(device, dtype) for leaf in leaves)
        projected.requires_grad_()
        outputs, *_ = getattr(module, f"{kind}_scan")(projected, *others, starts.to(device))
        gradients.append(torch.autograd.grad(outputs.sum(), projected)[0].cpu().double())
    torch.testing.assert_close(*gradients, rtol=0, atol=10 * TOLERANCE[DTYPE])


@runs_kernels
@kinds
@pytest.mark.parametrize("used", [slice(0, 1), slice(1, 2), slice(-1, None)], ids=["outputs", "final h", "final c"])
def test_not_every_result_need_be_used(kind: str, used: slice) -> None:
    """Red: a backward that needs the gradient of a result that the loss does not see."""
    assert_agrees(kind, *arguments(kind, 3, 4, 6), used=used)


@runs_kernels
@kinds
def test_a_start_forgets_what_is_not_a_number(kind: str) -> None:
    """Red: a mask that multiplies (0 * nan = nan), forward or backward."""
    leaves, _ = arguments(kind, 5, 3, 9)
    starts = torch.zeros(5, 3, dtype=torch.bool)
    starts[0, 0] = starts[2, 1] = True
    for leaf in leaves[3:]:
        leaf[:2] = float("nan")
    leaves = [leaf.to(DEVICE, DTYPE).requires_grad_() for leaf in leaves]
    outputs, *final = getattr(_rnn_triton, f"{kind}_scan")(*leaves, starts.to(DEVICE))
    assert outputs[:2, 1].isnan().all()
    assert outputs[2:].isfinite().all()
    assert outputs[:, [0, 2]].isfinite().all()
    assert all(state.isfinite().all() for state in final)
    d_projected, *d_states = torch.autograd.grad(outputs[2:].sum() + outputs[:, 0].sum(), [leaves[0], *leaves[3:]])
    assert d_projected[:, [0, 2]].isfinite().all()
    assert d_projected[2:, 1].isfinite().all()
    assert all(not d_state[0].any() for d_state in d_states)
    assert all(d_state[2].all() for d_state in d_states)


@runs_kernels
@kinds
def test_no_gradient_crosses_a_start(kind: str) -> None:
    """Red: a leak around the start, however small."""
    leaves, _ = arguments(kind, 5, 3, 9)
    starts = torch.zeros(5, 3, dtype=torch.bool)
    starts[2, 1] = True
    leaves = [leaf.to(DEVICE, DTYPE).requires_grad_() for leaf in leaves]
    outputs, *final = getattr(_rnn_triton, f"{kind}_scan")(*leaves, starts.to(DEVICE))
    loss = outputs[2:, 1].sum() + sum(state[1].sum() for state in final)
    d_projected, *d_states = torch.autograd.grad(loss, [leaves[0], *leaves[3:]])
    assert not d_projected[:2].any()
    assert d_projected[2:, 1].any(dim=-1).all()
    assert all(not d_state.any() for d_state in d_states)


@runs_kernels
@kinds
def test_nothing_is_mutated_and_every_run_is_bitwise_the_same(kind: str) -> None:
    """Red: a state advanced in place, saved gates that the backward overwrites, sums in the order of arrival."""
    leaves, starts = arguments(kind, 4, 3, 5)
    leaves, starts = [leaf.to(DEVICE, DTYPE).requires_grad_() for leaf in leaves], starts.to(DEVICE)
    before = [tensor.detach().clone() for tensor in (*leaves, starts)]
    outputs, *_ = getattr(_rnn_triton, f"{kind}_scan")(*leaves, starts)
    first = torch.autograd.grad(outputs.square().sum(), leaves, retain_graph=True)
    second = torch.autograd.grad(outputs.square().sum(), leaves)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close([tensor.detach() for tensor in (*leaves, starts)], before, rtol=0, atol=0)


@runs_kernels
@kinds
@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
def test_large_inputs_saturate_and_numbers_that_diverged_stay_visible(kind: str) -> None:
    """Red: an activation that overflows to NaN, or whose clamp hides NaN."""
    leaves, starts = arguments(kind, 3, 4, 5)
    leaves[0] *= 1000
    leaves = [leaf.to(DEVICE, DTYPE) for leaf in leaves]
    scan = getattr(_rnn_triton, f"{kind}_scan")
    outputs, *_ = scan(*leaves, starts.to(DEVICE))
    assert outputs.isfinite().all()
    leaves[0][1, 0] = float("nan")
    outputs, *_ = scan(*leaves, starts.to(DEVICE))
    assert outputs[1:, 0].isnan().all()
    assert outputs[:, 1:].isfinite().all()


@runs_kernels
@kinds
def test_the_operators_keep_what_they_promise_to_torch(kind: str) -> None:
    """Red: a shape or stride of the fake results that is not that of the real ones, results that share memory."""
    leaves, starts = arguments(kind, 2, 3, 4)
    projected, weight_hh, bias_hh, h, *c = (leaf.to(DEVICE, DTYPE).requires_grad_() for leaf in leaves)
    given = (projected, weight_hh, bias_hh, h, c[0] if c else None, starts.to(DEVICE))
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(_rnn_triton._scan, given, test_utils=tests)


@runs_kernels
def test_scans_compile_without_a_graph_break(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red: a door that torch.compile cannot walk through, a choice of backend that is traced instead of made, a check
    at first use that fails where all is well."""
    door = load(Path(rnn_scan.__file__))
    monkeypatch.setitem(sys.modules, door.__name__, door)
    leaves, starts = arguments("lstm", 3, 4, 6)
    projected, weight_hh, bias_hh, h, c = (leaf.to(DEVICE, DTYPE).requires_grad_() for leaf in leaves)

    def loss(projected: Tensor, starts: Tensor) -> Tensor:
        outputs, _ = door.lstm_scan(2 * projected, weight_hh, bias_hh, (h, c), starts, backend="triton")
        return outputs.square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    losses = [function(projected, starts.to(DEVICE)) for function in (loss, compiled)]
    torch.testing.assert_close(*(torch.autograd.grad(value, [projected, weight_hh, h, c]) for value in losses))


MUTATIONS = {
    "forward without starts": ("present & (tl.load(episode_starts + step_row, present, 1) == 0)", "present"),
    "forward starts late": (
        "keep = present & (tl.load(episode_starts + step_row, present, 1) == 0)",
        "keep = present & (tl.load(episode_starts + step_row - B, tl.where(t > 0, present, False), 0) == 0)",
    ),
    "backward starts late": ("tl.load(episode_starts + step_row + size,", "tl.load(episode_starts + step_row,"),
    "starts of a neighbour": ("row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)", "row = tl.arange(0, ROWS)"),
    "forward weights transposed": ("weight + unit * H + source[:, None]", "weight + source[:, None] * H + unit"),
    "backward weights not transposed": ("(weight_hh.t(), h,", "(weight_hh, h,"),
    "one tile of depth": ("range(0, H, DEPTH)", "range(0, DEPTH, DEPTH)"),
    "carry of h crosses a start": ("tl.where(keep, d_h * gate_1, 0)", "d_h * gate_1"),
    "carry of c crosses a start": ("tl.where(keep, d_c * gate_1, 0)", "d_c * gate_1"),
    "carry of the wrong step": ("((t + 1) % 2)", "(t % 2)"),
    "old c of before a start": (
        "tl.load(saved + at - size * H, tl.where(t > 0, keep_unit, False), 0)",
        "tl.load(saved + at - size * H, tl.where(t > 0, inside, False), 0)",
    ),
    "reset gate forgotten": ("d_gate_2 * gate_0, inside", "d_gate_2, inside"),
    "final state of the first step": ("new_h, tl.where(t == T - 1,", "new_h, tl.where(t == 0,"),
    "initial c not seen": ("previous_h, previous_c = h, c", "previous_h, previous_c = h, h"),
    "gradient of the final h forgotten": ("d_h += tl.load(d_final_h", "d_h += 0 * tl.load(d_final_h"),
}  # fmt: skip


@runs_kernels
@pytest.mark.skipif(ON_GPU, reason="compiling mutants proves nothing more")
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_wrong_kernel_is_noticed(mutation: str, tmp_path: Path) -> None:
    """Red: tests too weak to see this mutation of the source."""
    source = Path(_rnn_triton.__file__).read_text(encoding="utf-8")
    right, wrong = MUTATIONS[mutation]
    assert right in source
    path = tmp_path / f"mutant_{mutation.replace(' ', '_')}.py"
    path.write_text(source.replace(right, wrong, 1).replace('"fwp_rl::', '"fwp_rl_mutant::'), encoding="utf-8")
    kind = "gru" if mutation in ("carry of h crosses a start", "reset gate forgotten") else "lstm"
    batch_size = 17 if mutation == "starts of a neighbour" else 5
    hidden_size = 33 if mutation == "one tile of depth" else 7
    with pytest.raises(AssertionError, match="error"):
        assert_agrees(kind, *arguments(kind, 3, batch_size, hidden_size), module=load(path))
