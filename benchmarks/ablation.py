"""Which of the choices in `delta` matter? Each is undone by itself, on two tasks, with five seeds.

    python -m benchmarks.ablation              # 40 minutes on two cores; writes benchmarks/results/ablation.{json,md}
    python -m benchmarks.ablation --smoke      # seconds, writes nothing

Every run is that of `train.py` with the preset of its task, one thread, and ends when an evaluation on 100 unseen
episodes reaches the target. Compared is the number of environment steps until then; a run that never gets there counts
with all its steps, which favours it. Runs that are finished are not run again.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import pathlib
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from agents.config import TrainConfig
from agents.presets import preset_config
from agents.runs import RunPaths, read_metrics, read_run
from agents.training import train
from benchmarks.machine import describe_machine
from fwp_rl.feature_maps import feature_map
from fwp_rl.layers import FastWeightBlock
from fwp_rl.memories.delta import Delta, DeltaConfig
from fwp_rl.memory import Memory
from fwp_rl.ops import fast_weight_scan, unit
from fwp_rl.ops.fast_weight_heads import READ_EPSILON, UNIT_EPSILON
from fwp_rl.registry import register
from fwp_rl.state import State

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SEEDS = 5
RESAMPLES = 10_000


class InParts(Memory):
    """`delta`, operation by operation, so that one can be left out."""

    def __init__(self, delta: Delta, *, positive_keys: bool = False, normalized_reads: bool = True) -> None:
        super().__init__()
        self.input_size, self.output_size = delta.input_size, delta.output_size
        self.delta, self.positive_keys, self.normalized_reads = delta, positive_keys, normalized_reads

    def initial_state(self, batch_size: int) -> State:
        return self.delta.initial_state(batch_size)

    def scan(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B O"], State]:
        block, c = self.delta.block, self.delta.block.config
        keys, values = c.n_heads * c.key_size, c.n_heads * c.value_size
        x = block.encode(inputs)
        q, k, v, b = block.project(block.norm(x)).split([keys, keys, values, c.n_heads], dim=-1)
        q, k, v = (part.unflatten(-1, (c.n_heads, -1)) for part in (q, k, v))
        if self.positive_keys:
            q, k = (feature_map(part, "elu", "sum") for part in (q, k))
        else:
            q, k = (unit(part, c.key_size, epsilon=UNIT_EPSILON) for part in (q, k))
        y, final = fast_weight_scan(q, k, v, torch.sigmoid(b), state, episode_starts)  # type: ignore[arg-type]  # a tensor here
        y = (y + block.skip[:, None] * v).flatten(-2)
        if self.normalized_reads:
            y = unit(y, c.value_size, epsilon=READ_EPSILON * c.value_size, length=c.value_size**0.5)
        x = x + block.readout(y)
        return x + block.down(block.up(block.feed_forward_norm(x)).relu()), final


def _changed(change: Callable[[FastWeightBlock], object]) -> Callable[[Delta], Memory]:
    def build(delta: Delta) -> Memory:
        with torch.no_grad():
            change(delta.block)
        return delta

    return build


def _gates(block: FastWeightBlock) -> slice:
    return slice(-block.config.n_heads, None)


@dataclass(frozen=True)
class Variant:
    """One choice undone."""

    build: Callable[[Delta], Memory] = lambda delta: delta
    learning_rate: float = 1.0
    """As a multiple of the preset's."""


VARIANTS = {
    "as it is": Variant(),
    "write strengths start at 1/2, not by how long they remember": Variant(
        _changed(lambda block: block.project.bias[_gates(block)].zero_())
    ),
    "write strengths depend on the input from the start": Variant(
        _changed(lambda block: nn.init.orthogonal_(block.project.weight[_gates(block)], gain=1.0))
    ),
    "no head starts by reading change": Variant(_changed(lambda block: block.skip.zero_())),
    "all heads start by reading change": Variant(_changed(lambda block: block.skip.fill_(-1.0))),
    "positive keys of sum 1 (elu + 1), not of length 1": Variant(lambda delta: InParts(delta, positive_keys=True)),
    "reads keep their size": Variant(lambda delta: InParts(delta, normalized_reads=False)),
    "readout twice as large": Variant(_changed(lambda block: block.readout.weight.mul_(2.0))),
    "readout a fifth as large": Variant(_changed(lambda block: block.readout.weight.mul_(0.2))),
    "a third of the learning rate": Variant(learning_rate=1 / 3),
    "three times the learning rate": Variant(learning_rate=3.0),
}


@register("delta_variant")
@dataclass(frozen=True, kw_only=True)
class VariantConfig(DeltaConfig):
    """`delta` with one choice undone."""

    variant: str = "as it is"
    """Of VARIANTS."""

    def build(self, input_size: int) -> Memory:
        delta = super().build(input_size)
        assert isinstance(delta, Delta)
        return VARIANTS[self.variant].build(delta)


@dataclass(frozen=True)
class Task:
    """What is learned, and when it is."""

    env_id: str
    measure: str
    target: dict[str, float]
    total_timesteps: int
    eval_every: int


