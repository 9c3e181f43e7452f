"""Episodes of an agent, with all that can be drawn or probed: what was seen and done, and what was in the memory.

config, policy = load_run(directory)
(recording,) = record(policy, config, seeds=[1_000_000])
recording.fast_weights.contributions    # who wrote what was read
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces

from agents.config import TrainConfig
from agents.episodes import EpisodeQueue
from agents.errors import EnvironmentFaultError
from agents.evaluation import check_spaces, make_episode_env
from agents.seeding import own_random_numbers
from fwp_rl.inspection import (
    AttentionTrace,
    Attentive,
    Inspectable,
    MemoryTrace,
    inspect_memory,
    memory_blocks,
    read_out,
)
from fwp_rl.layers import FastWeightBlock, ResidualBlock
from fwp_rl.state import State, state_leaves

if TYPE_CHECKING:
    from stable_baselines3.common.distributions import Distribution

    from fwp_rl.sb3 import MemoryActorCriticPolicy

_Pictures = tuple[np.ndarray | None, np.ndarray | None]
_MINIGRID_ACTIONS = ("left", "right", "forward", "pick up", "drop", "toggle", "done")


@dataclass(frozen=True, kw_only=True)
class FastWeights:
    """The fast weights of one block at every step of an episode of T steps; all arrays are float32.

    H heads with matrices of K keys by V values. Where a memory makes several writes for each input (`n_inner` of the
    trace), `beta` and `surprise` are those of the largest.
    """

    matrices: np.ndarray
    """`[T, H, K, V]`: S_t, after the write of step t."""
    written: np.ndarray
    """`[T, H, K, V]`: what step t added, beta k (v - S'^T k)^T; what faded is not in it."""
    beta: np.ndarray
    """`[T, H]`: write strength."""
    surprise: np.ndarray
    """`[T, H]`: |v - S'^T k|, how far what the key recalled was from what was to be stored."""
    norms: np.ndarray
    """`[T, H]`: Frobenius norm of S_t."""
    erased: np.ndarray
    """`[T, H]`: the part of S_{t-1} that was taken away."""
    contributions: np.ndarray
    """`[T, H, T]`: the retrieval map, how much of the read of step t was written at step s, in units of the values
    (`fwp_rl.inspection.MemoryTrace.contributions`); 0 for s > t."""

    retrieval: np.ndarray
    """`[T, T]`: the same of all heads. Where they are those of a `FastWeightBlock`, of what the block gets from
    them (`fwp_rl.inspection.read_out`); else of their reads side by side."""

    delay_heads: int = 0
    """The first heads, in which what was written under row 0 lies in row i after i steps."""


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Attention maps of the H heads of one block over T steps; all arrays are float32."""

    weights: np.ndarray
    """`[T, H, T]`: the attention maps, how much of the value of step s is in the read of step t; 0 for s > t."""
    retrieval: np.ndarray
    """`[T, T]`: what the block gets of each step from all heads (`fwp_rl.inspection.read_out`)."""

    @property
    def steps_back(self) -> np.ndarray:
        """float32 `[T, H]`: how long ago what is read was, on the average."""
        steps = np.arange(len(self.weights), dtype=np.float32)
        ago = steps[:, None] - steps
        return (self.weights * ago[:, None]).sum(-1)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One episode of T steps, as it was played."""

    seed: int
    frames: tuple[np.ndarray, ...]
    """T + 1 pictures uint8 `[y, x, 3]`: before each step, and the end; none if they were not asked for."""
    views: tuple[np.ndarray, ...] | None
    """T + 1 pictures of what the agent sees, where the task can draw them."""
    observations: np.ndarray | dict[str, np.ndarray]
    """`[T, ...]`, as the agent got them."""
    actions: np.ndarray
    """`[T, ...]`, as the environment took them."""
    action_texts: tuple[str, ...]
    """The actions in words or numbers."""
    action_names: tuple[str, ...] | None
    """Of a single discrete action: all that there are, as in `action_texts`."""
    action_probabilities: np.ndarray | None
    """float32 `[T, A]`, of discrete actions; of several at once, one after the other."""
    action_mean: np.ndarray | None
    """float32 `[T, A]`, of continuous actions, before they are cut to their bounds."""
    action_std: np.ndarray | None
    """float32 `[T, A]`."""
    values: np.ndarray
    """float32 `[T]`: what the critic expects."""
    rewards: np.ndarray
    """float32 `[T]`."""
    outcome: str
    """"success", "failure", "time is up" or "over"; empty if the recording was cut off."""
    states: tuple[np.ndarray, ...]
    """Every leaf of the state of the whole memory, float32 `[T, ...]`, after each step; none for an agent without."""
    fast_weights: FastWeights | None
    """None for a memory that has none."""
    attention: Attention | None = None
    """None for all memories but attention."""

    @property
    def retrieval(self) -> np.ndarray | None:
        """float32 `[T, T]`: the retrieval map of fast weights or attention; None for a memory in activations."""
        inside = self.fast_weights or self.attention
        return None if inside is None else inside.retrieval

    @property
    def changes(self) -> np.ndarray:
        """float64 `[T]`: norm of the change of the whole state in each step; an episode starts from zeros."""
        squares = np.zeros(len(self.actions))
        for leaf in self.states:
            change = np.diff(leaf.astype(np.float64), axis=0, prepend=np.zeros_like(leaf[:1]))
            squares += (change.reshape(len(change), -1) ** 2).sum(1)
        return np.sqrt(squares)


def record(
    policy: "MemoryActorCriticPolicy",
    config: TrainConfig,
    *,
    seeds: Sequence[int],
    deterministic: bool = True,
    block: int = 0,
    pictures: bool = True,
    most_steps: int = 2000,
) -> list[Recording]:
    """Play one episode for each seed, and keep everything.

    The random numbers of the caller are left alone.

    :param block: Of a stack of memories of fast weights or of attention, the one to look into.
    :param pictures: False for a task that need not be drawn.
    :param most_steps: Of all episodes together; the last one is cut off there.
    :raises RunFileError: the agent does not belong to the task.
    :raises EnvironmentFaultError: the task breaks, or draws no pictures.
    """
    ends: list[_Pictures] = []
    look = _pictures if pictures else _no_pictures
    venv = make_episode_env(
        config,
        EpisodeQueue(seeds),
        n_envs=1,
        render_mode="rgb_array" if pictures else None,
        at_end=lambda env: ends.append(look(env)),
    )
    try:
        check_spaces(policy, venv)
        policy.set_training_mode(False)
        recordings: list[Recording] = []
        n_steps = 0
        with own_random_numbers(seeds[0]), torch.no_grad():
            observations = venv.reset()
            while len(recordings) < len(seeds) and n_steps < most_steps:
                tape = _Tape(venv.unwrapped.envs[0], look)  # type: ignore[attr-defined]  # a DummyVecEnv
                observations, outcome = tape.play(policy, venv, observations, deterministic, most_steps - n_steps)
                if outcome:
                    tape.pictures.append(ends[-1])
                n_steps += len(tape.actions)
                recordings.append(tape.recording(policy, seeds[len(recordings)], outcome, block))
        return recordings
    finally:
        venv.close()


class _Tape:
    """An episode while it is played."""

    def __init__(self, env: Any, look: Callable[[Any], _Pictures]) -> None:
        self.env, self.look = env, look
        self.pictures: list[_Pictures] = []
        self.observations: list[Any] = []
        self.actions: list[np.ndarray] = []
        self.distributions: list[dict[str, np.ndarray]] = []
        self.values: list[float] = []
        self.rewards: list[float] = []
        self.states: list[State] = []

    def play(
        self, policy: "MemoryActorCriticPolicy", venv: Any, observations: Any, deterministic: bool, most_steps: int
    ) -> tuple[Any, str]:
        """Until the episode is over; returns the first observations of the next one and how it ended."""
        state = policy.initial_state(1)
        starts = torch.ones(1, dtype=torch.bool, device=policy.device)
        while len(self.actions) < most_steps:
            self.pictures.append(self.look(self.env))
            self.observations.append(observations)
            tensors = policy.obs_to_tensor(observations)[0]
            self.values.append(float(policy.predict_values(tensors, state, starts)))
            distribution, state = policy.get_distribution(tensors, state, starts)
            actions = policy.environment_actions(distribution.get_actions(deterministic=deterministic))
            observations, rewards, dones, infos = venv.step(actions)
            self.actions.append(actions[0])
            self.distributions.append(_parameters(distribution))
            self.rewards.append(float(rewards[0]))
            self.states.append(policy.actor_state(state))
            starts = torch.zeros_like(starts)
            if dones[0]:
                return observations, _outcome(infos[0])
        self.pictures.append(self.look(self.env))
        return observations, ""

    def recording(self, policy: "MemoryActorCriticPolicy", seed: int, outcome: str, block: int) -> Recording:
        frames = tuple(frame for frame, _ in self.pictures if frame is not None)
        views = tuple(view for _, view in self.pictures if view is not None)
        parameters = {name: np.stack([step[name] for step in self.distributions]) for name in self.distributions[0]}
        leaves = zip(*(state_leaves(state) for state in self.states), strict=True)
        inside = _inside(policy, self.observations, block)
        return Recording(
            seed=seed,
            frames=frames,
            views=views or None,
            observations=_stacked(self.observations),
            actions=np.stack(self.actions),
            action_texts=tuple(_action_text(self.env, action) for action in self.actions),
            action_names=_action_names(self.env),
            action_probabilities=parameters.get("probabilities"),
            action_mean=parameters.get("mean"),
            action_std=parameters.get("std"),
            values=np.array(self.values, np.float32),
            rewards=np.array(self.rewards, np.float32),
            outcome=outcome,
            states=tuple(torch.cat(leaf).cpu().numpy() for leaf in leaves),
            fast_weights=inside if isinstance(inside, FastWeights) else None,
            attention=inside if isinstance(inside, Attention) else None,
        )


def _inside(policy: "MemoryActorCriticPolicy", observations: list[Any], block: int) -> FastWeights | Attention | None:
    """What the heads of the block did in an episode with these observations `[1, ...]`."""
    memory = memory_blocks(policy.memory)[block]
    has_state = any(True for _ in state_leaves(memory.initial_state(1)))
    if not (isinstance(memory, Inspectable | Attentive) and has_state):
        return None
    inputs = torch.cat([policy.encode(policy.obs_to_tensor(x)[0]) for x in observations])
    trace = inspect_memory(policy.memory, inputs[:, None], block=block)
    layers = getattr(memory, "block", None)
    if isinstance(trace, AttentionTrace):
        assert isinstance(layers, ResidualBlock)
        weights, retrieval = (x[:, 0].float().cpu().numpy() for x in (trace.retrieval, read_out(layers, trace)))
        return Attention(weights=weights, retrieval=retrieval)
    return folded(trace, layers)


def folded(trace: MemoryTrace, layers: object = None) -> FastWeights:
    """The first row of a trace, with one step for each input; `layers` are those around the heads."""
    added = trace.k[..., None] * trace.written[..., None, :]
    n = trace.n_inner

    if isinstance(layers, FastWeightBlock):
        retrieval = read_out(layers, trace)
    else:
        retrieval = trace.contributions.square().sum(2).sqrt()

    def inputs(x: torch.Tensor) -> torch.Tensor:
        return x[:, 0].unflatten(0, (-1, n))  # [T, n, H, ...]

    def array(x: torch.Tensor) -> np.ndarray:
        return x.float().cpu().numpy()

    return FastWeights(
        matrices=array(inputs(trace.fast_weights)[:, -1]),
        written=array(inputs(added).sum(1)),
        beta=array(trace.largest(trace.beta)[:, 0]),
        surprise=array(trace.largest(trace.surprise)[:, 0]),
        norms=array(inputs(trace.norms)[:, -1]),
        erased=array(trace.largest(trace.erased)[:, 0]),
        contributions=array(trace.contributions[:, 0]),
        retrieval=array(retrieval[:, 0]),
        delay_heads=trace.delay_heads,
    )


def _parameters(distribution: "Distribution") -> dict[str, np.ndarray]:
    """Probabilities, or mean and standard deviation, of one action: `[A]`."""
    inner: Any = distribution.distribution
    if isinstance(inner, list):  # of several discrete actions
        tensors = {"probabilities": torch.cat([part.probs for part in inner], dim=-1)}
    elif hasattr(inner, "probs"):
        tensors = {"probabilities": inner.probs}
    else:
        tensors = {"mean": inner.mean, "std": inner.stddev}
    return {name: tensor[0].cpu().numpy() for name, tensor in tensors.items()}


def _stacked(observations: list[Any]) -> np.ndarray | dict[str, np.ndarray]:
    """Observations `[1, ...]` as one array `[T, ...]`, or one for each key."""
    if isinstance(observations[0], dict):
        return {key: np.concatenate([step[key] for step in observations]) for key in observations[0]}
    return np.concatenate(observations)


def _pictures(env: Any) -> _Pictures:
    """The environment, and the agent's own view where the task can draw one (MiniGrid)."""
    frame = env.render()
    if not isinstance(frame, np.ndarray) or frame.ndim != 3:
        raise EnvironmentFaultError("the environment draws no pictures (render_mode 'rgb_array' gave none)")
    draw_view = getattr(env.unwrapped, "get_pov_render", None)
    view = None if draw_view is None else np.asarray(draw_view(tile_size=64), dtype=np.uint8)
    return frame[..., :3].astype(np.uint8), view


def _no_pictures(env: Any) -> _Pictures:
    return None, None


def _action_text(env: Any, action: Any) -> str:
    array = np.asarray(action)
    names: Sequence[str] = ()
    if hasattr(env.unwrapped, "get_pov_render"):
        names = _MINIGRID_ACTIONS
    elif hasattr(env.unwrapped, "get_action_meanings"):  # ours, and Atari's
        names = env.unwrapped.get_action_meanings()
    if array.ndim == 0 and 0 <= int(array) < len(names):
        return names[int(array)]
    if array.dtype.kind == "f":
        return ", ".join(f"{part:+.2f}" for part in array.reshape(-1)[:4])
    return ", ".join(str(part) for part in array.reshape(-1)[:6])


def _action_names(env: Any) -> tuple[str, ...] | None:
    space = env.action_space
    if not isinstance(space, spaces.Discrete):
        return None
    return tuple(_action_text(env, action) for action in range(int(space.start), int(space.start + space.n)))


def _outcome(info: dict[str, Any]) -> str:
    if "is_success" in info:
        return "success" if info["is_success"] else "failure"
    return "time is up" if info.get("TimeLimit.truncated") else "over"
