"""Features and values in units of their own spread, by statistics that belong to the policy."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

EPSILON = 1e-8
LIMIT = 10.0
"""Standard deviations at which features are clipped, as in SB3's `VecNormalize`."""
KEPT = 0.9
"""Weight of all earlier rollouts in the statistics of values."""
LEAST_SPREAD = 1.0
"""Smallest spread that values are divided by, in units of return: what is small stays small."""


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


class ValueNorm(nn.Module):
    """Turns normalised values into values in units of reward: `normalised * spread + mean`.

    The critic learns normalised values, so that its loss, and its gradient in the memory that it shares with the actor,
    do not grow with the rewards. Mean and variance are exponential averages over the returns of rollouts; the spread is
    the standard deviation, but at least `LEAST_SPREAD`. The last layer is changed along with them, so that no value
    jumps (PopArt; van Hasselt et al. 2016, arXiv 1602.07714, equations 5 to 9).

    The statistics are buffers, saved with the weights. Before the first update they are 0 and 1.
    """

    mean: Tensor
    variance: Tensor
    spread: Tensor
    count: Tensor
    """Number of rollouts so far."""

    def __init__(self) -> None:
        super().__init__()
        for name, value in (("mean", 0.0), ("variance", 1.0), ("spread", 1.0), ("count", 0.0)):
            self.register_buffer(name, torch.tensor(value))

    def forward(self, normalised: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Values in units of reward."""
        return normalised * self.spread + self.mean

    def normalise(self, values: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """The inverse of `forward`."""
        return (values - self.mean) / self.spread

    @torch.no_grad()
    def update(self, returns: Float[Tensor, "T N"], value_net: nn.Linear) -> None:
        """Add the returns of a rollout, and change the layer that puts out normalised values accordingly."""
        old_spread, old_mean = self.spread.clone(), self.mean.clone()
        self.count += 1
        share = (1 - KEPT) / (1 - KEPT**self.count)  # 1 at first: nothing is left of the beginning
        variance, mean = torch.var_mean(returns, correction=0)
        change = mean - self.mean
        self.variance.copy_((1 - share) * (self.variance + share * change.square()) + share * variance)
        self.mean += share * change
        self.spread.copy_(self.variance.sqrt().clamp(min=LEAST_SPREAD))
        value_net.weight *= old_spread / self.spread
        value_net.bias.copy_((value_net.bias * old_spread + old_mean - self.mean) / self.spread)
