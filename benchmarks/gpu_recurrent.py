"""Are the recurrent fast weights right on this GPU, and how fast are they? A part of `benchmarks.gpu`.

Each kernel against the definition in float64, then beside the definition as PyTorch launches it, step by step: forward
and backward of a training sequence, and one step forward, as in a rollout. A kernel that fails is not timed; the others
are.
"""

import importlib
from typing import Any

import torch

from benchmarks.gpu_timing import cell, differentiated, launched, replayed
from fwp_rl.ops import _recurrent_reference
from fwp_rl.ops._recurrent_check import TOLERANCE, TOLERANCE_THIRD_ORDER, example, largest_error

SIZES = (
    ("recurrent_delta", (32, 32)),
    ("fast_rnn", (1, 32)),
    ("fast_rnn", (3, 32)),
    ("self_referential", (32, 32)),
    ("third_order", (3, 16, 16)),
)
"""As memories have them by default; the letters are those of the kernels' `constants`."""
STEPS, ROWS, HEADS, STARTS = (128, 1), 64, 4, 0.05
SMOKE = (("fast_rnn", (1, 3)),)

Row = dict[str, Any]


def measure(device: torch.device, smoke: bool = False) -> list[Row]:
    """A row for each scan and number of steps."""
    rows = []
    for scan, sizes in SMOKE if smoke else SIZES:
        row: Row = {"scan": scan, "sizes": sizes, "error": None, "in": None, "failed": None, "times": {}}
        rows.append(row)
        generator = torch.Generator(device).manual_seed(0)
        steps, batch, heads = (2, 1, 1) if smoke else (37, 5, 3)
        starts = torch.rand(steps, batch, generator=generator, device=device) < 0.1
        try:
            row["error"], row["in"] = largest_error(scan, example(scan, sizes, steps, batch, heads, generator), starts)
            if not row["error"] <= (TOLERANCE_THIRD_ORDER if scan == "third_order" else TOLERANCE):
                raise ArithmeticError(f"off by {row['error']:.1e} in the {row['in']}")
            for steps in (1,) if smoke else STEPS:
                row["times"][str(steps)] = times(scan, sizes, steps, (1, 1) if smoke else (ROWS, HEADS), device)
        except Exception as error:  # of any kind; the unattended run goes on
            row["failed"] = f"{type(error).__name__}: {error}"
        print(f"{scan} {sizes}: {row['failed'] or row['times']}", flush=True)
    return rows


def times(scan: str, sizes: tuple[int, ...], steps: int, shape: tuple[int, int], device: torch.device) -> Row:
    generator = torch.Generator(device).manual_seed(0)
    arguments = example(scan, sizes, steps, *shape, generator)
    starts = torch.rand(steps, shape[0], generator=generator, device=device) < STARTS
    differentiates = steps > 1
    leaves = [x.requires_grad_(differentiates) for x in arguments.values()]
    kernels = importlib.import_module(f"fwp_rl.ops._{scan}_triton")
    found = {}
    for name, module in (("triton", kernels), ("reference", _recurrent_reference)):
        function = getattr(module, f"{scan}_scan")
        used = leaves[:-1] if sizes[0] == 1 and scan == "fast_rnn" else leaves  # a net without gates has no cell
        work = differentiated(lambda function=function: function(*leaves, starts)[0], used, differentiates)
        found[name] = {"launched_ms": launched(work, device), "replayed_ms": replayed(work, device)}
    return found


def as_markdown(rows: list[Row]) -> str:
    lines = [
        "## Recurrent fast weights\n",
        f"Milliseconds as above, float32, B = {ROWS}, {HEADS} heads (`third_order`: none), {STARTS:.0%} starts. Sizes "
        "are K x V, G x V (`fast_rnn`) and N x R x V (`third_order`). `reference` is the same as PyTorch operations, "
        "step by step.\n",
        "| scan | sizes | T | triton | reference | largest error |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        sizes = " x ".join(map(str, row["sizes"]))
        if row["failed"]:
            lines.append(f"| {row['scan']} | {sizes} | | {row['failed'].partition(chr(10))[0]} | | |")
        for steps, found in row["times"].items():
            cells = f"{cell(found['triton'])} | {cell(found['reference'])} | {row['error']:.1e}"
            lines.append(f"| {row['scan']} | {sizes} | {steps} | {cells} |")
    return "\n".join(lines) + "\n"
