"""Are the compiled recurrent fast-weight scans the definition? For the first use of a kernel, and for benchmarks."""

import importlib

import torch
from torch import Tensor

from fwp_rl.ops import _recurrent_reference

TOLERANCE = 1e-4
"""Of the largest entry: far above the rounding of float32."""
TOLERANCE_THIRD_ORDER = 1e-3
"""Its norm of a small read magnifies rounding."""


def example(scan: str, sizes: tuple[int, ...], T: int, B: int, H: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Arguments as memories give them, but for the episode starts; `sizes` are those of the kernels' `constants`."""

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=generator.device)

    if scan == "recurrent_delta":
        K, V = sizes
        P = 2 * K + V + 1
        return {
            "projected": random(T, B, H, P),
            "recurrent": V**-0.5 * random(H, V, P),
            "matrix": random(B, H, K, V),
            "y": random(B, H, V),
        }
    if scan == "fast_rnn":
        G, V = sizes
        return {
            "k": random(T, B, H, G, V).softmax(-1),
            "v": random(T, B, H, G, V),
            "beta": random(T, B, H, G).sigmoid(),
            "z": random(T, B, H, G, V),
            "matrices": random(B, H, G, V, V),
            "y": random(B, H, V),
            "c": random(B, H, V),
        }
    if scan == "self_referential":
        K, V = sizes
        M = V + 2 * K + 4
        return {
            "x": random(T, B, H, K).softmax(-1),
            "base": K**-0.5 * random(H, K, M),
            "difference": 0.1 * random(B, H, K, M),
        }
    N, R, V = sizes
    return {
        "entity": random(T, B, V).tanh(),
        "relation": random(T, B, R).tanh(),
        "v": random(T, B, V).tanh(),
        "beta": random(T, B).sigmoid(),
        "query": random(T, B, V),
        "relations": random(T, B, N, R),
        "matrix": 0.1 * random(B, V * R, V),
    }


def largest_error(scan: str, arguments: dict[str, Tensor], starts: Tensor) -> tuple[float, str]:
    """Of the Triton kernels against the reference in float64, relative to the largest entry of each result; where."""
    found = []
    for module, dtype in (
        (_recurrent_reference, torch.float64),
        (importlib.import_module(f"fwp_rl.ops._{scan}_triton"), torch.float32),
    ):
        function = getattr(module, f"{scan}_scan")
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(starts.device.type, enabled=False):
            leaves = {name: x.to(dtype, copy=True).requires_grad_() for name, x in arguments.items()}
            outputs, *final = function(*leaves.values(), starts)
            weights = [torch.linspace(-1, 1, x.numel(), device=x.device, dtype=dtype) for x in (outputs, *final)]
            losses = [x.cos().flatten().dot(w) for x, w in zip((outputs, *final), weights, strict=True)]
            gradients = torch.autograd.grad(losses, list(leaves.values()), allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            rollout, *_ = function(*leaves.values(), starts)
        results = {"outputs": outputs, "outputs without gradients": rollout}
        results |= {f"final state {i}": x for i, x in enumerate(final)}
        results |= {f"gradient of {name}": x for name, x in zip(leaves, gradients, strict=True)}
        found.append({name: x.detach().double() for name, x in results.items()})
    reference, kernels = found
    errors = {name: (kernels[name] - x).abs().max() / x.abs().max().clamp(min=1e-6) for name, x in reference.items()}
    worst = max(errors, key=lambda name: errors[name].nan_to_num(torch.inf).item())
    return errors[worst].nan_to_num(torch.inf).item(), worst


def check_against_reference(device: torch.device, scan: str, sizes: tuple[int, ...]) -> None:
    """Raises if the kernels, as compiled for this device, compute something else than the definition."""
    T, B, H = 37, 2, 2
    starts = torch.zeros(T, B, dtype=torch.bool, device=device)
    starts[[3, 16, 25], [0, 1, 0]] = True
    arguments = example(scan, sizes, T, B, H, torch.Generator(device).manual_seed(0))
    error, where = largest_error(scan, arguments, starts)
    if not error <= (TOLERANCE_THIRD_ORDER if scan == "third_order" else TOLERANCE):
        raise ArithmeticError(f"the {scan} kernels {sizes} are off by {error:.1e} in the {where} on {device}")
