"""Do the tasks tell the memories apart, as theory says they should?

    python -m benchmarks.separation                       # every memory; an hour on one core
    python -m benchmarks.separation --memory delta lstm   # these alone; the others' committed results stay
    python -m benchmarks.separation --smoke               # seconds, writes nothing

Supervised, so that nothing but the memory can fail: it reads the observations of a task, a linear layer names the best
action, and the cross entropy of the answers that count is minimised, in some seconds for each memory, task and seed.
Accuracy is then taken on 512 episodes of another seed. What the answers are worth, and which of them count, tells the
task. Sizes are small and alike: fast-weight memories have 4 heads of 16 x 16 and a width of 32, the others as many
parameters as `delta` of that size. Writes benchmarks/results/separation.{json,md,png}.
"""

import argparse
import dataclasses
import json
import pathlib
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

import envs
from benchmarks.machine import describe_machine
from envs.task import VectorTask
from fwp_rl.matching import matched
from fwp_rl.memories.delta import DeltaConfig
from fwp_rl.memory import MemoryConfig
from fwp_rl.registry import memory_config, memory_configs

RESULTS = pathlib.Path(__file__).parent / "results"
SEEDS = 5
TEST_SEED = 1_000_000
BATCH, TEST_EPISODES = 64, 512
LEARNING_RATE, MOST_BATCHES, ENOUGH_BATCHES = 1e-2, 400, 20  # so many batches in a row without a mistake end a training
SIZES = {"width": 32, "n_heads": 4, "key_size": 16, "value_size": 16}
TO_TWO = "delta, strength to 2"


@dataclass(frozen=True)
class Probe:
    """A task, and what theory says about it."""

    env_id: str
    options: dict[str, Any]
    bars: dict[str, tuple[str, float]]
    """Memory: "at least" or "at most" this accuracy, as the mean over seeds."""


PROBES = {
    "key-value recall, 8 keys, 3 writes each": Probe(
        "fwp/KeyValueRecall-v0",
        {"n_keys": 8, "n_values": 8, "n_writes": 24, "n_queries": 8},
        {"additive": ("at most", 0.50), "delta": ("at least", 0.95)},
    ),
    "parity of 24 bits": Probe(
        "fwp/GroupTracking-v0",
        {"group": "parity", "episode_length": 24},
        {TO_TWO: ("at least", 0.95), "delta": ("at most", 0.75)},
    ),
    "five cups, 24 moves": Probe(
        "fwp/GroupTracking-v0",
        {"group": "cups", "episode_length": 24},
        {TO_TWO: ("at least", 0.85), "delta": ("at most", 0.40)},
    ),
}


def memories() -> list[str]:
    """The registered ones, and `delta` whose write strength reaches 2."""
    names = list(memory_configs())
    return [*names[: names.index("delta") + 1], TO_TWO, *names[names.index("delta") + 1 :]]


def sized(name: str, input_size: int) -> MemoryConfig:
    """The memory of that name at the size of this probe."""
    reference = DeltaConfig(**SIZES)
    if name == TO_TWO:
        return dataclasses.replace(reference, negative_eigenvalues=True)
    config = memory_config(name)
    sizes = {field.name: SIZES[field.name] for field in dataclasses.fields(config) if field.name in SIZES}
    if sizes:
        return dataclasses.replace(config, **sizes)  # type: ignore[arg-type]  # they are its own
    return matched(config, input_size=input_size, parameters=reference)


class Reader(nn.Module):
    """A memory with a linear layer that names the action; every sequence is one episode."""

    def __init__(self, config: MemoryConfig, task: VectorTask) -> None:
        super().__init__()
        assert task.observation_space.shape is not None
        self.memory = config.build(task.observation_space.shape[0])
        self.head = nn.Linear(self.memory.output_size, task.action_space.n)  # type: ignore[attr-defined]  # it is Discrete

    def forward(self, observations: Float[Tensor, "T B D"]) -> Float[Tensor, "T B A"]:
        starts = torch.zeros(observations.shape[:2], dtype=torch.bool)
        starts[0] = True
        outputs, _ = self.memory.scan(observations, self.memory.initial_state(starts.shape[1]), starts)
        return self.head(outputs)


