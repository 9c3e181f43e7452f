"""Named sets of tasks, each for one thing that a memory has to do.

A task goes by the id of its environment or by the name of a preset, which also has options of the environment; wherever
a comparison takes a task it takes `suite:NAME`, too.
"""

import difflib
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from agents.config import TrainConfig
from agents.episodes import resolve
from agents.errors import UsageError
from agents.presets import preset_config, presets
from envs.registry import known_ids

PREFIX = "suite:"

_SUITES = {
    "retention": ("fwp/TMaze-v0", "fwp/MiniGrid-TMaze-v0", "fwp/RepeatPrevious-v0", "fwp/Copy-v0"),
    "rewriting": ("fwp/EndlessTMaze-v0", "endless-t-maze-10", "fwp/KeyValueRecall-v0"),
    "capacity": ("fwp/KeyValueRecall-v0", "key-value-8", "key-value-16"),
    "order": (
        "fwp/RepeatPrevious-v0",
        "repeat-previous-16",
        "repeat-previous-31",
        "fwp/Copy-v0",
        "copy-reverse",
    ),
    "tracking": ("parity", "fwp/GroupTracking-v0", "s3", "fwp/Tally-v0"),
    "control": ("CartPoleNoVel-v1", "PendulumNoVel-v1", "fwp/MaskedCartPole-v0", "fwp/MaskedPendulum-v0"),
    "minigrid": ("fwp/MiniGrid-TMaze-v0", "MiniGrid-MemoryS9-v0", "MiniGrid-MemoryS11-v0"),
}


def suites() -> Mapping[str, tuple[str, ...]]:
    """The tasks of each suite (read-only); `popgym` holds what is installed of it, which may be nothing."""
    popgym = tuple(sorted(env_id for env_id in known_ids() if env_id.startswith("popgym-")))
    return MappingProxyType({**_SUITES, "popgym": popgym})


def expand(names: Iterable[str]) -> list[str]:
    """The tasks meant by ids, names of presets and `suite:NAME`, each once; UsageError for what is none of these."""
    tasks: list[str] = []
    for name in names:
        if name.startswith(PREFIX):
            tasks += _members(name.removeprefix(PREFIX))
        else:
            tasks.append(name if name in presets() else resolve(name))
    return list(dict.fromkeys(tasks))


def task_config(task: str) -> TrainConfig:
    """The settings of a task, by the id of its environment or the name of a preset."""
    return presets()[task].config if task in presets() else preset_config(task, None)


def _members(suite: str) -> tuple[str, ...]:
    known = suites()
    if suite not in known:
        near = difflib.get_close_matches(suite, known, n=3, cutoff=0.5) or list(known)
        raise UsageError(f"unknown suite {suite!r}: nearest are {', '.join(near)}")
    if not known[suite]:
        raise UsageError(f"the suite {suite!r} is not installed: pip install -e '.[{suite}]'")
    return known[suite]
