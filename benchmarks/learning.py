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
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from agents.evaluation import evaluate_run, summarize
from agents.runs import RunPaths, read_metrics, read_run
from benchmarks.machine import describe_machine

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
EPISODES = 200


@dataclass(frozen=True, kw_only=True)
class Question:
    """One task, the memories to compare on it, and what is asked of them."""

    text: str
    env_id: str
    memories: tuple[str, ...]
    n_seeds: int
    measure: str
    """"success_rate" or "return_mean"."""
    bar: float
    """Agents with a memory must reach this."""
    control: tuple[float, float]
    """The agent without memory must stay in this interval."""
    flags: tuple[str, ...] = ()
    flags_of: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """More of them for these memories, which do not get there with those of all; the table says so."""
    stop_at: float | None = None
    """End a run (of an agent with memory) at this success rate."""
    eval_every: int = 50_000
    predicted_to_fail: tuple[str, ...] = ()
    """Memories of which `docs/memories.md` says that they cannot learn this."""
    published: dict[str, str] = field(default_factory=dict)
    """What others report for these memories, as `measure`."""
    published_by: str = ""
    control_steps: int | None = None
    """Steps for the agent without memory, which never ends early, and for those that are predicted to fail. None:
    those of the preset."""


_SEQUENTIAL = ("rnn", "gru", "lstm", "recurrent_delta", "delta_rnn", "delta_lstm", "srwm", "fast_weight_memory")
"""Memories whose next state is a function of the last one that no scan can parallelise."""
_PARALLEL = (
    *("additive", "hebb", "linear_attention", "delta", "gated_delta", "delta_product", "oja", "continuous_delta"),
    *("delta_mlp", "schlag2021", "irie2021"),
)

_TO_TWO = "delta_to_2"
_MEMORY_ARGUMENTS = {
    _TO_TWO: ("memory:delta", "--memory.negative-eigenvalues"),
    # as large as in POPGym (Morad et al. 2023): 256 units, or a fast weight matrix of 16 x 16
    "delta_16x16": (
        *("memory:delta", "--memory.n-heads", "1", "--memory.key-size", "16"),
        *("--memory.value-size", "16"),
    ),
    "lstm_256": ("memory:lstm", "--memory.hidden-size", "256"),
    "gru_256": ("memory:gru", "--memory.hidden-size", "256"),
}
"""Memories that are not just one of the registered names."""

_ENDLESS_T_MAZE = Question(
    text="Endless T-Maze by its published rules, 3 corridors of 10, 300k steps",
    env_id="fwp/EndlessTMaze-v0",
    memories=("delta", "gated_delta", "additive", "lstm", "gru", "none"),
    n_seeds=5,
    measure="success_rate",
    bar=0.95,
    control=(0.0, 0.2),
    stop_at=1.0,
    eval_every=20_000,
    published={"lstm": "1.00", "gru": "0.53"},
    published_by="Shchendrigin et al. 2026 (arXiv 2601.15086): PPO, fixed lengths, read off figures, budget unknown",
)


def _popgym(
    task: str, *, bar: float, control: tuple[float, float], published: dict[str, str], published_by: str = ""
) -> Question:
    return Question(
        text=f"POPGym {task}, 1M steps, published sizes",
        env_id=f"popgym-{task}-v0",
        memories=("delta_16x16", "lstm_256", "gru_256", "none"),
        n_seeds=3,
        measure="return_mean",
        bar=bar,
        control=control,
        flags=("--total-timesteps", "1000000"),
        published=published,
        published_by=published_by,
    )


def _zoo(env_id: str, flags: str, *, bar: float, control: tuple[float, float], published: str) -> Question:
    """The settings are those of `hyperparams/ppo_lstm.yml` of RL Zoo, as far as MemoryPPO has them: it shares one
    memory between actor and critic, and its clip range does not fall.
    """
    return Question(
        text=f"{env_id} with the settings of RL Zoo's PPO-LSTM",
        env_id=env_id,
        memories=("lstm_256", "delta"),
        n_seeds=3,
        measure="return_mean",
        bar=bar,
        control=control,
        flags=(*flags.split(), "--stop-at-return", "None", "--net-arch", "64", "64"),
        eval_every=0,
        published={"lstm_256": published},
        published_by="RL Zoo with sb3-contrib's RecurrentPPO, mean and standard deviation over episodes",
    )


