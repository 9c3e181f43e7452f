"""The Triton kernels, interpreted: `test_triton` runs this file in a process with TRITON_INTERPRET=1.

Every kernel on tiny shapes against the reference in float64, and broken copies of the kernels, which the same
comparison must tell from the right ones.
"""

import importlib.util
import inspect
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fwp_rl.ops import _reference, _triton, fast_weight_heads, fast_weight_scan
from fwp_rl.ops.fast_weight_scan import _resolve

T, B, H, K, V = 37, 2, 1, 5, 19
SCALE = 0.7
EXACT, SINGLE = 1e-13, 2e-6
RULES = tuple(itertools.product(("delta", "additive"), (False, True)))  # rule, is there a decay

Scan = Callable[..., tuple[Tensor, Tensor]]


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """What kernels leave unwritten is not a number."""
    torch.use_deterministic_algorithms(True)
    assert torch.zeros(()).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def make_case(
    steps: int = T, gated: bool = True, key_size: int = K, value_size: int = V, heads: int = H
) -> dict[str, Tensor | None]:
    """In the order of the arguments of a backend; starts on the first and last step, on a chunk border, in a row."""

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    starts = torch.zeros(steps, B, dtype=torch.bool)
    for step, row in ((0, 1), (5, 0), (6, 0), (16, 1), (31, 0), (steps - 1, 1)):
        starts[step : step + 1, row] = True
    log_decay = -0.3 * random(steps, B, heads).square()
    log_decay[5:6, 0] = -torch.inf  # at a start, where it is not looked at
    return {
        "q": random(steps, B, heads, key_size),
        "k": F.normalize(random(steps, B, heads, key_size), dim=-1),
        "v": random(steps, B, heads, value_size),
        "beta": 2 * random(steps, B, heads).sigmoid(),
        "log_decay": log_decay if gated else None,
        "state": random(B, heads, key_size, value_size),
        "starts": starts,
    }


def results(
    scan: Scan, case: dict[str, Tensor | None], rule: str, dtype: torch.dtype, delay_heads: int, n_inner: int
) -> dict[str, Tensor]:
    """Outputs, final state and all gradients of a random linear loss; the same again for one step without gradients."""
    *tensors, starts = case.values()
    leaves = [x if x is None else x.to(dtype).requires_grad_() for x in tensors]
    y, final = scan(*leaves, starts, rule, SCALE, delay_heads, n_inner)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(dtype) for x in (y, final)]
    gradients = torch.autograd.grad([y, final], [x for x in leaves if x is not None], weights)
    names = [f"gradient of {name}" for name, x in zip(case, leaves, strict=False) if x is not None]
    with torch.no_grad():
        step = [x if x is None else x[:1] for x in leaves[:-1]]
        step_y, step_final = scan(*step, leaves[-1], starts[:1], rule, SCALE, delay_heads, 1)
    outputs = {"outputs": y, "final state": final, "one step": step_y, "state after it": step_final}
    return {name: x.detach() for name, x in outputs.items()} | dict(zip(names, gradients, strict=True))


def errors(
    scan: Scan,
    case: dict[str, Tensor | None],
    rule: str,
    dtype: torch.dtype,
    delay_heads: int = 0,
    n_inner: int = 1,
) -> dict[str, float]:
    """The largest error of each result, relative to its largest entry; none is let pass where zero is exact."""
    expected = results(_reference.scan, case, rule, torch.float64, delay_heads, n_inner)
    actual = results(scan, case, rule, dtype, delay_heads, n_inner)
    found = {}
    for name, x in expected.items():
        error = (actual[name] - x).abs().max() / x.abs().max()
        found[name] = error.nan_to_num(torch.inf).item()
    if case["log_decay"] is not None and actual["gradient of log_decay"][case["starts"]].any():
        found["gradient of log_decay at starts"] = torch.inf
    return found


