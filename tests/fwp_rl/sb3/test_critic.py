"""The critic and what it shares with the actor: which loss reaches which weights, and whose memory others look at."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

from fwp_rl.sb3 import MemoryPPO, audit_policy, load_policy
from fwp_rl.sb3.diagnostics import RolloutSample, diagnose
from fwp_rl.state import state_leaves
from tests.fwp_rl.sb3.test_policies import assert_training_repeats_the_rollout

CRITICS = ["shared", "detached", "separate"]
TRUNKS = ("encoder", "memory", "critic_encoder", "critic_memory")
N_STEPS = 16 * 3
"""Steps of one rollout."""


@pytest.fixture
def build(make_model: Callable[..., MemoryPPO], random_envs: Callable) -> Callable[[str, str], MemoryPPO]:
    def run(critic: str, memory: str = "delta", actions: spaces.Space | None = None) -> MemoryPPO:
        env = random_envs(spaces.Box(-1, 1, (5,)), actions or spaces.Discrete(4))
        return make_model(memory, env, policy_kwargs={"critic": critic})

    return run


@pytest.mark.parametrize(
    ("critic", "of_values", "of_actions"),
    [
        ("shared", {"encoder", "memory"}, {"encoder", "memory"}),
        ("detached", set(), {"encoder", "memory"}),
        ("separate", {"critic_encoder", "critic_memory"}, {"encoder", "memory"}),
    ],
)
def test_which_loss_reaches_which_weights(
    critic: str, of_values: set[str], of_actions: set[str], build: Callable, collect: Callable
) -> None:
    """Red if a gradient takes another way than the option says."""
    model = build(critic)
    collect(model)
    batch = next(model.rollout_buffer.get())
    values, log_probs, _ = model.policy.evaluate_actions(batch.observations, batch.actions.long().flatten())
    for output, expected in ((values, of_values), (log_probs, of_actions)):
        model.policy.zero_grad()
        output.sum().backward(retain_graph=True)
        reached = {name.split(".")[0] for name, p in model.policy.named_parameters() if p.grad is not None}
        assert reached & set(TRUNKS) == expected


@pytest.mark.parametrize("memory", ["delta", "lstm", "none"])
@pytest.mark.parametrize("critic", CRITICS)
def test_training_repeats_the_rollout(critic: str, memory: str, build: Callable, collect: Callable) -> None:
    """Red if the states of actor and critic are mixed up, or one of them is not carried from step to step."""
    model = build(critic, memory)
    for n in range(2):
        collect(model, is_first=n == 0)
        assert_training_repeats_the_rollout(model)
    model.learn(2 * N_STEPS)


def test_the_critic_has_a_memory_of_its_own(build: Callable) -> None:
    """Red if values come from the actor's memory, or actions from the critic's."""
    policy = build("separate").policy
    obs, starts = torch.randn(2, 5), torch.zeros(2, dtype=torch.bool)
    state = policy.initial_state(2)
    actor, critic = ([leaf + torch.randn_like(leaf) for leaf in state_leaves(part)] for part in state)
    for changed, values_change in (((actor[0], state[1]), False), ((state[0], critic[0]), True)):
        values, others = (policy.predict_values(obs, s, starts) for s in (state, changed))
        logits, other_logits = (
            policy.get_distribution(obs, s, starts)[0].distribution.logits for s in (state, changed)
        )
        assert torch.equal(values, others) != values_change
        assert torch.equal(logits, other_logits) == values_change


@pytest.mark.parametrize("critic", CRITICS)
def test_predict_needs_the_actor_only(critic: str, build: Callable) -> None:
    """Red if `predict` carries another state than the actor's, or acts otherwise than the step of a rollout."""
    policy = build(critic).policy
    state, full = None, policy.initial_state(3)
    for t in range(4):
        obs = np.random.default_rng(t).normal(size=(3, 5)).astype(np.float32)
        starts = np.array([t == 0, t == 2, False])
        actions, state = policy.predict(obs, state, starts, deterministic=True)
        with torch.no_grad():
            expected, _, _, full = policy(torch.from_numpy(obs), full, torch.from_numpy(starts), deterministic=True)
        np.testing.assert_array_equal(actions, expected)
        np.testing.assert_allclose(state, policy.actor_state(full), atol=1e-6)


@pytest.mark.parametrize("critic", CRITICS)
def test_it_is_saved_with_the_policy(critic: str, build: Callable, tmp_path: Path) -> None:
    """Red if a file forgets the choice, or one of the memories."""
    model = build(critic).learn(N_STEPS)
    model.save(tmp_path / "model.zip")
    arguments = torch.ones(3, 5), model.policy.initial_state(3), torch.zeros(3, dtype=torch.bool)
    for policy in (load_policy(tmp_path / "model.zip"), MemoryPPO.load(tmp_path / "model.zip", device="cpu").policy):
        assert policy.critic == critic
        assert torch.equal(policy.predict_values(*arguments), model.policy.predict_values(*arguments))


def test_those_who_look_inside_see_the_actor(build: Callable, collect: Callable) -> None:
    """Red if the numbers of the memory are the critic's, or fail on two states."""
    model = build("separate")
    collect(model)
    sample = RolloutSample.of(model)
    before = diagnose(model.policy, sample)
    with torch.no_grad():
        for parameter in model.policy.critic_memory.parameters():
            parameter += torch.randn_like(parameter)
    assert diagnose(model.policy, sample) == before
    batch = next(model.rollout_buffer.get(model.batch_size))
    assert audit_policy(model.policy, batch.observations, batch.actions).norms[0] > 0


def test_an_unknown_choice_is_refused(make_model: Callable) -> None:
    with pytest.raises(ValueError, match=r"^critic='seperate' must be one of 'shared', 'detached', 'separate'$"):
        make_model(policy_kwargs={"critic": "seperate"})
