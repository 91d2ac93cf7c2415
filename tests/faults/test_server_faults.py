"""Faults of real parameter-server runs: nobody waits who need not, and every sample is trained once.

The counting task tells by its weights alone how often each sample was trained.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from dist_train.replay import replay
from tests.faults.conftest import eventually
from tests.faults.counting_task import SAMPLES
from tests.faults.server_program import FROZEN_AFTER_S, ServerProgram, output_of, parent

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

# Slow enough for things to happen; until ``hurry``.
PACE = "task_options.pace_s=0.1"


# Ray loses a fifth of all requests and of all answers.
LOST = {"num_failures": -1, "req_failure_prob": 20, "resp_failure_prob": 20}
CALLS_LOST = {"CoreWorkerService.grpc_client.PushTask": LOST}
# Between nodes: the requests for an object, and its pieces.
ARRAYS_LOST = {f"ObjectManagerService.grpc_client.{call}": LOST for call in ("Pull", "Push")}


@dataclass(frozen=True)
class Network:
    """What the calls of a run meet: settings, and the environment."""

    settings: tuple[str, ...]
    variables: dict[str, str]


NETWORKS = {
    "whole": Network((PACE,), {}),
    # All that is said goes through Ray: gradients, commands to the shards and heartbeats included.
    "lossy": Network(
        ("task_options.pace_s=0.3", "parallel.server.direct=false"),
        {"RAY_testing_rpc_failure": json.dumps(CALLS_LOST)},
    ),
}


@pytest.fixture(params=["whole", "lossy"])
def network(request: pytest.FixtureRequest) -> Network:
    """One that delivers everything, and one that loses a third of all calls, or of their answers."""
    return NETWORKS[request.param]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProgram]:
    """The program with the counting task; whatever it leaves running fails the test."""
    made = ServerProgram(tmp_path)
    yield made
    left = made.close()
    assert not left, f"left running: {left}"


def came_back(server: ServerProgram, member: int) -> bool:
    """Whether a successor of a member's first process has trained."""
    gradients = [each for event in server.named("update") for each in event["gradients"]]
    return any(each["member"] == member and each["incarnation"] > 0 for each in gradients)


def made_again(server: ServerProgram) -> None:
    """What is left is what the log leads to: the same losses, checksums and last parameters, bit for bit."""
    server.hurry()
    line = replay(server.run_dir)
    assert re.search(r"[1-9]\d* of them checked: the parameters are those of .*, bit for bit$", line), line


def test_lost_workers_and_a_lost_shard_are_replaced_and_nothing_is_trained_twice(
    server: ServerProgram, network: Network
) -> None:
    """One run meets a NaN, a killed worker, a frozen one, a killed shard, and Ctrl-C in the terminal."""
    settings = (*network.settings, "task_options.poison=7", "parallel.server.snapshot_every=10")
    # Longer than the slowest machine takes for all this: it ends by the interrupt.
    process = server.start(*settings, "train.epochs=80", **network.variables)
    server.sees(lambda: len(server.named("update")) >= 10, 120)

    server.strike("rank_00001", signal.SIGKILL)
    server.sees(lambda: server.named("failure"), 10)
    assert server.trains_on()  # the other worker, while this one's successor starts
    server.sees(lambda: came_back(server, 1))

    server.strike("rank_00000", signal.SIGSTOP)
    struck = time.monotonic()
    server.sees(lambda: server.named("hung"), FROZEN_AFTER_S + 7)
    assert time.monotonic() - struck < FROZEN_AFTER_S + 5  # and a busy machine
    assert server.trains_on()
    server.sees(lambda: came_back(server, 0))

    server.strike("shard_000", signal.SIGKILL)
    server.sees(lambda: server.named("rolled_back"))
    (lost,) = server.named("rolled_back")
    assert lost["from_step"] - lost["step"] == lost["lost_updates"] <= 10 + 2
    assert server.trains_on()

    for running in server.processes():
        # As a terminal does: to everybody in the foreground.
        if os.getsid(running.pid) == os.getsid(process.pid):
            running.send_signal(signal.SIGINT)
    output = output_of(process)
    assert process.returncode == 75, output
    assert "stopping: the state is saved" in output
    assert server.summary["status"] == "interrupted"
    assert server.summary["gradients"]["refused"] == 1
    assert server.summary["lost_updates"] == lost["lost_updates"]
    assert server.summary["replaced"] == 2
    # Nobody else was taken for lost.
    assert [event["rank"] for event in server.named("failure")] == [1, 0]
    assert "2 workers replaced" in output
    assert "worker 1 was killed" in output
    assert "worker 0 is frozen" in output
    # Wherever in its step it was.
    assert "dist_train/member.py" in (server.run_dir / "logs" / "rank_00000.log").read_text()
    (to_continue,) = (line for line in output.splitlines() if line.startswith("to continue"))
    assert f"--run-dir {server.run_dir}" in to_continue

    server.hurry()
    epochs = 1 + server.summary["samples"] // SAMPLES
    status, output = server.run(*settings, f"train.epochs={epochs}", **network.variables)
    assert status == 0, output
    assert server.counts == {float(epochs): SAMPLES}
    assert server.summary["ledger"] == [{"epochs": [0, epochs - 1], "samples": {"1": SAMPLES}}]
    made_again(server)


