"""Does an agent with this memory learn this task, and does one without any memory fail?

    python -m benchmarks.learning t-maze                # all memories and seeds of one question
    python -m benchmarks.learning memory-s9 memory-s11  # hours
    python -m benchmarks.learning memory-s9 --memory delta   # of the other memories the committed results stay
    python -m benchmarks.learning --smoke               # seconds, writes nothing

Every run is `python train.py` with the preset of its task, one thread, and its own directory under
runs/benchmarks/; runs that are finished are not run again, so a benchmark that was cut off goes on where it was. A run
with a memory ends when an evaluation on 100 unseen episodes reaches the target of the question or of the preset. Then
every agent plays the same 200 unseen episodes, and benchmarks/results/learning_<question>.{json,md,png} are written.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from agents.evaluation import evaluate_run, summarize
from agents.runs import RunPaths, read_metrics, read_run
from benchmarks.machine import describe_machine
from benchmarks.questions import MEMORY_ARGUMENTS, QUESTIONS, Question

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
EPISODES = 200


def directory_of(name: str, memory: str, seed: int, root: pathlib.Path) -> pathlib.Path:
    return root / name / memory / f"seed_{seed}"


def command(question: Question, memory: str, seed: int, directory: pathlib.Path) -> list[str]:
    stop = memory != "none" and question.stop_at is not None
    fails = memory == "none" or memory in question.predicted_to_fail
    return [
        *(sys.executable, "train.py", "--env-id", question.env_id, "--seed", str(seed)),
        *(*question.flags, *question.flags_of.get(memory, ())),
        *("--eval-every", str(question.eval_every), "--eval-episodes", "100"),
        *("--stop-at-success", str(question.stop_at if stop else None)),
        *(("--total-timesteps", str(question.control_steps)) if fails and question.control_steps else ()),
        *("--threads", "1", "--run-dir", str(directory), "--overwrite", "--quiet"),
        *MEMORY_ARGUMENTS.get(memory, (f"memory:{memory}",)),
    ]


def is_finished(directory: pathlib.Path) -> bool:
    return RunPaths(directory).description.exists() and read_run(directory)["status"] == "finished"


def train(question: Question, memory: str, seed: int, directory: pathlib.Path) -> None:
    """One run in a process of its own, unless it is finished."""
    if is_finished(directory):
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    subprocess.run(command(question, memory, seed, directory), cwd=ROOT, env={**os.environ, **threads}, check=True)
    print(f"{directory}: {read_run(directory)['steps']:,} steps", flush=True)


def row(question: Question, memory: str, seed: int, directory: pathlib.Path) -> dict[str, Any]:
    """What became of one run."""
    _, episodes = evaluate_run(directory, episodes=EPISODES, deterministic=True)
    summary, run = summarize(episodes), read_run(directory)
    key = {"success_rate": "rollout/success_rate", "return_mean": "rollout/ep_rew_mean"}[question.measure]
    curve = [
        [line["step"], line[key]]
        for line in read_metrics(RunPaths(directory).metrics)
        if line["kind"] == "iteration" and key in line
    ]
    return {
        "memory": memory,
        "seed": seed,
        "parameters": run["parameters"]["memory"],
        "steps": run["steps"],
        "seconds": round(run["seconds"]),
        "success_rate": summary.success_rate,
        "success_interval": [summary.success_low, summary.success_high],
        "return_mean": summary.return_mean,
        "length_mean": summary.length_mean,
        "mmer": max((value for _, value in curve), default=None),
        "curve": curve[:: max(1, len(curve) // 120)],
    }


def verdict(question: Question, rows: list[dict[str, Any]], memory: str) -> str:
    values = [r[question.measure] for r in rows if r["memory"] == memory]
    if memory == "none":
        low, high = question.control
        good = sum(low <= value <= high for value in values)
        return f"{good} of {len(values)} between {low:g} and {high:g}"
    if memory in question.predicted_to_fail:
        return f"{sum(value < question.bar for value in values)} of {len(values)} below {question.bar:g}, as predicted"
    return f"{sum(value >= question.bar for value in values)} of {len(values)} reach {question.bar:g}"


def machines_of(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The memories that were measured on each machine, with its versions and the date."""
    machines: dict[str, list[str]] = {}
    for r in rows:
        of = machines.setdefault(r["machine"], [])
        if r["memory"] not in of:
            of.append(r["memory"])
    return machines


