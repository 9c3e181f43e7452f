import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from agents import drawing, panels, rendering
from agents.animation import write_animation
from agents.errors import UsageError
from agents.panels import Scales, Sheet, still_pictures
from agents.recording import Attention, FastWeights, Recording
from agents.rendering import draw, render_run


def fast_weights(n: int, heads: int, keys: int, values: int) -> FastWeights:
    rng = np.random.default_rng(0)
    matrices = rng.normal(size=(n, heads, keys, values)).astype(np.float32)
    beta = rng.uniform(size=(n, heads)).astype(np.float32)
    return FastWeights(
        matrices=matrices,
        written=0.1 * matrices,
        beta=beta,
        surprise=beta,
        norms=beta,
        erased=beta,
        retrieval=np.tril(np.ones((n, n), np.float32)),
        contributions=np.tril(np.ones((n, heads, n), np.float32).swapaxes(1, 0)).swapaxes(1, 0),
    )


def attention(n: int, heads: int) -> Attention:
    weights = np.tril(np.ones((heads, n, n), np.float32))
    weights /= weights.sum(-1, keepdims=True)
    return Attention(weights=weights.swapaxes(0, 1), retrieval=weights[0])


def recording(
    shapes: list[tuple[int, ...]],
    n: int = 4,
    weights: FastWeights | None = None,
    attention: Attention | None = None,
) -> Recording:
    rng = np.random.default_rng(0)
    return Recording(
        seed=1,
        frames=tuple(np.full((40, 60, 3), step % 200, np.uint8) for step in range(n + 1)),
        views=tuple(np.full((12, 12, 3), 30, np.uint8) for _ in range(n + 1)) if n % 2 else None,
        observations=np.zeros((n, 2)),
        actions=np.zeros(n, np.int64),
        action_texts=("left",) * n,
        action_names=("left", "right"),
        action_probabilities=np.full((n, 2), 0.5, np.float32),
        action_mean=None,
        action_std=None,
        values=np.linspace(-1, 1, n, dtype=np.float32),
        rewards=np.zeros(n, np.float32),
        outcome="success",
        states=tuple(rng.normal(size=(n, *shape)).astype(np.float32) for shape in shapes),
        fast_weights=weights,
        attention=attention,
    )


@pytest.mark.parametrize(
    "shapes", [[(4, 32, 32)], [(128,), (128,)], [(7,)], [(3, 5, 9), (127,)], [(2, 3, 4, 5)], [], [(0,)]]
)
def test_every_kind_of_state_can_be_drawn(shapes: list[tuple[int, ...]]) -> None:
    """Catches a state that no layout fits."""
    pictures = list(draw([recording(shapes)], "a title"))
    assert len(pictures) == 5
    assert len({picture.size for picture in pictures}) == 1


@pytest.mark.parametrize("sizes", [(4, 32, 32), (12, 32, 32), (1, 256, 16), (16, 32, 64), (1, 5, 200)])
def test_fast_weights_of_every_size_fit_on_the_page(sizes: tuple[int, int, int]) -> None:
    """Catches matrices that are drawn over what stands below or beside them."""
    pictures = list(draw([recording([], 3, fast_weights(3, *sizes))], "a title"))
    assert len(pictures) == 4
    plain = list(draw([recording([(1,)], 3)], "a title"))
    assert pictures[0].width > plain[0].width  # it has a retrieval map
    assert pictures[0].height == plain[0].height


@pytest.mark.parametrize(("n", "heads"), [(1, 1), (3, 4), (64, 4), (300, 2), (64, 16)])
def test_attention_of_every_size_fits_on_the_page(n: int, heads: int) -> None:
    """Catches maps that are drawn over what stands below or beside them, and steps that are still to come."""
    made = recording([(63, 257)], n, attention=attention(n, heads))
    sheet = Sheet(made, "a title", Scales.of([made]))
    first, last = (np.asarray(sheet.picture(t)) for t in (0, n))
    plain = np.asarray(next(draw([recording([(1,)], 3, fast_weights(3, 1, 4, 5))], "a title")))
    assert first.shape == last.shape == plain.shape
    left, top = 16 + 280 + 24, 48 + 20
    for picture in (first, last):
        assert (picture[top + 240 : top + 258, left : left + 416] == drawing.PAGE).all()
        assert (picture[top : top + 240, left + 416 : left + 436] == drawing.PAGE).all()
    shown = [(picture[top : top + 240, left : left + 416] < 200).any(-1).sum() for picture in (first, last)]
    assert 0 < shown[0] <= shown[1]
    assert n == 1 or shown[0] < shown[1]


