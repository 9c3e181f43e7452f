"""What do the Triton kernels of the recurrent fast weights take from a GPU? Compiled for four of them, without one.

    python -m benchmarks.recurrent_kernels                   # minutes on one core; benchmarks/results/*.json, *.md
    python -m benchmarks.recurrent_kernels --target sm_90    # one of the targets; the others stay as they are
    python -m benchmarks.recurrent_kernels --smoke           # seconds, writes nothing

As `benchmarks.fast_weight_kernels`, whose columns these are; `tests/fwp_rl/ops/test_recurrent_triton_compiles.py`
compiles some of them again and compares.
"""

import importlib

import triton

from benchmarks.fast_weight_kernels import compiled_for, counted, run
from fwp_rl.ops import _small_triton
from fwp_rl.ops.recurrent_scan import NORM_EPSILON

SIZES = {
    "recurrent_delta": ((16, 16), (32, 32), (48, 48), (64, 64), (16, 64), (64, 16), (128, 128)),  # K, V
    "fast_rnn": ((1, 16), (1, 32), (1, 64), (1, 128), (3, 16), (3, 32), (3, 48), (3, 64)),  # G, V
    "self_referential": ((16, 16), (32, 32), (64, 64)),  # K, V
    "third_order": ((3, 16, 16), (3, 32, 16), (3, 16, 32)),  # N, R, V
}

Case = tuple[str, str, tuple[int, ...]]  # scan, direction, sizes


def describe(case: Case) -> str:
    scan, direction, sizes = case
    return f"{scan} {direction} {'x'.join(map(str, sizes))}"


def compiled(case: Case, target: str) -> triton.compiler.CompiledKernel:
    scan, direction, sizes = case
    module = importlib.import_module(f"fwp_rl.ops._{scan}_triton")
    kernel = getattr(module, f"{direction}_kernel")
    constants = module.constants(*sizes)
    num_warps = _small_triton.num_warps(constants, 64 if target.startswith("gfx") else 32)
    constants |= {"CHUNK": _small_triton.CHUNK, "KEEP": True, "EPSILON": NORM_EPSILON}
    types = {parameter.name: "*fp32" for parameter in kernel.params}
    types |= {"starts": "*i1", "T": "i32", "B": "i32", "H": "i32"}
    return compiled_for(target, kernel, constants, types, num_warps)


def resources(case: Case, target: str) -> dict[str, int]:
    return counted(compiled(case, target))


def all_cases() -> dict[str, Case]:
    """Both kernels of all sizes; those of the memories' defaults are 32x32, 1x32, 3x32, 32x32 and 3x16x16."""
    cases = [
        (scan, direction, sizes) for scan, all_sizes in SIZES.items() for sizes in all_sizes
        for direction in ("forward", "backward")
    ]  # fmt: skip
    return {describe(case): case for case in cases}


def main() -> None:
    title = "Resources of the recurrent Triton kernels"
    run(__doc__, "recurrent_kernels", title, all_cases(), "self_referential forward 16x16", resources)


if __name__ == "__main__":
    main()
