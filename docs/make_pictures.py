"""The pictures of docs/memories.md: one for each registered memory, and one of delay heads.

    python docs/make_pictures.py                          # all
    python docs/make_pictures.py delta lstm delay_heads   # these

Left, of a memory of fast weights: what its rule does with keys and values written by hand, as the exact retrieval map.
Left, of attention: what it reads with the same keys in a window of 6 steps.
Left, of any other memory: the closest thing that it has, the gradient of each output with respect to each input.
Right: how far back the gradient reaches in a freshly initialised memory of default size, beside all the others.
The picture of delay heads shows one head that always writes under row 0, without a delay and with it.
"""

import argparse
import pathlib

import matplotlib as mpl

mpl.use("Agg")

import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor

from fwp_rl import audit_gradients, memory_configs
from fwp_rl.inspection import (
    AttentionTrace,
    Attentive,
    Inspectable,
    MemoryTrace,
    trace_attention,
    trace_heads,
)
from fwp_rl.layers import AttentionInputs, HeadInputs
from fwp_rl.memory import Memory

FOLDER = pathlib.Path(__file__).parent / "memories"
INPUT_SIZE, STEPS, ROWS = 16, 128, 2
HALF_LIFE = 8  # steps, of a memory that decays

# written key, strength, key that is read; an episode starts before step START
SCRIPT: list[tuple[str, float, str]] = [
    ("A", 1.0, "A"),
    ("B", 1.0, "B"),
    ("C", 1.0, "A"),
    ("A", 1.0, "A"),
    ("A", 1.0, "B"),
    ("B", 0.5, "B"),
    ("", 0.0, "A"),
    ("", 0.0, "C"),
    ("A", 1.0, "C"),
    ("", 0.0, "A"),
    ("C", 1.0, "C"),
    ("", 0.0, "B"),
]
START = 8
KEYS = "ABC"

WINDOW = 6
SHARPNESS = 8.0
"""Logit of equal keys; that of others is 0."""

READ_ROWS = [0, 0, 1, 2, 3, 1, 0, 1, 2, 3, 2, 1]
"""Row that is read at each step of a head that always writes under row 0; an episode starts before step 6."""
DELAY_START = 6
DELAY_HEADS = "delay_heads"


def vectors(keys: list[str]) -> Tensor:
    """Orthogonal unit vectors for the keys by their names, also for none, `[T, 1, 1, K]`."""
    indices = torch.tensor([KEYS.find(key) if key else len(KEYS) for key in keys])
    return F.one_hot(indices, len(KEYS) + 1).double()[:, None, None]


def scripted(memory: Inspectable) -> MemoryTrace:
    """What the rule of the memory does with the script: one head, orthogonal keys."""
    inputs = torch.zeros(len(SCRIPT), 1, INPUT_SIZE, dtype=torch.float64)
    starts = torch.zeros(len(SCRIPT), 1, dtype=torch.bool)
    starts[START] = True
    assert isinstance(memory, Memory)
    heads = memory.double().head_inputs(inputs, memory.initial_state(1), starts)
    steps = len(SCRIPT)
    decay = torch.full((steps, 1, 1), 0.5 ** (1 / HALF_LIFE), dtype=torch.float64).log()
    heads = heads._replace(
        q=vectors([read for _, _, read in SCRIPT]),
        k=vectors([written for written, _, _ in SCRIPT]),
        v=torch.eye(steps, dtype=torch.float64)[:, None, None],
        beta=torch.tensor([strength for _, strength, _ in SCRIPT], dtype=torch.float64)[:, None, None],
        log_decay=None if heads.log_decay is None else decay,
        state=torch.zeros(1, 1, len(KEYS) + 1, steps, dtype=torch.float64),
        delay_heads=0,
    )
    return trace_heads(heads, starts)


def scripted_attention() -> AttentionTrace:
    """What attention reads of the script: each step has a key, that of no key too, and write strengths mean nothing."""
    steps = torch.arange(len(SCRIPT))
    ago = steps[:, None] - steps
    same_episode = (steps[:, None] >= START) == (steps >= START)
    q, k = (vectors(list(keys)) for keys in zip(*((read, written) for written, _, read in SCRIPT), strict=True))
    return trace_attention(
        AttentionInputs(
            q=SHARPNESS * q.shape[-1] ** 0.5 * q,
            k=k,
            v=torch.eye(len(steps), dtype=torch.float64)[:, None, None],
            allowed=((ago >= 0) & (ago < WINDOW) & same_episode)[:, None],
        )
    )


def scripted_delay(delay_heads: int) -> MemoryTrace:
    """One head with the delta rule that writes every value under row 0."""
    steps, rows = len(READ_ROWS), max(READ_ROWS) + 2
    starts = torch.zeros(steps, 1, dtype=torch.bool)
    starts[DELAY_START] = True
    heads = HeadInputs(
        q=F.one_hot(torch.tensor(READ_ROWS), rows).double()[:, None, None],
        k=F.one_hot(torch.zeros(steps, dtype=torch.int64), rows).double()[:, None, None],
        v=torch.eye(steps, dtype=torch.float64)[:, None, None],
        beta=torch.ones(steps, 1, 1, dtype=torch.float64),
        log_decay=None,
        state=torch.zeros(1, 1, rows, steps, dtype=torch.float64),
        rule="delta",
        delay_heads=delay_heads,
    )
    return trace_heads(heads, starts)


