"""How do our memories score in bsuite's memory experiments?

    nice python -m benchmarks.bsuite                  # 20 minutes of a core; writes benchmarks/results/bsuite.{json,md}
    python -m benchmarks.bsuite --memory gru          # what you ask for (see --help), writes nothing
    python -m benchmarks.bsuite --smoke               # seconds, writes nothing

The experiments `memory_len` and `memory_size` of bsuite (Osband et al. 2020, "Behaviour Suite for Reinforcement
Learning", arXiv 1908.03568) on `fwp/MemoryChain-v0`, which follows their code: the published sweeps, 10 000 episodes
for each setting, one agent with the same hyperparameters for all. A setting is solved if the wrong answers of these
episodes, while the agent learns, are fewer than 0.75 of what guessing makes (one half); the score is the share of
settings solved. An agent is stopped as soon as its remaining episodes cannot change the verdict, which changes no
score. Not bsuite's: PPO learns from 64 environments at a time, an episode of each in a rollout, and the first 10 000
episodes to end are those that count.
"""

import argparse
import contextlib
import json
import pathlib
import statistics
import sys
import time
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback

from agents.config import PPOConfig, TrainConfig
from agents.model import build_model
from agents.vec_env import make_vec_env
from benchmarks.machine import describe_machine
from fwp_rl.registry import memory_config, memory_configs

RESULTS = pathlib.Path(__file__).parent / "results"
N_EPISODES = 10_000
SOLVED = 0.75  # of the errors of guessing
GUESSING = 0.5
_COMMON = (*range(1, 11), 12, 14, 17, 20, 25)
EXPERIMENTS: dict[str, list[dict[str, int]]] = {
    "memory_len": [{"memory_length": length, "n_bits": 1} for length in (*_COMMON, *range(30, 105, 10))],
    "memory_size": [{"memory_length": 2, "n_bits": n_bits} for n_bits in (*_COMMON, 30, 40)],
}
VARIED = {"memory_len": "memory_length", "memory_size": "n_bits"}
MEMORIES = ("delta", "lstm", "none")


class Regret(BaseCallback):
    """Counts the wrong answers of the first `n_episodes`, and stops when the verdict is certain."""

    def __init__(self, n_episodes: int) -> None:
        super().__init__()
        self.most_wrong = SOLVED * GUESSING * n_episodes  # with as many it is not solved
        self.left, self.wrong = n_episodes, 0

    @property
    def is_solved(self) -> bool:
        """Whether, even if all answers to come were wrong."""
        return self.wrong + self.left < self.most_wrong

    @property
    def is_decided(self) -> bool:
        """Whether the answers to come cannot change the verdict."""
        return self.is_solved or self.wrong >= self.most_wrong

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info and not self.is_decided:
                self.left -= 1
                self.wrong += not info["is_success"]
        return not self.is_decided


def config_of(memory: str, setting: dict[str, int], seed: int) -> TrainConfig:
    """The same hyperparameters for all settings and memories; only the last action of an episode is rewarded."""
    return TrainConfig(
        env_id="fwp/MemoryChain-v0",
        env_options=setting,
        memory=memory_config(memory),
        ppo=PPOConfig(
            learning_rate=2e-3,
            n_steps=setting["memory_length"] + 1,
            n_epochs=2,
            gamma=0.5,
            gae_lambda=0.5,
            ent_coef=1e-3,
        ),
        n_envs=64,
        seed=seed,
    )


def run(memory: str, setting: dict[str, int], n_episodes: int, seed: int = 0) -> dict[str, Any]:
    """One setting: whether it is solved, and after how many episodes that was certain."""
    config = config_of(memory, setting, seed)
    regret = Regret(n_episodes)
    started = time.monotonic()
    with contextlib.closing(make_vec_env(config.env_id, config.n_envs, seed=seed, options=setting)) as venv:
        model = build_model(config, venv)
        model.learn((n_episodes + config.n_envs) * config.ppo.n_steps, callback=regret)
    seconds = round(time.monotonic() - started, 1)
    return {"solved": regret.is_solved, "episodes": n_episodes - regret.left, "wrong": regret.wrong, "seconds": seconds}


def as_markdown(result: dict[str, Any]) -> str:
    lines = [
        "# bsuite's memory experiments",
        "",
        f"Share of the settings solved, {result['episodes']:,} episodes of learning each, one seed. Solved, as bsuite "
        f"has it: fewer wrong answers than {SOLVED} of those of guessing. Written by `python -m benchmarks.bsuite`.",
        "",
        f"{result['machine']}",
        "",
        "| | " + " | ".join(result["scores"]) + " |",
        "|---|" + "---|" * len(result["scores"]),
    ]
    memories = list(dict.fromkeys(row["memory"] for row in result["rows"]))
    for memory in memories:
        cells = [f"{by_memory[memory]:.3f}" for by_memory in result["scores"].values()]
        lines.append(f"| `{memory}` | {' | '.join(cells)} |")
    for experiment, setting in VARIED.items():
        rows = [row for row in result["rows"] if row["experiment"] == experiment]
        if not rows:
            continue
        lines += [
            "",
            f"`{experiment}`: share of wrong answers until the verdict was certain, by `{setting}`; bold: not solved.",
            "",
            f"| {setting} | " + " | ".join(f"`{memory}`" for memory in memories) + " |",
            "|---|" + "---|" * len(memories),
        ]
        for value in dict.fromkeys(row[setting] for row in rows):
            cells = []
            for row in (row for row in rows if row[setting] == value):
                share = f"{row['wrong'] / row['episodes']:.3f}"
                cells.append(share if row["solved"] else f"**{share}**")
            lines.append(f"| {value} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="two settings, few episodes, nothing written")
    parser.add_argument("--memory", nargs="+", default=MEMORIES, choices=memory_configs(), metavar="NAME")
    parser.add_argument("--experiment", nargs="+", default=list(EXPERIMENTS), choices=EXPERIMENTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    n_episodes = 200 if arguments.smoke else N_EPISODES
    memories = arguments.memory[:1] if arguments.smoke else arguments.memory
    rows = []
    for experiment in arguments.experiment:
        for setting in EXPERIMENTS[experiment][: 1 if arguments.smoke else None]:
            for memory in memories:
                row = {"experiment": experiment, "memory": memory, **setting, **run(memory, setting, n_episodes)}
                print(row, file=sys.stderr, flush=True)
                rows.append(row)
    scores = {
        experiment: {
            memory: statistics.mean(
                row["solved"] for row in rows if (row["experiment"], row["memory"]) == (experiment, memory)
            )
            for memory in memories
        }
        for experiment in arguments.experiment
    }
    result = {"machine": describe_machine(), "episodes": n_episodes, "scores": scores, "rows": rows}
    print(as_markdown(result))
    if arguments == parser.parse_args([]):
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "bsuite.json").write_text(json.dumps(result, indent=1) + "\n")
        (RESULTS / "bsuite.md").write_text(as_markdown(result))


if __name__ == "__main__":
    main()