@pytest.mark.parametrize(("delay_heads", "said"), [(0, None), (1, "row i of head 1"), (2, "row i of heads 1 to 2")])
def test_pictures_say_which_heads_know_the_time(
    delay_heads: int, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red if a delay head is drawn like any other, or another head like one."""
    weights = dataclasses.replace(fast_weights(4, 3, 8, 8), delay_heads=delay_heads)
    made = recording([(3, 8, 8)], weights=weights)
    texts: list[str] = []
    draw = panels._Page.text

    def text(page: Any, x: int, y: int, words: str, **options: Any) -> None:
        texts.append(words)
        draw(page, x, y, words, **options)

    monkeypatch.setattr(panels._Page, "text", text)
    Sheet(made, "title", Scales.of([made]), overlay="memory").picture(1)
    assert [text for text in texts if text.startswith("row i")] == ([f"{said}: i steps ago"] if said else [])


def test_the_memory_at_the_end_and_its_map_are_pictures_for_tensorboard() -> None:
    """Catches heads that cover each other, and a map that is drawn for activations."""
    pictures = still_pictures(recording([], 3, fast_weights(3, 4, 5, 8)))
    factor = 224 // 8
    assert pictures["state"].shape == (5 * factor, 4 * 8 * factor + 3 * 4, 3)
    assert pictures["retrieval_map"].shape == (3 * (224 // 3), 3 * (224 // 3), 3)
    pictures = still_pictures(recording([(63, 257)], 5, attention=attention(5, 3)))
    side = 5 * (224 // 5)
    assert pictures["state"].shape == (side, 3 * side + 2 * 4, 3)
    assert pictures["retrieval_map"].shape == (side, side, 3)
    assert set(still_pictures(recording([(128,), (128,)]))) == {"state"}
    assert still_pictures(recording([])) == {}


def test_without_overlay_no_memory_is_drawn() -> None:
    """Catches an option that is not obeyed: the pictures of two memories are the same."""
    one, other = ([*draw([recording(shapes)], "title", "none")] for shapes in ([(4, 32, 32)], [(7,)]))
    assert [picture.tobytes() for picture in one] == [picture.tobytes() for picture in other]


def test_zero_is_white_and_the_scale_is_symmetric() -> None:
    colors = drawing.signed_colors(np.array([[-2.0, 0.0, 2.0]]), 2.0)[0]
    assert colors[1].tolist() == [255, 255, 255]
    assert colors[0, 2] > colors[0, 0]  # negative: blue
    assert colors[2, 0] > colors[2, 2]  # positive: red
    assert drawing.amount_colors(np.zeros(1), 2.0)[0].tolist() == [255, 255, 255]


def test_change_is_measured_from_an_empty_memory() -> None:
    leaf = np.array([[1.0] * 4, [2.0] * 4, [2.0] * 4], np.float32)
    made = dataclasses.replace(recording([], 3), states=(leaf,))
    assert made.changes.tolist() == [2.0, 2.0, 0.0]


def test_a_long_recording_is_thinned_out() -> None:
    assert len(list(draw([recording([(3,)], 500)], "long", "none"))) == 240


@pytest.mark.parametrize("suffix", [".gif", ".png"])
def test_animation_holds_one_picture_for_each_moment(tmp_path: Path, suffix: str) -> None:
    pictures = list(draw([recording([(2, 3, 4)], 5)], "title"))
    path = tmp_path / f"päth{suffix}"
    write_animation(path, pictures)
    with Image.open(path) as image:
        assert image.n_frames == 6  # type: ignore[attr-defined]  # of a GIF
        assert image.size == pictures[0].size


def test_an_mp4_holds_them_too_and_stands_still_at_the_end(tmp_path: Path) -> None:
    """Red if pictures are lost, or are of a size that the codec refuses."""
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    pictures = [Image.new("RGB", (101, 67), (40 * t, 0, 0)) for t in range(6)]
    write_animation(tmp_path / "päth.mp4", pictures)
    assert imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "päth.mp4"))[0] == 6 + 8  # 1.6 seconds, 5 a second


def test_a_run_is_rendered_from_start_to_end(run_directory: Path, tmp_path: Path) -> None:
    path, note = render_run(run_directory, tmp_path / "new folder" / "episode.gif", episodes=2)
    assert note is None
    with Image.open(path) as image:
        assert image.n_frames == 2 * (8 + 1)  # type: ignore[attr-defined]  # 8 steps and the end, twice


def test_mp4_falls_back_to_gif_with_a_note(
    run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "can_encode_mp4", lambda: False)
    path, note = render_run(run_directory, tmp_path / "episode.mp4")
    assert path == tmp_path / "episode.gif"
    assert path.is_file()
    assert note is not None
    assert "video" in note


def test_what_cannot_be_drawn_is_refused(run_directory: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in one of \.gif"):
        render_run(run_directory, Path("episode.avi"))
    with pytest.raises(UsageError, match="block=1: the agent has 1, counted from 0"):
        render_run(run_directory, block=1)
