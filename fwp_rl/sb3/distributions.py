"""Discrete actions at the pace of a rollout, where every step makes, samples and scores one small distribution."""

import math
from typing import Any

import torch
from stable_baselines3.common import distributions
from torch import Tensor
from torch.distributions import Categorical, Distribution

from fwp_rl.sb3.finite import DivergedError


class CategoricalDistribution(distributions.CategoricalDistribution):
    """SB3's with a faster torch distribution inside."""

    checks_logits = True
    """Whether NaN and infinity are looked for, for which a GPU is waited for."""

    def proba_distribution(self, action_logits: Tensor) -> "CategoricalDistribution":
        """Softmax of logits `[B, A]`.

        :raises DivergedError: a logit is NaN or infinite.
        """
        if self.checks_logits and not math.isfinite(action_logits.sum().item()) and not action_logits.isfinite().all():
            row, action = (~action_logits.isfinite()).nonzero()[0].tolist()
            raise DivergedError(
                f"the policy's logit of action {action} is {action_logits[row, action].item()} (row {row} of the "
                "batch): its weights or its input are not finite"
            )
        self.distribution = _FastCategorical(action_logits)
        return self


class _FastCategorical(Categorical):
    """torch's, several times faster: that one checks all its arguments again at every call."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = self._param = logits.log_softmax(-1)
        self._num_events = logits.shape[-1]
        Distribution.__init__(self, logits.shape[:-1], validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.logits.gather(-1, value.long().unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        return -(self.logits.exp() * self.logits).sum(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        if sample_shape:
            return super().sample(sample_shape)
        # The action whose exponential clock rings first, when each ticks at the rate of its probability.
        return (self.logits - torch.empty_like(self.logits).exponential_().log_()).argmax(-1)
