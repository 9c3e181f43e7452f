"""The Triton kernels without a GPU: interpreted for what they compute, compiled for what they take from a GPU.

Each alone proves too little: the interpreter takes code that the compiler refuses, and knows no registers; the
compiler cannot run what it makes. Both need processes of their own: Triton decides at import whether it interprets.
"""

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fwp_rl.ops.interpreter import ROOT, interpret

HERE = Path(__file__).parent
RECORDED = ROOT / "benchmarks" / "results" / "fast_weight_kernels.json"
LARGEST_SHARED = 64 * 1024
LARGEST_BACKWARD_STACK = 96

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="there is no Triton here")


# Of the tests of all backends those that a kernel can break in its own way: what the rule means, starts, strides,
# gradients of one input. Left out: what is slow, what these kernels do not have (channels), and what the other files
# check at more sizes.
LEFT_OUT = "70 or 31 or none or first or float32 or bounded or repeated or steps or inf or additive or delta-False"
LEFT_OUT += " or channels or test_sizes or is_the_reference"
FILES = ("triton_interpreted.py", "test_rnn_triton.py", "test_recurrent_triton.py", "test_fast_weight_scan.py")


@pytest.mark.parametrize("marked", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_interpreted_kernels_pass_their_tests(marked: str) -> None:
    """Red if a kernel computes something else than the reference, or a broken one is not told from a right one."""
    plain = ("-q", "-rp", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore:invalid value:RuntimeWarning")
    chosen = ("-m", marked, "-k", f"not test_fast_weight_scan or (triton and not ({LEFT_OUT}))")
    done = interpret("-m", "pytest", *plain, *chosen, *(str(HERE / name) for name in FILES))
    assert done.returncode == 0, done.stdout[-10_000:]
    for name in FILES if marked == "not slow" else ("test_recurrent_triton.py",):
        assert re.search(rf"^PASSED .*/{name}::", done.stdout, re.MULTILINE), f"nothing of {name} ran"


COMPILE = """
import torch
from fwp_rl.ops import fast_weight_scan

def scan(q, k, v, beta, state, log_decay):
    return fast_weight_scan(q, k, v, beta, state, starts, log_decay=log_decay, delay_heads=1, backend="triton")

starts = torch.tensor([[False, True], [True, False], [False, False]])
shapes = (3, 2, 2, 5), (3, 2, 2, 5), (3, 2, 2, 7), (3, 2, 2), (2, 2, 5, 7), (3, 2, 2)
leaves = [(-torch.rand(shape)).requires_grad_() for shape in shapes]
found = []
for function in (scan, torch.compile(scan, fullgraph=True, backend="aot_eager")):
    y, state = function(*leaves)
    found.append((y, state, *torch.autograd.grad(y.square().sum() + state.sum(), leaves)))
assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))
"""


def test_it_compiles_into_one_graph() -> None:
    """Red for a graph break in the choice of the backend, or an operator whose fake lies about its results."""
    done = interpret("-c", COMPILE)
    assert done.returncode == 0, done.stderr


REPRESENTATIVE = [
    ("forward", 64, 64, "fp32", "delta", True, False),
    ("backward", 64, 64, "fp32", "delta", True, False),
    ("forward", 32, 16, "fp32", "delta", True, False),
    ("backward", 16, 16, "bf16", "additive", False, False),
    ("step", 64, 64, "bf16", "delta", True, False),
    ("forward", 16, 16, "fp32", "additive", False, True),
    ("backward", 32, 32, "fp32", "delta", True, True),
    ("step", 32, 32, "fp32", "delta", True, True),
]


TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


def recorded(version: str) -> dict[str, dict[str, list[int]]]:
    """Registers, bytes of stack and bytes of shared memory of each kernel for each target; empty if never counted."""
    return json.loads(RECORDED.read_text(encoding="utf-8")).get(version, {})


# One of each maker always; their kin with the slow tests.
@pytest.mark.parametrize(
    "target",
    [pytest.param(name, marks=pytest.mark.slow) if name in ("sm_80", "sm_100") else name for name in TARGETS],
)
def test_kernels_compile_within_their_budget(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    """Red if a kernel is refused by the compiler, takes too much, or not what it took when its table was written."""
    import triton

    from benchmarks.fast_weight_kernels import describe, resources

    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    tables = recorded(triton.__version__)
    for case in REPRESENTATIVE:
        found = resources(case, target)
        assert found["shared"] <= LARGEST_SHARED, describe(case)
        if tables:  # another version of Triton has another assembler
            assert list(found.values()) == tables[target][describe(case)], describe(case)
    record_property("summary", f"{len(REPRESENTATIVE)} kernels compiled for {target} by Triton {triton.__version__}")


@pytest.mark.parametrize("version", ["3.7.1", "3.9.0"])
def test_recorded_kernels_stay_within_their_budget(version: str) -> None:
    """Red if a kernel was not counted, or spills where it must not."""
    from benchmarks.fast_weight_kernels import all_cases, describe

    tables = recorded(version)
    for target in TARGETS:
        assert set(tables[target]) == {describe(case) for case in all_cases()}, target
        for name, (_, stack, shared) in tables[target].items():
            assert shared <= LARGEST_SHARED, (target, name)
            if target == "sm_90":
                assert stack <= (LARGEST_BACKWARD_STACK if name.startswith("backward") else 0), name
