"""Is the fast weight scan right on this GPU, and how fast is it?

    python -m benchmarks.gpu             # under 8 minutes on one H100; writes benchmarks/results/gpu.{json,md}
    python -m benchmarks.gpu --smoke     # a minute without a GPU: Triton interprets the kernels, nothing is written

First the kernels against the definition in float64: where they are wrong, nothing is timed and the exit status is 1.
Then forward and backward of a training sequence (of one step: forward alone, as in a rollout), each as PyTorch launches
it, many in a row, and replayed from a CUDA graph, which is what the GPU itself needs. The peers are
flash-linear-attention, if it is installed, with starts as ragged sequences (`cu_seqlens`), and `nn.LSTM` with as many
units as the heads have values together, without starts: it cannot have them. Before that, the same of the recurrent
fast weights (`benchmarks.gpu_recurrent`); one of those that is wrong is not timed, and the exit status is 1 at the end.
"""

import argparse
import importlib.util
import itertools
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import gpu_recurrent
from benchmarks.gpu_timing import Workload, cell, differentiated, launched, replayed
from benchmarks.machine import describe_gpu, describe_machine
from fwp_rl.ops import fast_weight_scan

HEADS = 4
STEPS, PROGRAMS, SIZES = (128, 1, 512, 64, 2048), (256, 4096, 16), (32, 64, 16)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
STARTS = (0.05, 0.0)
"""The most important of each first: what does not fit into the time is left out."""
RULES = (("delta", False), ("delta", True), ("additive", False), ("additive", True))  # rule, is there a decay
TOLERANCE = {"float32": 2e-5, "bfloat16": 1e-2}
"""Relative to the largest entry; gradients of bfloat16 inputs are rounded to bfloat16."""
LARGEST_MINUTES = 8.0
RESULTS = pathlib.Path(__file__).parent / "results"


@dataclass(frozen=True)
class Case:
    """T steps of `programs` matrices, B = programs / 4 rows of 4 heads."""

    steps: int
    programs: int
    size: int
    dtype: str
    starts: float

    @property
    def differentiates(self) -> bool:
        return self.steps > 1

    def inputs(self, device: torch.device, gated: bool = False) -> tuple[dict[str, Tensor], Tensor]:
        """Arguments of the scan in the dtype of the case, the state in float32; the episode starts."""
        generator = torch.Generator(device).manual_seed(0)
        shape, dtype = (self.steps, self.programs // HEADS, HEADS), DTYPES[self.dtype]

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=device)

        inputs = {
            "q": random(*shape, self.size).to(dtype),
            "k": F.normalize(random(*shape, self.size), dim=-1).to(dtype),
            "v": random(*shape, self.size).to(dtype),
            "beta": random(*shape).sigmoid().to(dtype),
            "state": random(*shape[1:], self.size, self.size),
        }
        if gated:
            inputs["log_decay"] = -0.3 * random(*shape).square().to(dtype)
        starts = torch.rand(shape[:2], generator=generator, device=device) < self.starts
        return inputs, starts


# ------------------------------------------------------------------------------------------------------ correctness


def largest_error(case: Case, rule: str, gated: bool, delay_heads: int, device: torch.device) -> tuple[float, str]:
    """Of outputs, states, all gradients and one step without, relative to the largest entry of each; and where."""
    inputs, starts = case.inputs(device, gated)
    found = []
    for backend, widen in (("triton", False), ("reference", True)):
        leaves = {name: (x.double() if widen else x).requires_grad_() for name, x in inputs.items()}
        options: dict[str, Any] = {"rule": rule, "delay_heads": delay_heads, "backend": backend}
        y, final = fast_weight_scan(**leaves, episode_starts=starts, **options)
        with torch.no_grad():
            first = {name: x if name == "state" else x[:1] for name, x in leaves.items()}
            step_y, step_final = fast_weight_scan(**first, episode_starts=starts[:1], **options)
        weights = torch.linspace(-1, 1, y.numel(), device=device, dtype=y.dtype).view_as(y).cos()
        gradients = torch.autograd.grad((y * weights).sum() + final.square().sum(), list(leaves.values()))
        names = ("outputs", "final state", "one step", "state after it", *(f"gradient of {name}" for name in leaves))
        found.append(dict(zip(names, (y, final, step_y, step_final, *gradients), strict=True)))
        inputs = {name: x.detach() for name, x in inputs.items()}
    kernels, reference = found
    errors = {name: (kernels[name].double() - x).abs().max() / x.abs().max() for name, x in reference.items()}
    name = max(errors, key=lambda name: errors[name].nan_to_num(torch.inf).item())
    return errors[name].nan_to_num(torch.inf).item(), name


