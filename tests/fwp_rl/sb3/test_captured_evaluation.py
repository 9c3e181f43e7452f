"""The captured evaluation is the evaluation: what PPO learns from it is the same, and nothing bad gets by.

Where there is no GPU, what would be captured runs anew instead of being replayed, from the same tensors.
"""

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure
from torch import Tensor
from torch.utils import _pytree as pytree

import fwp_rl.sb3.captured_evaluation as module
from fwp_rl.memory import MemoryConfig
from fwp_rl.sb3 import MemoryPPO
from fwp_rl.sb3.captured_evaluation import CapturedEvaluation
from tests.fwp_rl.sb3.gpu_memories import MEMORIES

BOX = spaces.Box(-1, 1, (5,))
IMAGES = spaces.Dict({"image": spaces.Box(0, 255, (3, 36, 36), np.uint8), "compass": spaces.Discrete(4)})
POLICIES = {"MlpPolicy": BOX, "MultiInputPolicy": IMAGES}
SHAPES = [(name, policy) for name in MEMORIES for policy in POLICIES]


@pytest.fixture
def make(random_envs: Callable) -> Callable[..., MemoryPPO]:
    def build(
        policy: str = "MlpPolicy", memory: str | MemoryConfig = "delta", actions: Any = None, critic: str = "shared"
    ) -> MemoryPPO:
        env = random_envs(POLICIES[policy], actions or spaces.Discrete(4))
        env.seed(0)
        kwargs = {"memory": memory, "critic": critic}
        return MemoryPPO(policy, env, n_steps=16, sequence_length=4, seed=0, policy_kwargs=kwargs)

    return build


def run_anew(function: torch.nn.Module, sample: Any, **_: Any) -> Callable[..., Any]:
    def replay(*arguments: Any) -> Any:
        for own, given in zip(pytree.tree_leaves(sample), pytree.tree_leaves(arguments), strict=True):
            own.copy_(given)
        with module.unchecked(function.policy):  # as what is captured is
            return function(*sample)

    return replay


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """PPO learns as it would on a GPU."""
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", run_anew)
    monkeypatch.setattr(module, "refuse_waiting", lambda function: function())
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)


def train_as_on_gpu(model: MemoryPPO) -> None:
    if model._evaluation is None:
        model._evaluation = CapturedEvaluation(model.policy)
    model.policy.evaluate_actions = model._evaluation
    try:
        PPO.train(model)
    finally:
        del model.policy.evaluate_actions


