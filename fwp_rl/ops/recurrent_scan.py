"""Scans of the recurrent fast-weight memories, with episode starts inside; each feeds its own output back.

Where `episode_starts[t, b]` is true, row b restarts from a zero state *before* step t; exactly zero gradient crosses
the start, and a state that is not a number is forgotten too.

Backends: "reference" (`_recurrent_reference`, a loop over torch operations, any device), "numba" (fused loops with a
hand-derived backward, CPU: `_recurrent_numba`, `_srwm_numba`, `_third_order_numba`) and "triton" (one kernel for the
whole sequence each way, GPU, float32: `_recurrent_delta_triton` and its like). All compute in the dtype of the state,
float32 or float64, whatever the autocast mode and the dtype of the other arguments.

Matrices are `[K, V]` and read as `matrix^T q`; `delta` below writes v under the key k with strength beta (Schlag et
al. 2021): matrix + beta k (v - matrix^T k)^T. G: fast matrices of a head.
"""

import functools
import importlib
import os
import warnings
from types import ModuleType

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fwp_rl.ops.rnn_scan import RnnBackend, full_precision, resolve_backend

_NUMBA = {
    "recurrent_delta": "_recurrent_numba",
    "fast_rnn": "_recurrent_numba",
    "self_referential": "_srwm_numba",
    "third_order": "_third_order_numba",
}
_MODULES: dict[str, ModuleType] = {}
"""Those that were in use; filled by `_resolve`."""

NORM_EPSILON = 1e-5
"""Of the norm of `third_order_scan`, as in `torch.nn.LayerNorm`."""


def recurrent_delta_scan(
    projected: Float[Tensor, "T B H P"],
    recurrent: Float[Tensor, "H V P"],
    state: tuple[Float[Tensor, "B H K V"], Float[Tensor, "B H V"]],
    episode_starts: Bool[Tensor, "T B"],
    *,
    backend: RnnBackend = "auto",
) -> tuple[Float[Tensor, "T B H V"], tuple[Float[Tensor, "B H K V"], Float[Tensor, "B H V"]]]:
    """The slow net of a delta rule sees what its fast net put out (Irie et al. 2021); the state is (S, y).

    [q, k, v, b] = projected + recurrent^T tanh(y);   S = delta(S, softmax(k), v, sigmoid(b));   y = S^T softmax(q)

    P = 2 K + V + 1.
    """
    matrix, y = state
    _, heads, key_size, value_size = _check_state(matrix, "state", 4)
    slots = 2 * key_size + value_size + 1
    steps, batch = _check_steps(projected, "projected", "[T, B, H, 2 K + V + 1]", matrix, (heads, slots))
    _check_shapes(
        matrix,
        recurrent=(recurrent, (heads, value_size, slots)),
        y=(y, (batch, heads, value_size)),
        episode_starts=(episode_starts, (steps, batch)),
    )
    projected, recurrent, y = (x.to(matrix.dtype) for x in (projected, recurrent, y))
    with full_precision(matrix.device):
        scan = _implementation(backend, matrix, "recurrent_delta", key_size, value_size).recurrent_delta_scan
        outputs, matrix, y = scan(projected, recurrent, matrix, y, episode_starts)
    return outputs, (matrix, y)


