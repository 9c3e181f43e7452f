"""The recurrent fast-weight scans as loops over torch operations: the definition, and the oracle of every test."""

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from fwp_rl.ops.recurrent_scan import NORM_EPSILON


def recurrent_delta_scan(
    projected: Tensor, recurrent: Tensor, matrix: Tensor, y: Tensor, episode_starts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """[q, k, v, b] = projected + recurrent^T tanh(y); the delta rule with softmax(k), softmax(q), sigmoid(b)."""
    K, V = matrix.shape[-2:]
    outputs = []
    for inputs, starts in zip(projected, episode_starts, strict=True):
        matrix, y = _restart(matrix, starts), _restart(y, starts)
        slots = inputs + torch.einsum("bhv,hvp->bhp", torch.tanh(y), recurrent)
        q, k, v, strength = slots.split([K, K, V, 1], dim=-1)
        matrix = _delta(matrix, k.softmax(-1), v, torch.sigmoid(strength))
        y = _read(matrix, q.softmax(-1))
        outputs.append(y)
    return torch.stack(outputs), matrix, y


def fast_rnn_scan(
    k: Tensor, v: Tensor, beta: Tensor, z: Tensor, matrices: Tensor, y: Tensor, c: Tensor, episode_starts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One fast matrix: y = z + R^T softmax(y). Three: the gates of an LSTM, whose cell is c."""
    outputs = []
    for k_t, v_t, beta_t, z_t, starts in zip(k, v, beta, z, episode_starts, strict=True):
        matrices, y, c = (_restart(x, starts) for x in (matrices, y, c))
        matrices = _delta(matrices, k_t, v_t, beta_t[..., None])
        gates = z_t + _read(matrices, y.softmax(-1)[:, :, None])
        if gates.shape[2] == 1:
            y = gates[:, :, 0]
        else:
            i, u, o = gates.unbind(2)
            i = torch.sigmoid(i)
            c = i * u + (1 - i) * c
            y = torch.sigmoid(o) * c
        outputs.append(y)
    return torch.stack(outputs), matrices, y, c


def self_referential_scan(x: Tensor, base: Tensor, difference: Tensor, episode_starts: Tensor) -> tuple[Tensor, Tensor]:
    """With W = base + difference: [y, k, q, b] = W^T x; W += k (sigmoid(b) W^T (q - k))^T, softmax in k and q."""
    K, M = base.shape[-2:]
    sizes = [M - 2 * K - 4, K, K, 4]
    blocks = torch.tensor(sizes, device=x.device)
    outputs = []
    for x_t, starts in zip(x, episode_starts, strict=True):
        difference = _restart(difference, starts)
        matrix = base + difference
        y, k, q, b = _read(matrix, x_t).split(sizes, dim=-1)
        k, q = k.softmax(-1), q.softmax(-1)
        rates = torch.sigmoid(b).repeat_interleave(blocks, dim=-1)
        difference = difference + k[..., None] * (rates * _read(matrix, q - k))[..., None, :]
        outputs.append(y)
    return torch.stack(outputs), difference


def third_order_scan(
    entity: Tensor,
    relation: Tensor,
    v: Tensor,
    beta: Tensor,
    query: Tensor,
    relations: Tensor,
    matrix: Tensor,
    episode_starts: Tensor,
) -> tuple[Tensor, Tensor]:
    """F = bounded(delta(F, entity x relation, v, beta / V)); x = norm(F^T (x x relation)), relation by relation."""
    V = v.shape[-1]
    outputs = []
    for t, starts in enumerate(episode_starts):
        matrix = _restart(matrix, starts)
        matrix = _delta(matrix, _pairs(entity[t], relation[t]), v[t], beta[t, :, None] / V)
        squares = matrix.square().sum((-1, -2), keepdim=True)
        matrix = matrix * squares.clamp(min=1).rsqrt()
        x = query[t]
        for y in relations[t].unbind(1):
            x = layer_norm(_read(matrix, _pairs(x, y)), [V], eps=NORM_EPSILON)
        outputs.append(x)
    return torch.stack(outputs), matrix


def _pairs(x: Tensor, y: Tensor) -> Tensor:
    """The products of all pairs [..., X Y]."""
    return (x[..., None] * y[..., None, :]).flatten(-2)


def _restart(state: Tensor, starts: Tensor) -> Tensor:
    return state.masked_fill(starts.reshape(-1, *[1] * (state.ndim - 1)), 0)


def _read(matrix: Tensor, x: Tensor) -> Tensor:
    """matrix^T x; matrix [..., K, V]."""
    return (matrix * x[..., None]).sum(-2)


def _delta(matrix: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    return matrix + k[..., None] * (beta * (v - _read(matrix, k)))[..., None, :]
