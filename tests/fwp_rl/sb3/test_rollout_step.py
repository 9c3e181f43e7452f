"""The captured step is the step: nothing stale goes in, nothing that comes out is overwritten, nothing bad gets by.

Where there is no GPU, what would be captured runs anew instead of being replayed: from the same tensors to the same.
"""

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor

import fwp_rl.sb3.rollout_step as module
from fwp_rl.memory import MemoryConfig
from fwp_rl.sb3 import MemoryPPO
from fwp_rl.sb3.rollout_step import CapturedStep, RolloutStep, check_against_launched, rollout_step
from fwp_rl.state import State, state_leaves
from tests.fwp_rl.sb3.gpu_memories import MEMORIES

BOX = spaces.Box(-1, 1, (5,))
IMAGES = spaces.Dict({"image": spaces.Box(0, 255, (3, 36, 36), np.uint8), "compass": spaces.Discrete(4)})
DISCRETE = spaces.Discrete(4)
ACTIONS = [DISCRETE, spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(3)]
POLICIES = {"MlpPolicy": BOX, "MultiInputPolicy": IMAGES}


def run_anew(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
    owner = function.__self__

    def run() -> None:
        with torch.random.fork_rng([]), module.unchecked(owner.policy):  # as what is captured is
            function()

    run()
    memory = owner._new_state

    def replay() -> None:
        with module.unchecked(owner.policy):
            function()
        for old, new in zip(state_leaves(memory), state_leaves(owner._new_state), strict=True):
            old.copy_(new)
        owner._new_state = memory

    return replay


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "capture", run_anew)


@pytest.fixture
def make(random_envs: Callable) -> Callable[..., MemoryPPO]:
    def build(
        policy: str = "MlpPolicy", memory: str | MemoryConfig = "delta", actions: spaces.Space = DISCRETE
    ) -> MemoryPPO:
        env = random_envs(POLICIES[policy], actions)
        env.seed(0)
        return MemoryPPO(policy, env, n_steps=16, sequence_length=4, seed=0, policy_kwargs={"memory": memory})

    return build


class Looking(FlattenExtractor):
    """Features that depend on what was computed before them."""

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return super().forward(observations) * (2.0 if observations.sum().item() > 0 else 1.0)


def sample(space: spaces.Space, n: int) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: sample(part, n) for key, part in space.items()}
    return np.stack([space.sample() for _ in range(n)])


def first_inputs(model: MemoryPPO) -> tuple[np.ndarray, State, np.ndarray]:
    return model.env.reset(), model.policy.initial_state(model.n_envs), np.ones(model.n_envs, dtype=bool)


