"""The Triton kernels of the recurrent fast-weight scans, compiled ahead of time for GPUs that are not there."""

import importlib
import json
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
if triton.knobs.runtime.interpret:
    pytest.skip("this process interprets kernels instead of compiling them", allow_module_level=True)

from benchmarks.fast_weight_kernels import RESULTS, TARGETS, counted  # noqa: E402 - after importorskip
from benchmarks.recurrent_kernels import Case, all_cases, compiled, describe  # noqa: E402 - after importorskip
from fwp_rl.ops._small_triton import numbers  # noqa: E402 - after importorskip
from tests.fwp_rl.ops.rnn_aot import barriers  # noqa: E402 - after importorskip

RECORDED = json.loads((RESULTS / "recurrent_kernels.json").read_text(encoding="utf-8"))
LARGEST_SHARED = 64 * 1024
LARGEST_STACK, LARGEST_STACK_OF_LARGE, LARGE = 32, 512, 4096
"""Matrices with more numbers than that, padded, have too few warps to share them."""
DEFAULTS = ((32, 32), (1, 32), (3, 32), (3, 16, 16))
REPRESENTATIVE: list[tuple[str, Case]] = [
    ("sm_80", ("recurrent_delta", "backward", (64, 16))),
    ("sm_90", ("fast_rnn", "backward", (1, 32))),
    ("sm_100", ("third_order", "forward", (3, 16, 16))),
    ("gfx942", ("self_referential", "forward", (16, 16))),
]
ALL = [(target, case) for target in TARGETS for case in all_cases().values()]


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Compile here and now."""
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))


def assert_compiles(target: str, case: Case) -> None:
    kernel = compiled(case, target)
    found = list(counted(kernel).values())
    assert found[2] <= LARGEST_SHARED
    if triton.__version__ in RECORDED:  # another version of Triton has another assembler
        assert found == RECORDED[triton.__version__][target][describe(case)]
    assembly = kernel.asm["amdgcn" if target == "gfx942" else "ptx"]
    # What a thread reads back, another has written: the read-only cache would return what was there before.
    assert "ld.global.nc" not in assembly
    if case[1] == "backward":
        module = importlib.import_module(f"fwp_rl.ops._{case[0]}_triton")
        asked, given = barriers(module, assembly, "s_barrier" if target == "gfx942" else "bar.sync")
        assert asked == given


@pytest.mark.parametrize(("target", "case"), REPRESENTATIVE)
def test_kernels_compile_and_take_what_the_table_says(target: str, case: Case) -> None:
    """Red: a construct that only the interpreter accepts; more than was counted; a barrier between the sweeps of a
    chunk that is gone, which the interpreter, with its one thread, cannot miss."""
    assert_compiles(target, case)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "case"), ALL)
def test_every_kernel_compiles_and_takes_what_the_table_says(target: str, case: Case) -> None:
    """The same of all that were counted."""
    assert_compiles(target, case)


@pytest.mark.parametrize("version", ["3.7.1", "3.9.0"])
@pytest.mark.parametrize("target", TARGETS)
def test_recorded_kernels_stay_within_their_budget(version: str, target: str) -> None:
    """Red: a kernel that was not counted, or spills where it must not."""
    table = RECORDED[version][target]
    assert set(table) == set(all_cases())
    for name, (_, stack, shared) in table.items():
        scan, _, sizes = all_cases()[name]
        large = numbers(importlib.import_module(f"fwp_rl.ops._{scan}_triton").constants(*sizes)) > LARGE
        assert shared <= LARGEST_SHARED, name
        assert stack <= (LARGEST_STACK_OF_LARGE if large else LARGEST_STACK), name
        if sizes in DEFAULTS:
            assert stack <= (16 if target == "sm_100" else 0), name
