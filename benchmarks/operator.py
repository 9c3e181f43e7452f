"""How fast is the fast weight scan, on this CPU?

    python -m benchmarks.operator             # 2 minutes; writes benchmarks/results/operator.{json,md}
    python -m benchmarks.operator --smoke     # seconds, writes nothing

One sequence batch of the size that PPO trains on: 128 steps, 16 environments, 4 heads of D keys and D values, float32,
5 % episode starts. Everything that is compared takes turns within each repeat, so that a noisy machine is noisy for
all. `nn.LSTM` has as many inputs and units as the heads have values together, and no starts: it cannot have them. The
floor is what the multiply-adds of the scan take by themselves (`benchmarks.floor`).
"""

import argparse
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.floor import floor
from benchmarks.machine import describe_machine
from fwp_rl.ops import fast_weight_scan

STEPS, BATCH, HEADS = 128, 16, 4
LONG = 4096
SIZES = (16, 32, 64)
BACKENDS = ("reference", "chunked", "numba")
RESULTS = pathlib.Path(__file__).parent / "results"

# D, contender, baseline, and the smallest or largest ratio of their times
BARS = (
    (32, "reference, both", "numba, both", "at least", 20.0),
    (16, "chunked, both", "numba, both", "at least", 6.0),
    (32, "chunked, both", "numba, both", "at least", 6.0),
    (64, "chunked, both", "numba, both", "at least", 3.0),
    (32, "numba, both", "nn.LSTM, both", "at most", 0.35),
    (32, "numba, forward", "floor, forward", "at most", 2.5),
    (32, "numba, both", "floor, both", "at most", 2.5),
    (64, "numba, forward", "floor, forward", "at most", 2.5),
    (64, "numba, both", "floor, both", "at most", 2.5),
)
STEP_BAR, LONG_BAR = 40.0, 1.3  # microseconds at D = 32; time per step and row at 4096 steps over that at 128

Workload = Callable[[], Any]


def scan_inputs(steps: int, batch: int, size: int) -> dict[str, Tensor]:
    shape = (steps, batch, HEADS)
    return {
        "q": torch.randn(*shape, size),
        "k": F.normalize(torch.randn(*shape, size), dim=-1),
        "v": torch.randn(*shape, size),
        "beta": torch.rand(*shape),
        "state": torch.zeros(batch, HEADS, size, size),
    }


def forward(backend: str, inputs: dict[str, Tensor], starts: Tensor) -> Workload:
    def work() -> None:
        with torch.no_grad():
            fast_weight_scan(**inputs, episode_starts=starts, backend=backend)  # type: ignore[arg-type]  # all tensors

    return work


def forward_backward(backend: str, inputs: dict[str, Tensor], starts: Tensor) -> Workload:
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    gradient = torch.randn_like(inputs["v"])

    def work() -> None:
        outputs, _ = fast_weight_scan(**leaves, episode_starts=starts, backend=backend)  # type: ignore[arg-type]  # all tensors
        torch.autograd.grad(outputs, list(leaves.values()), gradient)

    return work


def lstm(steps: int, batch: int, width: int) -> tuple[Workload, Workload]:
    """Forward, and forward with backward."""
    module = nn.LSTM(width, width)
    inputs = torch.randn(steps, batch, width, requires_grad=True)
    gradient = torch.randn(steps, batch, width)

    def forward_only() -> None:
        with torch.no_grad():
            module(inputs)

    def both() -> None:
        torch.autograd.grad(module(inputs)[0], [inputs, *module.parameters()], gradient)

    return forward_only, both


