"""report.html: what is in it, that nothing in it runs or loads what it should not, and the page in a real browser."""

import base64
import dataclasses
import functools
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from agents.comparison import report, summary
from agents.comparison.report import player, write_report
from agents.comparison.report.figures import short
from agents.curves import bands
from agents.recording import Attention, FastWeights, Recording
from agents.runs import MetricsFile, RunPaths, write_json
from agents.statistics import estimate, profile_band

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "estimate", functools.partial(estimate, resamples=50))
    monkeypatch.setattr(report, "profile_band", functools.partial(profile_band, resamples=20))


def make_run(directory: Path, returns: Mapping[int, float], **changes: Any) -> Path:
    """A run directory without a model: what the report reads."""
    directory.mkdir(parents=True)
    config = {
        "env_id": "fwp/TMaze-v0",
        "env_options": {},
        "memory": {"type": "delta", "width": 5},
        "ppo": {"gamma": 0.9},
        "seed": 0,
    }
    run = {
        "format": "fwp-run",
        "version": 1,
        "status": "finished",
        "config": config | changes.pop("config", {}),
        "versions": {"torch": "1.2.3"},
        "machine": {"cores": 3},
        "git_commit": None,
        "ended": None,
    }
    write_json(RunPaths(directory).description, run | changes)
    metrics = MetricsFile(RunPaths(directory).metrics)
    for step, value in returns.items():
        metrics.append({"kind": "iteration", "step": step, "rollout/ep_rew_mean": value})
    metrics.close()
    return directory


def row(memory: str = "delta", env_id: str = "fwp/TMaze-v0", **changes: Any) -> dict[str, Any]:
    scores = {"success_rate": 0.75, "return_mean": 0.5, "score": 0.25, "scale": "success rates"}
    costs = {"parameters": 1234, "steps": 5000, "seconds": 61.0, "steps_to_threshold": None, "learning_rate": 0.5}
    return {"env_id": env_id, "memory": memory, "seed": 0, **scores, **costs, **changes}


def page_of(
    root: Path,
    rows: list[dict[str, Any]],
    directories: list[Path],
    changes: Mapping[str, Any] = MappingProxyType({}),
    **episodes: Recording,
) -> str:
    about = {"equal": "parameters", "equal_time": None, "mixed": [], "left_out": {}, "episodes": 7}
    memories = list(dict.fromkeys(row["memory"] for row in rows))
    result = {"memories": memories, "rows": rows} | about | dict(changes)
    return write_report(root, result, *summary.summaries(result), directories, episodes).read_text()


def a_recording(n_steps: int = 6, n_heads: int = 3, keys: int = 4, values: int = 5) -> Recording:
    rng = np.random.default_rng(0)
    matrices, written = rng.normal(size=(2, n_steps, n_heads, keys, values)).astype(np.float32)
    numbers = rng.uniform(size=(n_steps, n_heads)).astype(np.float32)
    contributions = np.tril(rng.uniform(size=(n_heads, n_steps, n_steps))).transpose(1, 0, 2).astype(np.float32)
    return Recording(
        seed=1,
        frames=tuple(np.full((20, 30, 3), 40 * t, np.uint8) for t in range(n_steps + 1)),
        views=None,
        observations=np.zeros((n_steps, 2)),
        actions=np.arange(n_steps) % 2,
        action_texts=tuple("ab"[t % 2] for t in range(n_steps)),
        action_names=("a", "b"),
        action_probabilities=np.full((n_steps, 2), 0.5, np.float32),
        action_mean=None,
        action_std=None,
        values=np.linspace(0, 1, n_steps, dtype=np.float32),
        rewards=np.ones(n_steps, np.float32),
        outcome="success",
        states=(matrices,),
        fast_weights=FastWeights(
            matrices=matrices,
            written=written,
            beta=numbers,
            surprise=numbers,
            norms=numbers,
            erased=numbers,
            contributions=contributions,
            retrieval=np.sqrt((contributions**2).sum(1)),
        ),
    )


def test_what_is_read_from_files_is_escaped(tmp_path: Path) -> None:
    """Catches a name or a version from a file that runs in the browser of whoever opens the report."""
    attack = '</script><img src=x onerror="alert(1)">'
    directory = make_run(
        tmp_path / "run", {5: 0.5}, versions={attack: attack}, config={"env_options": {attack: attack}}
    )
    page = page_of(tmp_path, [row(attack)], [directory], **{attack: a_recording()})
    assert "<img" not in page
    assert page.count("</script>") == 2
    assert "&lt;img" in page


