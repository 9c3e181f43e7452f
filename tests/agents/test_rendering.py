from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agents import rendering
from agents.errors import UsageError
from agents.rendering import Moment, draw, record, render_run, write_animation


def moments(shapes: list[tuple[int, ...]], n: int = 5) -> list[Moment]:
    rng = np.random.default_rng(0)
    return [
        Moment(
            episode=0,
            seed=1,
            step=step,
            frame=np.full((40, 60, 3), 90, np.uint8),
            view=np.full((12, 12, 3), 30, np.uint8) if step % 2 else None,
            leaves=tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes),
            action="left",
            total=0.0,
            value=0.5,
            outcome="",
        )
        for step in range(n)
    ]


@pytest.mark.parametrize(
    "shapes", [[(4, 32, 32)], [(128,), (128,)], [(7,)], [(3, 5, 9), (127,)], [(2, 3, 4, 5)], [], [(0,)]]
)
def test_every_kind_of_state_can_be_drawn(shapes: list[tuple[int, ...]]) -> None:
    pictures = list(draw(moments(shapes), "a title"))
    assert len(pictures) == 5
    assert len({picture.size for picture in pictures}) == 1


def test_zero_is_white_and_the_scale_is_symmetric() -> None:
    colors = rendering._colorize(np.array([[-2.0, 0.0, 2.0]]), 2.0)[0]
    assert colors[1].tolist() == [255, 255, 255]
    assert colors[0, 2] > colors[0, 0]  # negative: blue
    assert colors[2, 0] > colors[2, 2]  # positive: red


def test_change_is_measured_from_an_empty_memory_at_each_start() -> None:
    one = np.ones(4, np.float32)
    first, *_ = moments([(4,)], 1)
    tape = [(0, one), (0, 2 * one), (0, 2 * one), (1, 2 * one)]
    made = [rendering.replace(first, episode=episode, leaves=(leaf,)) for episode, leaf in tape]
    assert rendering._changes(made).tolist() == [2.0, 2.0, 0.0, 4.0]


def test_a_long_recording_is_thinned_out() -> None:
    assert len(list(draw(moments([(3,)], 500), "long"))) == 240


@pytest.mark.parametrize("suffix", [".gif", ".png"])
def test_animation_holds_one_picture_for_each_moment(tmp_path: Path, suffix: str) -> None:
    pictures = list(draw(moments([(2, 3, 4)], 6), "title"))
    path = tmp_path / f"päth{suffix}"
    write_animation(path, pictures)
    with Image.open(path) as image:
        assert image.n_frames == 6  # type: ignore[attr-defined]
        assert image.size == pictures[0].size


def test_a_run_is_rendered_from_start_to_end(run_directory: Path, tmp_path: Path) -> None:
    path, note = render_run(run_directory, tmp_path / "new folder" / "episode.gif", episodes=2)
    assert note is None
    with Image.open(path) as image:
        assert image.n_frames == 2 * (8 + 1)  # type: ignore[attr-defined]  # 8 steps and the end, twice


def test_recording_shows_the_end_of_an_episode_before_it_starts_anew(run_directory: Path) -> None:
    from agents.evaluation import load_run

    config, policy = load_run(run_directory)
    tape = record(policy, config, seeds=[1_000_000, 1_000_001])
    assert [moment.step for moment in tape] == [*range(9), *range(9)]
    assert [bool(moment.outcome) for moment in tape] == ([False] * 8 + [True]) * 2
    assert [moment.seed for moment in tape[::9]] == [1_000_000, 1_000_001]
    assert (tape[8].frame != tape[7].frame).any()


def test_mp4_falls_back_to_gif_with_a_note(
    run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "_can_encode_mp4", lambda: False)
    path, note = render_run(run_directory, tmp_path / "episode.mp4")
    assert path == tmp_path / "episode.gif"
    assert path.is_file()
    assert note is not None
    assert "video" in note


def test_other_formats_are_refused(run_directory: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in one of \.gif"):
        render_run(run_directory, Path("episode.avi"))
