"""What `benchmarks.learning` asks: which task, which memories, how long, and what they must reach."""

import dataclasses
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Question:
    """One task, the memories to compare on it, and what is asked of them."""

    text: str
    env_id: str
    memories: tuple[str, ...]
    n_seeds: int
    measure: str
    """"success_rate" or "return_mean"."""
    bar: float
    """Agents with a memory must reach this."""
    control: tuple[float, float]
    """The agent without memory must stay in this interval."""
    flags: tuple[str, ...] = ()
    flags_of: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """More of them for these memories, which do not get there with those of all; the table says so."""
    stop_at: float | None = None
    """End a run (of an agent with memory) at this success rate."""
    eval_every: int = 50_000
    predicted_to_fail: tuple[str, ...] = ()
    """Memories of which `docs/memories.md` says that they cannot learn this."""
    published: dict[str, str] = field(default_factory=dict)
    """What others report for these memories, as `measure`."""
    published_by: str = ""
    mmer: bool = False
    """Show the maximum over training of the mean return of the last 100 episodes, too: what POPGym reports."""
    control_steps: int | None = None
    """Steps for the agent without memory, which never ends early, and for those that are predicted to fail. None:
    those of the preset."""


_SEQUENTIAL = ("rnn", "gru", "lstm", "recurrent_delta", "delta_rnn", "delta_lstm", "srwm", "fast_weight_memory")
"""Memories whose next state is a function of the last one that no scan can parallelise."""
_PARALLEL = (
    *("additive", "hebb", "linear_attention", "delta", "gated_delta", "delta_product", "oja", "continuous_delta"),
    *("delta_mlp", "schlag2021", "irie2021"),
)

_TO_TWO = "delta_to_2"
MEMORY_ARGUMENTS = {
    _TO_TWO: ("memory:delta", "--memory.negative-eigenvalues"),
    # as large as in POPGym (Morad et al. 2023): 256 units, or a fast weight matrix of 16 x 16
    "delta_16x16": (
        *("memory:delta", "--memory.n-heads", "1", "--memory.key-size", "16"),
        *("--memory.value-size", "16"),
    ),
    # with and without a delay head, whatever the default is
    "delta_delay": ("memory:delta", "--memory.delay-heads", "1"),
    "delta_plain": ("memory:delta", "--memory.delay-heads", "0"),
    "delta_delay_64": ("memory:delta", "--memory.delay-heads", "1", "--memory.key-size", "64"),
    "lstm_256": ("memory:lstm", "--memory.hidden-size", "256"),
    "gru_256": ("memory:gru", "--memory.hidden-size", "256"),
}
"""Memories that are not just one of the registered names."""

_ENDLESS_T_MAZE = Question(
    text="Endless T-Maze by its published rules, 3 corridors of 10, 300k steps",
    env_id="fwp/EndlessTMaze-v0",
    memories=("delta", "gated_delta", "additive", "lstm", "gru", "none"),
    n_seeds=5,
    measure="success_rate",
    bar=0.95,
    control=(0.0, 0.2),
    stop_at=1.0,
    eval_every=20_000,
    published={"lstm": "1.00", "gru": "0.53"},
    published_by="Shchendrigin et al. 2026 (arXiv 2601.15086): PPO, fixed lengths, read off figures, budget unknown",
)


def _popgym(
    task: str, *, bar: float, control: tuple[float, float], published: dict[str, str], published_by: str = ""
) -> Question:
    return Question(
        text=f"POPGym {task}, 1M steps, published sizes",
        env_id=f"popgym-{task}-v0",
        memories=("delta_16x16", "lstm_256", "gru_256", "none"),
        n_seeds=3,
        measure="return_mean",
        bar=bar,
        control=control,
        flags=("--total-timesteps", "1000000"),
        published=published,
        published_by=published_by,
    )