@pytest.mark.parametrize(("rule", "gated"), RULES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, EXACT), (torch.float32, SINGLE)], ids=str)
def test_kernels_are_the_reference(rule: str, gated: bool, dtype: torch.dtype, tolerance: float) -> None:
    """Red for a wrong mask, transpose or sign, for memory that no program writes, for padding that leaks."""
    found = errors(_triton.scan, make_case(gated=gated), rule, dtype)
    assert max(found.values()) <= tolerance, found


@pytest.mark.parametrize(("rule", "gated"), RULES)
@pytest.mark.parametrize(
    ("steps", "key_size", "delay_heads", "n_inner"),
    [(37, 5, 1, 1), (38, 5, 2, 2), (37, 16, 2, 1), (1, 5, 1, 1)],  # more than 2K moves but in the last
)
def test_delay_heads_are_the_reference(
    rule: str, gated: bool, steps: int, key_size: int, delay_heads: int, n_inner: int
) -> None:
    """Red for a row in the wrong place, or with the wrong sign, in what is loaded or stored; for a head too many."""
    case = make_case(steps, gated, key_size, heads=3)
    found = errors(_triton.scan, case, rule, torch.float64, delay_heads, n_inner)
    assert max(found.values()) <= EXACT, found


@pytest.mark.parametrize("delay_heads", [0, 1])
@pytest.mark.parametrize(("key_size", "value_size"), [(64, 48), (16, 64), (33, 1)])
def test_sizes_in_float32(key_size: int, value_size: int, delay_heads: int) -> None:
    """Red for K taken for V in a stride or a mask, and for a step kernel that pads with what is not zero."""
    found = errors(_triton.scan, make_case(18, True, key_size, value_size), "delta", torch.float32, delay_heads)
    assert max(found.values()) <= SINGLE, found