# Red if a minibatch, or a part of one, were evaluated in place of another, or a gradient were lost.
@pytest.mark.skipif(torch.cuda.is_available(), reason="the same is asked of real graphs below")
@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize("policy", list(POLICIES))
@pytest.mark.parametrize(
    ("memory", "critic"),
    [("delta", "shared"), ("delta", "detached"), ("delta", "separate"), ("lstm", "separate"), ("none", "shared")],
)
def test_what_is_learned_is_the_same(
    memory: str, critic: str, policy: str, make: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = make(policy, memory, critic=critic).learn(96)
    monkeypatch.setattr(MemoryPPO, "_train", train_as_on_gpu)
    captured = make(policy, memory, critic=critic).learn(96)
    assert captured._evaluation._replay is not None
    for (name, a), b in zip(launched.policy.named_parameters(), captured.policy.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)


# Red if graphs were not used on a GPU, or were left in the policy, where they could not be copied.
def test_on_a_gpu_the_captured_one_is_asked(make: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    model = make()
    model.set_logger(configure(None, []))
    monkeypatch.setattr(PPO, "train", lambda self: asked.append(self.policy.evaluate_actions))
    model.train()
    model.device = torch.device("cuda")
    model.train()
    model.use_sde = True
    model.train()
    assert [isinstance(each, CapturedEvaluation) for each in asked] == [torch.cuda.is_available(), True, False]
    assert "evaluate_actions" not in vars(model.policy)


def minibatch(model: MemoryPPO, size: int | None = None) -> tuple[Any, Tensor]:
    batch = next(model.rollout_buffer.get(size or model.batch_size))
    return batch.observations, batch.actions.long().flatten()


# Red if minibatches of another size were forced into the graph.
@pytest.mark.usefixtures("without_gpu")
def test_a_minibatch_of_another_size_is_launched(make: Callable) -> None:
    model = make().learn(48)
    evaluate = CapturedEvaluation(model.policy)
    evaluate(*minibatch(model))
    evaluate._replay = lambda *_: pytest.fail("replayed")
    larger = minibatch(model, 2 * model.batch_size)
    for found, expected in zip(evaluate(*larger), model.policy.evaluate_actions(*larger), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


# Red if a graph that computes something else were trusted, or what can't be captured stopped the training.
@pytest.mark.skipif(torch.cuda.is_available(), reason="PyTorch's captures, which this replaces, are used there")
@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize("wrong", ["replay", "input", "capture"])
def test_what_can_not_be_captured_is_launched(
    wrong: str, make: Callable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("called a synchronizing CUDA operation\nand more")

    def wrong_values(function: torch.nn.Module, sample: Any, **_: Any) -> Callable[..., Any]:
        return lambda *arguments: tuple(1.1 * output for output in function(*arguments))

    def same_input(function: torch.nn.Module, sample: Any, **_: Any) -> Callable[..., Any]:
        return lambda *_: function(*sample)

    graphed = {"replay": wrong_values, "input": same_input, "capture": refuse}[wrong]
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", graphed)
    model = make().learn(48)
    evaluate, batch = CapturedEvaluation(model.policy), minibatch(model)
    with caplog.at_level(logging.WARNING):
        found = [evaluate(*batch) for _ in range(2)]
    expected = model.policy.evaluate_actions(*batch)
    for outputs in found:
        for a, b in zip(outputs, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.startswith("training is slower than need be: the update of this policy can't be captured (")
    assert ("called a synchronizing CUDA operation)" if wrong == "capture" else "off by") in message


# Red if weights that are NaN were learned from, or a logit of minus infinity, whose entropy is NaN.
@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_named(value: float, make: Callable) -> None:
    model = make().learn(48)
    evaluate, (obs, actions) = CapturedEvaluation(model.policy), minibatch(model)
    actions = torch.zeros_like(actions)  # others than that of the bad logit
    evaluate(obs, actions)
    with torch.no_grad():
        model.policy.action_net.bias[1] = value
    with pytest.raises(ValueError, match=f"logit of action 1 is {value}"):
        evaluate(obs, actions)


@pytest.mark.gpu
class TestOnGpu:
    """The same of real graphs."""

    # Red if a memory's backward did something in Python that a replay does not do, or saw weights of before an update.
    @pytest.mark.parametrize(("name", "policy"), SHAPES)
    def test_values_and_gradients_are_those_of_the_policy(self, name: str, policy: str, make: Callable) -> None:
        model = make(policy, MEMORIES[name]).learn(48)
        assert model._evaluation is not None
        assert model._evaluation._replay is not None
        parameters = list(model.policy.parameters())

        def results(evaluate: Callable, batch: Any) -> list[Tensor]:
            values, log_probs, entropy = evaluate(batch.observations, batch.actions.long().flatten())
            loss = (batch.returns - values.flatten()).square().mean() + log_probs.mean() - 0.1 * entropy.mean()
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            return [values, log_probs, entropy, *(x for x in gradients if x is not None)]

        evaluate = CapturedEvaluation(model.policy)
        for batch in model.rollout_buffer.get(model.batch_size):
            expected, found = results(model.policy.evaluate_actions, batch), results(evaluate, batch)
            for a, b in zip(found, expected, strict=True):
                assert (a - b).abs().max() <= 1e-3 * b.abs().max().clamp(min=1e-3)
            with torch.no_grad():
                for parameter in parameters:
                    parameter.add_(0.01 * torch.randn_like(parameter))
        assert evaluate._replay is not None

    # Red if graphs failed later on, or after a policy was put in place of another.
    def test_learning_goes_on(self, make: Callable, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            model = make().learn(480)
            model.policy = make().policy
            model.learn(480)
        assert not caplog.records
        assert all(parameter.isfinite().all() for parameter in model.policy.parameters())
