"""The fast weight scan: the one door to every first-order fast-weight memory.

    S'_t = exp(log_decay_t) P S_{t-1}, or 0 at a start  a decay for each head, or diag(...) for each key channel
    S_t  = S'_t + beta_t k_t (v_t - S'_t^T k_t)^T
    y_t  = scale S_t^T q_t                              read after write

P is 1, but for delay heads: there it moves all rows down by one, and the last one, with its sign turned, to the top.

Backends: "reference" (`_reference`, the definition), "chunked" (`_chunked`, pure torch, parallel within chunks, any
device), "numba" (`_numba`, fused loops with a hand-derived backward, CPU) and "triton" (`_triton`, one kernel forward
and one backward, GPUs; `docs/operator.md`).
"""

import functools
import importlib
import logging
import os
import warnings
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Backend = Literal["auto", "reference", "chunked", "numba", "triton"]
Rule = Literal["delta", "additive"]

_MODULES = {name: f"fwp_rl.ops._{name}" for name in ("reference", "chunked", "numba", "triton")}

_SCANS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {}
"""Those that were in use; filled by `_resolve`."""

logger = logging.getLogger("fwp_rl")


def fast_weight_scan(
    q: Float[Tensor, "T B H K"],
    k: Float[Tensor, "T B H K"],
    v: Float[Tensor, "T B H V"],
    beta: Float[Tensor, "T B H"],
    state: Float[Tensor, "B H K V"],
    episode_starts: Bool[Tensor, "T B"],
    *,
    log_decay: Float[Tensor, "T B H"] | Float[Tensor, "T B H K"] | None = None,
    rule: Rule = "delta",
    scale: float = 1.0,
    delay_heads: int = 0,
    n_inner: int = 1,
    backend: Backend = "auto",
) -> tuple[Float[Tensor, "T B H V"], Float[Tensor, "B H K V"]]:
    """Write v under the key k with strength beta, then read with q, at every step; returns outputs and final state.

    The delta rule replaces a fraction beta of what k recalls by v (Schlag et al. 2021); rule="additive" drops the
    erase term S'_t^T k_t (Schmidhuber 1992). `log_decay` (at most 0) lets the state fade: `[T, B, H]` as a whole (Yang
    et al. 2025), `[T, B, H, K]` each row of S, which is what lies under one channel of the keys, at its own rate (Kimi
    Linear, 2025); the latter not in "triton".

    The fast weights of the first `delay_heads` heads move down one row before every step (before every `n_inner`-th,
    where several steps belong to one input): what was written under row i is then found under row i + 1, so that a
    head which always writes under row 0 holds in row i what was written i steps ago. Row K - 1 comes back to row 0 with
    its sign turned: the move keeps all norms.

    Where `episode_starts[t, b]` is true, row b restarts from zeros *before* step t; exactly zero gradient crosses the
    start, and a state that is not a number is forgotten too.

    Computes in the dtype of `state`, float32 (float64 when all are), also under autocast; float16 and bfloat16 inputs
    are widened.
    """
    _check(q, k, v, beta, state, episode_starts, log_decay, rule)
    check_delay(delay_heads, n_inner, q.shape[0], q.shape[2])
    dtype, device = state.dtype, state.device
    if q.shape[0] == 0:
        return v.new_empty(v.shape, dtype=dtype), state
    gated, channel_decay = log_decay is not None, log_decay is not None and log_decay.ndim == 4
    name = _resolve(
        backend, device, rule, gated, q.shape[-1], v.shape[-1], dtype, scale, channel_decay, delay_heads > 0
    )
    if name != "triton" and not q.dtype == k.dtype == v.dtype == beta.dtype == dtype:
        q, k, v, beta = (x.to(dtype) for x in (q, k, v, beta))
    if name != "triton" and log_decay is not None:
        log_decay = log_decay.to(dtype)
    arguments = (q, k, v, beta, log_decay, state, episode_starts, rule, scale, delay_heads, n_inner)
    if torch.is_autocast_enabled(device.type):
        # Rounding to bfloat16 at every step would add up over the sequence.
        with torch.autocast(device.type, enabled=False):
            return _SCANS[name](*arguments)
    return _SCANS[name](*arguments)


def resolve_backend(backend: str, device: torch.device) -> str:
    """The backend that runs: an explicit one is obeyed or raises with the reason, "auto" chooses.

    The environment variable FWP_RL_BACKEND decides where the caller left "auto".
    """
    source = f"backend={backend!r}"
    if backend == "auto":
        backend = os.environ.get("FWP_RL_BACKEND", "auto")
        source = f"FWP_RL_BACKEND={backend!r}"
    if backend == "auto":
        return _choose(device)
    if backend not in _MODULES:
        raise ValueError(f"{source} is no backend: expected auto, {', '.join(_MODULES)}")
    problem = None
    if backend == "numba":
        problem = _numba_problem() if device.type == "cpu" else f"it runs on the CPU, the state is on {device}"
    elif backend == "triton":
        problem = _triton_problem(device)
    if problem:
        raise RuntimeError(f"{source} cannot run: {problem}; use backend='auto'")
    return backend


