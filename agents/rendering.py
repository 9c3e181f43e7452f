"""An episode as a moving picture: the environment, what the agent sees of it, and its memory being written.

    render_run(Path("runs/..."), Path("episode.gif"))

Every leaf of the state is drawn, whatever the memory: matrices `[B, H, K, V]` head by head, vectors folded into a
block. One colour scale, symmetric around zero, holds for the whole episode, so that brightness can be compared over
time. Below stands how much each step changed the memory.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from agents.config import TrainConfig
from agents.episodes import EVALUATION_SEED, EpisodeQueue
from agents.errors import EnvironmentFaultError, UsageError
from agents.evaluation import check_spaces, load_run, make_episode_env
from agents.runs import RunPaths
from fwp_rl.registry import memory_name

if TYPE_CHECKING:
    from fwp_rl.sb3 import MemoryActorCriticPolicy

_SUFFIXES = (".gif", ".png", ".apng", ".mp4")
_FRAMES_PER_SECOND = 5
_LAST_FRAME_SECONDS = 1.6
_MOST_STEPS = 2000
_MOST_PICTURES = 240  # of a longer recording, evenly spaced ones are drawn
_MINIGRID_ACTIONS = ("left", "right", "forward", "pick up", "drop", "toggle", "done")

# Layout, in pixels.
_MARGIN = 16
_FRAME_SIDE = 296
_MEMORY_WIDTH = 332
_MEMORY_HEIGHT = 332
_LABEL = 20
_STRIP_HEIGHT = 56
_GAP = 8

# Colours: a light page, ink, and a diverging map (ColorBrewer RdBu, reversed) whose white is exactly zero.
_PAGE, _INK, _FAINT, _LINE = (250, 250, 248), (32, 36, 44), (122, 128, 138), (206, 210, 216)
_ACCENT, _GOOD, _BAD = (214, 96, 77), (34, 120, 70), (178, 24, 43)
_DIVERGING = np.array(
    [
        [5, 48, 97],
        [33, 102, 172],
        [67, 147, 195],
        [146, 197, 222],
        [209, 229, 240],
        [255, 255, 255],
        [253, 219, 199],
        [244, 165, 130],
        [214, 96, 77],
        [178, 24, 43],
        [103, 0, 31],
    ],
    dtype=np.float64,
)


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One step of an episode: what was seen, what was done, and the memory after reading it."""

    episode: int
    seed: int
    step: int
    frame: np.ndarray
    view: np.ndarray | None
    """What the agent sees, where the task can draw it."""
    leaves: tuple[np.ndarray, ...]
    """The state, without the batch axis."""
    action: str
    total: float
    """Sum of the rewards so far."""
    value: float | None
    outcome: str
    """Empty until the episode is over."""


def render_run(
    directory: Path,
    out: Path | None = None,
    *,
    episodes: int = 1,
    seed: int = EVALUATION_SEED,
    deterministic: bool = True,
) -> tuple[Path, str | None]:
    """Play episodes of a run and write them to `out`.

    Returns the file that was written and a note if it is not the one that was asked for (no mp4 encoder).
    """
    out = out or RunPaths(directory).directory / "episode.gif"
    if out.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"cannot write {out.name!r}: the name must end in one of {', '.join(_SUFFIXES)}")
    if episodes < 1:
        raise UsageError(f"episodes={episodes} must be at least 1")
    note = None
    if out.suffix.lower() == ".mp4" and not _can_encode_mp4():
        out = out.with_suffix(".gif")
        note = "mp4 needs the extra 'video' (pip install imageio-ffmpeg); wrote a GIF instead"
    config, policy = load_run(directory)
    moments = record(policy, config, seeds=range(seed, seed + episodes), deterministic=deterministic)
    title = f"{config.env_id}   {memory_name(config.memory)}"
    try:
        write_animation(out, list(draw(moments, title)))
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror or error}") from None
    return out, note


def record(
    policy: "MemoryActorCriticPolicy", config: TrainConfig, *, seeds: Sequence[int], deterministic: bool = True
) -> list[Moment]:
    """Play one episode after another, and keep everything that can be drawn."""
    import torch

    ends: list[tuple[np.ndarray, np.ndarray | None]] = []
    venv = make_episode_env(
        config,
        EpisodeQueue(seeds),
        n_envs=1,
        render_mode="rgb_array",
        at_end=lambda env: ends.append((_frame(env), _view(env))),
    )
    try:
        check_spaces(policy, venv)
        env = venv.unwrapped.envs[0]  # type: ignore[attr-defined]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds[0])
            return _play(policy, venv, env, ends, seeds, deterministic)
    finally:
        venv.close()


