"""report.html: a finished comparison in one file, which needs no network and can go with a mail.

    write_report(root, result, *summaries(result), directories, episodes)

What is shown is read from the comparison and from the run.json and metrics.jsonl of its runs; the page is `page.html`
with `page.css` and `page.js`, filled by Jinja, which escapes whatever comes from there. The browser is told (by a
content security policy) to load nothing and to run nothing but that script.
"""

import base64
import hashlib
import inspect
import itertools
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gymnasium
import jinja2
import numpy as np
from markupsafe import Markup

import envs
from agents.comparison.judging import SUCCESS
from agents.comparison.report.figures import Axis, band_chart, interval, number, short, spread
from agents.comparison.report.player import pack
from agents.comparison.summary import ENOUGH_SEEDS, Line, Rows, Summary, Table, TaskTable, outcome
from agents.curves import Band, band, bands
from agents.progress import format_seconds
from agents.recording import Recording
from agents.runs import read_run
from agents.statistics import performance_profile, profile_band
from envs.tasks import VECTOR_TASKS
from fwp_rl.files import replace_file

_HERE = Path(__file__).parent
_INTERVAL_WIDTH = 200
_N_COLORS = 8  # in page.css
_METRICS = (("rollout/ep_rew_mean", "return in training"), ("rollout/success_rate", "success in training"))


def write_report(
    root: Path,
    result: Mapping[str, Any],
    summary: Summary,
    best: Summary | None,
    directories: Sequence[Path],
    episodes: Mapping[str, Recording],
) -> Path:
    """Write `root`/report.html.

    :param result: What comparison.json holds.
    :param directories: The run of each of its rows.
    :param episodes: One episode for each memory that can be watched, on the first task.
    """
    runs = [
        {**row, "directory": path, "run": read_run(path)} for row, path in zip(result["rows"], directories, strict=True)
    ]
    colors = _colors(result["memories"])
    of_task = {task.title: [run for run in runs if run["env_id"] == task.title] for task in summary.tasks}
    tasks = [_task(task) | _curves(of_task[task.title], colors) for task in summary.tasks]
    page = _fill(
        "page.html",
        result=result,
        colors=colors,
        n_seeds=summary.n_seeds,
        enough_seeds=ENOUGH_SEEDS,
        tasks=tasks,
        together=_together(summary.together, colors) if summary.together and len(tasks) > 1 else None,
        best=[_task(task) for task in best.tasks] if best else [],
        lengths=_lengths(runs, colors) + _tests(result.get("tests", []), runs, colors),
        runs=runs,
        settings=_settings(runs),
        written=datetime.now(UTC).isoformat(" ", "minutes").removesuffix("+00:00"),
        episodes=list(episodes),
        data={
            "curves": [task["readout"] for task in tasks],
            "episodes": [pack(recording, memory) for memory, recording in episodes.items()],
        },
    )
    path = root / "report.html"
    replace_file(path, page.encode())
    return path


def _colors(memories: Sequence[str]) -> dict[str, str]:
    """A number of page.css for each memory; the control is grey."""
    numbers = itertools.cycle(range(_N_COLORS))
    return {name: "none" if name == "none" else str(next(numbers)) for name in memories}