def test_few_seeds_are_said_loudly_and_enough_are_not(tmp_path: Path) -> None:
    """Catches a report that looks sure of two seeds; the smallest number counts."""
    runs = [make_run(tmp_path / str(seed), {5: 0.5}) for seed in range(11)]
    memories = ["delta"] * 6 + ["lstm"] * 5
    rows = [row(memory, score=index / 11) for index, memory in enumerate(memories)]
    assert "Too few" not in page_of(tmp_path, rows, runs)
    assert "Only 4 seeds." in page_of(tmp_path, rows[:-1], runs[:-1])


def test_all_that_a_comparison_may_have_is_shown(tmp_path: Path) -> None:
    """Catches chosen learning rates, a budget of time or a mixture of versions that the report is silent about, and
    the rows of one task under another."""
    env_ids = ["fwp/TMaze-v0"] * 2 + ["fwp/Copy-v0"] * 2
    rows = [
        row(name, env_id, score=n / 8)
        for n, (name, env_id) in enumerate(zip(["delta", "lstm"] * 2, env_ids, strict=True))
    ]
    runs = [make_run(tmp_path / str(n), {5: 0.5}) for n in range(4)]
    found = {"equal_time": 90.0, "mixed": ["torch 2.1 (1 run), 2.2 (3 runs)"], "trials": []}
    best = [row("delta", score=0.75, learning_rate=0.03), row("lstm", score=0.5, learning_rate=0.02)]
    page = page_of(tmp_path, rows, runs, found | {"best_rows": best})
    assert "1 min 30 s of training for each" in page
    assert "Not made alike:</strong> torch 2.1 (1 run), 2.2 (3 runs)." in page
    titles = ["All tasks", "fwp/TMaze-v0", "fwp/Copy-v0", "Each with its best learning rate", "What it costs"]
    parts = [page.index(f"<h2>{title}") for title in titles]
    assert parts == sorted(parts)
    task = page[parts[2] : parts[3]]
    assert "<b>0.25</b>" in task
    assert "<b>0.375</b>" in task
    assert "<b>0.125</b>" not in task
    assert "<td>0.03</td>" in page[parts[3] :]
    assert "<h2>All tasks" not in page_of(tmp_path, [row() | {"scale": None} for _ in rows], runs)


def test_what_was_left_out_leaves_no_hole(tmp_path: Path) -> None:
    """Catches a page that fails after hours of training, or that compares with another memory than it says, because a
    seed, a memory or a task is missing somewhere."""
    rows = [row("delta"), row("lstm", score=0.5), row("lstm", "fwp/Copy-v0"), row("none", "fwp/Copy-v0")]
    runs = [make_run(tmp_path / str(n), {5: 0.5}) for n in range(len(rows))]
    best = [row("gru", learning_rate=0.01), row("gru", seed=1, success_rate=None)]
    tests = [row("lstm", env_id, option="length", value=value) for env_id in ("fwp/TMaze-v0", "b") for value in (1, 2)]
    tests += [row("gru", "c", seed=value, option="length", value=value) for value in (1, 2)]
    changes = {"memories": ["delta", "lstm", "gru", "none"], "best_rows": best, "tests": tests}
    page = page_of(tmp_path, rows, runs, changes)
    assert page.count("chance to beat delta") == 3
    second = page[page.index("<h2>fwp/Copy-v0") : page.index("<h2>Each with its best")]
    assert second.count("<td></td>") == 2  # there is no delta to beat
    assert page.count("<h2>Success against length") == 2


def test_results_are_short() -> None:
    """Catches tables too wide for their page, "-0", and large returns that lose their digits."""
    shown = [short(value) for value in (0.96743, 0.25, 1.0, -0.0004, -0.6, 12.3456, -1234.5, 0.9996)]
    assert shown == ["0.967", "0.25", "1", "0", "-0.6", "12.35", "-1234", "1"]


def test_runs_that_disagree_are_shown_to_disagree(tmp_path: Path) -> None:
    """Catches versions of the first run that stand for all."""
    runs = [make_run(tmp_path / name, {5: 0.5}, versions={"torch": name}) for name in ("2.1", "2.2")]
    page = page_of(tmp_path, [row("delta"), row("lstm")], runs)
    assert '<dd class="mixed">2.1 · 2.2</dd>' in page
    assert "<dd>3</dd>" in page  # cores


