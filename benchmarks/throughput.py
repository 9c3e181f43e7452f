"""How many environment steps per second does a whole training run make?

    python -m benchmarks.throughput             # 10 minutes; writes benchmarks/results/throughput.{json,md}
    python -m benchmarks.throughput --device cuda   # where there is a GPU; writes throughput_gpu.{json,md}
    python -m benchmarks.throughput --smoke     # seconds, writes nothing

How it is measured, and what everybody has in common, is told in `agents.throughput`, which measures for users, too.

- env only: random actions, no learner: the ceiling.
- RecurrentPPO: sb3-contrib as it is (shared LSTM).
- RecurrentPPO patched: the same with its loop over time replaced by one fused LSTM call. That is exact, because its
  buffer cuts sequences at every episode start; it is what a small upstream change could reach.
- PPO: SB3's memoryless PPO with its default network.
- MemoryPPO: ours. Where everybody computes on a GPU, `delta` and `lstm` also on the CPU beside it.
"""

import argparse
import json
import pathlib
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

import envs
from agents.throughput import LSTM, N_ENVS, count, faster, measure, ours, peers, settings
from benchmarks.machine import describe_gpu, describe_machine

MAIN = ("delta", "gated_delta", "lstm", "gru")
SEQUENTIAL = ("recurrent_delta", "delta_rnn", "srwm")
OTHERS = (
    *SEQUENTIAL,
    "rnn",
    "additive",
    "delta_lstm",
    "delta_mlp",
    "fast_weight_memory",
    "delta_product",
    "linear_attention",
    "hebb",
    "oja",
    "continuous_delta",
    "schlag2021",
    "irie2021",
    "attention",
)
RESULTS = pathlib.Path(__file__).parent / "results"


class NullVecEnv(VecEnv):
    """No environment at all: random observations of 147 floats, episodes of about 50 steps."""

    def __init__(self, n_envs: int) -> None:
        super().__init__(n_envs, spaces.Box(-1, 1, (147,), np.float32), spaces.Discrete(7))
        rng = np.random.default_rng(0)
        self._observations = rng.uniform(-1, 1, (64, n_envs, 147)).astype(np.float32)
        self._dones = rng.random((997, n_envs)) < 1 / 50
        self._rewards = rng.random((64, n_envs)).astype(np.float32)
        self._infos: list[dict[str, Any]] = [{} for _ in range(n_envs)]
        self._t = 0

    def reset(self) -> np.ndarray:
        return self._observations[0]

    def step_async(self, actions: np.ndarray) -> None:
        self._t += 1

    def step_wait(self) -> Any:
        t = self._t
        return self._observations[t % 64], self._rewards[t % 64], self._dones[t % 997], self._infos

    def close(self) -> None: ...

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None: ...

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return [None] * self.num_envs

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


class PatchedPolicy(RecurrentActorCriticPolicy):
    """sb3-contrib's policy with one LSTM call for each batch of sequences instead of one for each time step."""

    @staticmethod
    def _process_sequence(features: Any, lstm_states: Any, episode_starts: Any, lstm: Any) -> Any:
        n_seq = lstm_states[0].shape[1]
        sequence = features.reshape((n_seq, -1, lstm.input_size)).swapaxes(0, 1)
        keep = (1.0 - episode_starts.reshape((n_seq, -1))[:, 0]).view(1, n_seq, 1)
        output, states = lstm(sequence, (keep * lstm_states[0], keep * lstm_states[1]))
        return torch.flatten(output.transpose(0, 1), start_dim=0, end_dim=1), states


def stock_minigrid() -> gymnasium.Env[Any, Any]:
    """MiniGrid-MemoryS11-v0 as everybody has it: the image of the view, flat."""
    from minigrid.wrappers import ImgObsWrapper

    return Monitor(gymnasium.wrappers.FlattenObservation(ImgObsWrapper(gymnasium.make("MiniGrid-MemoryS11-v0"))))


def our_minigrid() -> gymnasium.Env[Any, Any]:
    """The same task and the same observation from `envs`, where the view is computed by compiled code."""
    return Monitor(envs.make("MiniGrid-MemoryS11-v0", observation="symbolic"))


NULL: dict[str, Callable[[], VecEnv]] = {"null": lambda: NullVecEnv(N_ENVS)}
ON_CPU: dict[str, Callable[[], VecEnv]] = {
    **NULL,
    "MiniGrid-MemoryS11-v0": lambda: DummyVecEnv([stock_minigrid] * N_ENVS),
    "MiniGrid-MemoryS11-v0 (envs)": lambda: DummyVecEnv([our_minigrid] * N_ENVS),
}
ON_GPU: dict[str, Callable[[], VecEnv]] = {**NULL, "null, 256 environments": lambda: NullVecEnv(256)}


