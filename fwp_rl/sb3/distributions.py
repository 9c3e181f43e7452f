"""Discrete actions at the pace of a rollout: a step makes, samples and scores one small distribution."""

import math

import torch
from stable_baselines3.common import distributions
from torch import Tensor
from torch.distributions import Categorical


class CategoricalDistribution(distributions.CategoricalDistribution):
    """SB3's, several times faster: torch checks its arguments again at every call, here the logits are checked once.

    `distribution` is torch's `Categorical`, as in SB3.
    """

    def proba_distribution(self, action_logits: Tensor) -> "CategoricalDistribution":
        """Softmax of logits `[B, A]`.

        :raises ValueError: a logit is NaN or infinite.
        """
        self.distribution = Categorical(logits=action_logits, validate_args=False)
        if not math.isfinite(action_logits.sum().item()) and not action_logits.isfinite().all():
            row, action = (~action_logits.isfinite()).nonzero()[0].tolist()
            raise ValueError(
                f"the policy's logit of action {action} is {action_logits[row, action].item()} (row {row} of the "
                "batch): its weights or its input are not finite"
            )
        return self

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-probabilities `[B]` of actions `[B]`."""
        return self.distribution.logits.gather(-1, actions.long().unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """Entropies `[B]`."""
        log_probs = self.distribution.logits
        return -(log_probs.exp() * log_probs).sum(-1)

    def sample(self) -> Tensor:
        """Actions `[B]`: the first to ring of exponential clocks, one for each action, that tick at its probability."""
        log_probs = self.distribution.logits
        return (log_probs - torch.empty_like(log_probs).exponential_().log_()).argmax(-1)

    def mode(self) -> Tensor:
        """The likeliest actions `[B]`."""
        return self.distribution.logits.argmax(-1)
