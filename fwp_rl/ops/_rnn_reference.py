"""The recurrent scans as loops over torch operations: the definition, and the oracle of every test."""

import torch
from torch import Tensor
from torch.nn.functional import linear


def rnn_scan(
    projected: Tensor, weight_hh: Tensor, bias_hh: Tensor, h: Tensor, episode_starts: Tensor
) -> tuple[Tensor, Tensor]:
    """h = tanh(projected + W_hh h + b_hh)."""
    outputs = []
    for inputs, starts in zip(projected, episode_starts[..., None], strict=True):
        h = h.masked_fill(starts, 0)
        h = torch.tanh(inputs + linear(h, weight_hh, bias_hh))
        outputs.append(h)
    return torch.stack(outputs), h


def gru_scan(
    projected: Tensor, weight_hh: Tensor, bias_hh: Tensor, h: Tensor, episode_starts: Tensor
) -> tuple[Tensor, Tensor]:
    """r, z = sigmoid(inputs + a); n = tanh(inputs_n + r a_n); h = (1 - z) n + z h, with a = W_hh h + b_hh."""
    outputs = []
    for inputs, starts in zip(projected, episode_starts[..., None], strict=True):
        h = h.masked_fill(starts, 0)
        inputs_r, inputs_z, inputs_n = inputs.chunk(3, dim=-1)
        recurrent_r, recurrent_z, recurrent_n = linear(h, weight_hh, bias_hh).chunk(3, dim=-1)
        r = torch.sigmoid(inputs_r + recurrent_r)
        z = torch.sigmoid(inputs_z + recurrent_z)
        n = torch.tanh(inputs_n + r * recurrent_n)
        h = (1 - z) * n + z * h
        outputs.append(h)
    return torch.stack(outputs), h


def lstm_scan(
    projected: Tensor, weight_hh: Tensor, bias_hh: Tensor, h: Tensor, c: Tensor, episode_starts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """c = sigmoid(f) c + sigmoid(i) tanh(g); h = sigmoid(o) tanh(c)."""
    outputs = []
    for inputs, starts in zip(projected, episode_starts[..., None], strict=True):
        h = h.masked_fill(starts, 0)
        c = c.masked_fill(starts, 0)
        i, f, g, o = (inputs + linear(h, weight_hh, bias_hh)).chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        outputs.append(h)
    return torch.stack(outputs), h, c
