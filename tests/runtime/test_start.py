"""Tests of the way from a request to workers, with the launching itself replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dist_train import layout
from dist_train.config import load_config
from dist_train.errors import DONE, FAILED, INTERRUPTED, REFUSED, ConfigError, TrainingError
from dist_train.runtime import run_dir, start
from dist_train.runtime.launcher import Job
from dist_train.runtime.place import Place
from dist_train.runtime.start import (
    Request,
    checkpoint_lines,
    dry_run_text,
    launch_locally,
    run_request,
    train,
)

GIVEN: dict[str, Any] = {
    "name": "started",
    "task": "digits",
    "parallel": {"workers": 2, "device": "cpu"},
    "train": {"epochs": 2, "batch_size": 32},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "schedule": {"base_batch": 32, "warmup": {"kind": "gradual", "epochs": 1}},
}


class Launches:
    """Stands in for the launcher: remembers the jobs, leaves a summary, returns the status it is told."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.status = DONE
        self.summary: dict[str, Any] | None = {"status": "done", "val": {"accuracy": 1.0}}

    def __call__(self, job: Job, say: Any, on_event: Any) -> int:
        self.jobs.append(job)
        if self.status == FAILED:
            say("worker 1 failed in step 3")
        elif self.summary is not None:
            (job.run_dir / layout.SUMMARY).write_text(json.dumps(self.summary))
        on_event({"event": "launched"})
        return self.status


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    launches = Launches()
    monkeypatch.setattr(start, "launch", launches)
    monkeypatch.setattr(start, "find_place", lambda: None)
    return launches


class TestLaunching:
    def test_workers_run_this_program_on_the_resolved_configuration(
        self, launches: Launches, tmp_path: Path
    ) -> None:
        assert run_request(Request(GIVEN, ("seed=5",), tmp_path / "run", "none")) == DONE
        (job,) = launches.jobs
        run = tmp_path / "run"
        assert job.argv[1:] == [
            *("-m", "dist_train", "run", str(run / "config.yaml")),
            *("--run-dir", str(run), "--resume", "none"),
        ]
        assert job.workers == 2
        assert load_config(run / "config.yaml", ()).seed == 5

    def test_the_default_directory_is_named_for_run_and_time(
        self, launches: Launches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        run_request(Request(GIVEN))
        assert launches.jobs[0].run_dir.parent == Path("runs/started")

    def test_a_directory_in_use_is_refused(self, launches: Launches, tmp_path: Path) -> None:
        with run_dir.Lock(tmp_path), pytest.raises(ConfigError, match="is in use by process"):
            run_request(Request(GIVEN, run_dir=tmp_path))
        assert launches.jobs == []

    def test_a_failure_is_summed_up_with_what_was_said(
        self, launches: Launches, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        launches.status = FAILED
        status, run = launch_locally(load_config(GIVEN, ()), tmp_path, "auto")
        assert status == FAILED
        assert json.loads((run / layout.SUMMARY).read_text())["error"] == "worker 1 failed in step 3"
        assert "dist-train: worker 1 failed in step 3\n" in capsys.readouterr().err

    def test_what_changed_is_said(
        self, launches: Launches, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run_request(Request(GIVEN, run_dir=tmp_path))
        (tmp_path / layout.CHECKPOINTS / "step_00000010").mkdir(parents=True)
        run_request(Request(GIVEN, ("optimizer.lr=0.2",), tmp_path))
        assert "dist-train: optimizer.lr changed from 0.1 to 0.2 since" in capsys.readouterr().err
        assert "optimizer.lr changed" in (tmp_path / layout.EVENTS).read_text()
        assert launches.jobs[1].first_step_of() == 10


class TestTrain:
    def test_returns_the_summary(self, launches: Launches, tmp_path: Path) -> None:
        assert train(load_config(GIVEN, ()), tmp_path) == launches.summary

    def test_an_interrupted_run_returns_its_summary_too(self, launches: Launches, tmp_path: Path) -> None:
        launches.status = INTERRUPTED
        assert train(load_config(GIVEN, ()), tmp_path) == launches.summary

    def test_so_does_one_whose_workers_were_stopped_before_they_could_save(
        self, launches: Launches, tmp_path: Path
    ) -> None:
        launches.status, launches.summary = INTERRUPTED, None
        summary = train(load_config(GIVEN, ()), tmp_path)
        assert (summary["status"], summary["steps"]) == ("interrupted", 0)

    def test_failure_and_refusal_are_errors(self, launches: Launches, tmp_path: Path) -> None:
        launches.status = FAILED
        with pytest.raises(TrainingError, match="worker 1 failed in step 3"):
            train(load_config(GIVEN, ()), tmp_path / "failed")
        launches.status = REFUSED
        with pytest.raises(ConfigError):
            train(load_config(GIVEN, ()), tmp_path / "refused")

    def test_is_not_for_a_worker(self, launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(start, "find_place", lambda: Place(workers=2))
        with pytest.raises(ConfigError, match="-m dist_train run"):
            train(load_config(GIVEN, ()))


def test_a_worker_of_torchrun_becomes_one(monkeypatch: pytest.MonkeyPatch, launches: Launches) -> None:
    place = Place(rank=3, workers=8, started_by="torchrun")
    monkeypatch.setattr(start, "find_place", lambda: place)
    from dist_train.runtime import worker_process

    became: list[Any] = []
    monkeypatch.setattr(worker_process, "be_worker", lambda *given: became.append(given) or 0)
    assert run_request(Request(GIVEN, resume="none")) == 0
    ((config, at, run_dir, resume),) = became
    assert (config.parallel.workers, at, run_dir, resume) == (8, place, None, "none")
    assert launches.jobs == []


class TestDryRun:
    def test_shows_configuration_and_arithmetic_and_starts_nothing(
        self, launches: Launches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        text = dry_run_text(Request(GIVEN))
        rows = dict(line[2:].split("  ", 1) for line in text.splitlines() if line.startswith("# "))
        told = {label.strip(): row.strip() for label, row in rows.items()}
        assert told["global batch"] == "64 = 2 workers x 32 x 1 accumulated"
        assert told["learning rate"] == "0.2 = 0.1 x 64/32 (linear scaling)"
        assert told["group 0"] == "workers [0, 1]"
        steps = -(-int(told["epoch"].split()[0].replace(",", "")) // 64)
        assert f"= {steps} steps of 64" in told["epoch"]
        assert f"gradual from 0.1 to 0.2 in {steps} steps" in told["warmup"]
        assert launches.jobs == []
        assert list(tmp_path.iterdir()) == []

    def test_its_output_is_a_configuration(self, launches: Launches, tmp_path: Path) -> None:
        file = tmp_path / "resolved.yaml"
        file.write_text(dry_run_text(Request(GIVEN)))
        assert load_config(file, ()) == load_config(GIVEN, ())

    def test_under_torchrun_the_number_of_workers_is_the_one_started(
        self, launches: Launches, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for workers in (1, 4):
            monkeypatch.setattr(start, "find_place", lambda count=workers: Place(workers=count))
            assert f"workers {list(range(workers))}" in dry_run_text(Request(GIVEN))

    def test_under_torchrun_a_mode_with_a_server_is_refused(
        self, launches: Launches, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(start, "find_place", lambda: Place(workers=2, started_by="torchrun"))
        with pytest.raises(ConfigError, match=r"parallel.mode: async starts its workers itself"):
            dry_run_text(Request(GIVEN, ("parallel.mode=async",)))


def test_a_directory_without_checkpoints_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no checkpoints"):
        checkpoint_lines(tmp_path)
