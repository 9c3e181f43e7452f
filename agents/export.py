"""A trained agent as the folder of a model card, as the Hugging Face Hub takes it.

README.md            metadata, what it is, what it reached, how to use it
model.safetensors    the weights
model.zip, run.json  the same agent as a run that every command here reads; nothing in it is pickled
episode.gif          an episode
"""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

from agents.config import TrainConfig, to_json
from agents.errors import UsageError
from agents.evaluation import Summary, evaluate_run, load_run, summarize, summary_lines
from agents.rendering import render_run
from agents.runs import RunPaths, read_run, write_json
from fwp_rl.registry import memory_name


def export(directory: Path, out: Path, *, episodes: int = 200) -> Path:
    """Evaluate the run in `directory` on unseen episodes, and write its folder to `out`, which must not exist yet."""
    if episodes < 1:
        raise UsageError(f"episodes={episodes} must be at least 1")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists already; give another --out")
    config, policy = load_run(directory)
    description = read_run(directory)
    _, rows = evaluate_run(directory, episodes=episodes, deterministic=True)
    is_new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        _write(out, policy, description, card(config, summarize(rows), description))
        render_run(out, out / "episode.gif")
    except BaseException as error:
        shutil.rmtree(out, ignore_errors=True)  # half a folder looks like a whole one
        if not is_new:
            out.mkdir(exist_ok=True)
        if isinstance(error, OSError):
            raise UsageError(f"cannot write {out}: {error.strerror or error}") from None
        raise
    return out


def _write(out: Path, policy: Any, description: dict[str, Any], text: str) -> None:
    from fwp_rl.sb3.portable import WEIGHTS, write_portable

    with zipfile.ZipFile(RunPaths(out).model, "w") as archive:
        write_portable(archive, policy)
    with zipfile.ZipFile(RunPaths(out).model) as archive:
        (out / "model.safetensors").write_bytes(archive.read(WEIGHTS))
    write_json(RunPaths(out).description, description)
    (out / "README.md").write_text(text, encoding="utf-8")


def card(config: TrainConfig, summary: Summary, description: dict[str, Any]) -> str:
    """The model card: metadata as the Hub reads it, then Markdown."""
    memory = memory_name(config.memory)
    options = ", ".join(f"{name}={value}" for name, value in config.env_options.items())
    return "\n".join(
        [
            "---",
            *_metadata(config.env_id, memory, summary),
            "---",
            "",
            f"# {memory} on {config.env_id}",
            "",
            f"An agent that plays `{config.env_id}`{f' ({options})' if options else ''} and remembers by a `{memory}` "
            "memory, trained with MemoryPPO of fwp-rl.",
            "",
            "![an episode](episode.gif)",
            "",
            f"Trained for {description.get('steps') or 0:,} environment steps, with seed {config.seed}. "
            f"On {summary.episodes} episodes that it was not trained on, taking the most probable action:",
            "",
            *(f"    {line}" for line in summary_lines(summary)),
            "",
            "## Use",
            "",
            "In a checkout of fwp-rl:",
            "",
            "    python -m agents evaluate FOLDER",
            "    python -m agents render FOLDER",
            "",
            "or in Python, without running any code from this folder:",
            "",
            "    from fwp_rl.sb3 import load_policy",
            "",
            '    policy = load_policy("FOLDER/model.zip")',
            "    actions, state = policy.predict(observations, state, episode_start)",
            "",
            "## Settings",
            "",
            "```json",
            json.dumps(to_json(config), indent=2),
            "```",
            "",
        ]
    )


def _metadata(env_id: str, memory: str, summary: Summary) -> list[str]:
    """YAML for the Hub. Its values are written as JSON, which YAML contains, so that no name can break out of them."""
    metrics = [("mean_reward", f"{summary.return_mean:.2f} +/- {summary.return_std:.2f}")]
    if summary.success_rate is not None:
        metrics.append(("success_rate", f"{summary.success_rate:.3f}"))
    tags = [env_id, memory, "reinforcement-learning", "deep-reinforcement-learning", "stable-baselines3", "fwp-rl"]
    results = [
        {
            "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
            "dataset": {"type": env_id, "name": env_id},
            "metrics": [{"type": kind, "name": kind, "value": value, "verified": False} for kind, value in metrics],
        }
    ]
    fields = {
        "library_name": "stable-baselines3",
        "pipeline_tag": "reinforcement-learning",
        "tags": tags,
        "model-index": [{"name": f"MemoryPPO {memory}", "results": results}],
    }
    return [f"{name}: {json.dumps(value)}" for name, value in fields.items()]
