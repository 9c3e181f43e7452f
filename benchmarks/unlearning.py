"""Does an agent that has learned a task keep it when training goes on?

    python -m benchmarks.unlearning             # trains 72 agents, if they are missing: 20 minutes
    python -m benchmarks.unlearning --smoke     # one run of a few hundred steps; writes nothing

On a T-maze that is solved within a tenth of the training, PPO now and then unlearns it within one update. Once nothing
goes wrong any more, the advantages of a minibatch are errors of the critic, of some hundredths. PPO divides them by
their standard deviation, and Adam the gradients by theirs, so they move the policy as much as what it learned from. Two
settings of `train.py` say what is small: `--ppo.advantage-floor`, below which advantages are not scaled up, and
`--ppo.adam-eps`, below which gradients are not. Here with and without each.

An agent has solved the task once 98 of the last 100 episodes of training succeed, and has unlearned it if fewer than 80
do later on. The two values were found with `delta` on the seeds 0 to 11; the seeds here are others.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import tempfile
from typing import Any

import numpy as np

from agents.evaluation import evaluate_run, summarize, wilson_interval
from agents.runs import RunPaths, read_metrics
from agents.table import markdown
from benchmarks.learning import EPISODES, RESULTS, ROOT, directory_of, train
from benchmarks.machine import describe_machine
from benchmarks.questions import Question

FLOOR, EPS = ("--ppo.advantage-floor", "0.1"), ("--ppo.adam-eps", "1e-4")
VARIANTS = {"PPO": (), "floor": FLOOR, "eps": EPS, "floor and eps": FLOOR + EPS}
CASES = (*(("delta", name) for name in VARIANTS), *(("lstm", name) for name in ("PPO", "floor and eps")))
"""Memory and variant."""
SEEDS, SOLVED, UNLEARNED = range(100, 112), 0.98, 0.8
QUESTION = Question(
    text="Does an agent keep what it has learned?",
    env_id="fwp/TMaze-v0",
    memories=("delta", "lstm"),
    n_seeds=len(SEEDS),
    measure="success_rate",
    bar=SOLVED,
    control=(0.4, 0.6),
    flags=("--total-timesteps", "300000"),
    eval_every=0,
)


def run(memory: str, variant: str, seed: int, root: pathlib.Path, flags: tuple[str, ...]) -> dict[str, Any]:
    """One agent, trained if it is missing; what became of it."""
    directory = directory_of(variant.replace(" ", "-"), memory, seed, root)
    train(dataclasses.replace(QUESTION, flags=(*flags, *VARIANTS[variant])), memory, seed, directory)
    lines = [line for line in read_metrics(RunPaths(directory).metrics) if line.get("rollout/success_rate") is not None]
    solved = next((line["step"] for line in lines if line["rollout/success_rate"] >= SOLVED), None)
    after = [line["rollout/success_rate"] for line in lines if solved is not None and line["step"] > solved]
    _, episodes = evaluate_run(directory, episodes=EPISODES, deterministic=True)
    return {
        "memory": memory,
        "variant": variant,
        "seed": seed,
        "solved_at": solved,
        "least_afterwards": min(after, default=None),
        "success_rate": summarize(episodes).success_rate,
    }


def as_markdown(rows: list[dict[str, Any]], machine: str) -> str:
    table = []
    for memory, variant in dict.fromkeys((row["memory"], row["variant"]) for row in rows):
        of = [row for row in rows if (row["memory"], row["variant"]) == (memory, variant)]
        solved = [row["solved_at"] for row in of if row["solved_at"] is not None]
        unlearned = sum((row["least_afterwards"] or 1.0) < UNLEARNED for row in of if row["solved_at"] is not None)
        low, high = wilson_interval(unlearned, len(solved)) if solved else (0.0, 1.0)
        table.append(
            {
                "memory": memory,
                "": variant,
                "solved it": f"{len(solved)} of {len(of)}",
                "after steps (median)": f"{np.median(solved) / 1000:.0f}k" if solved else "",
                "unlearned it": f"{unlearned} ({low:.2f} to {high:.2f})",
                "success at the end, by seed": ", ".join(f"{row['success_rate']:.2f}" for row in of),
            }
        )
    settings = "; ".join(f"{name}: `{' '.join(flags)}`" for name, flags in VARIANTS.items() if flags)
    return "\n".join(
        [
            f"# {QUESTION.text}",
            "",
            f"{QUESTION.env_id}, 300k steps. Solved: {SOLVED:.0%} of the last 100 episodes of training succeed. "
            f"Unlearned: fewer than {UNLEARNED:.0%} do later on; in brackets the 95 % interval of the share. At the "
            f"end {EPISODES} unseen episodes. Written by `python -m benchmarks.unlearning`.",
            "",
            f"{machine}\n",
            f"{settings}\n",
            markdown(table),
            "",
        ]
    )


def smoke() -> None:
    flags = ("--total-timesteps", "512", "--ppo.n-steps", "16")
    with tempfile.TemporaryDirectory() as root:
        print(as_markdown([run("delta", "floor and eps", SEEDS[0], pathlib.Path(root), flags)], describe_machine()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs side by side")
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    if arguments.smoke:
        smoke()
        return
    root = ROOT / "runs" / "benchmarks" / "unlearning"
    # Seeds outermost, so that a benchmark that is cut off has compared variants
    cases = [(*case, seed, root, QUESTION.flags) for seed in SEEDS for case in CASES]
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        rows = sorted(
            pool.map(lambda case: run(*case), cases), key=lambda row: CASES.index((row["memory"], row["variant"]))
        )
    result = {"machine": describe_machine(), "rows": rows}
    (RESULTS / "unlearning.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "unlearning.md").write_text(as_markdown(rows, result["machine"]), encoding="utf-8")


if __name__ == "__main__":
    main()