TASKS = {
    "t-maze": Task("fwp/MiniGrid-TMaze-v0", "eval/success_rate", {"stop_at_success": 1.0}, 200_000, 5_000),
    "cartpole": Task("CartPoleNoVel-v1", "eval/return_mean", {"stop_at_return": 475.0}, 50_000, 2_500),
}


def config_of(task: Task, variant: str, seed: int) -> TrainConfig:
    preset = preset_config(task.env_id, None)
    rate = preset.ppo.learning_rate * VARIANTS[variant].learning_rate
    return dataclasses.replace(
        preset,
        memory=VariantConfig(variant=variant),
        ppo=dataclasses.replace(preset.ppo, learning_rate=rate),
        total_timesteps=task.total_timesteps,
        eval_every=task.eval_every,
        eval_episodes=100,
        seed=seed,
        threads=1,
        **({"stop_at_success": None, "stop_at_return": None} | task.target),  # type: ignore[arg-type]  # names of fields
    )


def run(name: str, variant: str, seed: int, root: pathlib.Path, **changes: Any) -> dict[str, Any]:
    """One training run, unless it is finished, and what became of it."""
    task = TASKS[name]
    directory = root / name / f"variant_{list(VARIANTS).index(variant)}" / f"seed_{seed}"
    if not RunPaths(directory).description.exists() or read_run(directory)["status"] != "finished":
        config = dataclasses.replace(config_of(task, variant, seed), **changes)
        train(config, directory, overwrite=True, quiet=True)
    last = [line[task.measure] for line in read_metrics(RunPaths(directory).metrics) if task.measure in line][-1]
    (target,) = task.target.values()
    steps = read_run(directory)["steps"]
    return {"task": name, "variant": variant, "seed": seed, "steps": steps, "last": last, "reached": last >= target}


def interval(values: list[int], baseline: list[int]) -> tuple[float, float, float]:
    """Ratio of the mean steps, and its 95 % bootstrap interval over seeds."""
    rng = np.random.default_rng(0)
    pick = rng.integers(len(values), size=(2, RESAMPLES, len(values)))
    ratios = np.array(values)[pick[0]].mean(1) / np.array(baseline)[pick[1]].mean(1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return statistics.mean(values) / statistics.mean(baseline), float(low), float(high)


def as_markdown(rows: list[dict[str, Any]], machine: str) -> str:
    lines = [
        "# Choices of `delta`, one undone at a time\n",
        "Environment steps (thousands) until 100 unseen episodes were passed, by seed; > means never. In brackets the "
        "mean as a multiple of that of `delta` as it is, with a 95 % bootstrap interval over seeds. Written by "
        "`python -m benchmarks.ablation`.\n",
        f"{machine}\n",
        f"| | {' | '.join(task.env_id for task in TASKS.values())} |",
        f"|---|{'---|' * len(TASKS)}",
    ]
    for variant in VARIANTS:
        cells = []
        for name in TASKS:
            of = {v: [r for r in rows if r["task"] == name and r["variant"] == v] for v in (variant, "as it is")}
            if not of[variant] or not of["as it is"]:
                cells.append("")
                continue
            steps = ", ".join(f"{'' if r['reached'] else '> '}{r['steps'] / 1000:.0f}" for r in of[variant])
            ratio, low, high = interval(*([r["steps"] for r in of[v]] for v in (variant, "as it is")))
            cells.append(steps if variant == "as it is" else f"{steps} ({ratio:.1f}x, {low:.1f} to {high:.1f})")
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs side by side")
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    if arguments.smoke:
        with tempfile.TemporaryDirectory() as root:
            short: dict[str, Any] = {"total_timesteps": 512, "eval_every": 256, "eval_episodes": 2, "n_envs": 2}
            variants = ("as it is", "reads keep their size")
            rows = [run("cartpole", variant, 0, pathlib.Path(root), **short) for variant in variants]
        print(as_markdown(rows, describe_machine()))
        return
    root = ROOT / "runs" / "benchmarks" / "ablation"
    jobs = [(name, variant, seed, root) for seed in range(SEEDS) for name in TASKS for variant in VARIANTS]
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    # A process for each run: one is what `train.py` is.
    processes = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(arguments.jobs, processes, max_tasks_per_child=1) as pool:
        rows = []
        for future in concurrent.futures.as_completed([pool.submit(run, *job) for job in jobs]):
            rows.append(future.result())
            print(f"{len(rows)} of {len(jobs)}: {rows[-1]}", flush=True)
    rows.sort(key=lambda row: (row["task"], list(VARIANTS).index(row["variant"]), row["seed"]))
    machine = describe_machine()
    (RESULTS / "ablation.json").write_text(json.dumps({"machine": machine, "rows": rows}) + "\n", encoding="utf-8")
    (RESULTS / "ablation.md").write_text(as_markdown(rows, machine), encoding="utf-8")
    print(as_markdown(rows, machine))


if __name__ == "__main__":
    main()
