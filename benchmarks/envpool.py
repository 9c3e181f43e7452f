"""Does EnvPool do what the original environments do, and how much faster is it?

    nice python -m benchmarks.envpool                   # half an hour; writes benchmarks/results/envpool.{json,md}
    python -m benchmarks.envpool MiniGrid-MemoryS9-v0   # some ids, writes nothing
    python -m benchmarks.envpool --smoke                # seconds, writes nothing

Both engines stand behind SB3's interface, as a training has them (`--engine envpool`), with random actions.

- Fidelity: what the first episodes of every row are like, and the first and the last observation of each, in the mean
  over episodes; means that lie more than `SIGMAS` standard errors apart are different (`CELL_SIGMAS` for the numbers of
  an observation). MiniGrid's and BabyAI's episodes are cut at `MOST_STEPS`; how long they may be is then asked by an
  agent that only turns around.
- Speed: both take turns within each repeat, so that a noisy machine is noisy for both; the ratio is the median of the
  ratios within each repeat.

Every id has a process of its own, since EnvPool may never come back.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import multiprocessing
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from agents.episodes import make_env
from agents.errors import AgentsError
from agents.vec_env import NativeVecEnv, make_vec_env
from benchmarks.machine import describe_machine
from envs.envpool_task import DIFFERENT, EnvPoolTask, pool_ids

RESULTS = pathlib.Path(__file__).parent / "results"
SIGMAS = 4.5  # of a number: a false alarm in two hundred of these tables
CELL_SIGMAS = 6.0  # of the thousands of numbers of an observation
MOST_STEPS = 128
N_ROWS, EPISODES_PER_ROW = 128, 8
N_TURNING = 32
N_ENVS, REPEATS, SECONDS = 16, 5, 0.1  # of the measurement of speed; seconds of each engine within a repeat
LIMIT = 300.0  # seconds for an id
SMOKE_ID = "MiniGrid-Empty-5x5-v0"

Act = Callable[[], np.ndarray]


def both(env_id: str, n_envs: int, max_steps: int | None = None) -> dict[str, VecEnv]:
    """The environments behind either engine, also where `make_vec_env` refuses EnvPool's."""
    options = {} if max_steps is None else {"max_steps": max_steps}
    settings = {} if max_steps is None else {"max_episode_steps": max_steps}
    pool = NativeVecEnv(EnvPoolTask(make_env(env_id, options), env_id, n_envs, **settings))
    pool.seed(1)
    return {"original": make_vec_env(env_id, n_envs, options=options), "envpool": pool}


def random_actions(venv: VecEnv, seed: int) -> Act:
    """Uniform actions for all rows, whenever called."""
    rng, space = np.random.default_rng(seed), venv.action_space
    if isinstance(space, spaces.Box):
        return lambda: rng.uniform(space.low, space.high, (venv.num_envs, *space.shape)).astype(space.dtype)
    assert isinstance(space, spaces.Discrete)
    return lambda: rng.integers(space.n, size=venv.num_envs)


def episodes(venv: VecEnv, act: Act, per_row: int) -> dict[str, np.ndarray]:
    """What the first episodes of every row are like, one entry per episode: `[n_episodes]` or `[n_episodes, ...]`."""
    told: list[tuple[Any, ...]] = []
    first = _flat(venv.reset())
    counts = np.zeros(venv.num_envs, np.int64)
    while (counts < per_row).any():
        observations, _, dones, infos = venv.step(act())
        for row in np.flatnonzero(dones & (counts < per_row)):
            info, numbers = infos[row], infos[row]["episode"]
            ends = (info["TimeLimit.truncated"], info.get("is_success", False))
            last = _flat(_row(info["terminal_observation"], np.newaxis))[0]
            told.append((numbers["r"], numbers["l"], *ends, first[row].copy(), last))
        counts += dones
        if dones.any():
            first[dones] = _flat(observations)[dones]
    names = ("return", "length", "share cut off", "success", "first observation", "last observation")
    return {name: np.array(column, np.float64) for name, column in zip(names, zip(*told, strict=True), strict=True)}


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """How many standard errors the means of two samples lie apart: the most of all components."""
    apart = np.abs(ours.mean(0) - theirs.mean(0))
    apart = np.where(apart < 1e-5 * (1 + np.abs(ours.mean(0))), 0.0, apart)  # float32 in C++, float64 in Python
    error = np.sqrt(ours.var(0) / len(ours) + theirs.var(0) / len(theirs))
    return float(np.max(np.divide(apart, error, out=np.where(apart > 0, np.inf, 0.0), where=error > 0)))