def episodes(
    task: VectorTask,
) -> tuple[Float[Tensor, "T B D"], Int[Tensor, "T B"], Bool[Tensor, "T B"]]:
    """An episode of each row by the best policy: observations, best actions, and which of those are paid."""
    observations = task.observe()
    seen, actions, paid, ended = [], [], [], False
    while not ended:
        seen.append(observations)
        actions.append(task.oracle_actions())
        step = task.step(actions[-1])
        paid.append(step.rewards > 0)
        observations, ended = step.observations, bool(step.terminated.all())
    return tuple(torch.from_numpy(np.stack(values)) for values in (seen, actions, paid))  # type: ignore[return-value]  # three of them


def train(probe: Probe, name: str, seed: int, most_batches: int) -> dict[str, Any]:
    """One memory on one task: its accuracy, and what it took."""
    task = envs.make_vector(probe.env_id, BATCH, **probe.options)
    assert task is not None
    task.reset(seed)
    torch.manual_seed(seed)
    config = sized(name, task.observation_space.shape[0])  # type: ignore[index]  # it has one axis
    reader = Reader(config, task)
    optimizer = torch.optim.Adam(reader.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda batch: min(1.0, 2 * (1 - batch / most_batches)))
    begin, n_batches, n_flawless = time.perf_counter(), 0, 0
    while n_batches < most_batches and n_flawless < ENOUGH_BATCHES:
        observations, actions, paid = episodes(task)
        logits = reader(observations)[paid]
        optimizer.zero_grad()
        F.cross_entropy(logits, actions[paid]).backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        n_batches += 1
        n_flawless = n_flawless + 1 if bool((logits.argmax(-1) == actions[paid]).all()) else 0
    seconds = time.perf_counter() - begin
    test = envs.make_vector(probe.env_id, TEST_EPISODES, **probe.options)
    assert test is not None
    test.reset(TEST_SEED + seed)
    observations, actions, paid = episodes(test)
    with torch.no_grad():
        accuracy = (reader(observations).argmax(-1) == actions)[paid].double().mean().item()
    return {
        "memory": name,
        "seed": seed,
        "accuracy": round(accuracy, 4),
        "batches": n_batches,
        "seconds": round(seconds, 1),
        "parameters": sum(parameter.numel() for parameter in reader.memory.parameters()),
    }


def measure(names: list[str], n_seeds: int, most_batches: int) -> list[dict[str, Any]]:
    rows = []
    for seed in range(n_seeds):  # outermost: what is cut off has compared all
        for name in names:
            for title, probe in PROBES.items():
                rows.append({"probe": title, **train(probe, name, seed, most_batches)})
                print("{probe}: {memory}, seed {seed}: {accuracy:.3f} in {seconds} s".format(**rows[-1]), flush=True)
    return rows


def accuracies(rows: list[dict[str, Any]], title: str, name: str) -> list[float]:
    return [row["accuracy"] for row in rows if (row["probe"], row["memory"]) == (title, name)]