QUESTIONS = {
    "t-maze": Question(
        text="T-maze on MiniGrid, corridor of 7, 300k steps",
        env_id="fwp/MiniGrid-TMaze-v0",
        memories=("delta", "gated_delta", "lstm", "gru", "none"),
        n_seeds=5,
        measure="success_rate",
        bar=0.98,
        control=(0.40, 0.60),
        stop_at=1.0,
        eval_every=20_000,
    ),
    "cartpole": Question(
        text="CartPole without velocities, 50k steps",
        env_id="CartPoleNoVel-v1",
        memories=("delta", "gated_delta", "lstm", "gru", "none"),
        n_seeds=5,
        measure="return_mean",
        bar=450.0,
        control=(0.0, 250.0),
        eval_every=2_500,
    ),
    "t-maze-20": Question(
        text="T-maze, corridor of 20, every memory, 500k steps",
        env_id="fwp/TMaze-v0",
        memories=(*_SEQUENTIAL, *_PARALLEL, "none"),
        n_seeds=1,
        measure="success_rate",
        bar=0.9,
        control=(0.35, 0.65),
        flags=("--env-options", "length=20"),
        stop_at=1.0,
        eval_every=20_000,
    ),
    "repeat-previous": Question(
        text="What was shown 4 steps ago, every memory, 1M steps (500k where failure is predicted)",
        env_id="fwp/RepeatPrevious-v0",
        flags_of={
            "delta_lstm": ("--total-timesteps", "1500000", "--ppo.learning-rate-schedule", "linear"),
            "srwm": ("--ppo.learning-rate", "3e-3", "--ppo.learning-rate-schedule", "linear"),
        },
        memories=(*_SEQUENTIAL, *_PARALLEL, "none"),
        n_seeds=1,
        measure="return_mean",
        bar=0.9,
        control=(0.2, 0.3),
        eval_every=50_000,
        predicted_to_fail=_PARALLEL,
        control_steps=500_000,
    ),
    "key-value": Question(
        text="Key-value recall with overwriting: 4 keys, 12 writes, 500k steps",
        env_id="fwp/KeyValueRecall-v0",
        memories=("delta", "gated_delta", "additive", "lstm", "gru", "none"),
        n_seeds=5,
        measure="return_mean",
        bar=0.9,
        control=(0.1, 0.15),
        flags=("--total-timesteps", "500000"),
        eval_every=20_000,
    ),
    "endless-t-maze-3": _ENDLESS_T_MAZE,
    "endless-t-maze-10": dataclasses.replace(
        _ENDLESS_T_MAZE,
        text="Endless T-Maze by its published rules, 10 corridors of 10, 300k steps",
        flags=("--preset", "endless-t-maze-10"),
        control=(0.0, 0.05),
        published={"lstm": "0.83", "gru": "0.31"},
    ),
    "parity": Question(
        text="Parity of 16 bits, 1M steps",
        env_id="fwp/GroupTracking-v0",
        memories=(_TO_TWO, "delta", "gated_delta", "additive", "lstm", "gru", "none"),
        n_seeds=3,
        measure="return_mean",
        bar=0.9,
        control=(0.45, 0.55),
        flags=("--preset", "parity"),
        eval_every=50_000,
        predicted_to_fail=("delta", "gated_delta", "additive"),
    ),
    "five-cups": Question(
        text="Shell game of five cups, 16 moves, 1M steps",
        env_id="fwp/GroupTracking-v0",
        memories=(_TO_TWO, "delta", "gated_delta", "additive", "lstm", "gru", "none"),
        n_seeds=3,
        measure="return_mean",
        bar=0.85,
        control=(0.15, 0.25),
        eval_every=50_000,
        predicted_to_fail=("delta", "gated_delta", "additive"),
    ),
    "memory-s9": Question(
        text="MiniGrid-MemoryS9-v0 with a view of 3",
        env_id="MiniGrid-MemoryS9-v0",
        memories=("delta", "lstm", "none"),
        n_seeds=3,
        measure="success_rate",
        bar=0.95,
        control=(0.0, 0.70),
        stop_at=0.98,
        control_steps=1_200_000,
    ),
    "memory-s11": Question(
        text="MiniGrid-MemoryS11-v0",
        env_id="MiniGrid-MemoryS11-v0",
        memories=("delta", "lstm", "none"),
        n_seeds=3,
        measure="success_rate",
        bar=0.95,
        control=(0.0, 0.70),
        stop_at=0.98,
        control_steps=1_200_000,
    ),
    "popgym-repeat-previous": _popgym(
        "RepeatPreviousEasy",
        bar=0.9,
        control=(-0.55, -0.35),
        published={"gru_256": "0.999"},
        published_by="Le et al. 2025, after 15M steps; the best of them all",
    ),
    "popgym-autoencode": _popgym(
        "AutoencodeEasy",
        bar=0.4,
        control=(-0.55, -0.40),
        published={},
    ),
    "popgym-cartpole": _popgym("PositionOnlyCartPoleEasy", bar=0.95, control=(0.0, 0.4), published={}),
    "zoo-cartpole": _zoo(
        "CartPoleNoVel-v1",
        "--n-envs 8 --total-timesteps 100000 --ppo.n-steps 32 --ppo.sequence-length 32 --ppo.batch-size 256 "
        "--ppo.n-epochs 20 --ppo.gamma 0.98 --ppo.gae-lambda 0.8 --ppo.learning-rate 1e-3 "
        "--ppo.learning-rate-schedule linear --ppo.vf-coef 0.5 --ppo.no-normalize-reward",
        bar=475.0,
        control=(0.0, 250.0),
        published="500 +- 0",
    ),
    "zoo-pendulum": _zoo(
        "PendulumNoVel-v1",
        "--n-envs 4 --total-timesteps 100000 --ppo.n-steps 1024 --ppo.sequence-length 128 --ppo.batch-size 128 "
        "--ppo.n-epochs 10 --ppo.gamma 0.9 --ppo.gae-lambda 0.95 --ppo.learning-rate 1e-3 --ppo.use-sde",
        bar=-358.0,  # one standard deviation below
        control=(-2000.0, -900.0),
        published="-217.9 +- 140.1",
    ),
    "zoo-mountain-car": _zoo(
        "MountainCarContinuousNoVel-v0",
        "--n-envs 1 --total-timesteps 300000 --ppo.n-steps 8 --ppo.sequence-length 8 --ppo.batch-size 8 "
        "--ppo.n-epochs 10 --ppo.gamma 0.9999 --ppo.gae-lambda 0.9 --ppo.learning-rate 7.77e-5 --ppo.ent-coef 0.00429 "
        "--ppo.clip-range 0.1 --ppo.max-grad-norm 5 --ppo.vf-coef 0.19 --ppo.use-sde --ppo.log-std-init -3.29 "
        "--normalize-observations --ppo.normalize-reward",
        bar=89.7,  # one standard deviation below
        control=(-100.0, 50.0),
        published="91.5 +- 1.8",
    ),
}


