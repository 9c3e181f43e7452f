"""Features of unit variance, by statistics that belong to the policy."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

EPSILON = 1e-8
LIMIT = 10.0
"""Standard deviations at which features are clipped, as in SB3's `VecNormalize`."""


class RunningNorm(nn.Module):
    """Standardises features `[..., F]` by the mean and variance of all that `update` was given; nothing before that.

    SB3's `VecNormalize` keeps such statistics beside the model, where they get lost; these are buffers, saved with the
    weights. They change between rollouts only: within one, and in the update that learns from it, the policy is one and
    the same function.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("variance", torch.ones(n_features))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, features: Float[Tensor, "*batch F"]) -> Float[Tensor, "*batch F"]:
        """Features with mean 0 and variance 1, clipped."""
        return ((features - self.mean) * (self.variance + EPSILON).rsqrt()).clamp(-LIMIT, LIMIT)

    @torch.no_grad()
    def update(self, features: Float[Tensor, "N F"]) -> None:
        """Add N samples to the statistics (Chan, Golub & LeVeque 1979)."""
        n_before, n_new = self.count, len(features)
        n = n_before + n_new
        variance, mean = torch.var_mean(features, dim=0, correction=0)
        change = mean - self.mean
        spread = n_before * self.variance + n_new * variance + change.square() * n_before * n_new / n
        self.mean += change * (n_new / n)
        self.variance.copy_(spread / n)
        self.count.copy_(n)