def _order(k: int, *, bar: float, stop_at: str) -> Question:
    return Question(
        text=f"What was shown {k} steps ago, 500k steps",
        env_id="fwp/RepeatPrevious-v0",
        memories=("delta_delay", "attention", "lstm", "gru", "delta_plain", "none"),
        n_seeds=5,
        measure="return_mean",
        bar=bar,
        control=(0.2, 0.3),
        flags=("--total-timesteps", "500000", "--stop-at-return", stop_at),
        eval_every=10_000,
        predicted_to_fail=("delta_plain",),
        control_steps=300_000,
    )


def _popgym_order(
    level: str, steps: int, *, memories: tuple[str, ...], bar: float, stop_at: str, published: str
) -> Question:
    return Question(
        text=f"POPGym RepeatPrevious{level}, {steps // 1000:,}k steps",
        env_id=f"popgym-RepeatPrevious{level}-v0",
        memories=memories,
        n_seeds=5,
        measure="return_mean",
        bar=bar,
        control=(-0.55, -0.35),
        # An answer is rewarded at once, as in the preset of fwp/RepeatPrevious-v0.
        flags=(
            *("--total-timesteps", str(steps), "--stop-at-return", stop_at),
            *("--ppo.learning-rate", "1e-3", "--ppo.gamma", "0.5", "--ppo.gae-lambda", "0.5"),
        ),
        eval_every=25_000,
        predicted_to_fail=("delta_plain",),
        control_steps=300_000,
        mmer=True,
        published={memories[0]: published},
        published_by="Morad et al. 2023 (arXiv 2303.01859), best of 13 memories after 15M steps, as MMER",
    )