def draw(moments: Sequence[Moment], title: str) -> Iterator[Image.Image]:
    """One picture for each moment, or for evenly spaced ones of a long recording."""
    scale = max((float(np.abs(leaf).max()) for moment in moments for leaf in moment.leaves if leaf.size), default=0.0)
    changes = _changes(moments)
    starts = [index for index, moment in enumerate(moments) if index and moment.step == 0]
    drawn = np.unique(np.linspace(0, len(moments) - 1, min(len(moments), _MOST_PICTURES)).round().astype(int))
    for index in sorted({*drawn.tolist(), *(index - 1 for index in starts)}):
        yield _picture(moments[index], title, scale or 1.0, (changes, starts, index))


def write_animation(path: Path, pictures: Sequence[Image.Image]) -> None:
    """Write GIF, animated PNG or mp4, as the name of the file says. The last picture stands longer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".mp4":
        _write_mp4(path, pictures)
        return
    durations = [1000 // _FRAMES_PER_SECOND] * (len(pictures) - 1) + [int(1000 * _LAST_FRAME_SECONDS)]
    if path.suffix.lower() == ".gif":
        # One palette for all pictures: with one for each, colours would flicker.
        palette = _common_palette(pictures)
        pictures = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
        # Pillow joins equal pictures and adds their times, which is right for a viewer.
        options: dict[str, Any] = {"disposal": 1, "optimize": False}
        kind = "GIF"
    else:
        options, kind = {}, "PNG"
    pictures[0].save(
        path, format=kind, save_all=True, append_images=list(pictures[1:]), duration=durations, loop=0, **options
    )


def _play(
    policy: "MemoryActorCriticPolicy",
    venv: Any,
    env: Any,
    ends: list[tuple[np.ndarray, np.ndarray | None]],
    seeds: Sequence[int],
    deterministic: bool,
) -> list[Moment]:
    moments: list[Moment] = []
    observations, state = venv.reset(), None
    episode_starts = np.ones(1, dtype=bool)
    total, step = 0.0, 0
    while len(ends) < len(seeds) and len(moments) < _MOST_STEPS:
        frame, view = _frame(env), _view(env)
        value = _value(policy, observations, state, episode_starts)
        actions, state = policy.predict(observations, state, episode_starts, deterministic=deterministic)
        moment = Moment(
            episode=len(ends),
            seed=seeds[len(ends)],
            step=step,
            frame=frame,
            view=view,
            leaves=tuple(leaf[0] for leaf in _leaves(state)),
            action=_action_name(env, actions[0]),
            total=total,
            value=value,
            outcome="",
        )
        moments.append(moment)
        observations, rewards, episode_starts, infos = venv.step(actions)
        total, step = total + float(rewards[0]), step + 1
        if episode_starts[0]:  # the environment has started anew: its end was caught by `at_end`
            frame, view = ends[-1]
            moments.append(
                replace(
                    moment,
                    step=step,
                    frame=frame,
                    view=view,
                    action="",
                    total=total,
                    value=None,
                    outcome=_outcome(infos[0]),
                )
            )
            total, step = 0.0, 0
    return moments


def _leaves(state: Any) -> Iterator[np.ndarray]:
    if isinstance(state, tuple):
        for part in state:
            yield from _leaves(part)
    elif state is not None:
        yield np.asarray(state)


def _value(policy: "MemoryActorCriticPolicy", observations: Any, state: Any, episode_starts: np.ndarray) -> float:
    import torch

    with torch.no_grad():
        observation = policy.obs_to_tensor(observations)[0]
        memory_state = policy.initial_state(1) if state is None else _to_tensors(state, policy.device)
        return float(policy.predict_values(observation, memory_state, torch.as_tensor(episode_starts)))


def _to_tensors(state: Any, device: Any) -> Any:
    import torch

    return (
        tuple(_to_tensors(part, device) for part in state)
        if isinstance(state, tuple)
        else torch.as_tensor(state, device=device)
    )


def _frame(env: Any) -> np.ndarray:
    frame = env.render()
    if not isinstance(frame, np.ndarray) or frame.ndim != 3:
        raise EnvironmentFaultError("the environment draws no pictures (render_mode 'rgb_array' gave none)")
    return frame[..., :3].astype(np.uint8)


def _view(env: Any) -> np.ndarray | None:
    """The agent's own view, where the task can draw one (MiniGrid)."""
    draw_view = getattr(env.unwrapped, "get_pov_render", None)
    return None if draw_view is None else np.asarray(draw_view(tile_size=64), dtype=np.uint8)


