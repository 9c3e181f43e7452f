"""Named sets of tasks: what they hold, and what is said about names that mean nothing."""

from pathlib import Path

import pytest

import envs
from agents import suites
from agents.comparison import _Plan
from agents.errors import UsageError
from agents.vec_env import make_vec_env
from fwp_rl import NoneConfig


def test_every_task_of_a_suite_can_be_made() -> None:
    """Red if a suite names a preset or an environment that does not exist, or one with impossible options."""
    for tasks in suites.suites().values():
        for task in tasks:
            config = suites.task_config(task)
            make_vec_env(config.env_id, 2, options=config.env_options).close()


def test_capacity_grows_by_its_keys_alone() -> None:
    """Red if the tasks of the suite differ in how often a key is written or asked for."""
    options = [suites.task_config(task).env_options for task in suites.suites()["capacity"]]
    counts = [tuple(envs.make_vector("fwp/KeyValueRecall-v0", 1, **of).counts) for of in options]  # type: ignore[union-attr]  # not None
    assert counts == [(3,) * 4, (3,) * 8, (3,) * 16]


def test_order_goes_from_a_short_delay_to_a_long_one_and_from_a_queue_to_a_stack() -> None:
    """Red if a task of the suite is missing, or has other options than its preset says."""
    tasks = [suites.task_config(task) for task in suites.suites()["order"]]
    vector = [envs.make_vector(config.env_id, 1, **config.env_options) for config in tasks]
    assert [task.k for task in vector[:3]] == [4, 16, 31]  # type: ignore[union-attr]  # not None
    assert [(task.length, task.reverse) for task in vector[3:]] == [(4, False), (12, True)]  # type: ignore[union-attr]


def test_names_of_all_kinds_are_understood_and_each_task_comes_once() -> None:
    """Red if a suite is not opened, a version is not filled in, or a task would be trained twice."""
    expected = ["fwp/Copy-v0", *suites.suites()["capacity"], "parity"]
    assert suites.expand(["fwp/Copy", "suite:capacity", "parity", "key-value-8"]) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("suite:trackign", "unknown suite 'trackign': nearest are tracking"),
        ("fwp/Copi-v0", "unknown environment 'fwp/Copi-v0'; did you mean fwp/Copy-v0"),
        ("suite:popgym", r"the suite 'popgym' is not installed: pip install -e '.\[popgym\]'"),
    ],
)
def test_a_name_that_means_nothing_is_answered_with_the_nearest(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red if a misspelt suite is taken for an environment, or an empty one for a comparison of nothing."""
    monkeypatch.setattr(suites, "known_ids", list)  # as where POPGym is not installed
    with pytest.raises(UsageError, match=message):
        suites.expand([name])


def test_two_tasks_of_one_environment_are_compared_apart(tmp_path: Path) -> None:
    """Red if runs share a directory, or results a table, because they share the id of the environment."""
    tasks = suites.expand(["suite:tracking"])
    plan = _Plan(root=tmp_path, total_timesteps=None, equal_time=None)
    jobs = [plan.job(task, "none", NoneConfig(), 0) for task in tasks]
    assert [job.task for job in jobs] == tasks
    assert len({job.directory for job in jobs}) == len(tasks)
    assert [job.config.env_options.get("group") for job in jobs] == ["parity", None, "S3", None]