def test_with_second_copies_nothing_is_lost_and_without_its_coordinator_a_run_begins_again(
    server: ServerProgram, network: Network
) -> None:
    """One bounded run loses both first copies of its shard in turn, its coordinator, and its conductor."""
    mode = ("parallel.mode=bounded", "parallel.max_staleness=2", "parallel.server.copies=2")
    bounded = (*network.settings, *mode)
    process = server.start(*bounded, "train.epochs=40", **network.variables)
    server.sees(lambda: len(server.named("update")) >= 10, 120)
    server.strike("shard_000", signal.SIGKILL)
    server.sees(lambda: server.named("shard_copy_lost"), 10)
    assert server.trains_on()
    server.sees(lambda: server.named("shard_copy_added"))
    server.strike("shard_000", signal.SIGSTOP)
    server.sees(lambda: len(server.named("shard_copy_lost")) == 2, 20)
    assert server.trains_on()
    assert not server.named("rolled_back", "failure")

    server.sees(lambda: len(server.named("checkpoint")) >= 2)
    server.strike("coordinator", signal.SIGKILL)
    server.sees(lambda: server.named("restart"))
    (restart,) = server.named("restart")
    assert restart["from_step"] > 0
    assert server.trains_on()

    # A stopped process hears of nothing; it too must be gone.
    server.strike("rank_00001", signal.SIGSTOP)
    process.kill()
    output_of(process)
    assert eventually(lambda: not server.processes(), seconds=10)

    server.hurry()
    done = server.named("update")[-1]["step"] * 4
    epochs = 1 + done // SAMPLES
    status, output = server.run(*bounded, f"train.epochs={epochs}", **network.variables)
    assert status == 0, output
    assert "resumed from" in output
    assert server.counts == {float(epochs): SAMPLES}
    assert server.summary["lost_updates"] == 0
    assert server.summary["gradients"]["applied"] == epochs * SAMPLES // 4
    made_again(server)


def test_a_group_restarts_as_a_unit_and_the_quorum_follows(server: ServerProgram) -> None:
    groups = ("parallel.mode=backup", "parallel.workers=4", "parallel.group_size=2", "train.epochs=40")
    lossy = NETWORKS["lossy"]
    process = server.start(*lossy.settings, *groups, **lossy.variables)
    server.sees(lambda: len(server.named("update")) >= 10, 180)
    assert {len(event["gradients"]) for event in server.named("update")} == {2}
    (peer,) = server.find("rank_00002")
    server.strike("rank_00003", signal.SIGKILL)
    server.sees(lambda: server.named("failure"), 10)
    assert server.named("failure")[0]["rank"] == 3  # and not the peer that noticed
    first = len(server.named("update"))
    assert server.trains_on()
    assert len(server.named("update")[first + 2]["gradients"]) == 1
    assert eventually(lambda: peer not in server.find("rank_00002"))
    server.sees(lambda: came_back(server, 1), 120)
    process.send_signal(signal.SIGTERM)
    output = output_of(process)
    assert process.returncode == 75, output
    assert "worker 3 was killed" in output
    made_again(server)


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["broken='a typo in the loss'"], 1, "RuntimeError: a typo in the loss"),
        (["broken=configuration"], 2, "dist-train: task_options.broken: it is"),
        (["poison=7", "always=true"], 1, "samples 188 to 191 in the order of epoch 0"),
    ],
)
def test_what_no_restart_can_mend_ends_the_run_at_once(
    server: ServerProgram, options: list[str], status: int, said: str
) -> None:
    found, output = server.run(*(f"task_options.{option}" for option in options))
    assert found == status, output
    assert said in output
    if status == 1:
        assert server.summary["status"] == "failed"
        assert said in server.summary["error"]
        assert "log: " in output or "The last checkpoint is kept" in server.summary["error"]
    assert output.count("is replaced in") <= 2


