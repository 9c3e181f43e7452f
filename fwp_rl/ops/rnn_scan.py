"""Scans of the classic recurrent cells, with episode starts inside: `rnn_scan`, `gru_scan`, `lstm_scan`.

The equations, the gate order and the parameters are those of `torch.nn.RNN`, `GRU` and `LSTM` (one layer). The inputs
arrive already projected, `projected[t] = weight_ih @ inputs[t] + bias_ih`: that is one matrix product over all steps
(`project_inputs`), and only the recurrence is sequential.

Where `episode_starts[t, b]` is true, row b restarts from zeros *before* `projected[t, b]` is read; exactly zero
gradient crosses the start, and a state that is not a number is forgotten too.

Backends: "reference" (`_rnn_reference`, a loop over torch operations, any device), "numba" (`_rnn_numba`, fused loops
with a hand-derived backward, CPU) and "triton" (`_rnn_triton`, one kernel for the whole sequence each way, GPU,
float32). All compute in the dtype of the state, float32 or float64, whatever the autocast mode and the dtype of the
other arguments.

`gates` below is 1, 3 and 4 times the hidden size H of rnn, gru and lstm.
"""

import functools
import logging
import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from fwp_rl.ops import _rnn_reference

RnnBackend = Literal["auto", "reference", "numba", "triton"]

logger = logging.getLogger(__name__)

_BACKENDS = ("reference", "numba", "triton")
# FWP_RL_BACKEND speaks to every operator; these are values that only others implement.
_BACKENDS_OF_OTHER_OPERATORS = ("chunked",)


def rnn_scan(
    projected: Float[Tensor, "T B gates"],
    weight_hh: Float[Tensor, "gates H"],
    bias_hh: Float[Tensor, " gates"],
    state: Float[Tensor, "B H"],
    episode_starts: Bool[Tensor, "T B"],
    *,
    backend: RnnBackend = "auto",
) -> tuple[Float[Tensor, "T B H"], Float[Tensor, "B H"]]:
    """h = tanh(projected + W_hh h + b_hh) (Elman 1990)."""
    _check(1, projected, weight_hh, bias_hh, (state,), episode_starts)
    weight_hh, bias_hh, projected = (x.to(state.dtype) for x in (weight_hh, bias_hh, projected))
    with full_precision(state.device):
        return _implementation(backend, state).rnn_scan(projected, weight_hh, bias_hh, state, episode_starts)


def gru_scan(
    projected: Float[Tensor, "T B gates"],
    weight_hh: Float[Tensor, "gates H"],
    bias_hh: Float[Tensor, " gates"],
    state: Float[Tensor, "B H"],
    episode_starts: Bool[Tensor, "T B"],
    *,
    backend: RnnBackend = "auto",
) -> tuple[Float[Tensor, "T B H"], Float[Tensor, "B H"]]:
    """Gates r, z, n; with a = W_hh h + b_hh (Cho et al. 2014, reset gate after the product as in cuDNN):

    r, z = sigmoid(projected + a);   n = tanh(projected_n + r a_n);   h = (1 - z) n + z h.
    """
    _check(3, projected, weight_hh, bias_hh, (state,), episode_starts)
    weight_hh, bias_hh, projected = (x.to(state.dtype) for x in (weight_hh, bias_hh, projected))
    with full_precision(state.device):
        return _implementation(backend, state).gru_scan(projected, weight_hh, bias_hh, state, episode_starts)


def lstm_scan(
    projected: Float[Tensor, "T B gates"],
    weight_hh: Float[Tensor, "gates H"],
    bias_hh: Float[Tensor, " gates"],
    state: tuple[Float[Tensor, "B H"], Float[Tensor, "B H"]],
    episode_starts: Bool[Tensor, "T B"],
    *,
    backend: RnnBackend = "auto",
) -> tuple[Float[Tensor, "T B H"], tuple[Float[Tensor, "B H"], Float[Tensor, "B H"]]]:
    """Gates i, f, g, o of projected + W_hh h + b_hh (Hochreiter & Schmidhuber 1997; Gers et al. 2000):

    c = sigmoid(f) c + sigmoid(i) tanh(g);   h = sigmoid(o) tanh(c).   The state is (h, c).
    """
    h, c = state
    _check(4, projected, weight_hh, bias_hh, (h, c), episode_starts)
    weight_hh, bias_hh, projected = (x.to(h.dtype) for x in (weight_hh, bias_hh, projected))
    with full_precision(h.device):
        outputs, h, c = _implementation(backend, h).lstm_scan(projected, weight_hh, bias_hh, h, c, episode_starts)
    return outputs, (h, c)


def project_inputs(
    inputs: Float[Tensor, "*rows D"],
    weight_ih: Float[Tensor, "gates D"],
    bias_ih: Float[Tensor, " gates"],
    dtype: torch.dtype,
) -> Float[Tensor, "*rows gates"]:
    """weight_ih @ inputs + bias_ih for all steps at once, in `dtype`, also under autocast."""
    with full_precision(inputs.device):
        return functional.linear(inputs.to(dtype), weight_ih.to(dtype), bias_ih.to(dtype))