# What is broken, the text that is replaced, and by what: in all heads, then in delay heads.
SAME_EPISODE = " & (episodes[:, None] == episodes[None, :])\n        between"
WRITE = "    state += k_c[:, None] * (beta_c * v_c)[None, :]\n"
READ = "    tl.store(y + program * V + columns, SCALE * tl.sum(state * q_c[:, None], 0), mask=columns < V)\n"
LATER, EARLIER = "index[:, None] > index[None, :]", "index[:, None] >= index[None, :]"
ROW_BY_COLUMN, COLUMN_BY_ROW = "index[None, :] * CHUNK + index[:, None])", "index[:, None] * CHUNK + index[None, :])"
MUTANTS = (
    ("a start is seen one step late", f"{EARLIER}, starts_c", f"{LATER}, starts_c"),
    ("pairs reach across starts", f"({EARLIER}){SAME_EPISODE}", f"{EARLIER}\n        between"),
    (
        "transposed pairs reach across starts",
        f"(index[:, None] <= index[None, :]){SAME_EPISODE}",
        "index[:, None] <= index[None, :]\n        between",
    ),
    ("the state reaches across starts", "episodes == 0, total", "episodes >= 0, total"),
    ("writes before a start reach the end", "episodes == last_episode, last_total", "episodes >= 0, last_total"),
    ("a start has a decay", " & (starts_c == 0)[None, :]", ""),
    ("a start does not clear the state", "tl.where(last_episode == 0, state, 0.0)", "state"),
    ("the state does not fade", "state *= left\n", "state *= 1.0\n"),
    ("the diagonal is erased, too", f"{LATER}, similar", f"{EARLIER}, similar"),
    ("the inverse forgets its last row", "for j in range(CHUNK - 1)", "for j in range(CHUNK - 2)"),
    ("the inverse is not transposed", ROW_BY_COLUMN, COLUMN_BY_ROW),
    ("the erasing is not symmetric", "erasing + tl.trans(erasing)", "erasing"),
    ("gradients of reads are not transposed", "_dot(tl.trans(reading), q_c", "_dot(reading, q_c"),
    ("gradients of keys lack the later chunks", "grad_k_c = _load(grad_k", "grad_k_c = 0.0 * _load(grad_k"),
    ("gradients of keys lack the state", "grad_k_c -= tl.where(reached, erased, 0.0)", "pass"),
    ("the gradient of the state lacks the erasing", "earlier -= _dot(", "earlier -= 0.0 * _dot("),
    ("gradients of decays stop at the chunk", "tl.where(last_episode == 0, fade, 0.0)", "0.0"),
    ("a start has a gradient of its decay", "grad_decay_c = tl.where(starts_c == 0, grad_decay_c, 0.0)", "pass"),
    ("the gradient lacks the scale", "grad_u += SCALE * _dot", "grad_u += _dot"),
    ("one step forgets the start", "state = tl.where(tl.load(starts + b * starts_b), 0.0, state)", "pass"),
    ("one step reads before it writes", WRITE + READ, READ + WRITE),
)
TURNS = "turns = (steps // n_inner + 1) * moving"
STARTS = "(index[:, None] >= index[None, :]) & (_load_steps(starts, steps, starts_t, T, 0).to(tl.int32) > 0)[None, :]"
FIRST = f"steps - tl.max(tl.where({STARTS}, steps[None, :], 0), 1)"
DELAY_MUTANTS = (
    ("no sign is turned", "tl.where(turned, -x, x)", "x"),
    ("a sign is never turned back", "places // K % 2 == 1", "places >= K"),
    ("rows move up", "(rows + turns)", "(rows + 2 * K - turns % (2 * K))"),
    ("rows come back after the padded size", "places % K)", "places % 16 % K)"),
    ("signs come back after the padded size", "places // K % 2", "places // 16 % 2"),
    ("rows do not move before the first step", TURNS, TURNS.replace(" + 1", "")),
    ("rows move before every inner step", TURNS, TURNS.replace("steps // n_inner", "steps")),
    ("moves are counted in the chunk", TURNS, TURNS.replace("steps", "index")),
    ("moves are counted from the start", TURNS, TURNS.replace("steps", f"({FIRST})")),
    ("rows do not move at a start", TURNS, TURNS.replace(" + 1", f" + 1 - tl.sum(({STARTS}).to(tl.int32), 1)")),
    ("one head too many moves", "h < delay_heads", "h <= delay_heads"),
    ("the final state does not move", "state, T // n_inner * moving", "state, 0 * moving"),
    ("the final state moves at every inner step", "state, T // n_inner * moving", "state, T * moving"),
    ("the gradient of the final state does not move", "rows[:, None], T // n_inner", "rows[:, None], 0"),
    ("the gradient of the final state keeps its sign", "gradient = _turn(gradient, turned, DELAYED)", "pass"),
    (
        "gradients of decays know another final state",
        "(final + program * K * V + moved",
        "(final + program * K * V + dense",
    ),
    ("gradients of queries do not move back", "grad_q_c, turns", "grad_q_c, 0 * turns"),
    ("gradients of keys do not move back", "grad_k_c, turns", "grad_k_c, 0 * turns"),
    ("one step does not move", "_places(rows, moving, K", "_places(rows, 0 * moving, K"),
    ("the state after one step does not move", "state, moving, K", "state, 0 * moving, K"),
)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize(("broken", "right", "wrong"), MUTANTS, ids=[name for name, *_ in MUTANTS])
def test_the_comparison_rejects(broken: str, right: str, wrong: str, tmp_path: Path) -> None:
    """Red where the comparison above would not see the mistake, or the kernels no longer hold the text to break."""
    found = errors(mutant(right, wrong, tmp_path / "mutant.py").scan, make_case(21), "delta", torch.float64)
    assert max(found.values()) > 1e-3, f"{broken}: {found}"


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize(("broken", "right", "wrong"), DELAY_MUTANTS, ids=[name for name, *_ in DELAY_MUTANTS])
def test_the_comparison_of_delay_heads_rejects(broken: str, right: str, wrong: str, tmp_path: Path) -> None:
    """Red where the comparison above would not see the mistake, or the kernels no longer hold the text to break."""
    scan = mutant(right, wrong, tmp_path / "mutant.py").scan
    found = errors(scan, make_case(38, heads=2), "delta", torch.float64, delay_heads=1, n_inner=2)
    assert max(found.values()) > 1e-3, f"{broken}: {found}"


