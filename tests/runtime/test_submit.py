"""Tests of a run as a job: what is sent, what is shown, and how it ends; one of them on a real cluster."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import yaml

from dist_train.errors import DONE, FAILED, INTERRUPTED, REFUSED, ConfigError, TrainingError
from dist_train.runtime import submit
from dist_train.runtime.access import TURNED_AWAY, knock_at_jobs
from dist_train.runtime.reaper import Reaper
from dist_train.runtime.submit import Submission, entrypoint_of, send

ROOT = Path(__file__).parents[2]
TASK = ROOT / "tests" / "faults" / "counting_task.py"
RUN_DIR = Path("/shared/run")
NO_AGENT = "No available agent to submit job, please try again later."
REPLICAS = ("replica_0", "replica_1")
SETTINGS: dict[str, Any] = {
    "name": "sent",
    "task": "counting_task.py:Counting",
    "parallel": {"mode": "async", "workers": 1},
    "train": {"steps": 300, "batch_size": 8},
    "optimizer": {"name": "sgd", "lr": 0.001},
    "logging": {"every_steps": 1, "tensorboard": False},
    "validation": {"every_steps": 300},
    "recovery": {"grace_s": 40},
}


class Status(Enum):
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"

    def is_terminal(self) -> bool:
        return self is not Status.RUNNING


@dataclass
class Info:
    status: Status
    driver_exit_code: int | None = None
    message: str = "the end"


@dataclass
class Stand:
    """Stands in for Ray's client: its job has written ``texts`` and ends as ``info`` says.

    ``breaks``: how often the connection breaks in the middle of the output before it holds. With
    ``until_stopped``, ``ctrl_cs`` of them arrive, each at the last text, and the job ends when it is stopped.
    """

    info: Info
    texts: list[str]
    breaks: int = 0
    until_stopped: bool = False
    ctrl_cs: int = 1
    sent: dict[str, Any] = field(default_factory=dict)
    stopped: int = 0

    def submit_job(self, *, entrypoint: str, runtime_env: dict[str, Any]) -> str:
        self.sent = {"entrypoint": entrypoint, **runtime_env}
        return "job_1"

    def get_job_info(self, job: str) -> Info:
        assert job == "job_1"
        return Info(Status.RUNNING) if self.until_stopped and not self.stopped else self.info

    def stop_job(self, job: str) -> bool:
        self.stopped += 1
        return True

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for text in self.texts[: 1 if self.breaks else None]:
            yield text
        if self.breaks:
            self.breaks -= 1
            raise RuntimeError("connection lost")
        if self.until_stopped and self.ctrl_cs:
            self.ctrl_cs -= 1
            signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "POLL_S", 0.001)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / TASK.name).write_text(TASK.read_text())
    (tmp_path / "sent.yaml").write_text(yaml.safe_dump(SETTINGS))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def status_of(stand: Stand, **more: Any) -> int:
    return send(Submission("http://127.0.0.1:1", Path("sent.yaml"), RUN_DIR, **more), lambda address: stand)


class TestWhatIsSent:
    def test_is_the_same_run_on_the_cluster_of_the_job(self, folder: Path) -> None:
        submission = Submission(
            "http://head:8265", Path("sent.yaml"), RUN_DIR, ("name=a b", "seed=1"), "none"
        )
        command = entrypoint_of(submission).split("; ")[1]
        assert shlex.split(command) == [
            *("python", "-m", "dist_train", "run", "sent.yaml", "name=a b", "seed=1"),
            *("--address", "auto", "--resume", "none", "--run-dir", "/shared/run"),
        ]

    @pytest.mark.processes
    @pytest.mark.parametrize("status", [0, 1, 2, 75])
    def test_says_its_status_and_ends_with_it(self, folder: Path, status: int) -> None:
        """A stand-in for python leaves with the status after the signal that Ray sends to everybody."""
        stand_in = folder / "python"
        stand_in.write_text(f"#!/bin/sh\ntrap 'exit {status}' TERM\nkill -TERM $PPID\nkill -TERM $$\n")
        stand_in.chmod(0o755)
        entrypoint = entrypoint_of(Submission("http://head:8265", Path("sent.yaml"), RUN_DIR))
        environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
        answer = subprocess.run(
            ["/bin/bash", "-c", entrypoint], env=environment, capture_output=True, text=True, check=False
        )
        assert answer.stdout == f"dist-train: exit status {status}\n"
        assert answer.returncode == status

    def test_is_the_working_directory_with_time_to_save(self, folder: Path) -> None:
        stand = Stand(Info(Status.SUCCEEDED, 0), [])
        status_of(stand)
        assert stand.sent["working_dir"] == str(folder)
        assert {".git", ".venv", "/runs"} <= set(stand.sent["excludes"])
        assert stand.sent["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "50"}

    def test_is_named_from_the_working_directory(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir("/")
        submission = Submission("http://head:8265", folder / "sent.yaml", RUN_DIR, working_dir=folder)
        assert " run sent.yaml " in entrypoint_of(submission)


class TestARefusal:
    """Nothing is sent, and nobody is asked."""

    def refuse(self, **changes: Any) -> str:
        def nobody(address: str) -> submit.Jobs:
            raise AssertionError("asked the cluster")

        given = {"address": "http://127.0.0.1:1", "config": Path("sent.yaml"), "run_dir": RUN_DIR, **changes}
        with pytest.raises(ConfigError) as refused:
            send(Submission(**given), nobody)
        return str(refused.value)

    def test_of_a_wrong_configuration(self, folder: Path) -> None:
        assert "optimizer.lr" in self.refuse(overrides=("optimizer.lr=-1",))

    def test_of_a_run_that_no_cluster_could_take(self, folder: Path) -> None:
        assert "mode sync does not run on Ray" in self.refuse(overrides=("parallel.mode=sync",))
        assert "give their number" in self.refuse(overrides=("parallel.workers=auto",))

    def test_of_a_configuration_that_would_not_be_there(self, folder: Path, tmp_path: Path) -> None:
        inner = folder / "inner"
        inner.mkdir()
        assert "give --working-dir a folder that holds it" in self.refuse(working_dir=inner)

    @pytest.mark.parametrize("run_dir", [None, Path("runs/mine")])
    def test_of_a_run_whose_model_would_be_deleted_with_its_job(
        self, folder: Path, run_dir: Path | None
    ) -> None:
        said = self.refuse(run_dir=run_dir)
        assert "which Ray deletes; give the path of a directory on storage that all machines" in said

    def test_of_a_cluster_open_to_strangers(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        with pytest.raises(ConfigError, match="without a token"):
            send(Submission("http://10.0.0.7:8265", Path("sent.yaml"), RUN_DIR))


class TestAClusterThatTakesNoJob:
    def refusing(self, monkeypatch: pytest.MonkeyPatch, *said: str) -> Stand:
        """Return a stand-in that refuses a job once for each of what it says, and takes it then."""
        stand, left = Stand(Info(Status.SUCCEEDED, 0), ["done"]), list(said)
        take = stand.submit_job

        def refuse_first(*, entrypoint: str, runtime_env: dict[str, Any]) -> str:
            if left:
                raise RuntimeError(f"status code 500: {left.pop(0)}")
            return take(entrypoint=entrypoint, runtime_env=runtime_env)

        monkeypatch.setattr(stand, "submit_job", refuse_first)
        monkeypatch.setattr(submit, "RETRY_S", 0.001)
        return stand

    def test_yet_is_asked_again(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        stand = self.refusing(monkeypatch, *[NO_AGENT] * 3)
        assert status_of(stand) == DONE
        assert stand.sent
        assert capsys.readouterr().err.count("takes no job yet") == 1

    def test_for_long_may_share_its_machine_with_another_ray(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(submit, "START_S", 0.0)
        with pytest.raises(TrainingError, match="52365, may belong to another Ray"):
            status_of(self.refusing(monkeypatch, *[NO_AGENT] * 3))

    def test_for_another_reason_is_not_asked_again(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(TrainingError, match="takes no job: status code 500: disk full"):
            status_of(self.refusing(monkeypatch, "disk full"))


class TestTheEnd:
    @pytest.mark.parametrize(
        ("info", "status"),
        [
            (Info(Status.SUCCEEDED, 0), DONE),
            (Info(Status.FAILED, 1), FAILED),
            (Info(Status.FAILED, 2), REFUSED),
            (Info(Status.FAILED, 75), INTERRUPTED),
            (Info(Status.FAILED, 137), FAILED),
            (Info(Status.FAILED, None), FAILED),
        ],
    )
    def test_is_that_of_the_run(self, folder: Path, info: Info, status: int) -> None:
        assert status_of(Stand(info, ["hello\n"])) == status

    def test_that_is_none_of_the_runs_own_is_explained(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        status_of(Stand(Info(Status.FAILED, None, "no python there\nand more"), []))
        assert capsys.readouterr().err.endswith("job job_1 ended as failed: no python there\n")

    def test_shows_the_output_once_however_often_the_connection_breaks(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        stand = Stand(Info(Status.SUCCEEDED, 0), ["one\n", "two\n", "three\n"], breaks=3)
        assert status_of(stand) == DONE
        assert capsys.readouterr().out == "one\ntwo\nthree\n"

    def test_is_unknown_when_the_connection_stays_broken(
        self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(submit, "LOST_S", 0.01)
        assert status_of(Stand(Info(Status.SUCCEEDED, 0), ["one\n"], breaks=10**6)) == FAILED
        assert "cannot be followed any further: connection lost" in capsys.readouterr().err


class TestCtrlC:
    def test_stops_the_job_and_ends_as_the_run_says(self, folder: Path) -> None:
        stand = Stand(Info(Status.STOPPED), ["dist-train: exit ", "status 75\n"], until_stopped=True)
        assert status_of(stand) == INTERRUPTED
        assert stand.stopped == 1

    def test_stops_the_job_which_may_fail_to_save(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        stand = Stand(Info(Status.STOPPED), ["step 1\n"], until_stopped=True)
        assert status_of(stand) == FAILED
        assert "ended as stopped: killed before it could save" in capsys.readouterr().err

    def test_that_does_not_get_through_may_be_repeated(
        self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stand = Stand(Info(Status.STOPPED), ["dist-train: exit status 75\n"], until_stopped=True)
        stop, lost = stand.stop_job, [RuntimeError("no connection")]

        def stop_job(job: str) -> bool:
            if lost:
                raise lost.pop()
            return stop(job)

        def tell(line: str) -> None:
            told(line)
            # Whoever reads this presses Ctrl-C again.
            stand.ctrl_cs += "cannot be stopped" in line

        told = submit.tell
        monkeypatch.setattr(submit, "tell", tell)
        monkeypatch.setattr(stand, "stop_job", stop_job)
        assert status_of(stand) == INTERRUPTED
        assert "cannot be stopped: no connection" in capsys.readouterr().err

    def test_a_second_time_leaves_the_job_to_itself(
        self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stand = Stand(Info(Status.STOPPED), ["step 1\n"], until_stopped=True, ctrl_cs=2)
        monkeypatch.setattr(stand, "stop_job", lambda job: True)
        assert status_of(stand) == FAILED
        assert "job job_1 goes on" in capsys.readouterr().err


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@dataclass
class Head:
    """A real head of a cluster, with dashboard and token, and what it takes to talk to it."""

    url: str
    environment: dict[str, str]

    def submit(self, folder: Path, *words: str, **variables: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "dist_train", "submit", "--address", self.url, "sent.yaml", *words]
        return subprocess.Popen(
            command,
            cwd=folder,
            env={**self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def interrupt(self, folder: Path, *words: str) -> str:
        """Send a run too slow to end by itself, stop it by Ctrl-C in its first steps; return its output."""
        with self.submit(folder, *words, "task_options.pace_s=0.2") as process:
            assert process.stdout is not None
            shown = ""
            for line in process.stdout:
                shown += line
                if line.startswith("step "):
                    process.send_signal(signal.SIGINT)
                    break
            rest, _ = process.communicate(timeout=120)
        assert process.returncode == INTERRUPTED, shown + rest
        return shown + rest


@pytest.fixture
def head() -> Iterator[Head]:
    with Reaper.start() as reaper:
        token = reaper.home / "token"
        token.write_text(secrets.token_hex(32))
        port, dashboard = free_port(), free_port()
        environment = {
            **os.environ,
            **reaper.variables,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
        command += ["--node-ip-address=127.0.0.1", f"--port={port}", f"--dashboard-port={dashboard}"]
        command += ["--num-cpus=6", f"--temp-dir={reaper.home}", "--object-store-memory=80000000"]
        # The usual port belongs to whichever Ray of this machine came first; the others take no jobs.
        command += ["--dashboard-agent-listen-port=0", "--disable-usage-stats"]
        with (reaper.home / "head.log").open("w") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        url = f"http://127.0.0.1:{dashboard}"
        wait_for(url, token.read_text())
        yield Head(url, environment)
    process.wait()


def wait_for(url: str, token: str) -> None:
    """Wait until the head answers."""
    request = urllib.request.Request(f"{url}/api/version", headers={"Authorization": f"Bearer {token}"})
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(request):
                return
        except OSError:
            assert time.monotonic() < deadline, "the head does not answer"
            time.sleep(0.1)


@pytest.mark.processes
@pytest.mark.timeout(240)
def test_a_real_job_is_followed_to_its_end_stopped_and_continued(folder: Path, head: Head) -> None:
    run = ["--run-dir", str(folder / "run")]
    with head.submit(folder, *run, RAY_AUTH_TOKEN="0" * 64) as stranger:
        output, _ = stranger.communicate(timeout=60)
    assert stranger.returncode == REFUSED, output
    assert "the cluster wants its token" in output
    assert knock_at_jobs(head.url) == TURNED_AWAY

    output = head.interrupt(folder, *run)
    assert re.search("^status +interrupted", output, re.MULTILINE), output

    with head.submit(folder, "task_options.pace_s=0.0", *run) as process:
        output, _ = process.communicate(timeout=120)
    assert process.returncode == DONE, output
    assert re.search("^status +done", output, re.MULTILINE), output
    assert (folder / "run" / "model.safetensors").exists()


@pytest.mark.processes
@pytest.mark.timeout(300)
def test_a_real_job_of_two_replicas_is_stopped_and_continued(folder: Path, head: Head) -> None:
    settings = [
        "parallel.replicas=2",
        "codistill={interval: 5}",
        "train.steps=60",
        "validation.every_steps=60",
    ]
    run = ["--run-dir", str(folder / "run")]
    output = head.interrupt(folder, *settings, *run)
    summaries = [
        json.loads((folder / "run" / name / "summary.json").read_text()) for name in (".", *REPLICAS)
    ]
    assert [each["status"] for each in summaries] == ["interrupted"] * 3, output

    with head.submit(folder, *settings, *run) as process:
        output, _ = process.communicate(timeout=120)
    assert process.returncode == DONE, output
    told = json.loads((folder / "run" / "summary.json").read_text())["replicas"]
    assert [(each["status"], each["steps"]) for each in told] == [("done", 60)] * 2