def test_a_run_without_an_episode_is_left_out_of_the_curves_only(tmp_path: Path) -> None:
    """Catches a report that fails, or a curve of zeros, after a run that was too short."""
    runs = [make_run(tmp_path / "a", {}), make_run(tmp_path / "b", {5: 0.5, 10: 1.0})]
    page = page_of(tmp_path, [row("delta", scale=None, success_rate=None), row("lstm", scale=None)], runs)
    assert page.count('class="line ') == 1
    assert page.count("<b>0.25</b>") == 2


def test_tasks_that_differ_in_one_number_are_drawn_against_it(tmp_path: Path) -> None:
    """Catches tasks that differ in more than one number, or in none, on the same axis, and defaults that are not known
    to be values."""
    tasks: list[tuple[str, dict[str, int]]] = [
        *[("MiniGrid-MemoryS7-v0", {"view_size": 3}), ("MiniGrid-MemoryS9-v0", {"view_size": 3})],
        *[("MiniGrid-MemoryS11-v0", {"view_size": 5}), ("fwp/TMaze-v0", {}), ("fwp/TMaze-v0", {"length": 7})],
    ]
    runs = [
        make_run(tmp_path / str(number), {5: 0.5}, config={"env_id": env_id, "env_options": options})
        for number, (env_id, options) in enumerate(tasks)
    ]
    rows = [row(env_id=f"task {number}") for number in range(len(tasks))]
    page = page_of(tmp_path, rows, runs)
    assert page.count("Success against") == 2
    assert page.index("Success against size") < page.index("Success against length")
    assert "Success against" not in page_of(tmp_path, rows[1:-1], runs[1:-1])


def test_tests_with_other_options_are_drawn_with_what_was_trained(tmp_path: Path) -> None:
    """Catches a note that says that agents were trained on what they play, and a figure of a single point."""
    runs = [make_run(tmp_path / "a", {5: 0.5}, config={"env_options": {"length": 7}})]
    tests = [row(option="length", value=value) for value in (14, 28)]
    page = page_of(tmp_path, [row()], runs, {"tests": tests})
    assert "fwp/TMaze-v0; all agents were trained with length 7." in page
    assert "Success against" not in page_of(tmp_path, [row()], runs, {"tests": tests[:1]})