def full_precision(device: torch.device) -> AbstractContextManager[torch.autocast | None]:
    """Autocast off: rounding to bfloat16 at every step would add up over the sequence."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def resolve_backend(backend: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """The backend that runs: an explicit one is obeyed or raises with the reason, "auto" chooses.

    The environment variable FWP_RL_BACKEND decides where the caller left "auto".
    """
    source = f"backend={backend!r}"
    if backend == "auto":
        backend = os.environ.get("FWP_RL_BACKEND", "auto")
        source = f"FWP_RL_BACKEND={backend!r}"
        if backend in _BACKENDS_OF_OTHER_OPERATORS:
            return "reference"
    if backend == "auto":
        return _choose(device, dtype)
    if backend not in _BACKENDS:
        raise ValueError(f"{source} is no backend: expected auto, {', '.join(_BACKENDS)}")
    problem = None
    if backend == "numba":
        problem = _numba_problem() if device.type == "cpu" else f"it runs on the CPU, the state is on {device}"
    elif backend == "triton":
        problem = _triton_problem(device, dtype)
    if problem:
        raise RuntimeError(f"{source} cannot run: {problem}; use backend='auto'")
    return backend


# torch.compile makes the choice when it traces, instead of tracing how it is made. This line is the whole of
# `torch.compiler.assume_constant_result`, which would import the compiler (seconds).
resolve_backend._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch's own mark, set on a function


def _implementation(backend: str, state: Tensor) -> ModuleType:
    # Statements, as torch.compile follows no importlib.
    name = resolve_backend(backend, state.device, state.dtype)
    if name == "numba":
        from fwp_rl.ops import _rnn_numba

        return _rnn_numba
    if name == "triton":
        from fwp_rl.ops import _rnn_triton

        return _rnn_triton
    return _rnn_reference


@functools.cache
def _choose(device: torch.device, dtype: torch.dtype) -> str:
    backend, problem = "reference", None
    if device.type == "cpu":
        backend, problem = "numba", _numba_problem()
    elif device.type == "cuda":
        backend, problem = "triton", _triton_problem(device, dtype)
    if problem is not None:
        message = f"recurrent scans run many times slower, step by step: {backend} kernels failed ({problem})"
        warnings.warn(message, stacklevel=5)
        backend = "reference"
    logger.info("recurrent scans run on %s with the %s backend", device, backend)
    return backend


@functools.cache
def _numba_problem() -> str | None:
    # Anything can go wrong in here (no numba, a numba that does not know this numpy, a cache that cannot be written),
    # and all of it has the same cure: torch.
    try:
        from fwp_rl.ops import _rnn_numba

        _rnn_numba.compile_probe()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


@functools.cache
def _triton_problem(device: torch.device, dtype: torch.dtype) -> str | None:
    # As for numba; and a GPU that nobody has run this on may compute something else.
    try:
        from fwp_rl.ops import _rnn_triton

        if not _rnn_triton.INTERPRETED:
            if device.type != "cuda":
                return f"it runs on GPUs (or interpreted, with TRITON_INTERPRET=1), the state is on {device}"
            if dtype != torch.float32:
                return f"it computes in float32 on a GPU, the state is {dtype}"
        _rnn_triton.self_check(device)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _check(
    num_gates: int,
    projected: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor,
    states: tuple[Tensor, ...],
    episode_starts: Tensor,
) -> None:
    if projected.ndim != 3 or projected.shape[0] == 0:
        raise ValueError(f"projected must be [T, B, gates] with T >= 1, got {tuple(projected.shape)}")
    num_steps, batch_size = projected.shape[:2]
    hidden_size = weight_hh.shape[-1]
    expected = {
        "weight_hh": (weight_hh, (num_gates * hidden_size, hidden_size)),
        "bias_hh": (bias_hh, (num_gates * hidden_size,)),
        "projected": (projected, (num_steps, batch_size, num_gates * hidden_size)),
        "episode_starts": (episode_starts, (num_steps, batch_size)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {list(shape)} for hidden size {hidden_size}, got {tuple(tensor.shape)}")
    for state in states:
        if tuple(state.shape) != (batch_size, hidden_size):
            raise ValueError(f"state must be [B, H] = {[batch_size, hidden_size]}, got {tuple(state.shape)}")
        if state.dtype not in (torch.float32, torch.float64) or state.dtype != states[0].dtype:
            raise ValueError(f"state must be float32 (or float64), got {state.dtype}")
    if episode_starts.dtype != torch.bool:
        raise ValueError(f"episode_starts must be bool[T, B], got {episode_starts.dtype}")
    for name, tensor in (("projected", projected), ("weight_hh", weight_hh), ("episode_starts", episode_starts)):
        if tensor.device != states[0].device:
            raise ValueError(f"{name} is on {tensor.device}, the state on {states[0].device}")
