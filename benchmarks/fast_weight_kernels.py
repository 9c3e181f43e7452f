"""What do the Triton kernels of the fast weight scan take from a GPU? Compiled for four of them, without one.

    python -m benchmarks.fast_weight_kernels                   # 10 minutes on one core; benchmarks/results/*.json, *.md
    python -m benchmarks.fast_weight_kernels --target sm_90    # one of the targets; the others stay as they are
    python -m benchmarks.fast_weight_kernels --smoke           # seconds, writes nothing

Registers of a thread, bytes of stack (spilled registers: memory traffic that no formula asks for) and bytes of shared
memory of a program, as the assembler of this version of Triton counts them. Inputs are dense. One entry per version of
Triton, because each brings its own assembler; `tests/fwp_rl/ops/test_triton.py` compiles some of them again and
compares.
"""

import argparse
import itertools
import json
import os
import pathlib
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fwp_rl.ops import _triton

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
KERNELS = ("forward", "backward", "step")
INPUTS = ("q", "k", "v", "beta", "log_decay")
RESULTS = pathlib.Path(__file__).parent / "results"
NVIDIA = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
COLUMNS = ("registers", "stack", "shared")

Case = tuple[str, int, int, str, str, bool, bool]  # kernel, K, V, dtype of inputs, rule, is there a decay, a delay head


def all_cases() -> list[Case]:
    """Every size with every dtype and rule, and every pair of sizes with the most that a rule can have; likewise with
    delay heads, but for the second dtype.
    """
    square = [
        (kernel, size, size, dtype, rule, gated, delayed)
        for delayed, dtypes in ((False, ("fp32", "bf16")), (True, ("fp32",)))
        for kernel, size, dtype in itertools.product(KERNELS, _triton.SIZES, dtypes)
        for rule, gated in itertools.product(("delta", "additive"), (True, False))
    ]
    pairs = itertools.permutations(_triton.SIZES, 2)
    return square + [
        (kernel, K, V, "fp32", "delta", True, delayed)
        for delayed, (K, V), kernel in itertools.product((False, True), pairs, KERNELS)
    ]


def describe(case: Case) -> str:
    kernel, K, V, dtype, rule, gated, delayed = case
    return f"{kernel} {K}x{V} {dtype} {rule}{' gated' if gated else ''}{' delayed' if delayed else ''}"


def resources(case: Case, target: str) -> dict[str, int]:
    """Compiles one kernel for one target; `products` by warp groups are those that `_triton` turns off."""
    kernel, K, V, dtype, rule, gated, delayed = case
    function = getattr(_triton, f"{kernel}_kernel")
    block_k, block_v = _triton.blocks(K, V)
    chosen = _triton.launch(kernel, block_k, block_v, target, delayed)
    constants = {"SCALE": 0.5, "K": K, "V": V, "BLOCK_K": block_k, "BLOCK_V": block_v}
    constants |= {"CHUNK": _triton.CHUNK, "KEEP": True}
    constants |= {"DELTA": rule == "delta", "GATED": gated, "DELAYED": delayed, "PRECISION": chosen.precision}
    constants |= {f"{name}_d": 1 for name in "qkv"} | {"initial_v": 1} | ({} if gated else {"log_decay": None})
    numbers = r"T|B|H|delay_heads|n_inner|.*_[tbhk]"
    types = dict.fromkeys(INPUTS, f"*{dtype}") | {"starts": "*i1"}
    for parameter in function.params:
        is_number = re.fullmatch(numbers, parameter.name) and parameter.name not in ("grad_q", "grad_k")
        types.setdefault(parameter.name, "i32" if is_number else "*fp32")
    os.environ.update(_triton.WITHOUT_WARP_GROUPS)
    return counted(compiled_for(target, function, constants, types, chosen.num_warps))