def judge(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every claim whose memory was measured."""
    claims = []
    for title, probe in PROBES.items():
        for name, (kind, bar) in probe.bars.items():
            if values := accuracies(rows, title, name):
                mean = float(np.mean(values))
                met = mean >= bar if kind == "at least" else mean <= bar
                claims.append({"probe": title, "memory": name, "kind": kind, "bar": bar, "measured": mean, "met": met})
    return claims


def floors() -> dict[str, str]:
    """What one gets to without a memory, and without knowing the order."""
    texts = {}
    for title, probe in PROBES.items():
        task = envs.make_vector(probe.env_id, 1, **probe.options)
        assert task is not None
        anchors = task.anchors()
        texts[title] = f"{anchors['memoryless']:.3f}"
        if "order_blind" in anchors:
            texts[title] += f"; order blind {anchors['order_blind']:.3f}"
    return texts


def as_markdown(result: dict[str, Any]) -> str:
    rows, floor = result["rows"], floors()
    names = [name for name in memories() if any(row["memory"] == name for row in rows)]
    lines = [
        "# Do the tasks tell the memories apart?",
        "",
        f"Share of right answers after supervised training, mean of {result['seeds']} seeds and (least to most); "
        f"{TEST_EPISODES} unseen episodes each, at most {MOST_BATCHES} batches of {BATCH} episodes. The same learning "
        "rate for all, tuned for none: a memory that fails here may need another, or longer. Written by "
        "`python -m benchmarks.separation`.",
        "",
        f"{result['machine']}",
        "",
        "| | parameters | " + " | ".join(PROBES) + " | seconds |",
        "|---|---|" + "---|" * len(PROBES) + "---|",
        "| without memory | | " + " | ".join(floor.values()) + " | |",
    ]
    for name in names:
        of = [row for row in rows if row["memory"] == name]
        cells = []
        for title in PROBES:
            values = accuracies(rows, title, name)
            cells.append(f"{np.mean(values):.3f} ({min(values):.2f} to {max(values):.2f})" if values else "")
        seconds = f"{np.mean([row['seconds'] for row in of]):.0f}"
        lines.append(f"| {name} | {of[0]['parameters']:,} | " + " | ".join(cells) + f" | {seconds} |")
    lines += ["", "| claim | bar | measured | |", "|---|---|---|---|"]
    for claim in result["claims"]:
        verdict = "met" if claim["met"] else "missed"
        lines.append(
            f"| {claim['probe']}: {claim['memory']} | {claim['kind']} {claim['bar']:.2f} | {claim['measured']:.3f} "
            f"| {verdict} |"
        )
    return "\n".join(lines) + "\n\n![accuracies](separation.png)\n"


def draw(result: dict[str, Any], file: pathlib.Path) -> None:
    """A panel for each task: every seed as a dot."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = result["rows"]
    names = [name for name in memories() if any(row["memory"] == name for row in rows)][::-1]
    figure, panels = plt.subplots(
        1, len(PROBES), figsize=(11, 1.2 + 0.24 * len(names)), dpi=110, sharey=True, layout="constrained"
    )
    for axes, (title, probe) in zip(panels, PROBES.items(), strict=True):
        task = envs.make_vector(probe.env_id, 1, **probe.options)
        assert task is not None
        anchors = task.anchors()
        for anchor, style in (("memoryless", ":"), ("order_blind", "--")):
            if anchor in anchors:
                axes.axvline(anchors[anchor], color="0.5", linestyle=style, linewidth=1)
        for height, name in enumerate(names):
            values = accuracies(rows, title, name)
            axes.plot(values, [height] * len(values), "o", color="C0", markersize=4, alpha=0.6)
        axes.set_title(title, fontsize=9)
        axes.set_xlim(0, 1.03)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("share of right answers (dotted: without memory; dashed: without the order)", fontsize=8)
    figure.savefig(file)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", nargs="+", choices=memories(), metavar="MEMORY", help="only these")
    parser.add_argument("--smoke", action="store_true", help="two memories, two batches, nothing written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = arguments.memory or (["additive", "delta"] if arguments.smoke else memories())
    n_seeds, most_batches = (1, 2) if arguments.smoke else (SEEDS, MOST_BATCHES)
    rows = measure(names, n_seeds, most_batches)
    committed = RESULTS / "separation.json"
    if arguments.memory and not arguments.smoke and committed.exists():
        rows += [row for row in json.loads(committed.read_text())["rows"] if row["memory"] not in names]
    result = {"machine": describe_machine(), "seeds": n_seeds, "rows": rows, "claims": judge(rows)}
    print(as_markdown(result))
    if not arguments.smoke:
        RESULTS.mkdir(exist_ok=True)
        committed.write_text(json.dumps(result) + "\n")
        (RESULTS / "separation.md").write_text(as_markdown(result))
        draw(result, RESULTS / "separation.png")


if __name__ == "__main__":
    main()