def fast_rnn_scan(
    k: Float[Tensor, "T B H G V"],
    v: Float[Tensor, "T B H G V"],
    beta: Float[Tensor, "T B H G"],
    z: Float[Tensor, "T B H G V"],
    state: tuple[Tensor, ...],
    episode_starts: Bool[Tensor, "T B"],
    *,
    backend: RnnBackend = "auto",
) -> tuple[Float[Tensor, "T B H V"], tuple[Tensor, ...]]:
    """A recurrent net whose recurrent weights R are fast (Irie et al. 2021).

    R = delta(R, k, v, beta) for each of the G matrices; a = z + R^T softmax(y)
    G = 1, a simple net: y = a. The state is (R, y).
    G = 3, an LSTM: c = sigmoid(a_1) a_2 + (1 - sigmoid(a_1)) c;   y = sigmoid(a_3) c. The state is (R, y, c).
    """
    matrices, y, *cell = state
    _, heads, gates, value_size, _ = _check_state(matrices, "state", 5)
    if (gates, len(state)) not in ((1, 2), (3, 3)):
        raise ValueError(
            f"state must be (R, y) with G = 1 or (R, y, c) with G = 3, got G = {gates}, {len(state)} parts"
        )
    c = cell[0] if cell else torch.zeros_like(y)
    steps, batch = _check_steps(z, "z", "[T, B, H, G, V]", matrices, (heads, gates, value_size))
    _check_shapes(
        matrices,
        k=(k, z.shape),
        v=(v, z.shape),
        beta=(beta, z.shape[:-1]),
        matrices=(matrices, (batch, heads, gates, value_size, value_size)),
        y=(y, (batch, heads, value_size)),
        c=(c, (batch, heads, value_size)),
        episode_starts=(episode_starts, (steps, batch)),
    )
    k, v, beta, z, y, c = (x.to(matrices.dtype) for x in (k, v, beta, z, y, c))
    with full_precision(matrices.device):
        scan = _implementation(backend, matrices, "fast_rnn", gates, value_size).fast_rnn_scan
        outputs, matrices, y, c = scan(k, v, beta, z, matrices, y, c, episode_starts)
    return outputs, (matrices, y, c) if cell else (matrices, y)


def self_referential_scan(
    x: Float[Tensor, "T B H K"],
    base: Float[Tensor, "H K M"],
    state: Float[Tensor, "B H K M"],
    episode_starts: Bool[Tensor, "T B"],
    *,
    backend: RnnBackend = "auto",
) -> tuple[Float[Tensor, "T B H V"], Float[Tensor, "B H K M"]]:
    """A matrix that changes all of itself (Irie et al. 2022); read before write. With W = base + state:

    [y, k, q, b] = W^T x;   W += softmax(k) (rate W^T (softmax(q) - softmax(k)))^T

    The rate of the columns that make y, k, q and b is sigmoid(b_1), ... sigmoid(b_4): M = V + 2 K + 4.
    """
    batch, heads, key_size, columns = _check_state(state, "state", 4)
    if columns < 2 * key_size + 5:
        raise ValueError(f"state must be [B, H, K, M] with M = V + 2 K + 4 and V >= 1, got {list(state.shape)}")
    steps, _ = _check_steps(x, "x", "[T, B, H, K]", state, (heads, key_size))
    _check_shapes(state, base=(base, (heads, key_size, columns)), episode_starts=(episode_starts, (steps, batch)))
    x, base = x.to(state.dtype), base.to(state.dtype)
    with full_precision(state.device):
        sizes = key_size, columns - 2 * key_size - 4
        scan = _implementation(backend, state, "self_referential", *sizes).self_referential_scan
        outputs, state = scan(x, base, state, episode_starts)
    return outputs, state


def third_order_scan(
    entity: Float[Tensor, "T B V"],
    relation: Float[Tensor, "T B R"],
    v: Float[Tensor, "T B V"],
    beta: Float[Tensor, "T B"],
    query: Float[Tensor, "T B V"],
    relations: Float[Tensor, "T B N R"],
    state: Float[Tensor, "B VR V"],
    episode_starts: Bool[Tensor, "T B"],
    *,
    backend: RnnBackend = "auto",
) -> tuple[Float[Tensor, "T B V"], Float[Tensor, "B VR V"]]:
    """A memory F of associations (entity, relation) -> entity, and chains of N reads (Schlag et al. 2021).

    F = delta(F, entity x relation, v, beta / V);   F = F / max(1, |F|)
    x = norm(F^T (x x relation)) for each of the N relations, beginning with x = query; norm as in a LayerNorm.

    A pair, written "x" above, is the outer product, flat: F is `[V R, V]`.
    """
    batch, _, size = _check_state(state, "state", 3)
    steps, _ = _check_steps(v, "v", "[T, B, V]", state, (size,))
    width = relation.shape[-1]
    if relations.ndim != 4 or relations.shape[2] == 0:
        raise ValueError(f"relations must be [T, B, N, R] with N >= 1, got {list(relations.shape)}")
    _check_shapes(
        state,
        matrix=(state, (batch, size * width, size)),
        entity=(entity, v.shape),
        relation=(relation, (steps, batch, width)),
        beta=(beta, (steps, batch)),
        query=(query, v.shape),
        relations=(relations, (steps, batch, relations.shape[2], width)),
        episode_starts=(episode_starts, (steps, batch)),
    )
    inputs = [x.to(state.dtype) for x in (entity, relation, v, beta, query, relations)]
    with full_precision(state.device):
        scan = _implementation(backend, state, "third_order", relations.shape[2], width, size).third_order_scan
        outputs, state = scan(*inputs, state, episode_starts)
    return outputs, state


