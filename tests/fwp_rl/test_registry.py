"""Names of memory types: registered once, found or explained."""

from dataclasses import dataclass

import pytest

from fwp_rl import registry
from fwp_rl.memory import Memory, MemoryConfig
from fwp_rl.registry import memory_config, memory_configs, memory_name, register


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_CONFIGS", {})
    register("notebook")(NotebookConfig)


@dataclass(frozen=True, kw_only=True)
class NotebookConfig(MemoryConfig):
    pages: int = 7

    def build(self, input_size: int) -> Memory:
        raise NotImplementedError


def test_a_name_gives_the_default_config() -> None:
    assert memory_config("notebook") == NotebookConfig(pages=7)


def test_a_config_is_passed_through() -> None:
    config = NotebookConfig(pages=3)
    assert memory_config(config) is config


def test_the_name_of_a_config_is_found_again() -> None:
    assert memory_name(NotebookConfig(pages=3)) == "notebook"


def test_an_unknown_name_is_answered_with_the_nearest_and_all_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"unknown memory 'notebok': did you mean 'notebook'\? registered are notebook"
    ):
        memory_config("notebok")


def test_a_name_like_no_other_is_answered_with_all_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown memory 'xyz': registered are notebook"):
        memory_config("xyz")


def test_a_config_that_is_not_registered_has_no_name() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Stranger(NotebookConfig):
        pass

    with pytest.raises(ValueError, match=r"Stranger is not registered; decorate it with @register"):
        memory_name(Stranger())


def test_another_class_cannot_take_a_name() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Usurper(NotebookConfig):
        pass

    with pytest.raises(ValueError, match="'notebook' is already registered by NotebookConfig"):
        register("notebook")(Usurper)
    assert memory_configs()["notebook"] is NotebookConfig


def test_a_reloaded_class_replaces_its_former_self() -> None:
    reloaded = type("NotebookConfig", (NotebookConfig,), {"__qualname__": "NotebookConfig"})
    assert register("notebook")(reloaded) is reloaded
    assert memory_configs()["notebook"] is reloaded


def test_the_list_of_memories_is_read_only() -> None:
    with pytest.raises(TypeError):
        memory_configs()["other"] = NotebookConfig  # type: ignore[index]  # read-only