def _fill(name: str, **values: Any) -> str:
    style, script = ((_HERE / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {"number": number, "short": short, "seconds": format_seconds}
    return pages.get_template(name).render(
        style=Markup(style), script=Markup(script), style_hash=_sha256(style), script_hash=_sha256(script), **values
    )


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _by_memory(rows: Rows) -> dict[str, Rows]:
    return {
        name: [row for row in rows if row["memory"] == name] for name in dict.fromkeys(row["memory"] for row in rows)
    }


def _table(table: Table) -> dict[str, Any]:
    """Lines with their intervals drawn on an axis, on which 0 and 1 are where these mean something."""
    values = np.concatenate([line.scores.ravel() for line in table.lines])
    axis = Axis(*spread([*values, *((0.0, 1.0) if table.scale else ())], 0.05), 0, _INTERVAL_WIDTH)
    lines = [_line(line, axis) for line in table.lines]
    return {"title": table.title, "scale": table.scale or "returns", "axis": axis, "lines": lines}


def _line(line: Line, axis: Axis) -> dict[str, Any]:
    drawn = interval(line.score, line.scores.ravel().tolist(), axis)
    return {"memory": line.memory, "score": line.score, "interval": drawn, "better": line.better}


def _task(task: TaskTable) -> dict[str, Any]:
    """What came out on one task, a line for each memory."""
    table = _table(task)
    for shown, line in zip(table["lines"], task.lines, strict=True):
        rows = line.rows
        shown |= {
            "success": line.success,
            "return": line.mean_return,
            "parameters": rows[0]["parameters"],
            "learning_rate": rows[0]["learning_rate"],
            "steps": float(np.mean([row["steps"] for row in rows])),
            "seconds": float(np.mean([row["seconds"] for row in rows])),
            "speed": float(np.mean([row["steps"] / row["seconds"] for row in rows])),
            "learned": [row["steps_to_threshold"] for row in rows],
        }
    return table | {"knows_success": any(line.success for line in task.lines)}


def _curves(runs: Rows, colors: Mapping[str, str]) -> dict[str, Any]:
    """Learning curves on one task, and what is read off them under the pointer."""
    metric, label = _METRICS[runs[0]["scale"] == SUCCESS]
    of = bands({name: [run["directory"] for run in of] for name, of in _by_memory(runs).items()}, metric)
    return {
        "options": runs[0]["run"]["config"]["env_options"],
        "metric": label,
        "chart": band_chart(of, colors) if of else None,
        "readout": {
            "steps": [int(step) for band in list(of.values())[:1] for step in band.steps],
            "memories": {
                name: [[round(float(x), 3) for x in values] for values in (band.mean, band.low, band.high)]
                for name, band in of.items()
            },
        },
    }


def _together(table: Table, colors: Mapping[str, str]) -> dict[str, Any]:
    """Scores of all tasks together, and their profiles."""
    shown = _table(table)
    thresholds = np.linspace(shown["axis"].low, shown["axis"].high, 101)
    profiles = {}
    for line in table.lines:
        low, high = profile_band(line.scores, thresholds)
        mean = performance_profile(line.scores, thresholds)
        no_seeds = np.empty((0, len(thresholds)))
        profiles[line.memory] = Band(steps=thresholds, seeds=no_seeds, mean=mean, low=low, high=high)
    return shown | {"chart": band_chart(profiles, colors)}


def _lengths(runs: Rows, colors: Mapping[str, str]) -> list[dict[str, Any]]:
    """Success against the one number in which tasks differ that are otherwise the same, such as a length."""
    families: dict[Any, dict[float, str]] = {}
    for env_id, run in {run["env_id"]: run for run in runs}.items():
        entry_point, options = _definition(run["run"]["config"])
        for name, value in options.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                rest = json.dumps(
                    {key: other for key, other in options.items() if key != name}, sort_keys=True, default=str
                )
                families.setdefault((entry_point, name, rest), {})[value] = env_id
    figures = []
    for (_, option, _), env_of in families.items():
        if len(env_of) > 1:
            values = sorted(env_of)
            seeds = {name: [_success_by_seed(runs, env_of[value], name) for value in values] for name in colors}
            note = f"Tasks that differ in {option} alone; each agent was trained on the task that it plays."
            figures += _length_figure(option, values, seeds, colors, note)
    return figures


def _definition(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """What makes the environment, and all options that it gets."""
    env_id, options = envs.resolve(config["env_id"]), config["env_options"]
    if env_id in VECTOR_TASKS:
        defaults = {name: of.default for name, of in inspect.signature(VECTOR_TASKS[env_id]).parameters.items()}
        return env_id, defaults | options
    spec = gymnasium.spec(env_id)
    return spec.entry_point if isinstance(spec.entry_point, str) else env_id, spec.kwargs | options


def _success_by_seed(runs: Rows, env_id: str, memory: str) -> dict[int, float]:
    of = [run for run in runs if (run["env_id"], run["memory"]) == (env_id, memory)]
    return {run["seed"]: outcome(run) for run in of}


def _tests(tests: Rows, runs: Rows, colors: Mapping[str, str]) -> list[dict[str, Any]]:
    """Success of agents with a number that they were not trained with."""
    figures = []
    for env_id, option in dict.fromkeys((row["env_id"], row["option"]) for row in tests):
        of = [row for row in tests if (row["env_id"], row["option"]) == (env_id, option)]
        values = sorted({row["value"] for row in of if isinstance(row["value"], int | float)})
        if len(values) < 2:
            continue
        seeds = {
            name: [
                {row["seed"]: outcome(row) for row in of if (row["memory"], row["value"]) == (name, value)}
                for value in values
            ]
            for name in colors
        }
        note = env_id
        for run in runs:
            if run["env_id"] == env_id:
                _, options = _definition(run["run"]["config"])
                note = f"{env_id}; all agents were trained with {option} {_word(options.get(option))}."
        figures += _length_figure(option, values, seeds, colors, note)
    return figures


def _length_figure(
    option: str,
    values: Sequence[float],
    seeds: Mapping[str, Sequence[Mapping[int, float]]],
    colors: Mapping[str, str],
    note: str,
) -> list[dict[str, Any]]:
    """The figure; none if no memory has a seed that played all."""
    curves = {}
    for name, by_value in seeds.items():
        if common := sorted(set.intersection(*(set(of) for of in by_value))):
            curves[name] = band(np.array(values), np.array([[of[seed] for of in by_value] for seed in common]))
    return [{"option": option, "chart": band_chart(curves, colors), "note": note}] if curves else []


def _settings(runs: Rows) -> dict[str, Any]:
    """Configuration, versions and machine: once where all runs agree, and all values where they do not."""
    configs = [
        _flat({key: value for key, value in run["run"]["config"].items() if key not in ("env_id", "memory", "seed")})
        for run in runs
    ]
    memories = {run["memory"]: {k: v for k, v in run["run"]["config"]["memory"].items() if k != "type"} for run in runs}
    return {
        "config": _values(configs),
        "memories": {name: _words(config) for name, config in memories.items()},
        "versions": _values([{**run["run"]["versions"], "commit": run["run"]["git_commit"]} for run in runs]),
        "machine": _values([run["run"]["machine"] for run in runs]),
    }


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _values(records: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """All values that each key has, in order of appearance; one value means that all agree."""
    keys = dict.fromkeys(key for record in records for key in record)
    return {key: list(dict.fromkeys(_word(record.get(key)) for record in records)) for key in keys}


def _words(config: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_word(value)}" for key, value in config.items()) or "nothing to set"


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