NODES = """
import subprocess, sys
from ray.cluster_utils import Cluster

home, *command = sys.argv[1:]
options = dict(num_cpus=3, object_store_memory=80 << 20, node_ip_address="127.0.0.1")
nodes = Cluster(initialize_head=True, head_node_args=dict(options, temp_dir=home, include_dashboard=False))
nodes.add_node(**options)
status = subprocess.call([*command, "--address", nodes.address])
nodes.shutdown()
sys.exit(status)
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder for a cluster, with a token; paths of sockets must be short."""
    with TemporaryDirectory(prefix="dist-train-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        (home / "ray").mkdir()
        (home / "token").write_text("0" * 64)
        yield home


def test_members_on_another_node_send_what_they_computed_and_are_replaced(
    server: ServerProgram, home: Path
) -> None:
    """Three workers and a server of two CPUs on two nodes of three. With strength 0 the count is exact."""
    damping = {"kind": "delay_compensated", "variant": "constant", "strength": 0.0}
    process = server.start(
        "parallel.workers=3",
        f"parallel.damping={json.dumps(damping)}",
        "train.epochs=8",
        "task_options.pace_s=0.3",
        # Nobody is stopped here, and hearts are heard late where their beats are lost.
        "recovery.frozen_after_s=10",
        before=(sys.executable, "-c", NODES, str(home)),
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(home / "token"),
        RAY_TMPDIR=str(home),
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
        RAY_object_manager_pull_timeout_ms="1000",
        RAY_testing_rpc_failure=json.dumps({**CALLS_LOST, **ARRAYS_LOST}),
    )
    server.sees(lambda: len(server.named("update")) >= 20, 150)
    (coordinator,) = server.find("coordinator")
    far = [rank for rank in range(3) if parent(server.find(f"rank_{rank:05}")[0]) != parent(coordinator)]
    assert len(far) == 2
    server.strike(f"rank_{far[0]:05}", signal.SIGKILL)
    server.sees(lambda: came_back(server, far[0]), 90)
    server.hurry()
    output = output_of(process)
    assert process.returncode == 0, output
    assert f"worker {far[0]} was killed" in output
    # What Ray has to say of that is no help.
    assert "(raylet)" not in output
    assert server.counts == {8.0: SAMPLES}
    assert server.summary["gradients"]["applied"] == 8 * SAMPLES // 4
    assert server.summary["ledger"] == [{"epochs": [0, 7], "samples": {"1": SAMPLES}}]
    members = {each["member"] for event in server.named("update") for each in event["gradients"]}
    assert members == {0, 1, 2}
    made_again(server)


def test_a_run_goes_on_in_another_mode_whatever_the_network_loses(server: ServerProgram) -> None:
    modes = [
        ("parallel.mode=sync", "optimizer.lr=2.0"),
        ("parallel.mode=async", "optimizer.lr=1.0"),
        ("parallel.mode=async", "parallel.local_steps=2"),
        ("parallel.mode=bounded", "parallel.max_staleness=1"),
        ("parallel.mode=backup", "parallel.workers=3", "parallel.backups=1", "optimizer.lr=2.0"),
        ("parallel.mode=sync", "optimizer.lr=2.0"),
    ]
    lossy = NETWORKS["lossy"]
    server.hurry()
    for number, settings in enumerate(modes):
        epochs = f"train.epochs={number + 1}"
        status, output = server.run(*lossy.settings, *settings, epochs, **lossy.variables)
        assert status == 0, output
        assert number == 0 or "resumed from" in output
        assert server.counts == {float(number + 1): SAMPLES}, settings
    # There is nothing left to do, and that is said and not trained.
    status, output = server.run("parallel.mode=async", f"train.epochs={len(modes)}")
    assert status == 0, output
    assert server.counts == {float(len(modes)): SAMPLES}


NOTEBOOK = """
import asyncio, sys
from dist_train import load_config, train

async def cell():
    return train(load_config(sys.argv[1]), run_dir=sys.argv[2])["samples"]

config, run_dir = sys.argv[1:]
print(asyncio.run(cell()), train(load_config(config), run_dir=run_dir + "2")["status"])
"""


def test_train_works_where_a_loop_is_running_already_and_again_after_that(server: ServerProgram) -> None:
    config = server.folder / "tiny.yaml"
    answer = subprocess.run(
        [sys.executable, "-c", NOTEBOOK, str(config), str(server.run_dir)],
        env=server.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1] == f"{3 * SAMPLES} done"


def test_the_last_validation_is_made_up_for_when_it_was_interrupted(server: ServerProgram) -> None:
    process = server.start("task_options.stalls=true", "train.epochs=1")
    server.sees(lambda: len(server.named("update")) == SAMPLES // 4, 120)
    process.send_signal(signal.SIGINT)
    output = output_of(process)
    assert process.returncode == 75, output
    assert server.summary["status"] == "interrupted"
    assert server.summary["val"] == {}
    assert not (server.run_dir / "model.safetensors").exists()
    made_again(server)

    status, output = server.run("task_options.stalls=true", "train.epochs=1")
    assert status == 0, output
    assert server.summary["status"] == "done"
    assert server.summary["val"]["loss"] == -1.0
    assert server.counts == {1.0: SAMPLES}
    made_again(server)


def test_a_second_ctrl_c_does_not_wait(server: ServerProgram) -> None:
    process = server.start("task_options.pace_s=30", "recovery.hung_after_s=600")
    server.sees(lambda: server.named("server_start"), 120)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    output = output_of(process)
    assert process.returncode in (1, 75), output
