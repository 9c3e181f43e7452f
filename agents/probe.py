"""What a memory is needed for, shown by operating on it: erase it at some step, and see what the agent still can do.

    result = probe(policy, config)
    print(report(result))
    draw(result, Path("probe.png"))

That a memory *contains* something does not mean that it is used: decoders find as much in untrained networks. Here the
memory is changed in the middle of unseen episodes, and what the agent does then is counted.

    erase         the memory starts afresh before step t
    freeze        nothing that is written from step t on stays
    transplant    before step t each episode gets the memory of another one
    delete        what lies under the key written at step t - 1 is removed: S <- (I - k k^T) S for each head

The last one exists for memories with one matrix for each head. The level without memory is that of the same agent with
its memory erased before every step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from agents.config import TrainConfig
from agents.errors import UsageError
from agents.evaluation import Episode, evaluate_policy_on, load_run, wilson_interval
from agents.statistics import Estimate, estimate
from agents.table import table
from fwp_rl.inspection import Inspectable, memory_blocks
from fwp_rl.memory import Memory
from fwp_rl.registry import memory_name
from fwp_rl.state import State

if TYPE_CHECKING:
    from fwp_rl.sb3 import MemoryActorCriticPolicy

Operation = Literal["erase", "freeze", "transplant", "delete"]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)

_MOST_STEPS = 12  # of the default sweep
_COLORS = {"erase": "#d6604d", "freeze": "#4393c3", "transplant": "#7b3294", "delete": "#1b7837"}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of the episodes after one operation."""

    operation: Operation
    step: int
    reached: int
    """Episodes that lasted to that step; the others were not touched."""
    estimate: Estimate
    """Success rate, or mean return where the task defines no success. The interval is Wilson's for a success rate, a
    bootstrap over episodes for a return."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """All outcomes of one agent."""

    env_id: str
    memory: str
    measure: Literal["success", "return"]
    episodes: int
    untouched: Estimate
    without_memory: Estimate
    """Of the same agent, its memory erased before every step."""
    outcomes: tuple[Outcome, ...]
    """Operation by operation, steps in order."""


def probe_run(directory: Path, **options: Any) -> Probe:
    """`probe` of the agent of a run."""
    config, policy = load_run(directory)
    return probe(policy, config, **options)


def probe(
    policy: "MemoryActorCriticPolicy",
    config: TrainConfig,
    *,
    operations: Sequence[Operation] | None = None,
    steps: Sequence[int] | None = None,
    episodes: int = 200,
    deterministic: bool = True,
) -> Probe:
    """Let the agent play the same unseen episodes untouched, without memory, and with each operation at each step.

    :param operations: None: all that the memory has.
    :param steps: Counted from 0; None: up to 12, from the first to the last of a typical episode.
    """
    if episodes < 2:
        raise UsageError(f"episodes={episodes} must be at least 2, since memories are transplanted from one to another")
    if steps is not None and min(steps, default=0) < 0:
        raise UsageError(f"steps={min(steps)} must be at least 0")
    can_delete = all(_has_one_matrix(memory) for memory in memory_blocks(policy.memory))
    if operations is None:
        operations = [name for name in OPERATIONS if name != "delete" or can_delete]
    elif "delete" in operations and not can_delete:
        raise UsageError(
            f"memory {memory_name(config.memory)} has not one matrix for each head, so that no key can be deleted; "
            f"choose from {', '.join(OPERATIONS[:-1])}"
        )

    def play(operation: str, step: int) -> list[Episode]:
        agent = Operated(policy, operation, step)
        return evaluate_policy_on(agent, config, episodes=episodes, n_envs=episodes, deterministic=deterministic)

    untouched = play("none", 0)
    lengths = np.array([row.length for row in untouched])
    if steps is None:
        steps = _sweep(int(np.median(lengths)))
    return Probe(
        env_id=config.env_id,
        memory=memory_name(config.memory),
        measure="return" if untouched[0].is_success is None else "success",
        episodes=episodes,
        untouched=_measured(untouched),
        without_memory=_measured(play("always erased", 0)),
        outcomes=tuple(
            Outcome(
                operation=operation,
                step=step,
                reached=int((lengths > step).sum()),
                estimate=_measured(play(operation, step)),
            )
            for operation in operations
            for step in sorted(set(steps))
        ),
    )


class Operated:
    """An agent whose memory is operated on at one step, to be played in the place of `policy`.

    All episodes begin with the first call and are played side by side, so that a call is a step.
    """

    def __init__(self, policy: "MemoryActorCriticPolicy", operation: str, step: int) -> None:
        self.observation_space, self.action_space = policy.observation_space, policy.action_space
        self._policy, self._operation, self._step = policy, operation, step
        self._calls = 0
        self._is_over = np.zeros(0, dtype=bool)
        self._frozen: Any = None
        self._last: tuple[Any, Any, np.ndarray] | None = None  # observation, state before it, episode starts

    def predict(
        self, observation: Any, state: Any, episode_start: np.ndarray, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """See `MemoryActorCriticPolicy.predict`."""
        if state is None:
            state = _initial_state(self._policy, len(episode_start))
            self._is_over = np.zeros(len(episode_start), dtype=bool)
        else:
            self._is_over |= episode_start
        state = self._operate(state)
        starts = episode_start
        if self._operation == "always erased" or (self._operation == "erase" and self._calls == self._step):
            starts = np.ones_like(episode_start)
        self._calls += 1
        actions, new_state = self._policy.predict(observation, state, starts, deterministic)
        self._last = observation, state, starts
        return actions, new_state

    def _operate(self, state: Any) -> Any:
        match self._operation:
            case "freeze" if self._calls >= self._step:
                self._frozen = state if self._frozen is None else self._frozen
                return self._frozen
            case "transplant" if self._calls == self._step:
                rows = np.arange(len(self._is_over))
                playing = np.flatnonzero(~self._is_over)
                rows[playing] = np.roll(playing, 1)
                return _map_arrays(lambda leaf: leaf[rows], state)
            case "delete" if self._calls == self._step and self._last is not None:
                return _without_last_keys(self._policy, state, *self._last)
        return state


def report(result: Probe) -> str:
    """The table for people: a row for each step, a column for each operation."""
    operations = dict.fromkeys(outcome.operation for outcome in result.outcomes)
    rows: dict[int, dict[str, str]] = {}
    for outcome in result.outcomes:
        row = rows.setdefault(
            outcome.step,
            {"before step": str(outcome.step), "episodes": str(outcome.reached)} | dict.fromkeys(operations, ""),
        )
        is_apart = outcome.estimate.high < result.untouched.low or outcome.estimate.low > result.untouched.high
        row[outcome.operation] = f"{outcome.estimate} {'*' if is_apart else ' '}" if outcome.reached else "-  "
    lines = [
        f"{result.env_id}   {result.memory}   {result.measure} in {result.episodes} episodes, with 95 % intervals",
        f"untouched    {result.untouched}",
        f"no memory    {result.without_memory}",
    ]
    if rows:
        lines += ["", table(list(rows.values())), "", "* the interval does not meet that of the untouched agent"]
    return "\n".join(lines)


def probe_json(result: Probe) -> dict[str, Any]:
    """The result for programs; intervals are `{"value", "low", "high"}`."""
    levels = {name: getattr(result, name)._asdict() for name in ("untouched", "without_memory")}
    outcomes = [
        {"operation": o.operation, "step": o.step, "reached": o.reached, **o.estimate._asdict()}
        for o in result.outcomes
    ]
    return {**vars(result), **levels, "outcomes": outcomes}


def draw(result: Probe, file: Path) -> None:
    """The measure against the step of the operation."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, axes = plt.subplots(figsize=(6.4, 3.6), dpi=150, layout="constrained")
    for level, name in ((result.untouched, "untouched"), (result.without_memory, "no memory")):
        axes.axhspan(level.low, level.high, color="0.5", alpha=0.15, linewidth=0)
        axes.axhline(level.value, color="0.4", linewidth=1, linestyle=(0, (5, 3)))
        axes.annotate(
            name,
            (1, level.value),
            (4, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color="0.3",
        )
    for operation in dict.fromkeys(outcome.operation for outcome in result.outcomes):
        of = [outcome for outcome in result.outcomes if outcome.operation == operation and outcome.reached]
        steps = [outcome.step for outcome in of]
        axes.fill_between(
            steps,
            [outcome.estimate.low for outcome in of],
            [outcome.estimate.high for outcome in of],
            color=_COLORS[operation],
            alpha=0.15,
            linewidth=0,
        )
        values = [outcome.estimate.value for outcome in of]
        axes.plot(steps, values, "o-", color=_COLORS[operation], markersize=4, label=operation)
    axes.set_title(f"{result.env_id}   {result.memory}", fontsize=10, loc="left")
    axes.set_xlabel("step before which the memory is changed")
    axes.set_ylabel(f"{result.measure} ({result.episodes} episodes)")
    if result.measure == "success":
        axes.set_ylim(-0.03, 1.03)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    plt.close(figure)


def _sweep(length: int) -> list[int]:
    """Steps of an episode: all of a short one; of a long one its first, where cues are, and others evenly spaced."""
    if length <= _MOST_STEPS:
        return list(range(length))
    return [0, 1, 2, *np.linspace(3, length - 1, _MOST_STEPS - 3).round().astype(int).tolist()]


def _measured(rows: Sequence[Episode]) -> Estimate:
    outcomes = [row.is_success for row in rows if row.is_success is not None]
    if outcomes:
        return Estimate(sum(outcomes) / len(outcomes), *wilson_interval(sum(outcomes), len(outcomes)))
    return estimate(lambda x: float(x.mean()), np.array([[row.episode_return for row in rows]]))


def _has_one_matrix(memory: Memory) -> bool:
    """Whether the state is one matrix for each head, with the keys that `head_inputs` tells."""
    state = memory.initial_state(1)
    if not (isinstance(memory, Inspectable) and isinstance(state, Tensor)):
        return False
    with torch.no_grad():
        inputs = state.new_zeros(1, 1, memory.input_size)
        heads = memory.head_inputs(inputs, state, torch.ones(1, 1, dtype=torch.bool, device=state.device))
    return heads.state.shape == state.shape


def _initial_state(policy: "MemoryActorCriticPolicy", many: int) -> Any:
    return _to_arrays(policy.actor_state(policy.initial_state(many)))


def _without_last_keys(
    policy: "MemoryActorCriticPolicy", state: Any, observation: Any, before: Any, starts: np.ndarray
) -> Any:
    """The state without what lies under the keys that the last step wrote, in every block."""
    device, blocks = policy.device, memory_blocks(policy.memory)

    def states(arrays: Any) -> Sequence[Any]:
        tensors = _map_arrays(lambda leaf: torch.as_tensor(leaf, device=device), arrays)
        return tensors if len(blocks) > 1 else (tensors,)

    episode_starts = torch.as_tensor(starts, device=device)[None]
    left: list[State] = []
    with torch.no_grad():
        inputs = policy.encode(policy.obs_to_tensor(observation)[0])[None]
        for block, block_before, block_state in zip(blocks, states(before), states(state), strict=True):
            assert isinstance(block, Inspectable)
            k = block.head_inputs(inputs, block_before, episode_starts).k  # [n, B, H, K], n writes
            basis = torch.linalg.qr(k.permute(1, 2, 3, 0)).Q  # [B, H, K, n]
            left.append(block_state - basis @ (basis.mT @ block_state))
            inputs, _ = block.scan(inputs, block_before, episode_starts)
    return _to_arrays(tuple(left) if len(blocks) > 1 else left[0])


def _to_arrays(state: State) -> Any:
    return _map_arrays(lambda leaf: leaf.cpu().numpy(), state)


def _map_arrays(function: Any, state: Any) -> Any:
    """As `map_state`, for the states of `predict`, whose leaves are arrays."""
    return tuple(_map_arrays(function, part) for part in state) if isinstance(state, tuple) else function(state)