def take_turns(workloads: dict[str, Workload], repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each workload: median, least and quartiles over the repeats."""
    for work in workloads.values():  # compile, allocate
        work()
    seconds: dict[str, list[float]] = {name: [] for name in workloads}
    for _ in range(repeats):
        for name, work in workloads.items():
            begin = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - begin)
    return {name: _summary([1e3 * x for x in values]) for name, values in seconds.items()}


def _summary(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median": median, "min": min(values), "quartiles": [low, high]}  # type: ignore[dict-item]  # a list among numbers


def measure(sizes: tuple[int, ...], steps: int, long: int, batch: int, repeats: int) -> dict[str, Any]:
    torch.manual_seed(0)
    scans = {}
    for size in sizes:
        inputs, starts = scan_inputs(steps, batch, size), torch.rand(steps, batch) < 0.05
        workloads = {f"{name}, forward": forward(name, inputs, starts) for name in BACKENDS}
        workloads |= {f"{name}, both": forward_backward(name, inputs, starts) for name in BACKENDS}
        workloads["nn.LSTM, forward"], workloads["nn.LSTM, both"] = lstm(steps, batch, HEADS * size)
        workloads["floor, forward"], workloads["floor, both"] = floor(steps, batch * HEADS, size)
        scans[str(size)] = take_turns(workloads, repeats)
    step = {}
    for size in sizes:
        inputs, starts = scan_inputs(1, batch, size), torch.zeros(1, batch, dtype=torch.bool)
        step[str(size)] = take_turns({name: forward(name, inputs, starts) for name in BACKENDS}, 50 * repeats)
    middle = sizes[len(sizes) // 2]
    lengths = {}
    for length in (steps, long):
        inputs, starts = scan_inputs(length, batch, middle), torch.rand(length, batch) < 0.05
        lengths[str(length)] = forward_backward("numba", inputs, starts)
    return {"scan_ms": scans, "step_ms": step, "length_ms": take_turns(lengths, repeats)}


def judge(measured: dict[str, Any], size: int, steps: int, long: int) -> list[dict[str, Any]]:
    """Every bar with what was measured; ratios are of the least times, which a busy machine disturbs least."""
    bars = []
    for bar_size, contender, baseline, kind, bar in BARS:
        scan = measured["scan_ms"].get(str(bar_size))
        if scan is not None:  # not all sizes run in the smoke test
            name = f"{_label(contender)} / {_label(baseline)}, D = {bar_size}"
            ratio = scan[contender]["min"] / scan[baseline]["min"]
            bars.append({"name": name, "kind": kind, "bar": bar, "measured": ratio})
    step = 1e3 * measured["step_ms"][str(size)]["numba"]["min"]
    name = "numba, one step without gradient, microseconds, D = 32"
    bars.append({"name": name, "kind": "at most", "bar": STEP_BAR, "measured": step})
    length = measured["length_ms"]
    ratio = length[str(long)]["min"] / length[str(steps)]["min"] * steps / long
    name = f"numba, time per step of {long} over that of {steps}, D = 32"
    bars.append({"name": name, "kind": "at most", "bar": LONG_BAR, "measured": ratio})
    for entry in bars:
        met = entry["measured"] >= entry["bar"] if entry["kind"] == "at least" else entry["measured"] <= entry["bar"]
        entry["met"] = met
    return bars


def _label(name: str) -> str:
    return name.replace("both", "forward and backward")


def as_markdown(result: dict[str, Any]) -> str:
    lines = [
        "# The fast weight scan",
        "",
        f"Milliseconds: least time, and median in brackets, of {result['repeats']} interleaved repeats; "
        f"{result['steps']} steps, {result['batch']} environments, {HEADS} heads of D keys and D values, float32. "
        "Written by `python -m benchmarks.operator`.",
        "",
        f"{result['machine']}",
        "",
    ]
    sizes = list(result["scan_ms"])
    lines += ["| | " + " | ".join(f"D = {size}" for size in sizes) + " |", "|---|" + "---|" * len(sizes)]
    for name in result["scan_ms"][sizes[0]]:
        cells = [result["scan_ms"][size][name] for size in sizes]
        lines.append(f"| {_label(name)} | " + " | ".join(f"{x['min']:.2f} ({x['median']:.2f})" for x in cells) + " |")
    for name in BACKENDS:
        cells = [result["step_ms"][size][name] for size in sizes]
        row = " | ".join(f"{1e3 * x['min']:.0f} µs ({1e3 * x['median']:.0f} µs)" for x in cells)
        lines.append(f"| {name}, one step | {row} |")
    lines += ["", "| | bar | measured | |", "|---|---|---|---|"]
    for bar in result["bars"]:
        verdict = "met" if bar["met"] else "missed"
        lines.append(f"| {bar['name']} | {bar['kind']} {bar['bar']:g} | {bar['measured']:.2f} | {verdict} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, two repeats, nothing written")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    # Beside other processes, as in a test, a second thread is mostly waited for.
    torch.set_num_threads(1 if arguments.smoke else arguments.threads)
    sizes, steps, long, batch, repeats = SIZES, STEPS, LONG, BATCH, arguments.repeats
    if arguments.smoke:
        sizes, steps, long, batch, repeats = (32,), 16, 64, 2, 2
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "threads": arguments.threads,
        "repeats": repeats,
        "steps": steps,
        "batch": batch,
        **measure(sizes, steps, long, batch, repeats),
    }
    result["bars"] = judge(result, 32, steps, long)
    print(as_markdown(result))
    if not arguments.smoke:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "operator.json").write_text(json.dumps(result, indent=1) + "\n")
        (RESULTS / "operator.md").write_text(as_markdown(result))


if __name__ == "__main__":
    main()
