"""Tests of the process around a worker: what becomes of an error, and where it is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dist_train import layout
from dist_train.config import Config, load_config
from dist_train.errors import DONE, FAILED, INTERRUPTED, REFUSED, ConfigError, Mismatch, TrainingError
from dist_train.runtime import children, worker_process
from dist_train.runtime.place import Place
from dist_train.runtime.pulse import PulseWriter
from dist_train.runtime.worker_process import Phases


@pytest.fixture
def config() -> Config:
    given = {"epochs": 1, "batch_size": 8}
    optimizer = {"name": "sgd", "lr": 0.1}
    parallel = {"workers": 2}
    return load_config(
        {"name": "w", "task": "digits", "train": given, "optimizer": optimizer, "parallel": parallel}, ()
    )


@pytest.fixture
def pulse() -> Iterator[PulseWriter]:
    pulse = PulseWriter(None)
    yield pulse
    pulse.close()


@pytest.fixture
def guarded(config: Config, pulse: PulseWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the guard around a worker that ends with a status or an error in step 7."""

    def run(end: int | BaseException, place: Place | None = None) -> int:
        phases = Phases(pulse)

        def work(*_: Any) -> int:
            phases("forward", 7)
            if isinstance(end, BaseException):
                raise end
            return end

        monkeypatch.setattr(worker_process, "_run", work)
        at = place or Place(rank=1, workers=2, started_by="launcher")
        return worker_process._guarded(config, at, tmp_path, "auto", None, phases, pulse)  # type: ignore[arg-type]

    return run


@pytest.mark.parametrize("status", [DONE, INTERRUPTED])
def test_a_worker_that_ends_well_leaves_no_report(guarded: Any, tmp_path: Path, status: int) -> None:
    assert guarded(status) == status
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("no such model"), REFUSED),
        (Mismatch("rank 1 differs"), REFUSED),
        (TrainingError("the loss is not finite"), FAILED),
        (RuntimeError("out of memory"), FAILED),
        (KeyboardInterrupt(), FAILED),
    ],
)
def test_an_error_becomes_a_status_and_a_report(
    guarded: Any, tmp_path: Path, error: BaseException, status: int
) -> None:
    assert guarded(error) == status
    found = children.crash_of(tmp_path, 1)
    assert found is not None
    failure, message = found
    assert (failure.rank, failure.step, failure.phase, failure.kind) == (
        1,
        7,
        "forward",
        type(error).__name__,
    )
    assert message == str(error) or not str(error)


def test_without_a_launcher_rank_0_tells_the_person_and_sums_the_run_up(
    guarded: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Place(rank=0, workers=2, started_by="torchrun")
    assert guarded(TrainingError("the loss is not finite"), place) == FAILED
    assert "dist-train: the loss is not finite\n" in capsys.readouterr().err
    summary = json.loads((tmp_path / layout.SUMMARY).read_text())
    assert (summary["status"], summary["error"]) == ("failed", "TrainingError: the loss is not finite")


def test_without_a_launcher_a_refusal_touches_no_directory(
    guarded: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # It may be the directory of another run, and that may be the reason.
    place = Place(rank=0, workers=2, started_by="torchrun")
    assert guarded(ConfigError(["in use", "no such task"]), place) == REFUSED
    assert capsys.readouterr().err == "dist-train: in use\ndist-train: no such task\n"
    assert list(tmp_path.iterdir()) == []


def test_other_ranks_leave_that_to_rank_0(
    guarded: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guarded(ConfigError("wrong"), Place(rank=1, workers=2, started_by="torchrun"))
    assert capsys.readouterr().err == ""
    assert not (tmp_path / layout.SUMMARY).exists()


def test_where_a_worker_is_goes_to_its_pulse_and_is_remembered(pulse: PulseWriter) -> None:
    phases = Phases(pulse)
    assert (phases.name, phases.step) == ("starting", 0)
    phases("backward", 12)
    assert (phases.name, phases.step) == ("backward", 12)