def as_markdown(name: str, question: Question, result: dict[str, Any]) -> str:
    rows = result["rows"]
    lines = [
        f"# {question.text}",
        "",
        f"Evaluation on {EPISODES} unseen episodes, deterministic policy; steps are environment steps until training "
        f"ended. Written by `python -m benchmarks.learning {name}`.",
        "",
        *(f"{machine} ({', '.join(of)})\n" for machine, of in machines_of(rows).items()),
        *((f"With {' '.join(question.flags)}: all\n",) if question.flags else ()),
        *(f"With {' '.join(flags)}: {memory}\n" for memory, flags in question.flags_of.items()),
        *((f"Published: {question.published_by}.\n",) if question.published else ()),
        f"| memory | parameters | {question.measure.replace('_', ' ')} by seed | steps by seed (thousands) | |"
        + " MMER by seed |" * question.mmer
        + " published |" * bool(question.published),
        "|---|---|---|---|---|" + "---|" * question.mmer + "---|" * bool(question.published),
    ]
    for memory in question.memories:
        of = [r for r in rows if r["memory"] == memory]
        if not of:
            continue
        digits = 0 if question.bar > 1 else 3
        values = ", ".join(f"{r[question.measure]:.{digits}f}" for r in of)
        steps = ", ".join(f"{r['steps'] / 1000:.0f}" for r in of)
        line = f"| {memory} | {of[0]['parameters']:,} | {values} | {steps} | {verdict(question, rows, memory)} |"
        if question.mmer:
            line += " " + ", ".join(f"{r['mmer']:.3f}" for r in of) + " |"
        lines.append(line + f" {question.published.get(memory, '')} |" * bool(question.published))
    return "\n".join(lines) + f"\n\n![learning curves](learning_{name}.png)\n"


def draw(question: Question, rows: list[dict[str, Any]], file: pathlib.Path) -> None:
    """All seeds as thin lines, one colour for each memory."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.6), dpi=120)
    for i, memory in enumerate(question.memories):
        color = "0.55" if memory == "none" else f"C{i}"
        for n, r in enumerate(x for x in rows if x["memory"] == memory):
            steps, values = zip(*r["curve"], strict=True) if r["curve"] else ((), ())
            axes.plot(steps, values, color=color, lw=1.3, alpha=0.8, label=memory if n == 0 else None)
    axes.set_xlabel("environment steps")
    axes.set_ylabel("success rate in training" if question.measure == "success_rate" else "return in training")
    axes.set_title(question.text, fontsize=10)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g}M" if x >= 1e6 else f"{x / 1e3:g}k")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=2)
    figure.tight_layout()
    figure.savefig(file)
    plt.close(figure)


def answer(
    name: str, question: Question, jobs: int, root: pathlib.Path, memories: Sequence[str] | None = None
) -> dict[str, Any]:
    """Train what is missing (nothing with no jobs), then evaluate everything that is finished.

    With `memories` only those; the rows of the others are taken over from the committed results.
    """
    # Seeds outermost, so that a benchmark that is cut off has compared memories; the control, which takes longest, last
    runs = sorted(
        ((memory, seed) for seed in range(question.n_seeds) for memory in memories or question.memories),
        key=lambda run: run[0] == "none",
    )
    if jobs > 0:
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            list(pool.map(lambda run: train(question, *run, directory_of(name, *run, root)), runs))
    machine = describe_machine()
    rows = [
        row(question, *run, directory) | {"machine": machine}
        for run in runs
        if is_finished(directory := directory_of(name, *run, root))
    ]
    if memories:
        committed = json.loads((RESULTS / f"learning_{name}.json").read_text())
        rows += [{"machine": committed["machine"]} | r for r in committed["rows"] if r["memory"] not in memories]
    return {"machine": machine, "question": question.text, "env_id": question.env_id, "rows": rows}


def write(name: str, question: Question, result: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"learning_{name}.json").write_text(json.dumps(result) + "\n")
    (RESULTS / f"learning_{name}.md").write_text(as_markdown(name, question, result))
    draw(question, result["rows"], RESULTS / f"learning_{name}.png")


def smoke() -> None:
    """The whole path on a run of a few hundred steps."""
    flags = ("--total-timesteps", "512", "--ppo.n-steps", "16")
    question = Question(
        text="smoke",
        env_id="fwp/MiniGrid-TMaze-v0",
        memories=("delta",),
        n_seeds=1,
        measure="success_rate",
        bar=0.0,
        control=(0.0, 1.0),
        flags=flags,
        eval_every=0,
    )
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary)
        result = answer("smoke", question, 1, root)
        print(as_markdown("smoke", question, result))
        draw(question, result["rows"], root / "smoke.png")
        shutil.rmtree(root / "smoke")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=f"of {', '.join(QUESTIONS)}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs side by side; 0 only evaluates")
    parser.add_argument("--memory", nargs="+", help="only these")
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    if arguments.smoke:
        smoke()
        return
    unknown = [name for name in arguments.questions if name not in QUESTIONS]
    if unknown or not arguments.questions:
        parser.error(f"unknown question {unknown[0]!r}" if unknown else "name at least one question")
    for name in arguments.questions:
        result = answer(name, QUESTIONS[name], arguments.jobs, ROOT / "runs" / "benchmarks", arguments.memory)
        write(name, QUESTIONS[name], result)
        print(as_markdown(name, QUESTIONS[name], result))


if __name__ == "__main__":
    main()
