"""The Triton kernels of the recurrent scans, compiled ahead of time for GPUs that are not there."""

from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
if triton.knobs.runtime.interpret:
    pytest.skip("this process interprets kernels instead of compiling them", allow_module_level=True)

from fwp_rl.ops import _rnn_triton  # noqa: E402 - after importorskip
from tests.fwp_rl.ops.rnn_aot import TARGETS, Resources, barriers, compile_kernel  # noqa: E402 - after importorskip

KERNELS = {"forward": _rnn_triton.forward_kernel, "backward": _rnn_triton.backward_kernel}
GATES = {"rnn": 1, "gru": 3, "lstm": 4}

# Registers and bytes of spill per thread, bytes of shared memory per program, with Triton 3.7.1. The hidden size is an
# argument of the kernel: one row stands for all its multiples of 16, 64, 128 and 256 among them.
TABLE_VERSION = "3.7.1"
TABLE = {
    #                        sm_80            sm_90            sm_100           gfx942
    ("forward", "rnn"): ((86, 0, 12288), (86, 0, 12288), (86, 0, 12288), (88, 0, 12288)),
    ("forward", "gru"): ((134, 0, 28672), (134, 0, 28672), (128, 0, 28672), (110, 0, 28672)),
    ("forward", "lstm"): ((142, 0, 36864), (139, 0, 36864), (139, 0, 36864), (134, 0, 36864)),
    ("backward", "rnn"): ((113, 0, 12288), (96, 0, 12288), (96, 0, 12288), (86, 0, 12288)),
    ("backward", "gru"): ((120, 0, 12288), (120, 0, 12288), (120, 0, 12288), (112, 0, 12288)),
    ("backward", "lstm"): ((124, 0, 12288), (124, 0, 12288), (124, 0, 12288), (168, 0, 12288)),
}
# Other hidden sizes load element by element; the greediest kernel, which has the most pointers, stands for all.
UNALIGNED = ((255, 8, 36864), (255, 8, 36864), (255, 40, 36864), (169, 0, 36864))
ROWS = [(*kernel, True, row) for kernel, row in TABLE.items()] + [("forward", "lstm", False, UNALIGNED)]


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Compile here and now; and as by default, whatever the next Triton's default is, with fused multiply-add."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")


# One of each maker always; their kin with the slow tests.
@pytest.mark.parametrize(
    "target", [pytest.param(name, marks=pytest.mark.slow) if name in ("sm_80", "sm_100") else name for name in TARGETS]
)
@pytest.mark.parametrize(("direction", "kind", "aligned", "row"), ROWS)
def test_kernels_compile_and_take_what_the_table_says(
    direction: str, kind: str, aligned: bool, row: tuple[tuple[int, int, int], ...], target: str
) -> None:
    """Red: a construct that only the interpreter accepts; tiles that no longer fit the registers; read-only loads; a
    barrier that is gone, which the interpreter, with its one thread, cannot miss."""
    expected = row[list(TARGETS).index(target)]
    resources, assembly = compile_kernel(KERNELS[direction], target, GATES[kind], aligned)
    # The state of a step is read back by other threads: the read-only cache would return what was there before.
    assert "ld.global.nc" not in assembly
    _, found = barriers(_rnn_triton, assembly, "s_barrier" if target == "gfx942" else "bar.sync")
    assert found, "the steps are not separated"
    if triton.__version__ == TABLE_VERSION:
        assert resources == Resources(*expected)
    else:
        assert resources.spill <= 64
        assert resources.shared <= 99 * 1024
