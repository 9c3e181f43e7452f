"""Files that older versions wrote load as what they were, whatever a new option does by default."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from agents.config import to_json, train_config_from_json
from agents.presets import preset_config
from fwp_rl import DeltaConfig, GatedDeltaConfig
from fwp_rl.memories.delta_product import DeltaProductConfig
from fwp_rl.memory import MemoryConfig
from fwp_rl.sb3 import MemoryActorCriticPolicy, MemoryPPO, load_policy

SAVED = Path(__file__).with_name("saved") / "delta_before_delay_heads.zip"
"""A model of commit 5daf685: DeltaConfig(width=8, n_heads=2, key_size=8, value_size=8), trained on CartPole for 32
steps."""
VALUES = [-0.20169, -0.12408, 0.16641, 1.05726, 1.27976, 1.26672]
"""Values that commit 5daf685 computed for the observations of `values`."""
WITH_DELAY_HEADS: list[MemoryConfig] = [
    DeltaConfig(delay_heads=2),
    GatedDeltaConfig(delay_heads=1),
    DeltaProductConfig(delay_heads=3),
    DeltaConfig(delay_heads=0),
]


def values(policy: MemoryActorCriticPolicy) -> list[float]:
    state, found = policy.initial_state(1), []
    with torch.no_grad():
        for obs in torch.linspace(-1, 1, 24).reshape(6, 1, 4):
            starts = torch.zeros(1, dtype=torch.bool)
            found.append(policy.predict_values(obs, state, starts).item())
            _, state = policy.get_distribution(obs, state, starts)
    return found


@pytest.mark.parametrize("load", [load_policy, lambda path: MemoryPPO.load(path).policy], ids=["portable", "whole"])
def test_a_model_without_the_field_has_no_delay_heads(load) -> None:  # type: ignore[no-untyped-def]  # either loader
    """Red if a missing field takes today's default: the weights fit, and the agent acts in another way."""
    policy = load(SAVED)
    assert policy.memory_config.delay_heads == 0
    assert policy.value_norm is None
    assert not policy.normalize_features
    assert values(policy) == pytest.approx(VALUES, abs=1e-4)


def test_a_model_that_only_names_its_memory_has_no_delay_heads(tmp_path: Path) -> None:
    """Red if `load` builds the memory from the name, with today's defaults; older files kept what the user had said."""
    older = {"memory": "delta", "normalize_features": False, "normalize_values": False}
    model = MemoryPPO("MlpPolicy", "CartPole-v1", policy_kwargs=older)
    for kwargs in ({"memory": "delta"}, {}):
        model.policy_kwargs = kwargs
        model.save(tmp_path / "older.zip")
        policy = MemoryPPO.load(tmp_path / "older.zip").policy
        assert policy.memory_config == DeltaConfig(delay_heads=0)
        assert policy.value_norm is None


@pytest.mark.parametrize("config", WITH_DELAY_HEADS, ids=str)
def test_a_model_keeps_its_delay_heads(config: MemoryConfig, tmp_path: Path) -> None:
    """Red if a file loses the number, or refuses 0."""
    config = dataclasses.replace(config, width=8, n_heads=4, key_size=4, value_size=4)  # type: ignore[call-arg]  # of fast weights
    MemoryPPO("MlpPolicy", "CartPole-v1", policy_kwargs={"memory": config}).save(tmp_path / "model.zip")
    assert load_policy(tmp_path / "model.zip").memory_config == config
    assert MemoryPPO.load(tmp_path / "model.zip").policy.memory_config == config


def test_a_named_memory_is_saved_with_all_its_choices(tmp_path: Path) -> None:
    """Red if a saved model depends on defaults that may change once more."""
    model = MemoryPPO("MlpPolicy", "CartPole-v1")
    assert model.policy_kwargs["memory"] == DeltaConfig()
    model.save(tmp_path / "model.zip")
    assert MemoryPPO.load(tmp_path / "model.zip").policy.memory_config == DeltaConfig()


def test_settings_of_a_run_without_the_field_mean_none() -> None:
    """Red if an older run resumes with another memory."""
    data = json.loads(json.dumps(to_json(preset_config("fwp/TMaze-v0", None))))
    assert train_config_from_json(data).memory == DeltaConfig()
    del data["memory"]["delay_heads"]
    assert train_config_from_json(data).memory == DeltaConfig(delay_heads=0)
