"""How far back the gradient of a policy reaches."""

from collections.abc import Callable

import pytest
import torch

from fwp_rl.registry import memory_configs
from fwp_rl.sb3 import audit_policy
from fwp_rl.sb3.buffers import SequenceBatch


def samples_without_starts(model, collect: Callable):
    collect(model)
    samples = next(model.rollout_buffer.get(model.batch_size))
    batch: SequenceBatch = samples.observations
    return batch._replace(episode_starts=torch.zeros_like(batch.episode_starts)), samples.actions


@pytest.mark.parametrize("encoder_size", [10, None])
@pytest.mark.parametrize("memory", list(memory_configs()))
def test_gradient_reaches_all_of_the_sequence(
    memory: str, encoder_size: int | None, make_model: Callable, collect: Callable
) -> None:
    """Catches a policy that detaches the state, and an audit of the heads alone, which see only the present."""
    model = make_model(memory, policy_kwargs={"encoder_size": encoder_size})
    batch, actions = samples_without_starts(model, collect)
    audit = audit_policy(model.policy, batch, actions, threshold=1e-6)
    assert len(audit.norms) == model.sequence_length == 8
    assert audit.norms[0] > 0
    assert audit.reach == (0 if memory == "none" else 7)
    assert "gradient of the log-probability of the last of 8 actions" in str(audit)


def test_norms_are_those_of_the_slope(make_model: Callable, collect: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches norms of the wrong step or row: the slope along the gradient of one input is its norm."""
    model = make_model("delta", policy_kwargs={"encoder_size": None})
    batch, actions = samples_without_starts(model, collect)
    policy = model.policy.double()
    monkeypatch.setattr(policy, "extract_features", lambda obs: obs)  # SB3's would round to float32
    actions = actions.long().flatten()
    first_row = torch.zeros(len(batch.episode_starts) * batch.episode_starts.shape[1], dtype=torch.bool)
    first_row[:: batch.episode_starts.shape[1]] = True
    batch = SequenceBatch(batch.observations[first_row].double(), batch.state[:1].double(), batch.episode_starts[:, :1])
    audit = audit_policy(policy, batch, actions[first_row])
    for n in (0, 3):
        slopes = []
        for feature in range(5):
            move = torch.zeros_like(batch.observations)
            move[7 - n, feature] = 1e-6
            ends = [
                policy.evaluate_actions(
                    batch._replace(observations=batch.observations + sign * move), actions[first_row]
                )
                for sign in (1, -1)
            ]
            slopes.append((ends[0][1][7] - ends[1][1][7]).item() / 2e-6)
        assert audit.norms[n].item() == pytest.approx(torch.tensor(slopes).norm().item(), rel=1e-4)


def test_gradient_ends_at_the_start_of_an_episode(make_model: Callable, collect: Callable) -> None:
    """Catches starts that are not handed on."""
    model = make_model("delta")
    batch, actions = samples_without_starts(model, collect)
    batch.episode_starts[5] = True
    audit = audit_policy(model.policy, batch, actions, threshold=1e-6)
    assert audit.reach == 2
    assert audit.norms[3:].tolist() == [0.0] * 5


def test_the_policy_is_left_as_it_was(make_model: Callable, collect: Callable) -> None:
    """Catches a hook that stays, which would cut the gradient of the encoder in every later update."""
    model = make_model("delta")
    batch, actions = samples_without_starts(model, collect)
    audit_policy(model.policy, batch, actions)
    assert all(parameter.grad is None for parameter in model.policy.parameters())
    model.policy.evaluate_actions(batch, actions.long().flatten())[1].sum().backward()
    assert model.policy.encoder[0].weight.grad.any()