def _resolve(
    backend: str,
    device: torch.device,
    rule: str,
    gated: bool,
    key_size: int,
    value_size: int,
    dtype: torch.dtype,
    scale: float,
    channel_decay: bool = False,
    delayed: bool = False,
) -> str:
    """The backend for these arguments: the kernels do not take all of them, and each is tried before it is trusted."""
    name = resolve_backend(backend, device)
    if name == "triton":
        problem: str | None = "its kernels have one decay for each head, log_decay has one for each key channel"
        if not channel_decay:
            problem = _kernel_problem(device, rule, gated, key_size, value_size, dtype, scale, delayed)
        if problem is not None:
            if backend == "triton" or os.environ.get("FWP_RL_BACKEND") == "triton":
                raise RuntimeError(f"backend='triton' cannot run: {problem}; use backend='auto'")
            name = "chunked"
    if name not in _SCANS:
        _SCANS[name] = importlib.import_module(_MODULES[name]).scan
    return name


# torch.compile takes what comes back for a constant. This is torch.compiler.assume_constant_result, but that imports
# the compiler, which takes seconds.
_resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch's own mark, set on a function


@functools.cache
def _choose(device: torch.device) -> str:
    backend, problem = "chunked", None
    if device.type == "cpu":
        problem = _numba_problem()
        backend = "numba" if problem is None else "chunked"
    elif device.type == "cuda":
        problem = _triton_problem(device)
        backend = "triton" if problem is None else "chunked"
    if problem is not None:
        compiler = "numba" if device.type == "cpu" else "triton"
        message = f"fast weights run several times slower, as torch operations: {compiler} kernels failed ({problem})"
        warnings.warn(message, stacklevel=6)
    logger.info("fast_weight_scan runs on %s with the %s backend", device, backend)
    return backend


@functools.cache
def _numba_problem() -> str | None:
    # Anything can go wrong in here (no numba, a numba that does not know this numpy, no compiler for this machine, a
    # cache that cannot be written), and all of it has the same cure: torch.
    try:
        importlib.import_module(_MODULES["numba"]).compile_probe()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


@functools.cache
def _triton_problem(device: torch.device) -> str | None:
    try:
        interpreted = importlib.import_module(_MODULES["triton"]).is_interpreted()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if device.type == "cuda" or (device.type == "cpu" and interpreted):
        return None
    return f"it runs on GPUs (anywhere with TRITON_INTERPRET=1), the state is on {device}"


@functools.cache
def _kernel_problem(
    device: torch.device,
    rule: str,
    gated: bool,
    key_size: int,
    value_size: int,
    dtype: torch.dtype,
    scale: float,
    delayed: bool,
) -> str | None:
    """Why these kernels cannot run here, among which that they compute something else than the reference."""
    kernels = importlib.import_module(_MODULES["triton"])
    problem: str | None = kernels.unsupported(key_size, value_size, dtype, device)
    if problem is None and device.type != "cpu":
        try:
            kernels.check_against_reference(device, rule, gated, key_size, value_size, scale, delayed)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            warnings.warn(f"fast weights run several times slower, as torch operations: {problem}", stacklevel=4)
    return problem


def check_delay(delay_heads: int, n_inner: int, steps: int, heads: int) -> None:
    """Raise a `ValueError` unless so many of the heads can be delay heads, with so many inner steps."""
    if not 0 <= delay_heads <= heads:
        raise ValueError(f"delay_heads must lie between 0 and the number of heads, {heads}, got {delay_heads}")
    if n_inner < 1 or steps % n_inner:
        raise ValueError(f"n_inner must be at least 1 and divide the number of steps, {steps}, got {n_inner}")


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    state: Tensor,
    episode_starts: Tensor,
    log_decay: Tensor | None,
    rule: str,
) -> None:
    if rule not in ("delta", "additive"):
        raise ValueError(f"rule must be 'delta' or 'additive', got {rule!r}")
    if q.ndim != 4:
        raise ValueError(f"q must be [T, B, H, K], got {list(q.shape)}")
    if v.ndim != 4:
        raise ValueError(f"v must be [T, B, H, V], got {list(v.shape)}")
    steps, batch, heads, key_size = q.shape
    value_size = v.shape[-1]
    decay_letters, decay_shape = "[T, B, H] (or [T, B, H, K])", q.shape[:-1]
    if log_decay is not None and log_decay.ndim == 4:
        decay_letters, decay_shape = "[T, B, H, K]", q.shape
    for name, tensor, letters, shape in (
        ("k", k, "[T, B, H, K]", q.shape),
        ("v", v, "[T, B, H, V]", (steps, batch, heads, value_size)),
        ("beta", beta, "[T, B, H]", (steps, batch, heads)),
        ("log_decay", log_decay, decay_letters, decay_shape),
        ("state", state, "[B, H, K, V]", (batch, heads, key_size, value_size)),
        ("episode_starts", episode_starts, "[T, B]", (steps, batch)),
    ):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} must be {letters} = {list(shape)} to match q and v, got {list(tensor.shape)}")
    if episode_starts.dtype != torch.bool:
        raise TypeError(f"episode_starts must be bool, got {episode_starts.dtype}; use episode_starts.bool()")
    if state.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"state must be float32 (or float64 for tests), got {state.dtype}; use state.float()")
    for name, tensor in (("q", q), ("k", k), ("v", v), ("beta", beta), ("log_decay", log_decay)):
        if tensor is None:
            continue
        if tensor.dtype != state.dtype and (tensor.dtype not in (torch.float16, torch.bfloat16)):
            raise TypeError(
                f"{name} must have the dtype of state, {state.dtype}, or be half precision, got {tensor.dtype}"
            )
        if tensor.device != state.device:
            raise ValueError(f"{name} is on {tensor.device}, state on {state.device}; move one with .to(...)")
    if episode_starts.device != state.device:
        raise ValueError(f"episode_starts is on {episode_starts.device}, state on {state.device}; use .to(...)")
