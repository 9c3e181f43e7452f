import pytest

import envs
from agents.errors import UsageError
from agents.presets import preset_config, preset_for, preset_named, presets
from agents.suites import suites, task_config


@pytest.mark.parametrize(
    ("env_id", "preset"),
    [
        ("MiniGrid-MemoryS11-v0", "MiniGrid-MemoryS11-v0"),
        ("MiniGrid-DoorKey-5x5-v0", "minigrid"),
        ("BabyAI-GoToObj-v0", "minigrid"),
        ("popgym-AutoencodeEasy-v0", "popgym"),
        ("ALE/Breakout-v5", "atari"),
        ("Acrobot-v1", "generic"),
    ],
)
def test_every_task_has_a_preset(env_id: str, preset: str) -> None:
    assert preset_for(env_id) == preset
    assert preset_config(env_id, None).env_id == env_id


def test_descriptions_say_what_the_memory_reads() -> None:
    for preset in presets().values():
        reads = preset.description.rpartition("Memory also reads: ")[2]
        assert ("previous action" in reads) == preset.config.previous_action
        assert ("previous reward" in reads) == preset.config.previous_reward


def test_options_of_one_task_do_not_leak_into_another() -> None:
    assert preset_config(None, "MiniGrid-MemoryS9-v0").env_options["view_size"] == 3
    assert preset_config("MiniGrid-MemoryS13-v0", "MiniGrid-MemoryS9-v0").env_options["view_size"] == 3
    assert preset_config("CartPole-v1", "MiniGrid-MemoryS9-v0").env_options == {}
    assert preset_config("CartPole-v1", "debug").env_options == {}
    assert preset_config("popgym-AutoencodeEasy-v0", None).env_options == {"antialias": True}
    assert preset_config("ALE/Breakout-v5", None).wrappers == ("frame_stack:size=4",)
    assert preset_config("CartPole-v1", "atari").wrappers == ()


@pytest.mark.parametrize(
    ("name", "k"), [("fwp/RepeatPrevious-v0", 4), ("repeat-previous-16", 16), ("repeat-previous-31", 31)]
)
def test_presets_of_delays_ask_for_the_delay_of_their_name(name: str, k: int) -> None:
    """Red if a preset asks for another delay, or for it at less than half of the steps."""
    config = preset_named(name).config
    task = envs.make_vector(config.env_id, 1, **config.env_options)
    assert task.k == k  # type: ignore[union-attr]  # not None
    assert task.episode_length > 2 * k  # type: ignore[union-attr]  # not None


@pytest.mark.parametrize("name", [task for suite in ("order", "capacity", "tracking") for task in suites()[suite]])
def test_gradient_reaches_back_over_whole_episodes_where_answers_are_asked_for(name: str) -> None:
    """Red if a rollout ends, or a sequence is cut, between a symbol and the answer that is about it."""
    config = task_config(name)
    task = envs.make_vector(config.env_id, 1, **config.env_options)
    assert config.ppo.n_steps % task.episode_length == 0  # type: ignore[union-attr]  # not None
    assert (config.ppo.sequence_length or config.ppo.n_steps) % task.episode_length == 0  # type: ignore[union-attr]


def test_an_unknown_preset_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown preset 'debgu': nearest are debug$"):
        preset_named("debgu")
