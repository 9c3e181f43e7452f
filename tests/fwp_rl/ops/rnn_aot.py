"""Compile a kernel of `_rnn_triton` for a GPU that is not there, and read what it takes."""

import os
import re
import subprocess
import tempfile
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fwp_rl.ops._rnn_triton import TILES

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
CUOBJDUMP = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "cuobjdump")


class Resources(NamedTuple):
    """What one kernel takes: registers per thread, bytes of spill per thread, bytes of shared memory per program."""

    registers: int
    spill: int
    shared: int


def compile_kernel(kernel: triton.JITFunction, target: str, num_gates: int, aligned: bool) -> tuple[Resources, str]:
    """The resources, and the assembly. `aligned`: for hidden sizes that are multiples of 16."""
    names = kernel.arg_names
    runtime = ("T", "B", "H")
    signature = {name: "constexpr" if name.isupper() else "*fp32" for name in names}
    signature |= dict.fromkeys(runtime, "i32") | {"episode_starts": "*i1"}
    divisible = {name for name in names if not name.isupper()} | ({"H"} if aligned else set())
    tiles = {name: value for name, value in TILES.items() if name.isupper()}
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={"GATES": num_gates, "PRECISION": "ieee" if target == "gfx942" else "tf32x3", **tiles},
        attrs={(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in divisible},
    )
    options = {name: value for name, value in TILES.items() if name.islower()}
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    shared = compiled.metadata.shared
    if target == "gfx942":
        assembly = compiled.asm["amdgcn"]
        usage = dict(re.findall(r"\.(vgpr_count|private_segment_fixed_size):\s+(\d+)", assembly))
        return Resources(int(usage["vgpr_count"]), int(usage["private_segment_fixed_size"]), shared), assembly
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, spill = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    return Resources(registers, spill, shared), compiled.asm["ptx"]


def barriers(module: ModuleType, assembly: str, barrier: str) -> tuple[set[str], set[str]]:
    """Lines of the kernel that ask for a barrier of the program, and those of them that got one."""
    source = Path(module.__file__).read_text(encoding="utf-8").splitlines()
    asked = {str(number) for number, line in enumerate(source, 1) if "tl.debug_barrier()" in line}
    found, line_of_source = set(), ""
    for line in assembly.splitlines():
        words = line.split()
        if words[:1] == [".loc"]:
            line_of_source = words[2]
        elif words[:1] == [barrier]:
            found.add(line_of_source)
    return asked, asked & found
