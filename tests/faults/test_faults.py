"""Faults of real runs: what is noticed, what is said, what is saved, and what is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.faults.conftest import Program, eventually

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def unbroken_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that nothing happened to."""
    program = Program(tmp_path_factory.mktemp("unbroken"))
    status, output = program.run()
    assert status == 0, output
    return program.run_dir


@pytest.fixture(scope="module")
def unbroken(unbroken_dir: Path) -> dict[str, torch.Tensor]:
    """The weights of a run that nothing happened to."""
    return load_file(unbroken_dir / "model.safetensors")


def events(run_dir: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]


def assert_same_weights(run_dir: Path, expected: dict[str, torch.Tensor]) -> None:
    found = load_file(run_dir / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("kill", "worker 1"),
        ("raise", "RuntimeError: boom"),
        ("stop", "worker 1 is frozen"),
        ("hold the interpreter", "worker 1 is frozen"),
    ],
)
def test_a_failed_worker_is_named_and_the_run_ends_as_if_nothing_had_happened(
    program: Program, unbroken: dict[str, torch.Tensor], fault: str, said: str
) -> None:
    where = ("task_options.rank=1", "task_options.at=11", "task_options.pace_s=0.1")
    status, output = program.run(f"task_options.fault={fault}", *where)
    assert status == 0, output
    assert said in output
    # The checkpoint of step 8 may still be on its way to the disk.
    assert "restarting from step 8" in output or "restarting from step 4" in output
    assert "logs" in output
    assert_same_weights(program.run_dir, unbroken)
    restarts = [event for event in events(program.run_dir) if event["event"] == "restart"]
    assert len(restarts) == 1
    assert json.loads((program.run_dir / "summary.json").read_text())["restarts"] == 1


def test_a_loop_that_does_not_move_is_found_and_the_stacks_show_where(program: Program) -> None:
    # The slowest phase so far, times twenty, must stay below the limit for the test to be quick.
    status, output = program.run(
        "task_options.fault=sleep", "task_options.rank=1", "task_options.at=15", "recovery.max_restarts=0"
    )
    assert status == 1
    assert "worker 1 is hung" in output
    stacks = (program.run_dir / "logs" / "rank_00001.log").read_text()
    assert "tiny_task.py" in stacks
    assert "_fail" in stacks