def check(cases: list[Case], device: torch.device) -> list[dict[str, Any]]:
    rows = []
    for case, (rule, gated), delay_heads in itertools.product(cases, RULES, (0, 1)):
        error, where = largest_error(case, rule, gated, delay_heads, device)
        setting = {"rule": rule, "decay": gated, "delay_heads": delay_heads}
        rows.append(asdict(case) | setting | {"error": error, "in": where})
        if not error <= TOLERANCE[case.dtype]:
            name = f"{rule}{' with decay' if gated else ''}, {delay_heads} delay heads, {case.size} x {case.size}"
            sys.exit(
                f"the kernels are wrong: off by {error:.1e} in the {where} ({name}, {case.dtype}), so nothing is timed"
            )
    return rows


# ------------------------------------------------------------------------------------------------------- contenders
#
# Each takes a case and gives its workload, or raises NotImplementedError with the reason why it cannot.


def ours(backend: str) -> Callable[[Case, torch.device], Workload]:
    def make(case: Case, device: torch.device) -> Workload:
        if backend == "reference" and case.steps > STEPS[0]:
            raise NotImplementedError("too slow to wait for")
        inputs, starts = case.inputs(device)
        leaves = {name: x.requires_grad_(case.differentiates) for name, x in inputs.items()}

        def scan() -> Tensor:
            return fast_weight_scan(**leaves, episode_starts=starts, backend=backend)[0]  # type: ignore[arg-type]  # a name

        return differentiated(scan, list(leaves.values()), case.differentiates)

    return make


def flash_linear_attention(name: str) -> Callable[[Case, torch.device], Workload]:
    def make(case: Case, device: torch.device) -> Workload:
        if importlib.util.find_spec("fla") is None:
            raise NotImplementedError("not installed")
        if name.startswith("chunk") and case.dtype == "float32":
            raise NotImplementedError("refuses float32")
        operator = getattr(importlib.import_module("fla.ops.delta_rule"), name)
        inputs, starts = case.inputs(device)
        state = inputs.pop("state")
        inputs = {name: x.transpose(0, 1).contiguous() for name, x in inputs.items()}  # [B, T, ...]
        lengths = None
        if case.starts:
            inputs = {name: x.flatten(0, 1)[None] for name, x in inputs.items()}
            starts = starts.T.clone()
            starts[:, 0] = True  # the rows follow each other
            ends = torch.tensor([starts.numel()], device=device)
            lengths = torch.cat([starts.flatten().nonzero().flatten(), ends])
            state = state.new_zeros(len(lengths) - 1, *state.shape[1:])
        leaves = {
            name: x.requires_grad_(case.differentiates) for name, x in (inputs | {"initial_state": state}).items()
        }

        def scan() -> Tensor:
            y, _ = operator(**leaves, scale=1.0, output_final_state=True, cu_seqlens=lengths)
            return y

        return differentiated(scan, list(leaves.values()), case.differentiates)

    return make


