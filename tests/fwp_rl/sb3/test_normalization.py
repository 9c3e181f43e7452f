"""Features of unit variance: the statistics, when they change, and where they go."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize

from fwp_rl.sb3 import MemoryPPO, load_policy
from fwp_rl.sb3.normalization import RunningNorm


def test_the_statistics_are_those_of_all_samples() -> None:
    """Catches a merge that forgets that means moved, and the correction of small samples."""
    batches = [torch.randn(n, 3) * torch.tensor([0.01, 5.0, 1.0]) + n for n in (7, 1, 40)]
    norm = RunningNorm(3)
    assert torch.equal(norm(batches[0].clamp(-9, 9)), batches[0].clamp(-9, 9)), "nothing before the first update"
    for batch in batches:
        norm.update(batch)
    samples = torch.cat(batches)
    torch.testing.assert_close(norm.mean, samples.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.variance, samples.var(0, correction=0), rtol=1e-4, atol=1e-5)
    normal = norm(samples)
    torch.testing.assert_close(normal.std(0, correction=0), torch.ones(3), rtol=1e-3, atol=0)
    assert norm(torch.full((3,), 1e9)).max() == 10.0


def test_a_constant_feature_stays_finite() -> None:
    norm = RunningNorm(2)
    norm.update(torch.full((5, 2), 3.0))
    assert torch.equal(norm(torch.full((1, 2), 3.0)), torch.zeros(1, 2))


@pytest.fixture
def model(make_model: Callable[..., MemoryPPO], random_envs: Callable) -> MemoryPPO:
    env = random_envs(spaces.Box(100.0, 102.0, (5,)), spaces.Discrete(4))
    return make_model("delta", env, policy_kwargs={"normalize_features": True})


def test_they_change_between_rollouts_only(model: MemoryPPO, collect: Callable) -> None:
    """Catches statistics that move between a rollout and the update that learns from it: the ratios would not be 1."""
    norm = model.policy.norm
    for n_rollouts in range(3):
        collect(model, is_first=n_rollouts == 0)
        assert norm.count == n_rollouts * 16 * 3, "those of the rollouts before this one"
        before = norm.mean.clone()
        for sample in model.rollout_buffer.get(24):
            _, log_prob, _ = model.policy.evaluate_actions(sample.observations, sample.actions.long().flatten())  # type: ignore[arg-type]  # a SequenceBatch
            torch.testing.assert_close(log_prob, sample.old_log_prob, atol=1e-5, rtol=0)
        model.train() if n_rollouts else None
        assert torch.equal(norm.mean, before)
    torch.testing.assert_close(norm.mean, torch.full((5,), 101.0), atol=0.3, rtol=0)


def test_they_are_saved_with_the_policy(model: MemoryPPO, tmp_path: Path) -> None:
    """Catches a portable policy that reads raw observations."""
    model.learn(16 * 3 * 3)
    model.save(tmp_path / "model.zip")
    loaded = load_policy(tmp_path / "model.zip")
    again = MemoryPPO.load(tmp_path / "model.zip", device="cpu").policy
    assert model.policy.norm.count == 96
    for policy in (loaded, again):
        assert torch.equal(policy.norm.mean, model.policy.norm.mean)
        obs = np.full((2, 5), 100.7, dtype=np.float32)
        for first, second in zip(
            policy.predict(obs, deterministic=True), model.predict(obs, deterministic=True), strict=True
        ):
            np.testing.assert_array_equal(first, second)


def test_features_that_are_learned_are_refused(make_model: Callable, random_envs: Callable) -> None:
    env = random_envs(spaces.Box(0, 255, (3, 36, 36), np.uint8), spaces.Discrete(4))
    with pytest.raises(ValueError, match=r"normalize_features=True needs features .* NatureCNN has weights"):
        make_model("delta", env, policy="CnnPolicy", policy_kwargs={"normalize_features": True})


def test_by_default_features_are_normalised_where_that_can_be(random_envs: Callable) -> None:
    """Red if a user must know of it, if it is done twice, or if learned features make a model fail."""
    vectors, images = spaces.Box(-1, 1, (5,)), spaces.Box(0, 255, (3, 36, 36), np.uint8)
    mixed = spaces.Dict({"image": images, "vector": vectors})

    def chosen(space: spaces.Space, policy: str, wrap: Callable = lambda env: env) -> bool | None:
        env = wrap(random_envs(space, spaces.Discrete(4)))
        return MemoryPPO(policy, env, n_steps=16, device="cpu").policy.normalize_features

    assert chosen(vectors, "MlpPolicy") is True
    assert chosen(spaces.Dict({"a": vectors, "b": spaces.Discrete(3)}), "MultiInputPolicy") is True
    assert chosen(images, "CnnPolicy") is False
    assert chosen(mixed, "MultiInputPolicy") is False
    assert chosen(vectors, "MlpPolicy", VecNormalize) is False
    assert chosen(vectors, "MlpPolicy", lambda env: VecNormalize(env, norm_obs=False)) is True


def test_a_model_keeps_what_was_chosen_for_it(random_envs: Callable, tmp_path: Path) -> None:
    """Red if a loaded model chooses once more."""
    env = random_envs(spaces.Box(-1, 1, (5,)), spaces.Discrete(4))
    for wrapped, expected in ((env, True), (VecNormalize(env), False)):
        MemoryPPO("MlpPolicy", wrapped, n_steps=16, device="cpu").save(tmp_path / "model.zip")
        assert load_policy(tmp_path / "model.zip").normalize_features is expected
        assert MemoryPPO.load(tmp_path / "model.zip", env=env, device="cpu").policy.normalize_features is expected
