"""Values in units of their own spread: the statistics, what reads them, and where they go."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from fwp_rl.sb3 import MemoryPPO, load_policy
from fwp_rl.sb3.normalization import KEPT, ValueNorm

N_STEPS = 16 * 3
"""Steps of one rollout."""


class Rewards(VecEnvWrapper):
    """Rewards of another size and mean."""

    def __init__(self, env: VecEnv, factor: float, shift: float = 0.0) -> None:
        super().__init__(env)
        self.factor, self.shift = factor, shift

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = self.venv.step_wait()
        return obs, self.factor * rewards + self.shift, dones, infos


@pytest.fixture
def build(make_model: Callable[..., MemoryPPO], random_envs: Callable) -> Callable[..., MemoryPPO]:
    """A model whose rewards have this factor and shift."""

    def run(factor: float = 1.0, shift: float = 0.0, **kwargs: Any) -> MemoryPPO:
        env = random_envs(spaces.Box(-1, 1, (5,)), spaces.Discrete(4))
        return make_model("delta", Rewards(env, factor, shift), **kwargs)

    return run


def test_statistics_are_an_exponential_average() -> None:
    """Red if the first rollouts are biased towards the beginning, or the spread between rollouts is left out."""
    norm, layer = ValueNorm(), torch.nn.Linear(3, 1)
    rollouts = [torch.randn(7, 3, dtype=torch.float64) * 5 + 100 * n for n in range(4)]
    for n, returns in enumerate(rollouts, 1):
        norm.update(returns.float(), layer)
        weights = torch.tensor([KEPT ** (n - 1 - i) for i in range(n)], dtype=torch.float64)
        weights /= weights.sum()
        mean = sum(w * x.mean() for w, x in zip(weights, rollouts, strict=False))
        square = sum(w * x.square().mean() for w, x in zip(weights, rollouts, strict=False))
        torch.testing.assert_close(norm.mean.double(), mean, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(norm.variance.double(), square - mean**2, rtol=1e-4, atol=1e-3)
    values = torch.randn(5)
    torch.testing.assert_close(norm.normalise(norm(values)), values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("returns", [torch.full((4, 2), 7.0), 0.01 * torch.randn(4, 2)], ids=["equal", "small"])
def test_what_is_small_stays_small(returns: torch.Tensor) -> None:
    """Red if small returns are scaled up, or equal ones divided by 0."""
    norm = ValueNorm()
    norm.update(returns, torch.nn.Linear(3, 1))
    torch.testing.assert_close(norm.normalise(returns), returns - returns.mean())


def test_no_value_jumps(build: Callable[..., MemoryPPO], collect: Callable) -> None:
    """Red if the last layer is not changed along with the statistics, or not by the old ones."""
    model = build(factor=50.0, shift=20.0)
    for n in range(2):
        collect(model, is_first=n == 0)
        arguments = torch.randn(3, 5), model.policy.initial_state(3), torch.zeros(3, dtype=torch.bool)
        before = model.policy.predict_values(*arguments)
        assert model.policy.value_norm is not None
        model.policy.value_norm.update(torch.from_numpy(model.rollout_buffer.returns), model.policy.value_net)
        torch.testing.assert_close(model.policy.predict_values(*arguments), before, rtol=1e-4, atol=1e-3)
    assert model.policy.value_norm.spread > 10.0


def test_the_critic_learns_normalised_values(build: Callable[..., MemoryPPO], collect: Callable) -> None:
    """Red if returns, old values or what is evaluated are in other units than the others, or are those of before."""
    model = build(factor=50.0, shift=20.0, policy_kwargs={"ortho_init": False})
    collect(model)
    stale = next(model.rollout_buffer.get())
    model._normalise_values()
    norm, fresh = model.policy.value_norm, next(model.rollout_buffer.get())
    assert norm is not None
    assert stale.returns.std() > 10.0
    torch.testing.assert_close(fresh.returns.std(correction=0), torch.tensor(1.0), rtol=1e-3, atol=0)
    values, _, _ = model.policy.evaluate_actions(fresh.observations, fresh.actions.long().flatten())  # type: ignore[arg-type]  # a SequenceBatch
    torch.testing.assert_close(values.flatten(), fresh.old_values, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        norm(fresh.old_values).sort().values, stale.old_values.sort().values, rtol=1e-3, atol=1e-3
    )


def test_values_are_in_units_of_reward(build: Callable[..., MemoryPPO]) -> None:
    """Red if `predict_values` or the step of a rollout returns normalised values."""
    model = build(factor=0.0, shift=100.0, gamma=0.5, learning_rate=1e-2).learn(20 * N_STEPS)
    arguments = torch.zeros(3, 5), model.policy.initial_state(3), torch.zeros(3, dtype=torch.bool)
    for values in (model.policy.predict_values(*arguments), model.policy(*arguments)[1]):
        assert ((values > 100.0) & (values < 200.0)).all(), "one reward at least, and at most those of all time"


def test_the_logged_loss_is_in_units_of_reward(build: Callable[..., MemoryPPO], collect: Callable) -> None:
    """Red if the value loss that is logged depends on the statistics."""
    model = build(factor=50.0, learning_rate=0.0, n_epochs=1, batch_size=N_STEPS)
    logger = configure(None, [])
    model.set_logger(logger)
    collect(model)
    buffer = model.rollout_buffer
    loss = np.square(buffer.returns - buffer.values).mean()
    model.train()
    assert model.policy.value_norm is not None
    assert model.policy.value_norm.spread > 5.0
    assert model.logger.name_to_value["train/value_loss"] == pytest.approx(loss, rel=1e-3)


def test_the_gradient_in_the_memory_does_not_grow_with_rewards(
    build: Callable[..., MemoryPPO], collect: Callable
) -> None:
    """Red if the value loss of large rewards reaches the memory that the actor reads."""

    def gradient(factor: float, *, normalize_values: bool) -> float:
        model = build(factor, policy_kwargs={"normalize_values": normalize_values})
        collect(model)
        model._normalise_values()
        batch = next(model.rollout_buffer.get())
        values, _, _ = model.policy.evaluate_actions(batch.observations, batch.actions.long().flatten())  # type: ignore[arg-type]  # a SequenceBatch
        torch.nn.functional.mse_loss(values.flatten(), batch.returns).backward()
        return sum(float(p.grad.norm()) for p in model.policy.memory.parameters() if p.grad is not None)

    small, large = (gradient(factor, normalize_values=True) for factor in (10.0, 1000.0))
    assert large < 1.5 * small
    assert gradient(1000.0, normalize_values=False) > 100 * small


def test_without_it_the_update_is_that_of_ppo(build: Callable[..., MemoryPPO], collect: Callable) -> None:
    """Red if anything of `train` is left when it is off."""
    model = build(factor=50.0, policy_kwargs={"normalize_values": False})
    model.set_logger(configure(None, []))
    collect(model)
    theirs = copy.deepcopy(model.policy.state_dict()), copy.deepcopy(model.policy.optimizer.state_dict())
    found = []
    for train in (MemoryPPO.train, PPO.train):
        model.policy.load_state_dict(theirs[0])
        model.policy.optimizer.load_state_dict(theirs[1])
        np.random.seed(0)  # noqa: NPY002 (the order of minibatches)
        train(model)
        found.append(copy.deepcopy(model.policy.state_dict()))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert any(not torch.equal(found[0][name], theirs[0][name]) for name in found[0])


def test_they_are_saved_with_the_policy(build: Callable[..., MemoryPPO], tmp_path: Path) -> None:
    """Red if a loaded policy predicts normalised values, or goes on from other statistics."""
    model = build(factor=50.0).learn(2 * N_STEPS)
    model.save(tmp_path / "model.zip")
    arguments = torch.zeros(3, 5), model.policy.initial_state(3), torch.zeros(3, dtype=torch.bool)
    for policy in (load_policy(tmp_path / "model.zip"), MemoryPPO.load(tmp_path / "model.zip", device="cpu").policy):
        assert policy.value_norm is not None
        for name, buffer in policy.value_norm.named_buffers():
            assert torch.equal(buffer, model.policy.value_norm.get_buffer(name)), name
        assert torch.equal(policy.predict_values(*arguments), model.policy.predict_values(*arguments))


def test_clipped_values_are_refused(make_model: Callable[..., MemoryPPO]) -> None:
    """Red if a clip range in units of reward is applied to normalised values in silence."""
    with pytest.raises(
        ValueError, match=r"^clip_range_vf=0\.2 is in units of reward, but values are learned normalised"
    ):
        make_model(clip_range_vf=0.2)
