"""`attention`: softmax attention over the last steps of the episode (Vaswani et al. 2017)."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from fwp_rl.layers import AttentionInputs, ResidualBlock, linear, require_positive_sizes
from fwp_rl.memory import Memory, MemoryConfig
from fwp_rl.ops.rnn_scan import full_precision
from fwp_rl.registry import register
from fwp_rl.state import State

PERIOD = 8
"""Of the slowest rotation, in windows: within one of them it hardly turns."""


@register("attention")
@dataclass(frozen=True, kw_only=True)
class AttentionConfig(MemoryConfig):
    """Softmax attention over the last steps: nothing is summed up, each step is kept until it is too old."""

    width: int = 128
    """Width of the residual stream, and size of the output."""
    n_heads: int = 4
    """Separate attention maps."""
    key_size: int = 32
    """Size of keys and queries, at least 2: pairs of their channels tell how long ago a step was."""
    value_size: int = 32
    """Size of what is kept of each step."""
    expansion: int = 2
    """Width of the feed-forward layer, as a multiple of `width`."""
    window: int = 64
    """Steps that can be attended to, the present one included; older ones are forgotten."""

    def build(self, input_size: int) -> Memory:
        """The memory for inputs `[T, B, input_size]`."""
        return Attention(input_size, self)


class Attention(Memory):
    """A transformer's memory: keys and values of the last steps, as they were.

        k, q = R_t Wk z, R_t Wq z     v = Wv z
        a_ts = softmax_s(q_t . k_s / sqrt(K))     over the last w steps of the episode, s = t - w + 1 ... t
        y_t = sum_s a_ts v_s

    Vaswani et al. 2017 (arXiv 1706.03762), equation 1, with relative positions: R_t turns pairs of channels by angles
    that grow with t, so that q_t . k_s depends on t - s (Su et al. 2021, arXiv 2104.09864, equation 34). The fastest
    pair turns by about 1 a step, the slowest once in 8 windows, the others lie between, in a geometric row. All turn a
    whole number of times in 8 windows, so that steps are counted modulo 8 w, and no episode is too long to be counted.
    A channel that is left over does not turn. The block around it is that of `delta`.

    State: a row for each of the last w - 1 steps, `[B, w - 1, H (K + V) + 1]`: keys and values of all heads, and the
    number of the step in its episode, 1 ... 8 w and from 1 again, divided by 8 w; 0 where there was no step. None for
    w = 1.
    """

    turns: Tensor
    """Of each pair of channels in a period."""

    def __init__(self, input_size: int, config: AttentionConfig) -> None:
        super().__init__()
        c = self.config = config
        require_positive_sizes(input_size, c)
        if c.key_size < 2:
            raise ValueError(f"key_size must be at least 2, or steps have no order, got {c.key_size}")
        self.input_size = input_size
        self.output_size = c.width
        self.norm = nn.LayerNorm(c.width)
        self.project = linear(c.width, c.n_heads * (2 * c.key_size + c.value_size))
        self.block = ResidualBlock(input_size, c.width, c.n_heads * c.value_size, c.expansion)
        self.period = PERIOD * c.window
        turns = torch.logspace(math.log10(self.period / (2 * math.pi)), 0.0, c.key_size // 2).round()
        self.register_buffer("turns", turns, persistent=False)

    def initial_state(self, batch_size: int) -> State:
        """No steps."""
        return self._no_steps(batch_size) if self.config.window > 1 else ()

    def scan(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B O"], State]:
        """See `Memory.scan`."""

        def heads(x: Tensor) -> tuple[Tensor, State]:
            past = state if isinstance(state, Tensor) else self._no_steps(x.shape[1])
            attend = self._attend_once if len(x) == 1 else self._attend
            projected = self.project(self.norm(x)).to(past.dtype)
            with full_precision(x.device):
                y, final = attend(*self._program(projected, past, episode_starts), past, episode_starts)
            return y, final if isinstance(state, Tensor) else ()

        return self.block(inputs, heads)

    def attention_inputs(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> AttentionInputs:
        """See `fwp_rl.inspection.Attentive`."""
        past = state if isinstance(state, Tensor) else self._no_steps(inputs.shape[1])
        projected = self.project(self.norm(self.block.encode(inputs))).to(past.dtype)
        q, rows = self._program(projected, past, episode_starts)
        rows = torch.cat([past, rows.transpose(0, 1)], dim=1)
        k, v = (part.permute(2, 0, 1, 3) for part in self._keys_and_values(rows))
        return AttentionInputs(q, k, v, self._allowed(*self._episodes(rows, episode_starts)).transpose(0, 1))

    def _no_steps(self, batch_size: int) -> Float[Tensor, "B C R"]:
        c = self.config
        return self.norm.weight.new_zeros(batch_size, c.window - 1, c.n_heads * (c.key_size + c.value_size) + 1)

    def _program(
        self, projected: Float[Tensor, "T B P"], past: Float[Tensor, "B C R"], episode_starts: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B H K"], Float[Tensor, "T B R"]]:
        """Queries, and the rows that the state keeps of these steps."""
        c = self.config
        qk, v = projected.split([2 * c.n_heads * c.key_size, c.n_heads * c.value_size], dim=-1)
        last = self._numbers(past[:, -1]) if c.window > 1 else past.new_zeros(len(past))
        # Who attends to a last row that is no number sees that anyway.
        numbers = _counted_on(last.masked_fill(~last.isfinite(), 0.0), episode_starts, self.period)
        angles = numbers[..., None] * self.turns % self.period * (2 * math.pi / self.period)
        q, k = _rotated(qk.unflatten(-1, (-1, c.key_size)), angles).chunk(2, dim=2)
        return q, torch.cat([k.flatten(2), v, numbers[..., None] / self.period], dim=-1)

    def _attend_once(
        self,
        q: Float[Tensor, "1 B H K"],
        row: Float[Tensor, "1 B R"],
        past: Float[Tensor, "B C R"],
        episode_starts: Bool[Tensor, "1 B"],
    ) -> tuple[Float[Tensor, "1 B Y"], Float[Tensor, "B C R"]]:
        """One step: the past is copied once, without its oldest row."""
        rows = torch.cat([past, row.transpose(0, 1)], dim=1)
        if rows.is_cuda:  # without a look at which episodes start, for which the CPU would wait
            rows[:, :-1].masked_fill_(episode_starts[0, :, None, None], 0.0)
        else:
            rows[:, :-1].index_fill_(0, episode_starts[0].nonzero().flatten(), 0.0)
        numbers = self._numbers(rows)
        # 0 times a number: what is none is seen.
        mask = (0.0 * numbers).masked_fill(numbers == 0, -torch.inf)
        k, v = self._keys_and_values(rows)
        y = F.scaled_dot_product_attention(q[0, :, :, None], k, v, mask[:, None, None])
        return y.flatten(1)[None], rows[:, 1:]

    def _attend(
        self,
        q: Float[Tensor, "T B H K"],
        rows: Float[Tensor, "T B R"],
        past: Float[Tensor, "B C R"],
        episode_starts: Bool[Tensor, "T B"],
    ) -> tuple[Float[Tensor, "T B Y"], Float[Tensor, "B C R"]]:
        """All steps at once: chunks of time, of about the window, each with the rows that it can attend to."""
        n_steps, n_past = len(q), past.shape[1]
        rows = torch.cat([past, rows.transpose(0, 1)], dim=1)
        episode, episode_of_row = self._episodes(rows, episode_starts)
        gone = episode_of_row[:, n_steps:] != episode[:, -1:]
        final = rows[:, n_steps:].masked_fill(gone[..., None], 0.0)

        # What is not a number, or too large to be multiplied, is taken out, and put back where it can be attended to:
        # masked products would spread it.
        broken = ~torch.linalg.vector_norm(rows.detach(), dim=-1).isfinite()
        rows = rows.masked_fill(broken[..., None], 0.0)
        q = q.masked_fill(broken[:, n_past:].T[..., None, None], 0.0)

        window = self.config.window
        chunk_length = min(n_steps, window)
        if n_steps <= window:
            rows, episode_of_row, broken = (x[:, None] for x in (rows, episode_of_row, broken))
        else:  # rows in blocks of the window: a chunk of steps attends to its own block and to the one before
            padding = -n_steps % window  # these attend to one another, and nothing else does
            q = F.pad(q, (0, 0, 0, 0, 0, 0, 0, padding))
            episode = F.pad(episode, (0, padding))
            rows = F.pad(rows, (0, 0, 1, padding))  # the first is out of every window
            episode_of_row, broken = (F.pad(x, (1, padding)) for x in (episode_of_row, broken))
            blocks = [x.unflatten(1, (-1, window)) for x in (rows, episode_of_row, broken)]
            rows, episode_of_row, broken = (torch.cat([x[:, :-1], x[:, 1:]], dim=2) for x in blocks)
        k, v = self._keys_and_values(rows.flatten(0, 1))
        allowed = self._allowed(episode.unflatten(1, (-1, chunk_length)), episode_of_row)  # [B, n, C, S]
        q = q.unflatten(0, (-1, chunk_length)).permute(2, 0, 3, 1, 4).flatten(0, 1)
        y = F.scaled_dot_product_attention(q, k, v, allowed.flatten(0, 1)[:, None])
        y = y.unflatten(0, allowed.shape[:2]).permute(1, 3, 0, 2, 4).flatten(0, 1).flatten(2)
        hit = (allowed & broken[:, :, None]).any(-1).permute(1, 2, 0).flatten(0, 1)
        return y.masked_fill(hit[..., None], torch.nan)[:n_steps], final

    def _keys_and_values(self, rows: Float[Tensor, "N S R"]) -> list[Float[Tensor, "N H S K"]]:
        c = self.config
        parts = rows.split([c.n_heads * c.key_size, c.n_heads * c.value_size, 1], dim=-1)[:2]
        return [part.unflatten(-1, (c.n_heads, -1)).transpose(1, 2) for part in parts]

    def _numbers(self, rows: Float[Tensor, "*batch R"]) -> Float[Tensor, "*batch"]:
        """The number of the step in its episode, modulo the period; 0 where there is none."""
        return (rows[..., -1].detach() * self.period).round()

    def _episodes(
        self, rows: Float[Tensor, "B S R"], episode_starts: Bool[Tensor, "T B"]
    ) -> tuple[Int64[Tensor, "B T"], Int64[Tensor, "B S"]]:
        """Of each step and of each row; 0 is that of the past, -1 that of no step."""
        episode = episode_starts.T.cumsum(1)
        of_row = F.pad(episode, (self.config.window - 1, 0))
        return episode, of_row.masked_fill(self._numbers(rows) == 0, -1)

    def _allowed(
        self, episode: Int64[Tensor, "*batch T"], episode_of_row: Int64[Tensor, "*batch S"]
    ) -> Bool[Tensor, "*batch T S"]:
        """Which rows each step attends to: of its episode, no later, within the window."""
        steps = torch.arange(episode_of_row.shape[-1], device=episode.device)
        ago = steps[-episode.shape[-1] :, None] - steps
        near = (ago >= 0) & (ago < self.config.window)
        return (episode[..., :, None] == episode_of_row[..., None, :]) & near


def _counted_on(last: Float[Tensor, " B"], episode_starts: Bool[Tensor, "T B"], period: int) -> Float[Tensor, "T B"]:
    """The number of each step in its episode, 1 ... `period` and from 1 again, where `last` was that before."""
    steps = torch.arange(len(episode_starts), device=last.device)[:, None]
    start = steps.masked_fill(~episode_starts, -1).cummax(0).values
    before = torch.where(start < 0, last + steps, (steps - start).to(last.dtype))
    return before % period + 1


def _rotated(x: Float[Tensor, "T B G K"], angles: Float[Tensor, "T B P"]) -> Float[Tensor, "T B G K"]:
    """Pairs of channels, the first with that in the middle and so on, turned."""
    cos, sin = angles.cos()[:, :, None], angles.sin()[:, :, None]
    n_pairs = angles.shape[-1]
    a, b, rest = x.split([n_pairs, n_pairs, x.shape[-1] - 2 * n_pairs], dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], dim=-1)
