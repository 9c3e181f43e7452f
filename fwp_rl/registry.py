"""Memory types by name.

A memory registers itself where it is defined; nothing is ever imported because of a string.
"""

import difflib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeVar

from fwp_rl.memory import MemoryConfig

ConfigT = TypeVar("ConfigT", bound=MemoryConfig)

_CONFIGS: dict[str, type[MemoryConfig]] = {}


def register(name: str) -> Callable[[type[ConfigT]], type[ConfigT]]:
    """Class decorator: make the config class known as `name` to `memory=`, to the command line and to model files."""

    def decorate(config_class: type[ConfigT]) -> type[ConfigT]:
        known = _CONFIGS.get(name)
        # The same class defined twice is a module that was reloaded, or a script that is also imported as a module.
        if known is not None and known.__qualname__ != config_class.__qualname__:
            raise ValueError(f"memory {name!r} is already registered by {known.__qualname__}")
        _CONFIGS[name] = config_class
        return config_class

    return decorate


def memory_configs() -> Mapping[str, type[MemoryConfig]]:
    """All registered memory types, in order of registration (read-only)."""
    return MappingProxyType(_CONFIGS)


def memory_config(memory: str | MemoryConfig) -> MemoryConfig:
    """The config itself, or the default config of the registered name."""
    return memory if isinstance(memory, MemoryConfig) else _config_class(memory)()


def older_memory_config(memory: str | MemoryConfig) -> MemoryConfig:
    """The same as a file means it that was written before every model named all its choices."""
    if isinstance(memory, MemoryConfig):
        return memory
    config_class = _config_class(memory)
    return config_class(**config_class.absent)


def _config_class(memory: str) -> type[MemoryConfig]:
    if memory not in _CONFIGS:
        near = difflib.get_close_matches(memory, _CONFIGS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown memory {memory!r}: {hint}registered are {', '.join(_CONFIGS)}")
    return _CONFIGS[memory]


def memory_name(config: MemoryConfig) -> str:
    """The name under which the type of `config` is registered."""
    for name, config_class in _CONFIGS.items():
        if type(config) is config_class:
            return name
    raise ValueError(f"{type(config).__qualname__} is not registered; decorate it with @register('a_name')")