def contenders(make_env: Callable[[], VecEnv], memories: tuple[str, ...], device: str) -> dict[str, BaseAlgorithm]:
    env = make_env()
    patched = RecurrentPPO(PatchedPolicy, env, policy_kwargs=LSTM, **settings(env, device))
    size = count(patched)
    on_cpu = {} if device == "cpu" else ours(make_env, ("delta", "lstm"), "cpu", parameters=size)
    return {
        **peers(make_env, device),
        "RecurrentPPO patched": patched,
        **ours(make_env, memories, device, parameters=size),
        **{f"{name} on the CPU": model for name, model in on_cpu.items()},
    }


BARS = (  # environment, ours, theirs, at least
    ("null", "MemoryPPO delta", "RecurrentPPO", 5.0),
    ("null", "MemoryPPO delta", "RecurrentPPO patched", 1.8),
    ("null", "MemoryPPO lstm", "RecurrentPPO patched", 1.3),
    *(("null", f"MemoryPPO {name}", "RecurrentPPO", 2.0) for name in SEQUENTIAL),
    *(("null", f"MemoryPPO {name}", "RecurrentPPO", 1.0) for name in OTHERS),
    ("MiniGrid-MemoryS11-v0", "MemoryPPO delta", "RecurrentPPO", 2.2),
    ("MiniGrid-MemoryS11-v0", "MemoryPPO delta", "PPO", 0.8),
)


def as_markdown(result: dict[str, Any]) -> str:
    names = list(next(iter(result["environments"].values())))
    options = "" if result["device"] == "cpu" else f" --device {result['device']}"
    lines = [
        "# Throughput",
        "",
        "Environment steps per second of whole training runs (rollout and update), median of "
        f"{result['repeats']} interleaved repeats; written by `python -m benchmarks.throughput{options}`.",
        "",
        f"{result['machine']}",
        "",
        "| | parameters | " + " | ".join(result["environments"]) + " |",
        "|---|---|" + "---|" * len(result["environments"]),
    ]
    for name in names:
        rows = [rows[name] for rows in result["environments"].values()]
        cells = [f"{row['steps_per_second']:,} ({row['worst']:,} to {row['best']:,})" for row in rows]
        lines.append(f"| {name} | {rows[0]['parameters']:,} | " + " | ".join(cells) + " |")
    lines += ["", "| ratio | environment | bar | measured | |", "|---|---|---|---|---|"]
    for bar in result["bars"]:
        verdict = "met" if bar["ratio"] >= bar["bar"] else "missed"
        ratio = f"{bar['ours']} / {bar['theirs']}"
        lines.append(f"| {ratio} | {bar['environment']} | {bar['bar']} | {bar['ratio']:.2f} | {verdict} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one tiny repeat without an environment, nothing written")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where everybody computes")
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--iterations", type=int, default=1, help="rollouts and updates per repeat")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    # Beside other processes, as in a test, a second thread is mostly waited for.
    torch.set_num_threads(1 if arguments.smoke else arguments.threads)
    repeats, iterations = (1, 1) if arguments.smoke else (arguments.repeats, arguments.iterations)
    on_gpu = arguments.device == "cuda"
    environments = NULL if arguments.smoke else ON_GPU if on_gpu else ON_CPU
    memories = MAIN[:1] if arguments.smoke else (*MAIN, *(SEQUENTIAL if on_gpu else OTHERS))
    rows = {
        name: measure(
            make_env, contenders(make_env, memories, arguments.device), repeats=repeats, iterations=iterations
        )
        for name, make_env in environments.items()
    }
    seconds = {name: {who: row["seconds"] for who, row in table.items()} for name, table in rows.items()}
    result = {
        "machine": f"{describe_gpu()}; {describe_machine()}" if on_gpu else describe_machine(),
        "device": arguments.device,
        "threads": arguments.threads,
        "repeats": repeats,
        "iterations": iterations,
        "environments": rows,
        "bars": [
            {"environment": e, "ours": a, "theirs": b, "bar": bar, "ratio": faster(seconds[e][a], seconds[e][b])}
            for e, a, b, bar in BARS
            if e in seconds and a in seconds[e]
        ],
    }
    print(as_markdown(result))
    if not arguments.smoke:
        RESULTS.mkdir(exist_ok=True)
        name = "throughput_gpu" if on_gpu else "throughput"
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        (RESULTS / f"{name}.md").write_text(as_markdown(result))


if __name__ == "__main__":
    main()