QUESTIONS = {
    "t-maze": Question(
        text="T-maze on MiniGrid, corridor of 7, 300k steps",
        env_id="fwp/MiniGrid-TMaze-v0",
        memories=("delta", "gated_delta", "lstm", "gru", "none"),
        n_seeds=5,
        measure="success_rate",
        bar=0.98,
        control=(0.40, 0.60),
        stop_at=1.0,
        eval_every=20_000,
    ),
    "cartpole": Question(
        text="CartPole without velocities, 50k steps",
        env_id="CartPoleNoVel-v1",
        memories=("delta", "gated_delta", "lstm", "gru", "none"),
        n_seeds=5,
        measure="return_mean",
        bar=450.0,
        control=(0.0, 250.0),
        eval_every=2_500,
    ),
    "t-maze-20": Question(
        text="T-maze, corridor of 20, every memory, 500k steps",
        env_id="fwp/TMaze-v0",
        memories=(*_SEQUENTIAL, *_PARALLEL, "none"),
        n_seeds=1,
        measure="success_rate",
        bar=0.9,
        control=(0.35, 0.65),
        flags=("--env-options", "length=20"),
        stop_at=1.0,
        eval_every=20_000,
    ),
    "repeat-previous": Question(
        text="What was shown 4 steps ago, every memory, 1M steps (500k where failure is predicted)",
        env_id="fwp/RepeatPrevious-v0",
        flags_of={
            "delta_lstm": ("--total-timesteps", "1500000", "--ppo.learning-rate-schedule", "linear"),
            "srwm": ("--ppo.learning-rate", "3e-3", "--ppo.learning-rate-schedule", "linear"),
        },
        memories=(*_SEQUENTIAL, *_PARALLEL, "none"),
        n_seeds=1,
        measure="return_mean",
        bar=0.9,
        control=(0.2, 0.3),
        eval_every=50_000,
        predicted_to_fail=_PARALLEL,
        control_steps=500_000,
    ),
    "order-4": dataclasses.replace(
        _order(4, bar=0.98, stop_at="0.99"),
        text="What was shown 4 steps ago, 500k steps (a delay head: 150k)",
        flags_of={"delta_delay": ("--total-timesteps", "150000")},
    ),
    "order-31": dataclasses.replace(
        _order(31, bar=0.9, stop_at="0.95"),
        flags=("--preset", "repeat-previous-31", "--total-timesteps", "500000", "--stop-at-return", "0.95"),
    ),
    "reverse": Question(
        text="A sequence of 12 said backwards, two blocks, 1M steps",
        env_id="fwp/Copy-v0",
        memories=("delta_delay", "lstm", "none"),
        n_seeds=3,
        measure="return_mean",
        bar=0.9,
        control=(0.2, 0.3),
        flags=("--preset", "copy-reverse", "--n-blocks", "2"),
        eval_every=50_000,
        control_steps=300_000,
    ),
    "key-value": Question(
        text="Key-value recall with overwriting: 4 keys, 12 writes, 1M steps",
        env_id="fwp/KeyValueRecall-v0",
        memories=("delta", "gated_delta", "additive", "lstm", "gru", "none"),
        n_seeds=3,
        measure="return_mean",
        bar=0.9,
        control=(0.1, 0.15),
        eval_every=50_000,
        predicted_to_fail=("additive",),
    ),
    "endless-t-maze-3": _ENDLESS_T_MAZE,
    "endless-t-maze-10": dataclasses.replace(
        _ENDLESS_T_MAZE,
        text="Endless T-Maze by its published rules, 10 corridors of 10, 300k steps",
        flags=("--preset", "endless-t-maze-10"),
        control=(0.0, 0.05),
        published={"lstm": "0.83", "gru": "0.31"},
    ),
    "parity": Question(
        text="Parity of 16 bits, 1M steps",
        env_id="fwp/GroupTracking-v0",
        memories=(_TO_TWO, "delta", "gated_delta", "additive", "lstm", "gru", "none"),
        n_seeds=3,
        measure="return_mean",
        bar=0.9,
        control=(0.45, 0.55),
        flags=("--preset", "parity"),
        eval_every=50_000,
        predicted_to_fail=("delta", "gated_delta", "additive"),
    ),
    "five-cups": Question(
        text="Shell game of five cups, 16 moves, 1M steps",
        env_id="fwp/GroupTracking-v0",
        memories=(_TO_TWO, "delta", "gated_delta", "additive", "lstm", "gru", "none"),
        n_seeds=3,
        measure="return_mean",
        bar=0.85,
        control=(0.15, 0.25),
        eval_every=50_000,
        predicted_to_fail=("delta", "gated_delta", "additive"),
    ),
    "memory-s9": Question(
        text="MiniGrid-MemoryS9-v0 with a view of 3",
        env_id="MiniGrid-MemoryS9-v0",
        memories=("delta", "lstm", "none"),
        n_seeds=3,
        measure="success_rate",
        bar=0.95,
        control=(0.0, 0.70),
        stop_at=0.98,
        control_steps=1_200_000,
    ),
    "memory-s11": Question(
        text="MiniGrid-MemoryS11-v0",
        env_id="MiniGrid-MemoryS11-v0",
        memories=("delta", "lstm", "none"),
        n_seeds=3,
        measure="success_rate",
        bar=0.95,
        control=(0.0, 0.70),
        stop_at=0.98,
        control_steps=1_200_000,
    ),
    "popgym-repeat-previous": _popgym(
        "RepeatPreviousEasy",
        bar=0.9,
        control=(-0.55, -0.35),
        published={"gru_256": "0.999"},
        published_by="Le et al. 2025, after 15M steps; the best of them all",
    ),
    "popgym-order-easy": _popgym_order(
        "Easy",
        300_000,
        memories=("delta_delay", "delta_plain", "lstm", "gru", "none"),
        bar=0.98,
        stop_at="0.99",
        published="1.000",
    ),
    "popgym-order-medium": _popgym_order(
        "Medium", 600_000, memories=("delta_delay", "lstm", "gru", "none"), bar=0.9, stop_at="0.95", published="0.789"
    ),
    "popgym-order-hard": _popgym_order(
        "Hard", 2_500_000, memories=("delta_delay_64", "none"), bar=0.9, stop_at="0.93", published="0.191"
    ),
    "popgym-autoencode": _popgym(
        "AutoencodeEasy",
        bar=0.4,
        control=(-0.55, -0.40),
        published={},
    ),
    "popgym-cartpole": _popgym("PositionOnlyCartPoleEasy", bar=0.95, control=(0.0, 0.4), published={}),
}
