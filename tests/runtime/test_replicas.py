"""Tests of the run of several replicas, with real processes: what each of them does, and what it survives."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from safetensors.torch import load_file

from dist_train.errors import DONE, FAILED, INTERRUPTED, REFUSED
from dist_train.replay import replay
from dist_train.runtime.replicas import worst

SMALL = {
    "name": "small",
    "task": "digits",
    "parallel": {"workers": 1, "replicas": 2, "device": "cpu"},
    "train": {"steps": 12, "batch_size": 16},
    "optimizer": {"name": "sgd", "lr": 0.05},
    "codistill": {"interval": 2},
    "logging": {"tensorboard": False, "every_steps": 4},
    "recovery": {"backoff_s": 0.1},
}


@pytest.mark.parametrize(
    ("statuses", "whole"),
    [
        ([DONE, DONE], DONE),
        ([DONE, INTERRUPTED], INTERRUPTED),
        ([INTERRUPTED, FAILED], FAILED),
        ([FAILED, REFUSED], REFUSED),
    ],
)
def test_a_run_ends_as_the_worst_of_its_replicas(statuses: list[int], whole: int) -> None:
    assert worst(statuses) == whole


class Program:
    """One run in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run_dir = folder / "run"
        self.processes: list[subprocess.Popen[str]] = []

    def task_failing_in_replica_1(self, method: str, error: str) -> str:
        """Write the task of digits, of which a method raises ``error`` in replica 1; return its name."""
        (self.folder / "unlike.py").write_text(
            "import os\nfrom dist_train.errors import ConfigError\n"
            "from dist_train.tasks.digits import Digits\n\n\n"
            f"class Unlike(Digits):\n    def {method}(self, *given):\n"
            "        if os.environ['DIST_TRAIN_REPLICA'] == '1':\n"
            f"            raise {error}\n        return super().{method}(*given)\n"
        )
        return "unlike.py:Unlike"

    def start(self, *arguments: str, run_dir: Path | None = None) -> subprocess.Popen[str]:
        (self.folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
        command = [sys.executable, "-m", "dist_train", "run", "small.yaml", *arguments]
        command += ["--run-dir", str(run_dir or self.run_dir)]
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            # Sums are added up in an order that depends on the number of threads.
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def run(self, *arguments: str, run_dir: Path | None = None) -> str:
        process = self.start(*arguments, run_dir=run_dir)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == DONE, output
        return output

    def lines(self, replica: int, kind: str) -> list[dict[str, Any]]:
        return self.read(self.run_dir / f"replica_{replica}" / f"{kind}.jsonl")

    @staticmethod
    def read(file: Path) -> list[dict[str, Any]]:
        if not file.exists():
            return []
        return [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line[-1] == "\n"]

    def starts(self, replica: int) -> int:
        return sum(line["event"] == "start" for line in self.lines(replica, "events"))

    def taught(self, replica: int, since_start: int = 1) -> bool:
        """Whether it has learnt from a teacher in its start number ``since_start`` or later."""
        starts = 0
        for line in self.lines(replica, "events"):
            starts += line["event"] == "start"
            if line["event"] == "teacher" and starts >= since_start:
                return True
        return False

    def steps(self, replica: int) -> int:
        return max((line["step"] for line in self.lines(replica, "metrics")), default=0)

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run_dir / "summary.json").read_text())
        return found


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    made = Program(tmp_path)
    yield made
    for process in made.processes:
        for left in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            left.kill()
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    mine = [each for each in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(each.info["cmdline"])]
    assert mine == []


def sees(process: subprocess.Popen[str], happened: Callable[[], object], seconds: float = 50) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def launcher_of(process: subprocess.Popen[str], replica: int) -> psutil.Process:
    """The process that started a replica's workers."""
    (found,) = (
        each
        for each in psutil.Process(process.pid).children()
        if f"replica_{replica}" in " ".join(each.cmdline())
    )
    return found


@pytest.mark.processes
@pytest.mark.timeout(180)
def test_without_weight_replicas_are_the_runs_they_would_be_alone(program: Program, tmp_path: Path) -> None:
    same = ("codistill={weight: 0, interval: 2, data: same}", "train.deterministic=true")
    program.run(*same)
    alone = ("parallel.replicas=1", "codistill=null", "train.deterministic=true")
    for replica in range(2):
        own = tmp_path / f"alone_{replica}"
        program.run(*alone, f"seed={1_000_000 * replica}", run_dir=own)
        together = load_file(program.run_dir / f"replica_{replica}" / "model.safetensors")
        expected = load_file(own / "model.safetensors")
        assert together.keys() == expected.keys()
        assert all(together[name].equal(expected[name]) for name in expected)