def directory_of(name: str, memory: str, seed: int, root: pathlib.Path) -> pathlib.Path:
    return root / name / memory / f"seed_{seed}"


def command(question: Question, memory: str, seed: int, directory: pathlib.Path) -> list[str]:
    stop = memory != "none" and question.stop_at is not None
    fails = memory == "none" or memory in question.predicted_to_fail
    return [
        *(sys.executable, "train.py", "--env-id", question.env_id, "--seed", str(seed)),
        *(*question.flags, *question.flags_of.get(memory, ())),
        *("--eval-every", str(question.eval_every), "--eval-episodes", "100"),
        *(("--stop-at-success", str(question.stop_at)) if stop else ()),
        *(("--total-timesteps", str(question.control_steps)) if fails and question.control_steps else ()),
        *("--threads", "1", "--run-dir", str(directory), "--overwrite", "--quiet"),
        *_MEMORY_ARGUMENTS.get(memory, (f"memory:{memory}",)),
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
        *(f"With {' '.join(flags)}: {memory}\n" for memory, flags in question.flags_of.items()),
        *((f"Published: {question.published_by}.\n",) if question.published else ()),
        f"| memory | parameters | {question.measure.replace('_', ' ')} by seed | steps by seed (thousands) | |"
        + " published |" * bool(question.published),
        "|---|---|---|---|---|" + "---|" * bool(question.published),
    ]
    for memory in question.memories:
        of = [r for r in rows if r["memory"] == memory]
        if not of:
            continue
        digits = 0 if question.bar > 1 else 3
        values = ", ".join(f"{r[question.measure]:.{digits}f}" for r in of)
        steps = ", ".join(f"{r['steps'] / 1000:.0f}" for r in of)
        line = f"| {memory} | {of[0]['parameters']:,} | {values} | {steps} | {verdict(question, rows, memory)} |"
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