def test_the_same_failure_twice_in_one_step_ends_the_run(program: Program) -> None:
    status, output = program.run(
        "task_options.fault=raise",
        "task_options.at=3",
        "task_options.always=true",
        "checkpoint.every_steps=100",
    )
    assert status == 1
    assert "twice" in output
    summary = json.loads((program.run_dir / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "boom" in summary["error"]


def test_nothing_survives_the_launcher(program: Program) -> None:
    process = program.start("task_options.pace_s=0.05", "train.steps=4000", "data.loaders=1")
    metrics = program.run_dir / "metrics.jsonl"
    assert eventually(lambda: metrics.exists() and metrics.stat().st_size > 0)
    assert len(program.processes()) >= 5  # the launcher, two workers, and a loader for each
    process.kill()
    process.communicate()
    assert eventually(lambda: not program.processes(), seconds=10)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_request_to_stop_saves_and_the_resumed_run_ends_as_if_never_stopped(
    program: Program, unbroken: dict[str, torch.Tensor], number: signal.Signals
) -> None:
    process = program.start("task_options.pace_s=0.1")
    metrics = program.run_dir / "metrics.jsonl"
    assert eventually(lambda: metrics.exists() and metrics.stat().st_size > 0)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    summary = json.loads((program.run_dir / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert 0 < summary["steps"] < 24
    assert f"--run-dir {program.run_dir}" in output
    status, output = program.run()
    assert status == 0
    assert f"resumed from {program.run_dir}/checkpoints/step_{summary['steps']:08d}" in output
    assert_same_weights(program.run_dir, unbroken)


def test_a_signal_to_one_worker_alone_stops_all_at_one_step(program: Program) -> None:
    status, output = program.run("task_options.fault=signal", "task_options.rank=1", "task_options.at=9")
    assert status == 75, output
    summary = json.loads((program.run_dir / "summary.json").read_text())
    assert 9 <= summary["steps"] < 24


def test_a_damaged_checkpoint_is_passed_over_aloud(
    program: Program, unbroken_dir: Path, unbroken: dict[str, torch.Tensor]
) -> None:
    shutil.copytree(unbroken_dir, program.run_dir)
    (program.run_dir / "model.safetensors").unlink()
    damaged = program.run_dir / "checkpoints" / "step_00000024" / "state.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    status, output = program.run()
    assert status == 0
    assert "step_00000024: state.safetensors: its content has changed" in output
    assert f"resumed from {program.run_dir}/checkpoints/step_00000020" in output
    assert_same_weights(program.run_dir, unbroken)


def test_two_runs_cannot_share_a_directory(program: Program) -> None:
    first = program.start("task_options.pace_s=0.05", "train.steps=4000")
    assert eventually(lambda: (program.run_dir / "metrics.jsonl").exists())
    status, output = program.run()
    first.terminate()
    first.communicate(timeout=60)
    assert status == 2
    assert f"in use by process {first.pid}" in output


def test_a_run_goes_on_with_another_number_of_workers(program: Program) -> None:
    status, _ = program.run("train.steps=5")
    assert status == 0
    status, output = program.run(
        "parallel.workers=3", "train.epochs=3", "schedule.base_batch=16", "schedule.rewarm.steps=2"
    )
    assert status == 0, output
    assert "global batch 16 -> 24: learning rate" in output
    assert "climbing over" in output
    summary = json.loads((program.run_dir / "summary.json").read_text())
    assert summary["samples"] == 3 * 96  # every sample of every epoch, once


def test_the_same_run_under_torchrun_ends_with_the_same_weights(
    program: Program, unbroken: dict[str, torch.Tensor]
) -> None:
    import subprocess

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    config = [str(program.folder / "tiny.yaml"), "--run-dir", str(program.run_dir)]
    done = subprocess.run(
        [*command, "-m", "dist_train", "run", *config],
        cwd=program.folder,
        env=program.environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_weights(program.run_dir, unbroken)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def as_rank(rank: int, workers: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(workers),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        (
            "optimizer.lr=0.06",
            "rank 1 differs from rank 0: configuration optimizer.lr is 0.06 instead of 0.05",
        ),
        ("task_options.width=17", "rank 1 differs from rank 0: configuration task_options.width"),
    ],
)
def test_workers_that_mean_different_runs_are_refused_before_the_first_collective(
    program: Program, difference: str, said: str
) -> None:
    port = free_port()
    ranks = [
        program.start(**as_rank(0, 2, port)),
        program.start(difference, **as_rank(1, 2, port)),
    ]
    outputs = [process.communicate(timeout=60)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [2, 2], outputs
    assert "rank 1 differs from rank 0" in outputs[0]
    assert said in outputs[0]


def test_a_missing_rank_is_named(program: Program) -> None:
    began = time.monotonic()
    status, output = program.run("parallel.timeout_s=3", **as_rank(0, 2, free_port()))
    assert status == 1
    assert "waited 3 s for ranks [1]" in output
    assert time.monotonic() - began < 30


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_costs_checkpoints_and_not_the_run(program: Program) -> None:
    import subprocess

    folder = program.folder / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(folder)], check=False)
    if mounted.returncode:
        pytest.skip("this machine does not allow to mount a file system")
    try:
        status, output = program.run("optimizer.lr=1e-4", "task_options.width=2000", run_dir=folder / "run")
        assert status == 1  # the last state could not be saved, and that is a failure
        assert "was not written" in output
        assert "No space left" in output or "free" in output
        assert "validation  step" in output
    finally:
        subprocess.run(["umount", str(folder)], check=True)
