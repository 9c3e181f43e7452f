"""When does an agent need its memory? Operations on the memory of trained agents, at every step of unseen episodes.

    python -m benchmarks.probe             # trains what is missing, then about a minute for each agent
    python -m benchmarks.probe --smoke     # seconds, writes nothing

In a T-maze it is known: from the step after the cue until the turn. Erased in between, the agent must succeed no more
often than one that guesses; erased before the cue, it must lose nothing. With two corridors the second cue replaces the
first one, so that the step before it is one at which nothing needs to be kept.

The first criterion was the level of the same agent always erased. Seeds 1 and 2 of the T-maze missed it: an agent that
has never been without memory may do worse than guess, and not the same after one erasure as after many. Both are told.
"""

import argparse
import dataclasses
import json
import pathlib
import tempfile
from dataclasses import dataclass

from agents.probe import Probe, draw, probe_json, probe_run, report
from agents.statistics import Estimate
from agents.table import markdown
from benchmarks.learning import EPISODES, QUESTIONS, RESULTS, ROOT, Question, directory_of, train
from benchmarks.machine import describe_machine

TWO_CORRIDORS = Question(
    text="Two T-mazes in a row, corridors of 6, 600k steps",
    env_id="fwp/TMaze-v0",
    memories=("delta",),
    n_seeds=1,
    measure="success_rate",
    bar=0.98,
    control=(0.2, 0.3),
    flags=("--env-options", "n_corridors=2", "length=6", "--total-timesteps", "600000"),
    stop_at=1.0,
    eval_every=20_000,
)


CHANCE = 0.5
"""Best success without memory, of one turn that is guessed."""


@dataclass(frozen=True)
class Case:
    """An agent, and the steps before which it holds what it will need."""

    name: str
    question: Question
    memory: str
    seed: int
    needed: tuple[int, ...]
    free: tuple[int, ...]
    """Steps before which nothing needs to be held."""
    steps: tuple[int, ...] | None = None
    """None: the default sweep."""


_CORRIDOR = tuple(range(1, 8))
CASES = (
    *(Case("t-maze", QUESTIONS["t-maze"], "delta", seed, _CORRIDOR, (0,)) for seed in range(5)),
    Case("t-maze", QUESTIONS["t-maze"], "lstm", 0, _CORRIDOR, (0,)),
    Case("t-maze-20", QUESTIONS["t-maze-20"], "delta", 0, (1, 2, 3, 20), (0,)),
    Case("two-corridors", TWO_CORRIDORS, "delta", 0, (*range(1, 7), *range(8, 14)), (0, 7), tuple(range(14))),
)


def erased(result: Probe) -> dict[int, Estimate]:
    return {outcome.step: outcome.estimate for outcome in result.outcomes if outcome.operation == "erase"}


def verdict(case: Case, result: Probe) -> str:
    """How many of the predictions about erasing came true."""
    of_step = erased(result)
    kept = sum(of_step[step].high >= result.untouched.low for step in case.free)
    lost = sum(of_step[step].low <= CHANCE for step in case.needed)
    blind = sum(
        of_step[step].low <= result.without_memory.high and result.without_memory.low <= of_step[step].high
        for step in case.needed
    )
    return (
        f"erased when nothing is held, as untouched: {kept} of {len(case.free)} steps; "
        f"erased between cue and turn, no better than guessing: {lost} of {len(case.needed)}; "
        f"there, at the level of the same agent always erased: {blind} of {len(case.needed)}"
    )


def as_markdown(answers: list[tuple[Case, Probe]], machine: str) -> str:
    last = max(outcome.step for _, result in answers for outcome in result.outcomes)
    rows = [
        {
            "agent": f"{case.name}, {case.memory}, seed {case.seed}",
            "untouched": f"{result.untouched.value:.2f}",
            "always erased": f"{result.without_memory.value:.2f}",
            **{
                str(step): f"{erased(result)[step].value:.2f}" if step in erased(result) else ""
                for step in range(last + 1)
            },
        }
        for case, result in answers
    ]
    lines = [
        "# When does an agent need its memory?",
        "",
        f"Success in {EPISODES} unseen episodes, the same for all. Written by `python -m benchmarks.probe`; what the "
        "operations are says `python -m agents probe --help`.",
        "",
        machine,
        "",
        "Guessing is a success rate of 0.5. It was made the criterion after seeds 1 and 2 of the T-maze had missed the "
        "first one, the level of the same agent always erased; both are counted below.",
        "",
        "Memory erased before the step:",
        "",
        markdown(rows),
        "",
        *(f"- {case.name}, {case.memory}, seed {case.seed}: {verdict(case, result)}" for case, result in answers),
    ]
    for case, result in answers:
        if case.seed == 0:
            picture = f"probe_{case.name}_{case.memory}.png"
            lines += ["", f"## {case.question.text}: {case.memory}", "", "```", report(result), "```", ""]
            lines += [f"![success against the step of the operation]({picture})"]
    return "\n".join(lines) + "\n"


def answer(case: Case, root: pathlib.Path, episodes: int) -> Probe:
    """The agent, trained if it is not there yet, with its memory operated upon."""
    directory = directory_of(case.name, case.memory, case.seed, root)
    train(case.question, case.memory, case.seed, directory)
    result = probe_run(directory, steps=case.steps, episodes=episodes)
    print(f"{case.name} {case.memory} {case.seed}: {verdict(case, result)}", flush=True)
    return result


def smoke() -> None:
    """The whole path with an agent that has learned nothing."""
    flags = ("--env-options", "n_corridors=2", "length=6", "--total-timesteps", "512", "--ppo.n-steps", "16")
    question = dataclasses.replace(TWO_CORRIDORS, flags=flags, eval_every=0, stop_at=None)
    case = Case("two-corridors", question, "delta", 0, needed=(1,), free=(0,), steps=(0, 1))
    with tempfile.TemporaryDirectory() as root:
        print(as_markdown([(case, answer(case, pathlib.Path(root), 4))], describe_machine()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    if parser.parse_args().smoke:
        smoke()
        return
    machine, answers = describe_machine(), []
    for case in CASES:
        result = answer(case, ROOT / "runs" / "benchmarks", EPISODES)
        answers.append((case, result))
        if case.seed == 0:
            draw(result, RESULTS / f"probe_{case.name}_{case.memory}.png")
    rows = [
        {"name": case.name, "seed": case.seed, "verdict": verdict(case, result), **probe_json(result)}
        for case, result in answers
    ]
    (RESULTS / "probe.json").write_text(json.dumps({"machine": machine, "rows": rows}) + "\n")
    (RESULTS / "probe.md").write_text(as_markdown(answers, machine))


if __name__ == "__main__":
    main()