@pytest.mark.processes
@pytest.mark.timeout(180)
def test_two_groups_of_two_teach_each_other(program: Program) -> None:
    output = program.run("parallel.workers=2", "train.steps=60", "faults.step_s=0.1")
    assert re.search(r"replica 0: done, step 60 +accuracy .*\n.*replica 1: done, step 60 ", output)
    told = program.summary["replicas"]
    assert [(each["replica"], each["status"], each["steps"]) for each in told] == [
        (0, "done", 60),
        (1, "done", 60),
    ]
    assert program.summary["val"] == told[0]["val"]
    assert program.summary["model"] == str(program.run_dir / "replica_0" / "model.safetensors")
    for replica in range(2):
        changes = [line for line in program.lines(replica, "events") if line["event"] == "teacher"]
        assert changes
        assert {line["replica"] for line in changes} == {1 - replica}
        assert program.lines(replica, "metrics")[-2]["agreement"] > 0
    merged = [json.loads(line) for line in (program.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert {line["replica"] for line in merged} == {0, 1}
    assert [line["step"] for line in merged] == sorted(line["step"] for line in merged)


@pytest.mark.processes
@pytest.mark.timeout(180)
def test_a_killed_replica_starts_again_and_the_other_never_stops(program: Program) -> None:
    pace = ("faults.step_s=0.05", "train.steps=200", "checkpoint.every_steps=10")
    process = program.start(*pace)
    sees(process, lambda: (program.run_dir / "replica_1" / "checkpoints" / "latest").exists())
    launcher_of(process, 1).kill()
    before = program.steps(0)
    sees(process, lambda: program.steps(0) > before + 10)
    sees(process, lambda: len([each for each in program.lines(1, "events") if each["event"] == "start"]) == 2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED, output
    assert "replica 1 was killed by SIGKILL; it starts again in 0.1 s, the others go on" in output
    restarted = [each for each in program.lines(1, "events") if each["event"] == "start"][1]
    assert restarted["step"] >= 10
    assert program.summary["status"] == "interrupted"
    assert program.summary["restarts"] == 1

    program.run(*pace, "train.steps=60", "faults.step_s=0")
    assert [each["steps"] >= 60 for each in program.summary["replicas"]] == [True, True]


@pytest.mark.processes
@pytest.mark.timeout(180)
def test_a_replica_that_resumes_has_the_teacher_it_had(program: Program) -> None:
    settings = ("codistill={interval: 20}", "train.steps=100", "logging.every_steps=1")
    process = program.start(*settings, "faults.step_s=0.05")
    sees(process, lambda: program.taught(0) and program.taught(1))
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED, output
    had = {}
    for replica in range(2):
        changes = [line for line in program.lines(replica, "events") if line["event"] == "teacher"]
        had[replica] = changes[-1]["version"]
        newest = max((program.run_dir / f"replica_{replica}" / "checkpoints").glob("step_*"))
        seat = [had[replica], changes[-1]["step"]]
        assert json.loads((newest / "teachers.json").read_text()) == {str(1 - replica): seat}

    program.run(*settings)
    for replica in range(2):
        _, resumed = [line["step"] for line in program.lines(replica, "events") if line["event"] == "start"]
        # To take up a newer one takes several looks at the board, of which there is one in two updates.
        (first,) = [line for line in program.lines(replica, "metrics") if line["step"] == resumed + 1]
        assert first["teacher_age"] == resumed + 1 - had[replica]


@pytest.mark.processes
@pytest.mark.timeout(180)
def test_no_replica_outlives_the_program(program: Program) -> None:
    process = program.start("faults.step_s=0.05", "train.steps=1000")
    sees(process, lambda: program.steps(0) > 0 and program.steps(1) > 0)
    started = psutil.Process(process.pid).children(recursive=True)
    assert len(started) >= 4
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, left = psutil.wait_procs(started, timeout=10)
    assert left == []


@pytest.mark.processes
@pytest.mark.timeout(180)
def test_replicas_stopped_before_they_can_hear_are_interrupted_and_go_on(program: Program) -> None:
    process = program.start()
    sees(process, lambda: len(psutil.Process(process.pid).children()) == 2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED, output
    assert [each["status"] for each in program.summary["replicas"]] == ["interrupted"] * 2
    for replica in range(2):
        own = json.loads((program.run_dir / f"replica_{replica}" / "summary.json").read_text())
        assert own["status"] == "interrupted"
    program.run()


@pytest.mark.processes
@pytest.mark.timeout(180)
def test_a_replica_that_fails_for_good_leaves_the_others_to_their_end(program: Program) -> None:
    task = program.task_failing_in_replica_1("loss", "RuntimeError('a bad disk')")
    process = program.start(f"task={task}")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == FAILED, output
    assert "replica 1" in output
    assert "the others go on" in output
    assert [each["status"] for each in program.summary["replicas"]] == ["done", "failed"]
    assert "a bad disk" in program.summary["error"]


@pytest.mark.processes
@pytest.mark.timeout(180)
def test_replicas_that_begin_as_copies_of_one_model_become_different_ones(
    program: Program, tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    program.run("parallel.replicas=1", "codistill=null", run_dir=alone)
    program.run("codistill=null", "train.steps=14", "--resume", str(alone))
    one, other = (
        load_file(program.run_dir / f"replica_{replica}" / "model.safetensors") for replica in range(2)
    )
    assert not all(one[name].equal(other[name]) for name in one)
    assert [line["step"] for line in program.lines(1, "events") if line["event"] == "start"] == [12]


@pytest.mark.processes
@pytest.mark.timeout(180)
def test_a_replica_that_is_refused_at_the_start_stops_the_others(program: Program) -> None:
    task = program.task_failing_in_replica_1("model", "ConfigError('no such model here')")
    process = program.start(f"task={task}", "train.steps=2000", "faults.step_s=0.05")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == REFUSED, output
    assert "replica 1 is refused, and the others stop: no such model here" in output


@pytest.mark.processes
@pytest.mark.timeout(180)
def test_torchrun_is_told_that_it_starts_one_replica_only(program: Program) -> None:
    (program.folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    worker = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    command = [sys.executable, "-m", "dist_train", "run", "small.yaml"]
    ended = subprocess.run(
        command, cwd=program.folder, env=os.environ | worker, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == REFUSED
    assert "parallel.replicas: several replicas are started by dist-train run" in ended.stderr


@pytest.mark.processes
@pytest.mark.timeout(240)
def test_a_run_that_follows_another_ends_with_its_bits_interrupted_or_not(
    program: Program, tmp_path: Path
) -> None:
    terms = "codistill={interval: 4, keep_posts: all}"
    pace = ("train.deterministic=true", "train.steps=80", "faults.step_s=0.03", "checkpoint.every_steps=10")
    program.run(terms, *pace)
    first, program.run_dir = program.run_dir, tmp_path / "again"
    changes = [
        line for line in Program.read(first / "replica_0" / "events.jsonl") if line["event"] == "teacher"
    ]
    assert len(changes) > 2

    followed = f"codistill={{interval: 4, keep_posts: all, schedule: {first}}}"
    process = program.start(followed, *pace)
    sees(process, lambda: program.steps(0) > 20 and program.steps(1) > 20)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED
    program.run(followed, *pace)
    for replica in range(2):
        one, another = (
            load_file(each / f"replica_{replica}" / "model.safetensors") for each in (first, program.run_dir)
        )
        assert all(one[name].equal(another[name]) for name in one)


@pytest.mark.processes
@pytest.mark.timeout(240)
def test_one_that_follows_can_be_stopped_while_it_waits_for_a_post(program: Program, tmp_path: Path) -> None:
    terms, steps = "codistill={interval: 4, keep_posts: all}", "train.steps=48"
    program.run(terms, steps)
    first, program.run_dir = program.run_dir, tmp_path / "again"

    def follow(replica: int, *changes: tuple[int, int]) -> None:
        lines = [
            {"event": "teacher", "step": step, "replica": 1 - replica, "version": version}
            for step, version in changes
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (first / f"replica_{replica}" / "events.jsonl").write_text(text)

    # Neither goes on: the one waits for what the other would post later, which waits for what never comes.
    follow(0, (20, 40))
    follow(1, (12, 8), (36, 4000))
    followed = f"codistill={{interval: 4, keep_posts: all, schedule: {first}}}"
    process = program.start(followed, steps)
    posts = [
        program.run_dir / "board" / f"replica_{each}" / f"{at:012d}.json" for each, at in ((0, 20), (1, 36))
    ]
    sees(process, lambda: all(post.exists() for post in posts))
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED, output
    assert [each["steps"] for each in program.summary["replicas"]] == [20, 36]

    follow(1, (12, 8))
    program.run(followed, steps)
    changes = [line for line in program.lines(0, "events") if line["event"] == "teacher"]
    assert [(line["step"], line["version"]) for line in changes] == [(20, 40)]


@pytest.mark.processes
@pytest.mark.timeout(180)
def test_a_schedule_of_another_number_of_replicas_is_refused_before_the_start(program: Program) -> None:
    (program.run_dir / "replica_0").mkdir(parents=True)
    (program.run_dir / "config.yaml").write_text(yaml.safe_dump(SMALL | {"parallel": {"replicas": 4}}))
    terms = f"codistill={{interval: 2, keep_posts: all, schedule: {program.run_dir}}}"
    again = program.folder / "again"
    process = program.start(terms, run_dir=again)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == REFUSED, output
    assert "parallel.replicas is 4 there and not 2; follow a run of the same" in output
    assert not again.exists()


@pytest.mark.processes
@pytest.mark.timeout(240)
def test_predictions_are_exchanged_again_after_one_replica_was_frozen_and_killed(program: Program) -> None:
    terms = "codistill={exchange: prediction, data: same, patience_s: 1}"
    process = program.start(terms, "train.steps=600", "faults.step_s=0.04", "checkpoint.every_steps=10")

    def agreed(replica: int) -> int:
        """The last step for which an agreement was told."""
        lines = program.lines(replica, "metrics")
        return max((line["step"] for line in lines if "agreement" in line), default=0)

    sees(process, lambda: agreed(0) > 8 and agreed(1) > 8)
    (worker,) = launcher_of(process, 1).children()
    worker.suspend()
    before = program.steps(0)
    sees(process, lambda: program.steps(0) > before + 12)
    worker.resume()
    sees(process, lambda: agreed(0) > before + 12)
    told = [event["event"] for event in program.lines(0, "events") if event["event"].startswith("teacher_")]
    assert told == ["teacher_gone", "teacher_back"]

    launcher_of(process, 1).kill()
    before = program.steps(0)
    sees(process, lambda: program.steps(0) > before + 10)
    sees(process, lambda: agreed(0) > before + 10 and agreed(1) > before + 10)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED, output


@pytest.mark.processes
@pytest.mark.timeout(300)
def test_replicas_that_exchange_predictions_stop_together_and_go_on_as_if_they_never_had(
    program: Program, tmp_path: Path
) -> None:
    terms = "codistill={exchange: prediction, data: same, patience_s: 60}"
    settings = (terms, "parallel.workers=2", "train.deterministic=true", "train.steps=80")
    whole = tmp_path / "whole"
    program.run(*settings, run_dir=whole)

    slow = "faults.step_s=0.05"
    process = program.start(*settings, slow)
    sees(process, lambda: program.steps(0) > 8 and program.steps(1) > 8)
    # Only one of them is asked.
    launcher_of(process, 1).send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED, output
    first, other = (each["steps"] for each in program.summary["replicas"])
    assert first == other

    process = program.start(*settings, slow)
    sees(process, lambda: program.steps(0) > first + 8 and program.steps(1) > first + 8)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED, output
    second, other = (each["steps"] for each in program.summary["replicas"])
    assert second == other

    program.run(*settings)
    for replica in range(2):
        one, another = (
            load_file(each / f"replica_{replica}" / "model.safetensors") for each in (whole, program.run_dir)
        )
        assert all(one[name].equal(another[name]) for name in one)


@pytest.mark.processes
@pytest.mark.timeout(180)
def test_one_that_is_frozen_does_not_hold_up_the_stop_of_the_other(program: Program) -> None:
    terms = "codistill={exchange: prediction, data: same, patience_s: 1}"
    process = program.start(terms, "train.steps=600", "faults.step_s=0.04", "recovery.grace_s=8")
    sees(process, lambda: program.steps(0) > 8 and program.steps(1) > 8)
    (worker,) = launcher_of(process, 1).children()
    worker.suspend()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == FAILED, output
    assert [each["status"] for each in program.summary["replicas"]] == ["interrupted", "failed"]


@pytest.mark.processes
@pytest.mark.timeout(300)
def test_replicas_with_parameter_servers_teach_each_other_and_are_replayed(program: Program) -> None:
    """One is killed on the way, and takes up the teacher's newest post when it comes back."""
    settings = (
        "parallel={mode: async, workers: 2, replicas: 2, device: cpu}",
        "codistill={interval: 10, keep_posts: all, data: same}",
        "train.deterministic=true",
        "checkpoint.every_steps=20",
        "faults.step_s=0.05",
    )
    process = program.start(*settings, "train.steps=2000")
    latest = program.run_dir / "replica_1" / "checkpoints" / "latest"
    sees(process, lambda: latest.exists() and program.taught(0) and program.taught(1), seconds=100)
    launcher_of(process, 1).kill()
    before = program.steps(0)
    sees(process, lambda: program.steps(0) > before + 20)
    sees(process, lambda: program.starts(1) == 2 and program.taught(1, since_start=2), seconds=100)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == INTERRUPTED, output
    for replica in range(2):
        assert replay(program.run_dir / f"replica_{replica}").endswith("bit for bit")