def _action_name(env: Any, action: Any) -> str:
    array = np.asarray(action)
    if array.ndim == 0 and hasattr(env.unwrapped, "get_pov_render") and int(array) < len(_MINIGRID_ACTIONS):
        return _MINIGRID_ACTIONS[int(array)]
    if array.dtype.kind == "f":
        return ", ".join(f"{part:+.2f}" for part in array.reshape(-1)[:4])
    return ", ".join(str(part) for part in array.reshape(-1)[:6])


def _outcome(info: dict[str, Any]) -> str:
    if "is_success" in info:
        return "success" if info["is_success"] else "failure"
    return "time is up" if info.get("TimeLimit.truncated") else "over"


def _changes(moments: Sequence[Moment]) -> np.ndarray:
    """Norm of the change of the state at each step; an episode starts from an empty memory."""
    changes = np.zeros(len(moments))
    for index, moment in enumerate(moments):
        is_first = index == 0 or moments[index - 1].episode != moment.episode
        before = [np.zeros_like(leaf) for leaf in moment.leaves] if is_first else moments[index - 1].leaves
        changes[index] = np.sqrt(
            sum(float(((new - old) ** 2).sum()) for new, old in zip(moment.leaves, before, strict=True))
        )
    return changes


def _picture(moment: Moment, title: str, scale: float, changes: tuple[np.ndarray, list[int], int]) -> Image.Image:
    top, body = 48, _LABEL + _MEMORY_HEIGHT + 2 * _GAP + _LABEL + _STRIP_HEIGHT
    width, height = _MARGIN + _FRAME_SIDE + 2 * _MARGIN + _MEMORY_WIDTH + _MARGIN, top + body + 66
    picture = Image.new("RGB", (width, height), _PAGE)
    pen = ImageDraw.Draw(picture)
    pen.text((_MARGIN, 14), title, font=_font(17), fill=_INK)
    pen.text((width - _MARGIN, 17), f"seed {moment.seed}", font=_font(12), fill=_FAINT, anchor="ra")
    _draw_left(picture, pen, moment, (_MARGIN, top), body)
    x = _MARGIN + _FRAME_SIDE + 2 * _MARGIN
    _draw_memory(picture, pen, moment.leaves, scale, (x, top))
    _draw_strip(pen, changes, (x, top + _LABEL + _MEMORY_HEIGHT + 2 * _GAP))
    _draw_caption(pen, moment, (_MARGIN, height - 46), width - 2 * _MARGIN)
    return picture


def _draw_left(
    picture: Image.Image, pen: ImageDraw.ImageDraw, moment: Moment, corner: tuple[int, int], body: int
) -> None:
    x, y = corner
    pen.text((x, y), "environment", font=_font(12), fill=_FAINT)
    least = 0 if moment.view is None else 100 + _GAP + _LABEL  # room for the view
    frame = _fit(moment.frame, _FRAME_SIDE, body - _LABEL - least)
    picture.paste(frame, (x, y + _LABEL))
    if moment.view is None:
        return
    y += _LABEL + frame.height + _GAP
    side = min(_FRAME_SIDE, corner[1] + body - y - _LABEL)
    pen.text((x, y), "what the agent sees", font=_font(12), fill=_FAINT)
    picture.paste(_fit(moment.view, side, side), (x, y + _LABEL))


