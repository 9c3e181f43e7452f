"""What a person sees while a run goes on: a bar on a terminal, a line now and then elsewhere. All of it on stderr."""

import sys
import time
from typing import Any

_SECONDS_BETWEEN_LINES = 15.0
_SECONDS_BETWEEN_REFRESHES = 0.2


class Progress:
    """Progress of one or several runs side by side, each with its own row.

    `update` may be called at every step: it returns at once if the last refresh was a moment ago. `already` steps of
    the total were taken before, which says nothing about the speed.
    """

    def __init__(self, names: list[str], total: int, *, quiet: bool = False, already: int = 0) -> None:
        self._total = total
        self._already = already
        self._started = time.monotonic()
        self._bar = None if quiet or not sys.stderr.isatty() else _Bar(names, total)
        self._wait = _SECONDS_BETWEEN_REFRESHES if self._bar else _SECONDS_BETWEEN_LINES
        self._next_refresh = dict.fromkeys(names, self._started + self._wait)
        self._width = max(len(name) for name in names)
        self._quiet = quiet

    def update(
        self, name: str, steps: int, *, success: float | None = None, episode_return: float | None = None
    ) -> None:
        """Show that run `name` has taken `steps` steps; success and return are means over its last episodes."""
        now = time.monotonic()
        if self._quiet or now < self._next_refresh[name]:
            return
        self._next_refresh[name] = now + self._wait
        speed = (steps - self._already) / max(now - self._started, 1e-9)
        if self._bar is not None:
            self._bar.update(name, steps, speed, success, episode_return)
        elif speed > 0:
            self._print(name, steps, speed, success, episode_return)

    def finish(self, name: str, steps: int) -> None:
        """Run `name` has ended: leave its bar where it is, and print no more lines about it."""
        if self._bar is not None and self._next_refresh[name] < float("inf"):
            self._bar.finish(name, steps)
        self._next_refresh[name] = float("inf")

    def note(self, text: str) -> None:
        """Print a line without disturbing the bar."""
        if self._bar is not None:
            self._bar.note(text)
        elif not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the bar as it is and give the terminal back."""
        if self._bar is not None:
            self._bar.close()

    def _print(self, name: str, steps: int, speed: float, success: float | None, episode_return: float | None) -> None:
        left = format_seconds(max(self._total - steps, 0) / speed)
        parts = [f"{steps:>11,} of {self._total:,} steps", f"{speed:,.0f} steps/s"]
        if success is not None:
            parts.append(f"success {success:.2f}")
        if episode_return is not None:
            parts.append(f"return {episode_return:.2f}")
        print(f"{name:<{self._width}}  " + "  ".join([*parts, f"{left} left"]), file=sys.stderr, flush=True)


class _Bar:
    """The bar, drawn by rich."""

    def __init__(self, names: list[str], total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._progress = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("[cyan]{task.fields[speed]:>8,.0f}[/] steps/s"),
            TextColumn("success [bold green]{task.fields[success]}[/]"),
            TextColumn("return [bold]{task.fields[episode_return]}[/]"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=Console(stderr=True),
            refresh_per_second=4,
        )
        fields: dict[str, Any] = {"speed": 0.0, "success": "-", "episode_return": "-"}
        self._tasks = {name: self._progress.add_task(name, total=total, **fields) for name in names}
        self._progress.start()

    def update(self, name: str, steps: int, speed: float, success: float | None, episode_return: float | None) -> None:
        self._progress.update(
            self._tasks[name],
            completed=steps,
            speed=speed,
            success="-" if success is None else f"{success:.2f}",
            episode_return="-" if episode_return is None else f"{episode_return:.2f}",
        )

    def finish(self, name: str, steps: int) -> None:
        self._progress.update(self._tasks[name], completed=steps)
        self._progress.stop_task(self._tasks[name])

    def note(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        self._progress.stop()


def format_seconds(seconds: float) -> str:
    """Seconds for people: 8 s, 2 min 05 s, 1 h 03 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