def compiled_for(
    target: str, function: triton.JITFunction, constants: dict[str, Any], types: dict[str, str], num_warps: int
) -> triton.compiler.CompiledKernel:
    """For dense and aligned tensors; `types` of what is no constant."""
    names = [parameter.name for parameter in function.params]
    source = ASTSource(
        fn=function,
        signature={name: "constexpr" if name in constants else types[name] for name in names},
        constexprs={name: constants[name] for name in names if name in constants},
        attrs={
            (index,): [["tt.divisibility", 16]]
            for index, parameter in enumerate(function.params)
            if not (parameter.name in constants or parameter.do_not_specialize)
        },
    )
    options = {"num_warps": num_warps, "num_stages": 1, "enable_fp_fusion": True}
    return triton.compile(source, target=TARGETS[target], options=options)


def counted(compiled: triton.compiler.CompiledKernel) -> dict[str, int]:
    shared = compiled.metadata.shared
    if "amdgcn" in compiled.asm:
        found = dict(re.findall(r"\.(vgpr_count|private_segment_fixed_size):\s+(\d+)", compiled.asm["amdgcn"]))
        registers, stack = found["vgpr_count"], found["private_segment_fixed_size"]
        return {"registers": int(registers), "stack": int(stack), "shared": shared}
    assert not re.search(r"wgmma\.mma|tcgen05\.mma", compiled.asm["ptx"]), "products by warp groups"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(NVIDIA / "cuobjdump"), "-res-usage", file.name]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+)", shown)
    assert usage is not None, shown
    return {"registers": int(usage[1]), "stack": int(usage[2]), "shared": shared}


def table(rows: dict[str, dict[str, list[int]]]) -> str:
    """Registers / stack / shared memory, one column per target."""
    lines = [f"| kernel | {' | '.join(rows)} |", f"|---|{'---|' * len(rows)}"]
    for name in next(iter(rows.values())):
        cells = ("/".join(map(str, rows[target][name])) if name in rows[target] else "" for target in rows)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    cases = {describe(case): case for case in all_cases()}
    smoke = ("step", 16, 16, "fp32", "delta", False, False)
    run(__doc__, "fast_weight_kernels", "Resources of the Triton kernels", cases, describe(smoke), resources)


def run(
    documentation: str | None,
    name: str,
    title: str,
    cases: dict[str, Any],
    smoke: str,
    resources: Callable[[Any, str], dict[str, int]],
) -> None:
    """The command line: all cases for all targets into results/`name`.{json,md}."""
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=TARGETS, action="append", help="all if left out")
    parser.add_argument("--smoke", action="store_true", help="one kernel, nothing is written")
    arguments = parser.parse_args()
    targets = arguments.target or list(TARGETS)
    cases = {smoke: cases[smoke]} if arguments.smoke else cases
    with tempfile.TemporaryDirectory() as cache:
        triton.knobs.cache.dir = cache  # nothing is taken from an earlier run
        for target in targets:
            began = time.perf_counter()
            found = {case: resources(x, target) for case, x in cases.items()}
            rows = {case: [x[column] for column in COLUMNS] for case, x in found.items()}
            print(f"{target}: {len(cases)} kernels in {time.perf_counter() - began:.0f} s", flush=True)
            if arguments.smoke:
                print(table({target: rows}))
            else:
                record(name, title, target, rows)


def record(name: str, title: str, target: str, rows: dict[str, list[int]]) -> None:
    """Once a target is counted, so that a run which is cut off loses the others only."""
    file = RESULTS / f"{name}.json"
    recorded = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    recorded.setdefault(triton.__version__, {})[target] = rows
    recorded = {version: {name: x[name] for name in TARGETS if name in x} for version, x in sorted(recorded.items())}
    file.write_text(one_line_per_kernel(recorded), encoding="utf-8")
    text = [f"# {title}\n\nRegisters of a thread / bytes of stack / bytes of shared memory.\n"]
    text += [f"## Triton {version}\n\n{table(x)}\n" for version, x in recorded.items()]
    file.with_suffix(".md").write_text("\n".join(text), encoding="utf-8")


def one_line_per_kernel(recorded: dict[str, dict[str, dict[str, list[int]]]]) -> str:
    text = json.dumps(recorded, indent=1, sort_keys=False)
    return re.sub(r"\[\s*(\d+),\s*(\d+),\s*(\d+)\s*\]", r"[\1, \2, \3]", text) + "\n"


if __name__ == "__main__":
    main()
