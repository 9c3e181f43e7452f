"""Train an agent with a memory of your choice.

python train.py --env-id MiniGrid-MemoryS11-v0 memory:delta --memory.n-heads 4 --ppo.learning-rate 3e-4
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Union

import tyro

from agents.command_line import nearest, option_value, parse, run
from agents.config import TrainConfig, device_problem
from agents.episodes import resolve
from agents.errors import UsageError
from agents.presets import preset_config
from fwp_rl.registry import memory_configs

DESCRIPTION = """Train an agent that has to remember, and write the run to runs/<env>/<memory>/seed_<n>/.

Settings come from the preset of the task; each option below changes one of them. The memory is chosen with
memory:NAME, and its own options follow it.

examples:
  python train.py
  python train.py --env-id MiniGrid-MemoryS11-v0 memory:delta --memory.n-heads 4
  python train.py --env-id CartPoleNoVel-v1 --seed 1 memory:lstm
  python train.py --env-id fwp/MiniGrid-TMaze-v0 --env-options length=9 --eval-every 20000 memory:gated_delta
  python train.py --preset debug
  python train.py --resume runs/CartPoleNoVel-v1/lstm/seed_1

then:
  python -m agents evaluate RUN      python -m agents render RUN      python -m agents list
"""


def main(argv: Sequence[str] | None = None) -> Path:
    """Train as the command line says (`sys.argv` if None), and return the directory of the run."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if (directory := _value_of("resume", arguments)) is not None:
        return _resume(Path(directory), arguments)
    default = _default_config(arguments)
    _check_memory(arguments)
    template = _arguments_like(default)
    parsed = parse(type(template), arguments, prog="train.py", description=DESCRIPTION, default=template)
    options = {**default.env_options, **dict(option_value(text) for text in parsed.env_options)}
    values = {item.name: getattr(parsed, item.name) for item in fields(TrainConfig)}
    config = TrainConfig(**{**values, "env_id": default.env_id, "env_options": options})

    from agents.training import train  # two seconds of imports that --help does not need

    return train(config, parsed.run_dir, root=parsed.root, overwrite=parsed.overwrite, quiet=parsed.quiet)


def _resume(directory: Path, arguments: list[str]) -> Path:
    """Go on with a run, whose settings are its own."""

    @dataclass(frozen=True, kw_only=True)
    class Resume:
        resume: Path
        device: str | None = None
        """Where to compute from now on (None: where the run was begun)."""
        quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False

    try:
        parsed = parse(Resume, arguments, prog="train.py", description=DESCRIPTION)
    except UsageError as error:
        raise UsageError(
            f"{error} (beside --resume only --device and --quiet: the run in {directory} has its settings)"
        ) from None

    if parsed.device is not None and (problem := device_problem(parsed.device)):
        raise UsageError(problem)

    from agents.training import resume

    return resume(parsed.resume, device=parsed.device, quiet=parsed.quiet)


def _default_config(arguments: list[str]) -> TrainConfig:
    """The preset that the command line starts from. It is needed before parsing, since it sets the defaults."""
    env_id, preset = (_value_of(name, arguments) for name in ("env-id", "preset"))
    return preset_config(None if env_id is None else resolve(env_id), preset)


def _value_of(name: str, arguments: list[str]) -> str | None:
    """The last value given to `--name`, written with hyphens or underscores, after a space or an equals sign."""
    found = None
    for position, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag.replace("_", "-") == f"--{name}":
            found = value if equals else next(iter(arguments[position + 1 :]), None)
    return found


def _check_memory(arguments: list[str]) -> None:
    """Say which memories there are, and which options the chosen one has, where tyro can only say that it is lost."""
    chosen = None
    for argument in arguments:
        if argument.partition("=")[0] == "--memory":
            raise UsageError("unknown option --memory; the memory is chosen with memory:NAME, such as memory:delta")
        if match := re.fullmatch(r"memory:([\w-]*)", argument):
            chosen = match.group(1).replace("-", "_")
            if chosen not in memory_configs():
                hint = nearest(chosen, list(memory_configs()))
                known = ", ".join(memory_configs())
                raise UsageError(f"unknown memory {chosen!r}; {hint}{' ' if hint else ''}registered are {known}")
        elif chosen is not None and argument.startswith("--memory."):
            option = argument.partition("=")[0].replace("_", "-")
            options = [f"--memory.{item.name.replace('_', '-')}" for item in fields(memory_configs()[chosen])]
            if not option.startswith(tuple(options)) and f"--memory.{option[len('--memory.no-') :]}" not in options:
                known = f"it has {', '.join(options)}" if options else "it has none"
                raise UsageError(f"memory:{chosen} has no option {option}; {known}")


def _arguments_like(default: TrainConfig) -> Any:
    """TrainConfig as command line options, with the registered memories as choices and the values of `default`."""
    memories: Any = Union[  # noqa: UP007  (built at run time)
        tuple(Annotated[config, tyro.conf.subcommand(name)] for name, config in memory_configs().items())
    ]
    preset_options = " ".join(f"{key}={value}" for key, value in default.env_options.items())
    options_help = f"Options of the task, such as view_size=3, on top of the preset's ({preset_options or 'none'})."

    @dataclass(frozen=True, kw_only=True)
    class Arguments(TrainConfig):
        preset: str | None = None
        """Take the settings of this preset instead of the task's own; `python -m agents list` names them."""
        env_options: Annotated[tuple[str, ...], tyro.conf.arg(help=options_help, metavar="NAME=VALUE")] = ()  # type: ignore[assignment]  # only for the command line
        memory: memories = default.memory
        run_dir: Path | None = None
        """Directory of this run. None: ROOT/<env>/<memory>/seed_<n>."""
        root: Path = Path("runs")
        """Directory of all runs."""
        overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
        """Replace the run directory if it exists."""
        resume: Path | None = None
        """Go on with the run in this directory, with its own settings, from its last checkpoint (see --save-every)."""
        quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
        """Print nothing but errors."""

    values = {item.name: getattr(default, item.name) for item in fields(TrainConfig) if item.name != "env_options"}
    return Arguments(**values)


if __name__ == "__main__":
    sys.exit(run(main))
