"""Memories that tests on a GPU go through: every type, those that may have delay heads without one and with one."""

import dataclasses

from fwp_rl.layers import DelayHeadsConfig
from fwp_rl.memory import MemoryConfig
from fwp_rl.registry import memory_configs

MEMORIES: dict[str, MemoryConfig] = {}
for name, config_class in memory_configs().items():
    if issubclass(config_class, DelayHeadsConfig):
        for n in (0, 1):
            MEMORIES[f"{name} delay_heads={n}"] = dataclasses.replace(config_class(), delay_heads=n)
    else:
        MEMORIES[name] = config_class()
