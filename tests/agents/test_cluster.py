"""`compare --cluster ray`: an address that does not answer, and a machine that dies in the middle."""

import dataclasses
import socket
import time
import zipfile
from pathlib import Path
from threading import Thread

import pytest

from agents.cluster import RayCluster
from agents.comparison import compare
from agents.config import PPOConfig, TrainConfig
from agents.errors import UsageError
from agents.runs import RunPaths, read_metrics, read_run
from agents.side_by_side import Job
from agents.training import prepare, train

# All of it in three checkpoints and a half.
CONFIG = TrainConfig(
    env_id="fwp/TMaze-v0", ppo=PPOConfig(n_steps=32), n_envs=16, total_timesteps=28_672, save_every=8_192
)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", r"no Ray cluster answers at 127.0.0.1:1 \(Connection refused\)"),
        ("head", "address='head' must read host:port, such as 10.0.0.7:6379"),
    ],
)
def test_an_address_that_does_not_answer_is_told_at_once(address: str, message: str, tmp_path: Path) -> None:
    """Catches a comparison that waits for a cluster which is not there, and one that has written something before."""
    settings = {"n_seeds": 1, "equal": "nothing", "total_timesteps": 64, "episodes": 1, "n_processes": 1}
    with pytest.raises(UsageError, match=message):
        compare(["fwp/TMaze-v0"], ["none"], root=tmp_path / "runs", cluster="ray", address=address, **settings)  # type: ignore[arg-type]  # mixed values
    with pytest.raises(UsageError, match="add --cluster ray"):
        compare(["fwp/TMaze-v0"], ["none"], root=tmp_path / "runs", address=address, **settings)  # type: ignore[arg-type]  # mixed values
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_listener_that_is_no_cluster_is_told_within_15_seconds() -> None:
    """Catches Ray's own patience, which is minutes."""
    pytest.importorskip("ray", reason="needs the extra 'cluster'")
    with socket.create_server(("127.0.0.1", 0)) as server:
        started = time.monotonic()
        with pytest.raises(UsageError, match="it does not answer as a Ray cluster does"):
            RayCluster(f"127.0.0.1:{server.getsockname()[1]}")
        assert time.monotonic() - started < 15


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_runs_of_a_machine_that_dies_are_finished_by_another_and_none_is_trained_twice(tmp_path: Path) -> None:
    """Catches a sweep that hangs or loses a run with a machine, and a run that is begun anew or by two workers."""
    ray = pytest.importorskip("ray", reason="needs the extra 'cluster'")
    from ray.cluster_utils import Cluster

    jobs = [Job(f"seed {n}", dataclasses.replace(CONFIG, seed=n), tmp_path / f"seed_{n}") for n in range(4)]
    for job in jobs:
        prepare(job.config, job.directory)
    small = {"object_store_memory": 100_000_000, "include_dashboard": False}
    # The head only manages, as on most clusters; two more nodes compute.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=100_000_000) for _ in range(2)]
    killed: list[bool] = []

    def kill_one_that_trains() -> None:
        while not all(RunPaths(job.directory).checkpoint.exists() for job in jobs[:2]):
            time.sleep(0.05)
        cluster.remove_node(nodes[0], allow_graceful=False)
        killed.append(True)

    killer = Thread(target=kill_one_that_trains, daemon=True)
    try:
        training = RayCluster(cluster.address)
        killer.start()
        codes = training.train(jobs, lambda job, has_ended: None, again="")
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert killed
    assert codes == {job.name: 0 for job in jobs}
    runs = [read_run(job.directory) for job in jobs]
    assert [run["status"] for run in runs] == ["finished"] * 4
    assert [run["steps"] for run in runs] == [CONFIG.planned_steps] * 4
    # Those that ran on the machine that died, once each, from a checkpoint and not from the beginning.
    resumed = [job for job, run in zip(jobs, runs, strict=True) if run["resumed_at"]]
    assert len(resumed) == 1
    (step,) = read_run(resumed[0].directory)["resumed_at"]
    assert step >= 8_192
    alone = train(resumed[0].config, tmp_path / "alone", quiet=True)
    for job in jobs:
        steps = [line["step"] for line in read_metrics(RunPaths(job.directory).metrics)]
        assert steps == [line["step"] for line in read_metrics(RunPaths(alone).metrics)]
    weights = [
        zipfile.ZipFile(path / "model.zip").read("portable/policy.safetensors")
        for path in (alone, resumed[0].directory)
    ]
    assert weights[0] == weights[1]