# Red if the step kept an observation, a start or a state from the step before, or if what it returned (the states at
# the start of each sequence are kept for training) were overwritten by the steps after it.
@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize("actions", ACTIONS[:2], ids=str)
@pytest.mark.parametrize("policy", list(POLICIES))
@pytest.mark.parametrize("memory", ["delta", "lstm", "delta_rnn", "none"])
def test_rollout_and_training_are_those_of_the_launched_step(
    memory: str, policy: str, actions: spaces.Space, make: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = []
    for step in (lambda policy, *_: RolloutStep(policy), CapturedStep):
        monkeypatch.setattr("fwp_rl.sb3.ppo.rollout_step", step)
        models.append(make(policy, memory, actions).learn(96))
    launched, captured = models
    assert isinstance(captured._step, CapturedStep)
    for name in ("actions", "values", "log_probs", "rewards"):
        np.testing.assert_array_equal(*(getattr(model.rollout_buffer, name) for model in models), err_msg=name)
    for expected, found in zip(launched.rollout_buffer.states, captured.rollout_buffer.states, strict=True):
        for a, b in zip(state_leaves(expected), state_leaves(found), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    for (name, a), b in zip(launched.policy.named_parameters(), captured.policy.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)


# Red if a callback that kept the actions of a step found those of the next in their place.
@pytest.mark.usefixtures("without_gpu")
def test_what_was_returned_stays(make: Callable) -> None:
    model = make(actions=ACTIONS[1])
    inputs = first_inputs(model)
    step = CapturedStep(model.policy, *inputs)
    *outputs, state = step(*inputs)
    before = [output.clone() for output in outputs]
    step(-inputs[0], state, ~inputs[2])
    for output, expected in zip(outputs, before, strict=True):
        torch.testing.assert_close(output, expected, rtol=0, atol=0)


# Red if weights that became NaN acted on, or the message said less than without a capture.
@pytest.mark.usefixtures("without_gpu")
def test_weights_that_are_not_finite_are_named(make: Callable) -> None:
    model = make()
    inputs = first_inputs(model)
    step = CapturedStep(model.policy, *inputs)
    with torch.no_grad():
        model.policy.action_net.bias[2] = torch.nan
    with pytest.raises(ValueError, match="logit of action 2 is nan"):
        step(*inputs)
    assert model.policy.action_dist.checks_logits


# Red if a policy that can't be captured stopped the training, or went on slowly in silence.
def test_what_can_not_be_captured_is_launched(
    make: Callable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
        raise RuntimeError("called a synchronizing CUDA operation\nand more")

    monkeypatch.setattr(module, "capture", refuse)
    model = make()
    inputs = first_inputs(model)
    with caplog.at_level(logging.WARNING):
        assert type(rollout_step(model.policy, *inputs)) is RolloutStep
    assert not caplog.records  # there is no GPU that could be faster
    monkeypatch.setattr(type(model.policy), "device", torch.device("cuda"))
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: contextlib.nullcontext())
    with caplog.at_level(logging.WARNING):
        assert type(rollout_step(model.policy, *inputs)) is RolloutStep
    assert [record.getMessage() for record in caplog.records] == [
        "training is slower than need be: the step of this policy can't be captured (called a synchronizing CUDA "
        "operation)"
    ]
    model.policy.use_sde = True
    caplog.clear()
    assert type(rollout_step(model.policy, *inputs)) is RolloutStep
    assert not caplog.records  # nothing was tried


# Red if a graph that computes something else than the policy were trusted.
@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize("memory", ["delta", "none"])
@pytest.mark.parametrize("wrong", ["observations", "start", "state", "nothing"])
def test_a_capture_is_tried_before_it_is_trusted(wrong: str, memory: str, make: Callable) -> None:
    model = make(memory=memory)
    inputs = first_inputs(model)
    step = CapturedStep(model.policy, *inputs)
    if wrong == "observations":
        step._read = lambda obs, state, starts, read=step._read, first=inputs[0]: read(first, state, starts)
    elif wrong == "start":
        step._read = lambda obs, state, starts, read=step._read: read(obs, state, np.ones_like(starts))
    elif wrong == "state":
        step._read = lambda obs, state, starts, read=step._read, first=inputs[1]: read(obs, first, starts)
    if wrong == "nothing" or (memory == "none" and wrong in ("start", "state")):
        check_against_launched(step, *inputs)
    else:
        with pytest.raises(RuntimeError, match="replayed, it is off by"):
            check_against_launched(step, *inputs)


# Red if a policy that was put in place of another were not the one that acts.
def test_another_policy_acts_from_the_next_step_on(make: Callable) -> None:
    model, other = make().learn(48), make().policy
    model.policy = other
    model.learn(48)
    assert model._step.policy is other


@pytest.mark.gpu
class TestOnGpu:
    """The same of a real graph."""

    # Red if a memory's step did something in Python that a replay does not do, or saw weights of before an update.
    @pytest.mark.parametrize("policy", list(POLICIES))
    @pytest.mark.parametrize("name", list(MEMORIES))
    def test_replays_are_the_policy(self, name: str, policy: str, make: Callable) -> None:
        model = make(policy, MEMORIES[name])
        obs, state, starts = first_inputs(model)
        step = rollout_step(model.policy, obs, state, starts)
        assert isinstance(step, CapturedStep)
        model.learn(48)
        launched, expected_state, rng = RolloutStep(model.policy), state, np.random.default_rng(0)
        for _ in range(9):
            obs, starts = sample(model.observation_space, 3), rng.random(3) < 0.3
            _, expected, _, expected_state = launched(obs, expected_state, starts)
            _, values, _, state = step(obs, state, starts)
            torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)
        for a, b in zip(state_leaves(state), state_leaves(expected_state), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

    # Red if a replay drew the same noise again, drew it from elsewhere than torch's generator, or scored other actions.
    @pytest.mark.parametrize("actions", ACTIONS, ids=str)
    def test_actions_are_drawn_anew_and_by_the_seed(self, actions: spaces.Space, make: Callable) -> None:
        model = make(actions=actions)
        obs, state, starts = first_inputs(model)
        step = rollout_step(model.policy, obs, state, starts)
        assert isinstance(step, CapturedStep)
        drawn = []
        for _ in range(2):
            torch.manual_seed(0)
            drawn.append([step(obs, state, starts) for _ in range(20)])
        for (a, _, log_probs, _), (b, *_) in zip(*drawn, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
            with torch.no_grad():
                obs_tensor, flags = torch.as_tensor(obs, device="cuda"), torch.as_tensor(starts, device="cuda")
                distribution, _ = model.policy.get_distribution(obs_tensor, state, flags)
                expected = distribution.log_prob(a.to("cuda")).cpu()
            torch.testing.assert_close(log_probs, expected, rtol=1e-4, atol=1e-4)
        assert any(not torch.equal(actions, drawn[0][0][0]) for actions, *_ in drawn[0][1:])

    # Red if a policy that looks at what it computed could not be trained, or random numbers failed after the attempt.
    def test_a_policy_that_waits_for_the_gpu_trains_all_the_same(
        self, random_envs: Callable, caplog: pytest.LogCaptureFixture
    ) -> None:
        kwargs = {"features_extractor_class": Looking}
        model = MemoryPPO("MlpPolicy", random_envs(BOX, DISCRETE), n_steps=16, policy_kwargs=kwargs).learn(96)
        assert type(model._step) is RolloutStep
        assert "can't be captured" in caplog.text
        torch.cuda.manual_seed(0)
        torch.rand(1, device="cuda")

    # Red if weights that became NaN acted on.
    def test_weights_that_are_not_finite_are_named(self, make: Callable) -> None:
        model = make()
        inputs = first_inputs(model)
        step = rollout_step(model.policy, *inputs)
        with torch.no_grad():
            model.policy.action_net.bias[2] = torch.nan
        with pytest.raises(ValueError, match="logit of action 2 is nan"):
            step(*inputs)