def draw_weights(axes: Axes, trace: MemoryTrace | AttentionTrace, start: int) -> None:
    """The weight of every write in every read."""
    weights = trace.retrieval[:, 0, 0]
    axes.imshow(weights, cmap="RdBu", vmin=-1, vmax=1)
    for t, s in (weights.abs() > 0.005).nonzero().tolist():
        weight = float(weights[t, s])
        axes.text(s, t, f"{weight:.2f}".rstrip("0").rstrip("."), ha="center", va="center", fontsize=6.5, color="white")
    for line in (axes.axhline, axes.axvline):
        line(start - 0.5, color="black", linewidth=0.8, linestyle=":")


def draw_delay_heads(left: Axes, right: Axes) -> None:
    """The same writes and reads without a delay, and in a delay head."""
    for axes, delay_heads, title in ((left, 0, "rows stay"), (right, 1, "delay head: rows move down before each step")):
        draw_weights(axes, scripted_delay(delay_heads), DELAY_START)
        axes.set_xticks(range(len(READ_ROWS)))
        axes.set_yticks(range(len(READ_ROWS)), [f"{row}" for row in READ_ROWS])
        axes.set_xlabel("step that wrote, always under row 0")
        axes.set_ylabel("row that is read, step by step")
        axes.set_title(title, fontsize=9)


def draw_retrieval(axes: Axes, trace: MemoryTrace) -> None:
    """The weight of every write in every read of the script."""
    draw_weights(axes, trace, START)
    half = "½"
    axes.set_xticks(range(len(SCRIPT)), [f"{half if b == 0.5 else ''}{key}" for key, b, _ in SCRIPT])
    axes.set_yticks(range(len(SCRIPT)), [read for _, _, read in SCRIPT])
    axes.set_xlabel("written key, step by step (½: half strength)")
    axes.set_ylabel("key that is read")
    axes.set_title("what each read consists of", fontsize=9)


def draw_attention(axes: Axes) -> None:
    """The weight of every step in every read of the script."""
    draw_weights(axes, scripted_attention(), START)
    axes.set_xticks(range(len(SCRIPT)), [written or "-" for written, _, _ in SCRIPT])
    axes.set_yticks(range(len(SCRIPT)), [read for _, _, read in SCRIPT])
    axes.set_xlabel(f"key of each step (window of {WINDOW} steps)")
    axes.set_ylabel("key that is read")
    axes.set_title("what each read consists of", fontsize=9)


def draw_gradients(axes: Axes, memory: Memory) -> None:
    """|d outputs[t] / d inputs[s]|, every row relative to its largest."""
    steps = 15
    starts = torch.zeros(steps, ROWS, dtype=torch.bool)
    starts[steps * 2 // 3] = True
    inputs = torch.randn(steps, ROWS, INPUT_SIZE)
    norms = torch.zeros(steps, steps)
    for t in range(steps):
        norms[t, : t + 1] = audit_gradients(memory, inputs[: t + 1], None, starts[: t + 1]).norms.flip(0)
    image = axes.imshow(norms / norms.amax(1, keepdim=True), cmap="Blues", vmin=0, vmax=1)
    axes.figure.colorbar(image, ax=axes, shrink=0.7)
    axes.set_xlabel("input of step s")
    axes.set_ylabel("output of step t")
    axes.set_title("|d output t / d input s|, largest of each row = 1", fontsize=9)
    for line in (axes.axhline, axes.axvline):
        line(steps * 2 // 3 - 0.5, color="black", linewidth=0.8, linestyle=":")


def draw_reach(axes: Axes, reaches: dict[str, Tensor], name: str) -> None:
    """The audit of the memory `name`, and in grey that of the others."""
    for other, norms in reaches.items():
        chosen = other == name
        relative = (norms / norms.max()).where(norms > 0, torch.nan)
        style = {"color": "C0", "linewidth": 2.0, "zorder": 3} if chosen else {"color": "0.8", "linewidth": 1.0}
        axes.plot(relative, label=name if chosen else None, marker="o" if chosen and other == "none" else None, **style)
    axes.set_yscale("log")
    axes.set_ylim(1e-7, 2)
    axes.set_xlabel("n steps back")
    axes.set_title("|d last output / d input n steps before|, untrained", fontsize=9)
    axes.legend(loc="lower left", fontsize=8, frameon=False)


def main() -> None:
    """Draw the memories named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="registered memories; all of them if none is named")
    names = parser.parse_args().names or [*memory_configs(), DELAY_HEADS]
    FOLDER.mkdir(exist_ok=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    memories = {name: config().build(INPUT_SIZE) for name, config in memory_configs().items()}
    inputs = torch.randn(STEPS, ROWS, INPUT_SIZE)
    reaches = {name: audit_gradients(memory, inputs).norms for name, memory in memories.items()}
    for name in names:
        figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.6), width_ratios=(1, 1), layout="constrained")
        if name == DELAY_HEADS:
            draw_delay_heads(left, right)
        else:
            draw_reach(right, reaches, name)
            memory = memories[name]
            if isinstance(memory, Inspectable):
                draw_retrieval(left, scripted(memory))
            elif isinstance(memory, Attentive):
                draw_attention(left)
            else:
                draw_gradients(left, memory)
        for axes in (left, right):
            axes.tick_params(labelsize=7)
            axes.xaxis.label.set_size(8)
            axes.yaxis.label.set_size(8)
        figure.savefig(FOLDER / f"{name}.png", dpi=75)
        plt.close(figure)
        print(FOLDER / f"{name}.png")


if __name__ == "__main__":
    main()
