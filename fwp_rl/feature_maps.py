"""What the literature does to keys and queries before they meet the fast weights."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

FeatureMap = Literal["identity", "silu", "elu", "dpfp", "softmax"]
Normalization = Literal["none", "sum", "l2"]

EPSILON = 1e-6
"""Under the root of a length, and added to a sum."""


def feature_map(
    x: Float[Tensor, "*batch K"], name: FeatureMap, normalization: Normalization
) -> Float[Tensor, "*batch F"]:
    """Features of keys or queries; F = `feature_size(K, name)`.

    - "identity" and "silu" (Yang et al. 2024).
    - "elu": elu(x) + 1, positive (Katharopoulos et al. 2020).
    - "dpfp": deterministic parameter-free projection with nu = 1, r_i r_{i+1} for r = relu([x, -x]) in a ring:
      sparse, not negative, of twice the size (Schlag et al. 2021).
    - "softmax" (Irie et al. 2021).

    Then divided by their sum, by their length, or by nothing.
    """
    if name == "silu":
        x = F.silu(x)
    elif name == "elu":
        x = F.elu(x) + 1
    elif name == "dpfp":
        r = torch.cat([x, -x], dim=-1).relu()
        x = r * r.roll(1, dims=-1)
    elif name == "softmax":
        x = x.softmax(-1)
    if normalization == "sum":
        return x / (x.sum(-1, keepdim=True) + EPSILON)
    if normalization == "l2":
        return x * (x.square().sum(-1, keepdim=True) + EPSILON).rsqrt()
    return x


def feature_size(key_size: int, name: FeatureMap) -> int:
    """Size of the features of keys and queries of that size."""
    return 2 * key_size if name == "dpfp" else key_size


def require_feature_map(name: str, normalization: str) -> None:
    """Raise one `ValueError` for a name that is unknown, or for a sum that may be 0 or negative."""
    if name not in get_args(FeatureMap):
        raise ValueError(f"feature_map={name!r}: expected one of {', '.join(get_args(FeatureMap))}")
    if normalization not in get_args(Normalization):
        raise ValueError(f"normalization={normalization!r}: expected one of {', '.join(get_args(Normalization))}")
    if normalization == "sum" and name in ("identity", "silu"):
        raise ValueError(f"normalization='sum' needs features that are not negative, those of {name!r} can be")
