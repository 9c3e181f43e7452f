"""Does the retrieval map of fast weights point at the write that is being read?

    python -m benchmarks.retrieval             # trains three agents, if they are missing: minutes
    python -m benchmarks.retrieval --smoke     # an untrained agent; writes nothing

Key-value recall: pairs are written, several of them under the same key, then keys are asked for. At each question of an
unseen episode the largest entry of the retrieval map should be at the step at which the value that is asked for was
written: the last write under the key. Entries of the map of the block are those of `fwp_rl.inspection.read_out`: the
norm of what the block gets from a step through all heads. Beside it the same for reads before the readout
(`MemoryTrace.contributions`): of the heads side by side (the root of the sum of squares), and of each head; a head need
not be used for this. The step of the question itself is always one of the entries; "block, with present" also counts
as its contribution the share of the present value that goes past the fast weights. As a control, the agent before it
was trained.

Which entries to take was settled on the seeds 0 to 2, after those of the heads together had missed the bar with seed 1
and those with the present value with seed 2. The seeds 3 and 4 were trained afterwards.
"""

import argparse
import json
from typing import Any

import numpy as np
import torch

import envs
from agents.evaluation import Player, evaluate_policy_on, load_run, summarize
from agents.model import build_model
from agents.table import markdown
from agents.vec_env import make_vec_env
from benchmarks.learning import EPISODES, QUESTIONS, RESULTS, ROOT, directory_of, train
from benchmarks.machine import describe_machine
from fwp_rl import inspect_memory
from fwp_rl.inspection import MemoryTrace, read_out
from fwp_rl.ops.fast_weight_heads import READ_EPSILON

QUESTION, MEMORY, SEEDS = "key-value", "delta", 5
BAR, LARGEST_ERROR = 0.95, 1e-5


class Observer:
    """Plays as the policy does, and keeps what it observes."""

    def __init__(self, policy: Any) -> None:
        self.policy, self.observations = policy, []
        self.observation_space, self.action_space = policy.observation_space, policy.action_space

    def predict(self, observation: Any, state: Any, episode_start: np.ndarray, deterministic: bool) -> Any:
        self.observations.append(observation)
        return self.policy.predict(observation, state, episode_start, deterministic)


def measure(policy: Any, config: Any, episodes: int) -> dict[str, Any]:
    """All questions of the episodes, which are of equal length and are played side by side."""
    player: Player = Observer(policy)
    summary = summarize(evaluate_policy_on(player, config, episodes=episodes, n_envs=episodes))
    observations = np.stack(player.observations)  # [T, B, D]
    with torch.no_grad():
        inputs = policy.encode(torch.as_tensor(observations).flatten(0, 1)).unflatten(0, observations.shape[:2])
        trace = inspect_memory(policy.memory, inputs)
    recalled = torch.einsum("tbhs,sbhv->tbhv", trace.retrieval, trace.v) + trace.from_state
    of_heads = trace.contributions
    block = policy.memory.block
    maps = {
        "block": read_out(block, trace),
        "block, with present": with_present(block, trace),
        "heads together": of_heads.square().sum(2).sqrt(),
    }
    maps |= {f"head {head}": of_heads[:, :, head] for head in range(of_heads.shape[2])}

    n_keys = envs.make_vector(config.env_id, 1, **config.env_options).n_keys
    keys, asked = observations[..., :n_keys].argmax(-1), observations[..., -1] == 1
    steps = np.arange(len(keys))
    hits: dict[str, list[bool]] = {name: [] for name in maps}
    for t, row in np.argwhere(asked):
        written = steps[(steps < t) & ~asked[:, row] & (keys[:, row] == keys[t, row])][-1]
        for name, entries in maps.items():
            hits[name].append(int(entries[t, row].argmax()) == written)
    return {
        "return": summary.return_mean,
        "questions": int(asked.sum()),
        "error": float((recalled - trace.reads).abs().max()),
        "largest_read": float(trace.reads.abs().max()),
        "points_at_the_write": {name: float(np.mean(of)) for name, of in hits.items()},
    }


def with_present(block: Any, trace: MemoryTrace) -> torch.Tensor:
    """`read_out`, but step t also counts for the present value that its read lets past."""
    with torch.no_grad():
        present = block.skip[:, None] * trace.v
        scale = ((trace.reads + present).square().mean(-1) + READ_EPSILON).rsqrt()[..., None]
        own = trace.retrieval.diagonal(dim1=0, dim2=3).permute(2, 0, 1)[..., None] * trace.v + present
        entries = read_out(block, trace).clone()
        entries.diagonal(dim1=0, dim2=2).copy_(block.readout((scale * own).flatten(-2)).norm(dim=-1).T)
        return entries


def as_markdown(result: dict[str, Any]) -> str:
    def row(measured: dict[str, Any]) -> dict[str, str]:
        return {
            "agent": measured["agent"],
            "return": f"{measured['return']:.3f}",
            "questions": str(measured["questions"]),
            **{name: f"{share:.3f}" for name, share in measured["points_at_the_write"].items()},
            "largest error of a read": f"{measured['error']:.1e} (of {measured['largest_read']:.1f})",
        }

    trained = [r for r in result["rows"] if r["agent"] != "untrained"]
    good = sum(r["points_at_the_write"]["block"] >= BAR for r in trained)
    exact = sum(r["error"] <= LARGEST_ERROR for r in result["rows"])
    return "\n".join(
        [
            "# Does the retrieval map point at the write that is being read?",
            "",
            f"`{MEMORY}` on `{QUESTIONS[QUESTION].env_id}`: share of the questions in {EPISODES} unseen episodes at "
            "which the largest entry of the map is at the step that wrote what is asked for. Written by "
            "`python -m benchmarks.retrieval`, which says how entries are taken.",
            "",
            result["machine"],
            "",
            markdown([row(r) for r in result["rows"]]),
            "",
            f"{good} of {len(trained)} trained agents reach {BAR}; the map gives the reads to {LARGEST_ERROR:g} "
            f"in {exact} of {len(result['rows'])}.",
            "",
            "Which entries to take was settled on the seeds 0 to 2, after `heads together` had missed the bar with "
            "seed 1 and `block, with present` with seed 2; the seeds 3 and 4 were trained afterwards.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    smoke = parser.parse_args().smoke
    rows = []
    for seed in range(0 if smoke else SEEDS):
        directory = directory_of(QUESTION, MEMORY, seed, ROOT / "runs" / "benchmarks")
        train(QUESTIONS[QUESTION], MEMORY, seed, directory)
        config, policy = load_run(directory)
        rows.append({"agent": f"seed {seed}"} | measure(policy, config, EPISODES))
    if smoke:
        from agents.presets import preset_config

        config = preset_config(QUESTIONS[QUESTION].env_id, None)
    fresh = build_model(config, make_vec_env(config.env_id, 1, options=config.env_options)).policy
    rows.append({"agent": "untrained"} | measure(fresh, config, 20 if smoke else EPISODES))
    result = {"machine": describe_machine(), "rows": rows}
    print(as_markdown(result))
    if not smoke:
        (RESULTS / "retrieval.json").write_text(json.dumps(result, indent=1) + "\n")
        (RESULTS / "retrieval.md").write_text(as_markdown(result))


if __name__ == "__main__":
    main()