def test_an_unbroken_copy_passes(tmp_path: Path) -> None:
    """Red where copies fail for another reason than what was broken in them."""
    found = errors(mutant("T", "T", tmp_path / "copy.py").scan, make_case(21), "delta", torch.float64)
    assert max(found.values()) <= EXACT, found


def mutant(right: str, wrong: str, path: Path) -> ModuleType:
    """A copy of the kernels with a change, and with operators of its own."""
    source = inspect.getsource(_triton)
    assert right in source, f"the kernels no longer say {right!r}"
    path.write_text(source.replace(right, wrong).replace('"fwp_rl::', f'"m{abs(hash(path))}::'), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ------------------------------------------------------------------------------------------------------ how it is used


def small_case(**change: Tensor) -> dict[str, Tensor]:
    case = {name: x for name, x in make_case(5).items() if x is not None}
    case = {name: x if name == "starts" else x.float() for name, x in case.items()}
    return case | change


def scan(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, state: Tensor, starts: Tensor):
    return fast_weight_scan(q, k, v, beta, state, starts, log_decay=log_decay, backend="triton")


@pytest.mark.parametrize("delay_heads", [0, 1])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_operators_are_registered_as_torch_wants_it(gated: bool, keep: bool, delay_heads: int) -> None:
    case = small_case()
    case["log_decay"] = case["log_decay"] if gated else None
    leaves = [x.requires_grad_() if keep and x is not None and x.is_floating_point() else x for x in case.values()]
    arguments = (*leaves, True, SCALE, delay_heads, 5, keep)
    torch.library.opcheck(torch.ops.fwp_rl.fast_weight_scan.default, arguments)


def test_second_derivatives_are_refused() -> None:
    """Rather than wrong."""
    case = small_case()
    case["k"].requires_grad_()
    (gradient,) = torch.autograd.grad(scan(**case)[0].square().sum(), case["k"], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        gradient.sum().backward()


@pytest.mark.parametrize("delayed", [False, True])
def test_the_kernels_pass_the_check_before_their_first_use(monkeypatch: pytest.MonkeyPatch, delayed: bool) -> None:
    """And kernels that are off by a little do not."""
    arguments = (torch.device("cpu"), "delta", True, K, V, SCALE, delayed)
    _triton.check_against_reference(*arguments)
    right = _triton.scan

    def wrong(*tensors):
        y, final = right(*tensors)
        return y, final * 1.001

    monkeypatch.setattr(_triton, "scan", wrong)
    with pytest.raises(RuntimeError, match=r"off by 1.0e-03 in the final state \(K = 5, V = 19\)"):
        _triton.check_against_reference(*arguments)


@pytest.mark.parametrize(("right", "wrong"), [change for _, *change in DELAY_MUTANTS[:2]])
def test_wrong_signs_do_not_pass_that_check(right: str, wrong: str, tmp_path: Path) -> None:
    """Red if it makes too few moves for rows to come back, once and twice."""
    kernels = mutant(right, wrong, tmp_path / "mutant.py")
    with pytest.raises(RuntimeError, match="triton kernels are off by"):
        kernels.check_against_reference(torch.device("cpu"), "delta", True, K, V, SCALE, True)


def test_sizes_that_registers_do_not_hold_are_refused() -> None:
    with pytest.raises(RuntimeError, match="up to K = 64, the nearest supported size; got K = 65; use backend='auto'"):
        _resolve("triton", torch.device("cpu"), "delta", True, 65, V, torch.float32, SCALE)


def test_heads_run_on_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put together from `unit` and the scan, as on a GPU; values arrive as a slice of the projection."""
    heads, key_size, value_size = 3, 4, 6
    projected = torch.randn(5, B, heads * (2 * key_size + value_size + 2))
    state, starts = torch.randn(B, heads, key_size, value_size), small_case()["starts"]
    skip = torch.randn(heads)
    outputs = {}
    for backend in ("reference", "triton"):
        monkeypatch.setenv("FWP_RL_BACKEND", backend)
        outputs[backend] = fast_weight_heads(projected, skip, state, starts, gated=True)
    torch.testing.assert_close(outputs["triton"], outputs["reference"])
