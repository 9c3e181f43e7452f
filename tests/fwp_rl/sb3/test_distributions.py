"""The categorical distribution of rollouts: the same numbers as torch's."""

import pytest
import torch
from torch.distributions import Categorical

from fwp_rl.sb3.distributions import CategoricalDistribution


def make(logits: torch.Tensor) -> CategoricalDistribution:
    return CategoricalDistribution(logits.shape[-1]).proba_distribution(logits)


def test_the_numbers_are_torchs() -> None:
    """Catches unnormalised logits, and a wrong gradient of log-probability or entropy."""
    logits = (3 * torch.randn(50, 6, dtype=torch.float64)).requires_grad_()
    actions = torch.randint(6, (50,))
    ours, theirs = make(logits), Categorical(logits=logits)
    for actual, expected in (
        (ours.log_prob(actions.float()), theirs.log_prob(actions)),  # PPO hands actions over as floats
        (ours.entropy(), theirs.entropy()),
        (ours.distribution.probs, theirs.probs),
    ):
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(
            *(torch.autograd.grad(x.sum(), logits, retain_graph=True) for x in (actual, expected))
        )
    assert torch.equal(ours.mode(), logits.argmax(-1))


def test_samples_follow_the_probabilities() -> None:
    """200 000 draws of each of 4 actions: six standard deviations."""
    torch.manual_seed(0)
    probs = torch.tensor([0.6, 0.3, 0.099, 0.001])
    n = 200_000
    actions = make(probs.log().expand(n, 4)).sample()
    counts = torch.bincount(actions, minlength=4)
    assert ((counts - n * probs).abs() < 6 * (n * probs * (1 - probs)).sqrt()).all()
    # The general interface of torch, too
    assert make(probs.log()[None]).distribution.sample(torch.Size([7])).shape == (7, 1)


def test_rows_are_independent_draws() -> None:
    """Catches one clock for all rows."""
    torch.manual_seed(0)
    assert len(set(make(torch.zeros(200, 7)).sample().tolist())) == 7


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_a_number_is_refused(bad: float) -> None:
    logits = torch.zeros(4, 3)
    logits[2, 1] = bad
    with pytest.raises(ValueError, match=r"logit of action 1 is -?(nan|inf) \(row 2 of the batch\)"):
        make(logits)


def test_large_logits_are_fine() -> None:
    """Catches a check that takes the overflow of a sum for an infinite logit."""
    assert make(torch.tensor([[3e38, 3e38, -3e38]])).log_prob(torch.tensor([0])).isfinite().all()
