"""Command lines: parsed by tyro, with every mistake told in one line and exit code 2."""

import contextlib
import difflib
import io
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from agents.errors import AgentsError, InterruptedRunError, UsageError

_FLAG = re.compile(r"--[a-zA-Z][\w.-]*")


def parse(kind: Any, argv: Sequence[str], *, prog: str, description: str, **options: Any) -> Any:
    """`tyro.cli`, raising UsageError in one line where tyro would draw a box. `--help` prints and exits as usual."""
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            return tyro.cli(
                kind,
                prog=prog,
                description=description,
                args=list(argv),
                config=(tyro.conf.CascadeSubcommandArgs,),
                **options,
            )
    except SystemExit as error:
        if not error.code:
            raise
        raise UsageError(_one_line(shown.getvalue(), argv, prog)) from None


def run(main: Callable[[], object]) -> int:
    """Call `main`; faults become their message on stderr and their exit code."""
    try:
        main()
    except AgentsError as error:
        prefix = "" if isinstance(error, InterruptedRunError) else "error: "
        for line in str(error).splitlines():
            print(f"{prefix}{line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (head, less) has gone: nothing is wrong, and nothing more can be said.
        sys.stdout = None
        return 0
    return 0


def nearest(name: str, choices: Sequence[str], *, prefix: str = "did you mean ") -> str:
    """`did you mean a or b?`, or nothing if nothing is near."""
    near = difflib.get_close_matches(name, choices, n=3, cutoff=0.55)
    return f"{prefix}{' or '.join(near)}?" if near else ""


def option_value(text: str) -> tuple[str, bool | int | float | str | None]:
    """`name=value` as a pair: the value is a number, true, false or null where it reads as one, else text."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UsageError(f"environment option {text!r} must read name=value, for instance view_size=3")
    words = {"true": True, "false": False, "null": None, "none": None}
    if value.lower() in words:
        return name, words[value.lower()]
    if re.fullmatch(r"[+-]?\d+", value):
        return name, int(value)
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", value):
        return name, float(value)
    return name, value


def _one_line(box: str, argv: Sequence[str], prog: str) -> str:
    parts = _parts(box)
    text = parts[0]
    if match := re.match(r"Unrecognized (?:or misplaced )?options:", text):
        return _about_unknown(_first_unknown(text[match.end() :], argv), parts, prog)
    if match := re.match(r"Missing from (.+?): (\S+) (.*)", text):
        what = re.sub(r"\s*\(required\)", "", match[3]).rstrip(".")
        return f"{match[1]} needs {match[2]}: {what[:1].lower()}{what[1:]}"
    text = re.sub(
        r"^Error parsing (\S+): invalid literal for int\(\) with base 10: ", r"\1 takes a whole number, got ", text
    )
    return re.sub(r"^Error parsing (\S+): could not convert string to float: ", r"\1 takes a number, got ", text)


def _parts(box: str) -> list[str]:
    """The text in tyro's box without its frame, drawn in Unicode or ASCII, cut where it has a horizontal line."""
    parts = [""]
    for line in box.splitlines():
        bare = line.strip().strip("│|").strip()
        if re.fullmatch(r"[─-]{4,}", bare):
            parts.append("")
        elif not line.startswith(("╭", "╰")):
            parts[-1] = " ".join(f"{parts[-1]} {bare}".split())
    # Without a frame the title is a part of its own: words without punctuation.
    while len(parts) > 1 and re.fullmatch(r"[A-Za-z ]*", parts[0]):
        parts.pop(0)
    return parts


def _about_unknown(unknown: str, parts: list[str], prog: str) -> str:
    if unknown.startswith("--"):
        suggested = next((part for part in parts if part.startswith("Perhaps you meant")), "")
        flags = [flag for flag in _FLAG.findall(suggested) if flag not in ("--help", unknown)]
        hint = nearest(unknown, flags, prefix="; did you mean ")
        return f"unknown option {unknown}" + (hint or f"; {prog} --help lists them")
    commands = next((part for part in parts if part.startswith("Available subcommands:")), "")
    names = re.findall(r"[\w:.-]+", commands.partition(":")[2])
    hint = nearest(unknown, names, prefix="; did you mean ")
    known = f"; there are {', '.join(names)}" if names and not hint else ""
    return f"unknown argument {unknown!r}{hint}{known}"


def _first_unknown(text: str, argv: Sequence[str]) -> str:
    return next((token for token in argv if token.split("=")[0] in re.split(r"[\s,]+", text)), text.split()[0])
