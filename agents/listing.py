"""What there is: memories, tasks and presets, as text."""

import inspect

import envs
from agents.presets import presets
from fwp_rl.registry import memory_configs

_INPUT_SIZE = 128  # parameters are counted for so many inputs


def listing() -> str:
    """Memories with their sizes, tasks and presets, one line each."""
    sections = [
        (
            f"memories (parameters at default sizes and {_INPUT_SIZE} inputs)",
            [(f"memory:{name}", f"{count:>9,}  {text}") for name, count, text in _memories()],
        ),
        ("tasks of this project (and every MiniGrid-*, BabyAI-* and Gymnasium id)", _tasks()),
        ("presets", [(name, preset.description) for name, preset in presets().items()]),
    ]
    return "\n\n".join(f"{title}\n{_table(rows)}" for title, rows in sections)


def _memories() -> list[tuple[str, int, str]]:
    return [
        (name, _parameters(config().build(_INPUT_SIZE)), (inspect.getdoc(config) or "").split("\n")[0])
        for name, config in memory_configs().items()
    ]


def _parameters(memory: object) -> int:
    return sum(parameter.numel() for parameter in memory.parameters())  # type: ignore[attr-defined]


def _tasks() -> list[tuple[str, str]]:
    return [(task.id, f"{task.description}; isolates {task.isolates}{_options(task)}") for task in envs.TASKS.values()]


def _options(task: envs.Task) -> str:
    text = " ".join(f"{name}={value}" for name, value in task.options.items())
    return f"; options: {text}" if text else ""


def _table(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in rows)
