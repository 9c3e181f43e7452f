"""How long does something take on a GPU: launched by PyTorch, and replayed from a CUDA graph."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Workload = Callable[[], Any]


def differentiated(forward: Callable[[], Tensor], leaves: list[Tensor], differentiates: bool) -> Workload:
    """Forward and backward; or forward alone, without gradients."""
    if not differentiates:

        def without_gradient() -> None:
            with torch.no_grad():
                forward()

        return without_gradient

    def both() -> None:
        y = forward()
        torch.autograd.grad(y, leaves, torch.ones_like(y))

    return both


def launched(work: Workload, device: torch.device) -> float:
    """Milliseconds of one call among many that follow each other, median: of the GPU or of who launches its work,
    whichever takes longer.
    """
    for _ in range(3):  # compiles, tunes, allocates
        work()
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    in_a_row = max(1, min(100, int(0.02 / (time.perf_counter() - began))))
    times = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(in_a_row):
            work()
        synchronize(device)
        times.append(1e3 * (time.perf_counter() - began) / in_a_row)
    return statistics.median(times)


def replayed(work: Workload, device: torch.device) -> float | None:
    """What the GPU itself needs for it, from a CUDA graph; None where it cannot be captured, since it asks the GPU
    something on its way.
    """
    if device.type != "cuda":
        return None
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    try:
        with torch.cuda.graph(graph):
            work()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return None
    graph.replay()
    times = []
    for _ in range(20):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def cell(times: dict[str, float | None] | str) -> str:
    if isinstance(times, str):
        return times
    shown = [f"{x:.3f}" for x in times.values() if x is not None]
    return " / ".join(shown)