def differences(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> list[str]:
    """What is different, one phrase each."""
    found = []
    for name in ours:
        is_number = ours[name].ndim == 1
        if (far := distance(ours[name], theirs[name])) > (SIGMAS if is_number else CELL_SIGMAS):
            means = f" {ours[name].mean():.4g}, not {theirs[name].mean():.4g}" if is_number else ""
            found.append(f"{name}{means} ({far:.0f} standard errors)")
    return found


def fidelity(env_id: str, *, n_rows: int = N_ROWS, per_row: int = EPISODES_PER_ROW) -> list[str]:
    """How EnvPool's environment differs from the original, one phrase each; nothing if they agree."""
    import envpool

    is_minigrid = env_id.startswith(("MiniGrid-", "BabyAI-"))
    venvs = both(env_id, n_rows, MOST_STEPS if is_minigrid else None)
    ours, theirs = venvs["original"].action_space, envpool.make_spec(env_id).gymnasium_action_space
    found = [] if ours == theirs else [f"actions {ours}, not {theirs}"]
    row = _row(venvs["envpool"].reset(), 0)
    if not venvs["original"].observation_space.contains(row):
        return [*found, f"an observation that is not in {venvs['original'].observation_space}"]
    samples = [episodes(venv, random_actions(venv, seed), per_row) for seed, venv in enumerate(venvs.values())]
    found += differences(samples[0], samples[1])
    if is_minigrid:
        turn = functools.partial(np.zeros, N_TURNING, np.int64)
        lengths = [episodes(venv, turn, 1)["length"] for venv in both(env_id, N_TURNING).values()]
        found += differences({"length of turning around": lengths[0]}, {"length of turning around": lengths[1]})
    return found


def speeds(env_id: str, repeats: int) -> dict[str, list[float]]:
    """Steps per second of all rows together, by engine and repeat."""
    venvs = both(env_id, N_ENVS)
    acts = {name: random_actions(venv, 0) for name, venv in venvs.items()}
    for venv in venvs.values():
        venv.reset()

    def run(name: str, n_steps: int) -> float:
        actions = [acts[name]() for _ in range(n_steps)]
        begin = time.perf_counter()
        for each in actions:
            venvs[name].step(each)
        return N_ENVS * n_steps / (time.perf_counter() - begin)

    n_steps = {name: max(10, int(SECONDS * run(name, 20) / N_ENVS)) for name in venvs}
    found: dict[str, list[float]] = {name: [] for name in venvs}
    for _ in range(repeats):
        for name in venvs:
            found[name].append(run(name, n_steps[name]))
    return found


def measure(env_id: str, n_rows: int, repeats: int) -> dict[str, Any]:
    """Differences and speeds of one id."""
    by_engine = speeds(env_id, repeats)
    return {
        "differences": fidelity(env_id, n_rows=n_rows),
        "steps_per_second": {name: statistics.median(values) for name, values in by_engine.items()},
        "ratio": statistics.median(
            fast / slow for slow, fast in zip(by_engine["original"], by_engine["envpool"], strict=True)
        ),
    }


def measure_apart(env_id: str, n_rows: int, repeats: int) -> dict[str, Any]:
    """`measure` in a process that is ended after `LIMIT` seconds."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        try:
            sender.send(measure(env_id, n_rows, repeats))
        except (AgentsError, ValueError) as error:
            sender.send({"fault": str(error)})

    process = context.Process(target=work, daemon=True)
    process.start()
    sender.close()
    try:
        result = receiver.recv() if receiver.poll(LIMIT) else {"differences": [f"no answer in {LIMIT:.0f} seconds"]}
    except EOFError:
        process.join()
        result = {"differences": [f"the process ends with exit code {process.exitcode}"]}
    process.kill()
    process.join()
    return result


def as_markdown(result: dict[str, Any]) -> str:
    rows = result["ids"]
    agree = {env_id: row for env_id, row in rows.items() if row.get("differences") == [] and env_id not in DIFFERENT}
    lines = [
        f"# EnvPool {result['envpool']}",
        "",
        f"Behind SB3's interface as in a training, random actions. Fidelity: {N_ROWS * EPISODES_PER_ROW} episodes of "
        f"each engine, of MiniGrid and BabyAI at most {MOST_STEPS} steps long; different is what lies more than "
        f"{SIGMAS:g} standard errors apart in the mean ({CELL_SIGMAS:g} for the numbers of an observation). Speed: "
        f"steps per second of {N_ENVS} environments together, medians of {REPEATS} interleaved repeats. Written by "
        "`python -m benchmarks.envpool`.",
        "",
        f"{result['machine']}",
        "",
        f"{len(agree)} ids agree, fastest gain first:",
        "",
        "| | original | EnvPool | ratio |",
        "|---|---|---|---|",
    ]
    for env_id, row in sorted(agree.items(), key=lambda item: -item[1]["ratio"]):
        cells = " | ".join(f"{row['steps_per_second'][name]:,.0f}" for name in ("original", "envpool"))
        lines.append(f"| `{env_id}` | {cells} | {row['ratio']:.2f} |")
    others = {env_id: row for env_id, row in rows.items() if env_id not in agree}
    if others:
        lines += [
            "",
            "`--engine envpool` refuses the others:",
            "",
            "| | how it shows here | what it is |",
            "|---|---|---|",
        ]
    for env_id, row in others.items():
        shows = row["fault"] if "fault" in row else "; ".join(row["differences"])
        lines.append(f"| `{env_id}` | {shows} | {DIFFERENT.get(env_id, '')} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", nargs="*", help="which to measure (default: all, and write the result)")
    parser.add_argument("--smoke", action="store_true", help="one id, few episodes, nothing written")
    arguments = parser.parse_args()
    if importlib.util.find_spec("envpool") is None:
        print('| EnvPool | not installed: pip install -e ".[envpool]" |')
        return
    ids = [SMOKE_ID] if arguments.smoke else arguments.ids or sorted({*pool_ids(), *DIFFERENT})
    rows = {}
    for env_id in ids:
        rows[env_id] = measure_apart(env_id, 8 if arguments.smoke else N_ROWS, 1 if arguments.smoke else REPEATS)
        print(f"{env_id}: {rows[env_id]}", file=sys.stderr, flush=True)
    result = {"machine": describe_machine(), "envpool": importlib.metadata.version("envpool"), "ids": rows}
    print(as_markdown(result))
    if not (arguments.smoke or arguments.ids):
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "envpool.json").write_text(json.dumps(result, indent=1) + "\n")
        (RESULTS / "envpool.md").write_text(as_markdown(result))


def _flat(observations: Any) -> np.ndarray:
    """The observations of all rows as numbers, `[n, size]`, a new array."""
    parts = [observations[name] for name in sorted(observations)] if isinstance(observations, dict) else [observations]
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)


def _row(observations: Any, row: Any) -> Any:
    if isinstance(observations, dict):
        return {name: part[row] for name, part in observations.items()}
    return observations[row]


if __name__ == "__main__":
    main()