def lstm(case: Case, device: torch.device) -> Workload:
    if case.starts:
        raise NotImplementedError("knows no starts")
    width, dtype = HEADS * case.size, DTYPES[case.dtype]
    module = nn.LSTM(width, width).to(device, dtype)
    inputs = torch.randn(case.steps, case.programs // HEADS, width, device=device, dtype=dtype)
    inputs.requires_grad_(case.differentiates)
    return differentiated(lambda: module(inputs)[0], [inputs, *module.parameters()], case.differentiates)


CONTENDERS: dict[str, Callable[[Case, torch.device], Workload]] = {
    "triton": ours("triton"),
    "chunked": ours("chunked"),
    "reference": ours("reference"),
    "fla chunk": flash_linear_attention("chunk_delta_rule"),
    "fla recurrent": flash_linear_attention("fused_recurrent_delta_rule"),
    "nn.LSTM": lstm,
}


# ------------------------------------------------------------------------------------------------------------ timing


def all_cases() -> list[Case]:
    """The most important first."""
    choices = [list(enumerate(values)) for values in (STEPS, PROGRAMS, SIZES, DTYPES, STARTS)]
    chosen = sorted(itertools.product(*choices), key=lambda combination: sum(rank for rank, _ in combination))
    return [Case(*(value for _, value in combination)) for combination in chosen]


def measure(
    cases: list[Case], device: torch.device, deadline: float, save: Callable[[list[dict[str, Any]]], None]
) -> list[dict[str, Any]]:
    """A row for each case until the deadline; what there is so far is saved after each."""
    rows: list[dict[str, Any]] = []
    for case in cases:
        if time.perf_counter() > deadline:
            print(f"{len(cases) - len(rows)} of {len(cases)} cases were left out: the time was up")
            break
        times: dict[str, Any] = {}
        for name, make in CONTENDERS.items():
            try:
                work = make(case, device)
                times[name] = {"launched_ms": launched(work, device), "replayed_ms": replayed(work, device)}
            except NotImplementedError as reason:
                times[name] = str(reason)
            except torch.OutOfMemoryError:
                times[name] = "out of memory"
            except Exception as error:  # a peer's, of any kind; the unattended run goes on
                if name in ("triton", "chunked", "reference"):
                    raise
                times[name] = f"failed: {type(error).__name__}"
            work = None  # type: ignore[assignment]  # gives its memory back
            if device.type == "cuda":
                torch.cuda.empty_cache()
        rows.append(asdict(case) | {"times": times})
        print(f"{label(case)}: {'; '.join(f'{name} {cell(x)}' for name, x in times.items())}", flush=True)
        save(rows)
    return rows


# ------------------------------------------------------------------------------------------------------------ report


def label(case: Case) -> str:
    return f"T = {case.steps}, {case.programs} programs, D = {case.size}, {case.dtype}, starts {case.starts:.0%}"


def as_markdown(
    machine: str, checked: list[dict[str, Any]], rows: list[dict[str, Any]], recurrent_rows: list[dict[str, Any]]
) -> str:
    rows = sorted(rows, key=lambda row: (row["steps"], row["programs"], row["size"], row["dtype"], row["starts"]))
    worst = {dtype: max(x["error"] for x in checked if x["dtype"] == dtype) for dtype in DTYPES}
    lines = [
        "# The fast weight scan on a GPU\n",
        f"{machine}. Written by `python -m benchmarks.gpu`.\n",
        "Milliseconds of forward and backward (T = 1: forward alone), launched by PyTorch / replayed from a CUDA "
        f"graph. {HEADS} heads of D keys and D values, B = programs / {HEADS}. Largest relative error of outputs, "
        f"states and gradients in {len(checked)} comparisons with the definition in float64: "
        f"{', '.join(f'{x:.1e} ({name})' for name, x in worst.items())}.\n",
        f"| T | programs | D | inputs | starts | {' | '.join(CONTENDERS)} |",
        f"|---|---|---|---|---|{'---|' * len(CONTENDERS)}",
    ]
    for row in rows:
        head = f"| {row['steps']} | {row['programs']} | {row['size']} | {row['dtype']} | {row['starts']:.0%} |"
        lines.append(f"{head} {' | '.join(cell(row['times'][name]) for name in CONTENDERS)} |")
    return "\n".join(lines) + "\n\n" + gpu_recurrent.as_markdown(recurrent_rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--minutes", type=float, default=LARGEST_MINUTES, help="measure until then (default %(default)s)"
    )
    parser.add_argument("--smoke", action="store_true", help="without a GPU, tiny, nothing is written")
    arguments = parser.parse_args()
    deadline = time.perf_counter() + 60 * arguments.minutes
    if arguments.smoke:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported, which the first scan does
        cpu = torch.device("cpu")
        checked = check([Case(21, 4, 16, dtype, 0.2) for dtype in DTYPES], cpu)
        rows = measure([Case(steps, 4, 16, "float32", 0.05) for steps in (1, 3)], cpu, deadline, lambda _: None)
        print(
            as_markdown(
                f"Interpreted, on a CPU: {describe_machine()}", checked, rows, gpu_recurrent.measure(cpu, smoke=True)
            )
        )
        return
    if not torch.cuda.is_available():
        parser.error("there is no GPU here; --smoke runs without one")
    gpu = torch.device("cuda")
    checked = check([Case(133, 16, size, dtype, 0.05) for size in SIZES for dtype in DTYPES], gpu)
    machine, recurrent_rows = f"{describe_gpu()}; {describe_machine()}", gpu_recurrent.measure(gpu)

    def save(rows: list[dict[str, Any]]) -> None:
        RESULTS.mkdir(exist_ok=True)
        text = json.dumps({"machine": machine, "errors": checked, "times": rows, "recurrent": recurrent_rows}, indent=1)
        (RESULTS / "gpu.json").write_text(text + "\n", encoding="utf-8")
        (RESULTS / "gpu.md").write_text(as_markdown(machine, checked, rows, recurrent_rows), encoding="utf-8")

    save([])
    measure(all_cases(), gpu, deadline, save)
    failed = [f"{row['scan']} {row['sizes']}: {row['failed']}" for row in recurrent_rows if row["failed"]]
    if failed:
        sys.exit("recurrent kernels failed, and were not timed: " + "; ".join(failed))


if __name__ == "__main__":
    main()