def _draw_memory(
    picture: Image.Image, pen: ImageDraw.ImageDraw, leaves: Sequence[np.ndarray], scale: float, corner: tuple[int, int]
) -> None:
    x, y = corner
    blocks = [block for leaf in leaves for block in _blocks(leaf)]
    _draw_scale(picture, pen, scale, (x + _MEMORY_WIDTH - 190, y))
    pen.text((x, y), "memory", font=_font(12), fill=_FAINT)
    y += _LABEL
    if not blocks:
        pen.rectangle((x, y, x + _MEMORY_WIDTH, y + _MEMORY_HEIGHT), outline=_LINE)
        pen.text((x + 14, y + 12), "this agent has no memory", font=_font(13), fill=_FAINT)
        return
    columns = _columns(blocks)
    rows = -(-len(blocks) // columns)
    cell_width = (_MEMORY_WIDTH - _GAP * (columns - 1)) // columns
    cell_height = (_MEMORY_HEIGHT - _GAP * (rows - 1)) // rows
    images = [_fit(_colorize(block, scale), cell_width - 2, cell_height - 2) for block in blocks]
    across, down = (max(image.size[axis] for image in images) + 2 + _GAP for axis in (0, 1))
    for number, image in enumerate(images):
        left, upper = x + (number % columns) * across, y + (number // columns) * down
        pen.rectangle((left, upper, left + image.width + 1, upper + image.height + 1), outline=_LINE)
        picture.paste(image, (left + 1, upper + 1))


def _draw_scale(picture: Image.Image, pen: ImageDraw.ImageDraw, scale: float, corner: tuple[int, int]) -> None:
    x, y = corner
    ramp = _colorize(np.linspace(-scale, scale, 96)[None].repeat(10, axis=0), scale)
    pen.text((x + 42, y), f"{-scale:.2g}", font=_font(12), fill=_FAINT, anchor="ra")
    picture.paste(Image.fromarray(ramp), (x + 48, y + 3))
    pen.rectangle((x + 47, y + 2, x + 144, y + 13), outline=_LINE)
    pen.text((x + 150, y), f"{scale:+.2g}", font=_font(12), fill=_FAINT)


def _draw_strip(pen: ImageDraw.ImageDraw, changes: tuple[np.ndarray, list[int], int], corner: tuple[int, int]) -> None:
    heights, starts, now = changes
    x, y = corner
    pen.text((x, y), "change of the memory in each step", font=_font(12), fill=_FAINT)
    y += _LABEL
    bottom = y + _STRIP_HEIGHT
    largest = float(heights.max()) or 1.0
    pitch = _MEMORY_WIDTH / max(len(heights), 12)
    for step, change in enumerate(heights):
        left = x + round(step * pitch)
        right = max(left, x + round((step + 1) * pitch) - (2 if pitch >= 5 else 1))
        tall = round((_STRIP_HEIGHT - 2) * float(change) / largest)
        color = _ACCENT if step == now else (_FAINT if step < now else _LINE)
        pen.rectangle((left, bottom - 1 - tall, right, bottom - 1), fill=color)
    for start in starts:
        pen.line((x + round(start * pitch) - 1, y, x + round(start * pitch) - 1, bottom + 4), fill=_FAINT)
    pen.line((x, bottom, x + _MEMORY_WIDTH, bottom), fill=_LINE)
    pen.rectangle(
        (x + round(now * pitch), bottom + 1, x + round(now * pitch) + max(round(pitch) - 2, 1), bottom + 3),
        fill=_ACCENT,
    )


def _draw_caption(pen: ImageDraw.ImageDraw, moment: Moment, corner: tuple[int, int], width: int) -> None:
    x, y = corner
    pen.line((x, y - 8, x + width, y - 8), fill=_LINE)
    facts = [
        (0, "step", str(moment.step)),
        (80, "action", moment.action),
        (300, "return", f"{moment.total:.2f}"),
        (380, "value", "" if moment.value is None else f"{moment.value:+.2f}"),
    ]
    for slot, name, value in facts:
        if not value:
            continue
        pen.text((x + slot, y), name, font=_font(12), fill=_FAINT)
        pen.text((x + slot, y + 15), value, font=_font(17), fill=_INK)
    if moment.outcome:
        color = {"success": _GOOD, "failure": _BAD}.get(moment.outcome, _INK)
        pen.text((x + width, y + 8), moment.outcome, font=_font(22), fill=color, anchor="ra")


def _blocks(leaf: np.ndarray) -> list[np.ndarray]:
    """A leaf of the state as matrices: heads one by one, vectors folded to nearly square."""
    if leaf.size == 0:
        return []
    if leaf.ndim >= 3:
        return list(leaf.reshape(-1, *leaf.shape[-2:]))
    if leaf.ndim == 2:
        return [leaf]
    size = leaf.size
    rows = max(divisor for divisor in range(1, int(size**0.5) + 1) if size % divisor == 0)
    if rows * rows * 8 < size:  # a prime, or nearly: pad instead
        rows = int(size**0.5)
        leaf = np.pad(leaf.reshape(-1), (0, -size % rows))
    return [leaf.reshape(rows, -1)]


def _columns(blocks: Sequence[np.ndarray]) -> int:
    """The number of columns that lets the blocks be largest."""
    ratio = float(np.mean([block.shape[1] / block.shape[0] for block in blocks]))

    def side(columns: int) -> float:
        rows = -(-len(blocks) // columns)
        return min(
            (_MEMORY_WIDTH - _GAP * (columns - 1)) / columns / ratio, (_MEMORY_HEIGHT - _GAP * (rows - 1)) / rows
        )

    return max(range(1, len(blocks) + 1), key=side)


def _colorize(values: np.ndarray, scale: float) -> np.ndarray:
    """Blue for negative, white for zero, red for positive; `scale` is full colour."""
    # The root brings out what is small beside one large entry, and keeps sign and order.
    shade = np.sign(values) * np.sqrt(np.abs(values) / scale)
    level = np.rint((np.clip(shade, -1, 1) + 1) / 2 * (len(_RAMP) - 1)).astype(int)
    return _RAMP[level]


def _ramp(levels: int) -> np.ndarray:
    position = np.linspace(0, len(_DIVERGING) - 1, levels)
    anchors = np.arange(len(_DIVERGING))
    return np.stack([np.interp(position, anchors, channel) for channel in _DIVERGING.T], axis=-1).astype(np.uint8)


_RAMP = _ramp(41)  # few enough to share the 256 colours of a GIF with the environment


def _fit(pixels: np.ndarray, width: int, height: int) -> Image.Image:
    """Scaled to fit; enlarged by whole numbers so that each entry of a matrix stays a sharp square."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    ratio = min(width / image.width, height / image.height)
    if ratio >= 1:
        return image.resize((image.width * int(ratio), image.height * int(ratio)), Image.Resampling.NEAREST)
    size = (max(1, int(image.width * ratio)), max(1, int(image.height * ratio)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _common_palette(pictures: Sequence[Image.Image]) -> Image.Image:
    """Our own colours exactly, and as many of the environment's as still fit."""
    fixed = [_PAGE, _INK, _FAINT, _LINE, _ACCENT, _GOOD, _BAD, *(tuple(color) for color in _RAMP.tolist())]
    picked = [pictures[i] for i in np.unique(np.linspace(0, len(pictures) - 1, 6).astype(int))]
    sheet = Image.new("RGB", (picked[0].width, picked[0].height * len(picked)))
    for number, picture in enumerate(picked):
        sheet.paste(picture, (0, number * picture.height))
    found = sheet.quantize(colors=256 - len(fixed), method=Image.Quantize.MEDIANCUT).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([channel for color in fixed for channel in color] + found[: 3 * (256 - len(fixed))])
    return palette


def _can_encode_mp4() -> bool:
    return importlib.util.find_spec("imageio_ffmpeg") is not None


def _write_mp4(path: Path, pictures: Sequence[Image.Image]) -> None:
    import imageio_ffmpeg

    width, height = (size - size % 2 for size in pictures[0].size)
    writer = imageio_ffmpeg.write_frames(
        str(path),
        (width, height),
        fps=_FRAMES_PER_SECOND,
        codec="libx264",
        macro_block_size=2,
        output_params=["-crf", "18"],
    )
    writer.send(None)
    still = [pictures[-1]] * round(_LAST_FRAME_SECONDS * _FRAMES_PER_SECOND)
    for picture in [*pictures, *still]:
        writer.send(np.ascontiguousarray(np.asarray(picture.crop((0, 0, width, height)))))
    writer.close()


_fonts: dict[int, Any] = {}


def _font(size: int) -> Any:
    if size not in _fonts:
        _fonts[size] = ImageFont.load_default(size)
    return _fonts[size]