def _implementation(backend: str, state: Tensor, scan: str, *sizes: int) -> ModuleType:
    return _MODULES[_resolve(backend, state.device, state.dtype, scan, sizes)]


def _resolve(backend: str, device: torch.device, dtype: torch.dtype, scan: str, sizes: tuple[int, ...]) -> str:
    """The module for these arguments: the kernels do not take all sizes, and each is tried before it is trusted."""
    name = resolve_backend(backend, device, dtype)
    if name == "triton":
        problem = _kernel_problem(device, scan, sizes)
        if problem is not None:
            if backend == "triton" or os.environ.get("FWP_RL_BACKEND") == "triton":
                raise RuntimeError(f"backend='triton' cannot run: {problem}; use backend='auto'")
            _warn(f"{scan}_scan runs many times slower, step by step: {problem}")
            name = "reference"
    module = {"reference": "_recurrent_reference", "numba": _NUMBA[scan], "triton": f"_{scan}_triton"}[name]
    if module not in _MODULES:
        _MODULES[module] = importlib.import_module(f"fwp_rl.ops.{module}")
    return module


# As of `rnn_scan.resolve_backend`: torch.compile takes what comes back for a constant.
_resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch's own mark, set on a function


@functools.cache
def _kernel_problem(device: torch.device, scan: str, sizes: tuple[int, ...]) -> str | None:
    """Why these kernels cannot run here, among which that they compute something else than the reference."""
    try:
        kernels = importlib.import_module(f"fwp_rl.ops._{scan}_triton")
        problem = importlib.import_module("fwp_rl.ops._small_triton").unsupported(kernels.constants(*sizes))
        if problem is None and device.type != "cpu":
            importlib.import_module("fwp_rl.ops._recurrent_check").check_against_reference(device, scan, sizes)
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    return problem


@functools.cache
def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=6)


def _check_state(state: Tensor, name: str, axes: int) -> torch.Size:
    if state.ndim != axes:
        raise ValueError(f"the matrices of {name} must have {axes} axes, got {list(state.shape)}")
    if state.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} must be float32 (or float64 for tests), got {state.dtype}; use .float()")
    return state.shape


def _check_steps(x: Tensor, name: str, letters: str, state: Tensor, sizes: tuple[int, ...]) -> tuple[int, int]:
    if x.ndim != 2 + len(sizes) or x.shape[0] == 0 or tuple(x.shape[1:]) != (len(state), *sizes):
        expected = ["T >= 1", len(state), *sizes]
        raise ValueError(f"{name} must be {letters} = {expected} to match the state, got {list(x.shape)}")
    return x.shape[0], x.shape[1]


def _check_shapes(state: Tensor, **tensors: tuple[Tensor, tuple[int, ...]]) -> None:
    for name, (tensor, shape) in tensors.items():
        if tuple(tensor.shape) != tuple(shape):
            raise ValueError(f"{name} must be {list(shape)}, got {list(tensor.shape)}")
        if tensor.device != state.device:
            raise ValueError(f"{name} is on {tensor.device}, the state on {state.device}; move one with .to(...)")
    starts = tensors["episode_starts"][0]
    if starts.dtype != torch.bool:
        raise TypeError(f"episode_starts must be bool, got {starts.dtype}; use episode_starts.bool()")