def test_bands_hold_their_mean_and_runs_that_end_early_stay_where_they_were(tmp_path: Path) -> None:
    """Catches seeds that are averaged at different steps, and a solved run that keeps the return of its exploring."""
    early = make_run(tmp_path / "early", {0: 0.0, 10: 1.0})
    late = make_run(tmp_path / "late", {0: 0.0, 10: 0.0, 20: 0.5})
    (band,) = bands({"delta": [early, late]}, "rollout/ep_rew_mean", n_points=5).values()
    np.testing.assert_allclose(band.steps, [0, 5, 10, 15, 20])
    np.testing.assert_allclose(band.mean, [0, 0.25, 0.5, 0.625, 0.75])
    np.testing.assert_allclose(band.low, [0, 0, 0, 0.25, 0.5])
    np.testing.assert_allclose(band.high, [0, 0.5, 1, 1, 1])
    with (early / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
        metrics.writelines(f'{{"kind": "evaluation", "step": {n}, "eval/return_mean": {n / 2}}}\n' for n in (5, 10))
    (band,) = bands({"delta": [early, late]}, "rollout/ep_rew_mean", n_points=5).values()
    np.testing.assert_allclose(band.seeds[0], [0, 0.5, 1, 5, 5])


def test_titles_of_matrices_say_which_heads_know_the_time() -> None:
    """Red if the page shows a delay head like any other."""
    recording = a_recording()
    assert recording.fast_weights is not None
    delayed = dataclasses.replace(recording.fast_weights, delay_heads=1)
    packed = player.pack(dataclasses.replace(recording, fast_weights=delayed), "delta")
    titles = [part["title"] for part in packed["parts"] if part["group"] == "state"]
    assert titles == ["head 1, row i: i steps ago", "head 2", "head 3"]


def unpack(packed: Mapping[str, Any]) -> list[np.ndarray]:
    values = np.frombuffer(zlib.decompress(base64.b64decode(packed["bytes"])), np.int8)
    shapes = [(packed["steps"], *part["shape"]) for part in packed["parts"]]
    ends = np.cumsum([np.prod(shape) for shape in shapes])
    assert len(values) == ends[-1]
    return [part.reshape(shape) for part, shape in zip(np.split(values, ends[:-1]), shapes, strict=True)]


def test_the_player_gets_every_matrix_of_every_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches heads, steps, or rows and columns that are mixed up, and an episode that makes the file huge."""
    recording = a_recording()
    assert recording.fast_weights is not None
    packed = player.pack(recording, "delta")
    assert [part["group"] for part in packed["parts"]] == [*["state"] * 3, *["written"] * 3, "retrieval"]
    largest = max(np.abs(recording.fast_weights.matrices).max(), np.abs(recording.fast_weights.written).max())
    *heads, retrieval = unpack(packed)
    for head in range(3):
        for shown, exact in (
            (heads[head], recording.fast_weights.matrices[:, head]),
            (heads[3 + head], recording.fast_weights.written[:, head]),
        ):
            np.testing.assert_allclose(np.sign(shown) * (shown / 127.0) ** 2 * largest, exact, atol=0.01 * largest)
    assert (np.triu(retrieval[:, 0], 1) == 0).all()
    assert not packed["cut"]
    monkeypatch.setattr(player, "_MOST_BYTES", 2 * 3 * 4 * 5 * 4 + 1)
    packed = player.pack(recording, "delta")
    assert (packed["steps"], packed["cut"], packed["frames"]["count"], len(packed["values"])) == (4, True, 5, 4)
    assert unpack(packed)[-1].shape == (4, 1, 4)


def test_the_player_gets_the_attention_of_every_head() -> None:
    """Catches a state whose rows move up in every step in the place of what was looked at."""
    recording = a_recording()
    assert recording.fast_weights is not None
    weights = recording.fast_weights.contributions
    made = dataclasses.replace(
        recording,
        states=(np.zeros((6, 63, 257), np.float32),),
        fast_weights=None,
        attention=Attention(weights=weights, retrieval=recording.fast_weights.retrieval),
    )
    packed = player.pack(made, "attention")
    assert [part["group"] for part in packed["parts"]] == ["attended", "retrieval"]
    assert packed["changes"] is packed["beta"] is None
    attended, retrieval = unpack(packed)
    np.testing.assert_allclose((attended / 127.0) ** 2 * weights.max(), weights, atol=0.01)
    assert (np.triu(retrieval[:, 0], 1) == 0).all()


LOOK = """() => {
    const drawn = selector => [...document.querySelectorAll(selector)].map(canvas => canvas.toDataURL()).join();
    const text = selector => document.querySelector(selector).textContent;
    return {
        step: text(".step"),
        frame: drawn(".frame"),
        state: drawn(".matrices:nth-of-type(1) canvas"),
        written: drawn(".matrices:nth-of-type(2) canvas"),
        strength: text(".matrices:nth-of-type(2)"),
        value: text(".now"),
        probabilities: text(".odds"),
        cursor: document.querySelector(".strip line").getAttribute("x1"),
        retrieval: drawn(".map"),
        sources: text(".recall-title") + text(".sources"),
    };
}"""


@pytest.mark.skipif(BROWSER is None, reason="needs a browser: apt-get install chromium")
def test_the_page_works_in_a_browser_without_a_network(presented: Path) -> None:
    """Catches a script that does not run or is refused, a panel that does not follow the slider, a page that asks for
    anything from outside, and one that is wider than a telephone."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra 'browser': pip install playwright")
    page_file = presented / "report.html"
    faults: list[str] = []
    as_root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with (
        playwright.sync_playwright() as driver,
        driver.chromium.launch(executable_path=BROWSER, args=as_root) as browser,
    ):
        page = browser.new_context(offline=True).new_page()
        page.on("console", lambda message: faults.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith("data:") else faults.append(request.url))
        page.goto(page_file.as_uri())
        assert faults.pop() == page_file.as_uri()  # requests are seen

        page.wait_for_selector('#player[data-ready="delta"]')
        before = page.evaluate(LOOK)
        page.locator(".slider").focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        after = page.evaluate(LOOK)
        assert (before["step"], after["step"]) == ("step 0 of 8", "step 2 of 8")
        assert [panel for panel in before if before[panel] == after[panel]] == []

        page.click('[data-episode="1"]')
        page.wait_for_selector('#player[data-ready="lstm"]')
        assert page.inner_text(".memories-now h3 >> nth=1") == "Changed in this step"
        assert page.is_hidden(".recall")
        page.click('[data-episode="2"]')
        page.wait_for_selector('#player[data-ready="none"]')
        assert "no memory" in page.inner_text(".memories-now")

        page.click('.legend [data-memory="lstm"]')
        assert page.eval_on_selector_all(".line.dim", "all => all.map(line => line.dataset.memory)") == [
            "delta",
            "none",
        ]
        page.hover(".chart")
        assert "steps" in page.inner_text(".readout")

        page.set_viewport_size({"width": 400, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") == 400
    assert faults == []
