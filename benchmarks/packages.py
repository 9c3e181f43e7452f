"""Does every environment of a package run with `delta`, from the command line?

    python -m benchmarks.packages popgym    # minutes; writes benchmarks/results/package_popgym.{json,md}
    python -m benchmarks.packages --smoke   # seconds, writes nothing

Each is `python train.py` for 1000 steps in a process of its own, and then two unseen episodes from the run that it
wrote, with the environment rebuilt from there. Nothing is learned in so few steps: the returns show that the
environment answers, and no more.
"""

import argparse
import concurrent.futures
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from agents.evaluation import evaluate_run, summarize
from agents.runs import read_run
from benchmarks.machine import describe_machine
from envs.registry import PACKAGES, Package, known_ids

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
STEPS = 1000


def ids_of(package: Package) -> list[str]:
    return sorted(env_id for env_id in known_ids() if env_id.startswith(package.prefixes))


def run(env_id: str) -> dict[str, Any]:
    """What became of one environment."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = pathlib.Path(temporary) / "run"
        command = [
            *(sys.executable, "train.py", "--env-id", env_id, "--total-timesteps", str(STEPS), "--n-envs", "4"),
            *("--ppo.n-steps", "50", "--run-dir", str(directory), "--threads", "1", "--quiet", "memory:delta"),
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            return {"env_id": env_id, "fault": (done.stderr.strip().splitlines() or ["no message"])[-1]}
        _, rows = evaluate_run(directory, episodes=2, deterministic=False)
        summary = summarize(rows)
        return {
            "env_id": env_id,
            "steps": read_run(directory)["steps"],
            "return_mean": summary.return_mean,
            "length_mean": summary.length_mean,
        }


def as_markdown(title: str, result: dict[str, Any]) -> str:
    rows = result["rows"]
    good = sum("fault" not in row for row in rows)
    lines = [
        f"# {title}",
        "",
        f"{good} of {len(rows)} environments ran: {STEPS} steps of training with `delta`, then two episodes.",
        "",
        f"{result['machine']}",
        "",
        "| environment | steps | return | length |",
        "|---|---|---|---|",
    ]
    for row in rows:
        outcome = row.get("fault") or f"{row['steps']} | {row['return_mean']:.3f} | {row['length_mean']:.0f}"
        lines.append(f"| `{row['env_id']}` | {outcome} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    packages = {package.name: package for package in PACKAGES}
    parser.add_argument("package", nargs="?", choices=packages)
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    env_ids: Sequence[str] = ("MiniGrid-MemoryS7-v0",) if arguments.smoke else ()
    if not arguments.smoke:
        if arguments.package is None:
            parser.error(f"name a package: {', '.join(packages)}")
        package = packages[arguments.package]
        env_ids = ids_of(package)
        if not env_ids:
            parser.error(f"{package.name} is not installed: {package.install}")
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        rows = list(pool.map(run, env_ids))
    result = {"machine": describe_machine(), "rows": rows}
    text = as_markdown("smoke" if arguments.smoke else f"Every environment of {arguments.package}", result)
    print(text)
    if not arguments.smoke:
        (RESULTS / f"package_{arguments.package}.json").write_text(json.dumps(result) + "\n")
        (RESULTS / f"package_{arguments.package}.md").write_text(text)
    if any("fault" in row for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
