"""Tests of a report from directories to files."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest

from dist_train import report as package
from dist_train.errors import ConfigError
from dist_train.report import report, tables
from dist_train.report.goodput import goodput
from dist_train.report.tables import Reported
from tests.report.conftest import MakeRun, train, validation


@pytest.fixture
def drawing() -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")


@pytest.mark.usefixtures("drawing")
def test_a_report_lies_in_the_runs_directory(make_run: MakeRun) -> None:
    run = make_run(metrics=[train(10, 1.0), validation(10, 1.2)])
    written = report([run])
    assert written.page == run / "report" / "report.html"
    assert "Training loss" in written.page.read_text()
    assert json.loads(written.trace.read_text())["traceEvents"]
    assert {image.name for image in written.images} >= {"training-loss.png", "time-0.png"}
    assert all(image.read_bytes().startswith(b"\x89PNG") for image in written.images)


@pytest.mark.usefixtures("drawing")
def test_several_runs_are_reported_here(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [make_run(name, metrics=[train(10, 1.0)]) for name in ("a", "b")]
    monkeypatch.chdir(tmp_path)
    assert report(runs).page == Path("report/report.html")
    assert "<title>a, b</title>" in Path("report/report.html").read_text()


@pytest.mark.usefixtures("drawing")
def test_a_page_of_ones_own_name_has_its_files_beside_it(make_run: MakeRun, tmp_path: Path) -> None:
    written = report([make_run(metrics=[train(10, 1.0)])], tmp_path / "to" / "my page.html")
    assert written.page == tmp_path / "to" / "my page.html"
    assert written.trace == tmp_path / "to" / "my page_files" / "trace.json"
    assert 'href="my%20page_files/trace.json"' in written.page.read_text()


@pytest.mark.usefixtures("drawing")
def test_a_report_is_written_again_over_the_last(make_run: MakeRun) -> None:
    run = make_run(metrics=[train(10, 1.0)])
    first = report([run]).page.read_text()
    assert report([run]).page.read_text() == first


@pytest.mark.usefixtures("drawing")
def test_replicas_are_curves_of_their_own_and_have_the_runs_events(make_run: MakeRun) -> None:
    failure = {"event": "replica_failure", "time": 101.0, "replica": 1, "status": -9, "error": "was killed"}
    run = make_run("pair", events=[failure])
    for number in (0, 1):
        taught = train(10, 1.0, agreement=0.5, teacher_age=10.0)
        make_run(f"pair/replica_{number}", metrics=[taught])
    text = report([run]).page.read_text()
    assert "pair, replica 0" in text
    assert "Teacher lag" in text
    assert "replica 1 failed: was killed" in text


def of_a_killed_replica(make_run: MakeRun) -> list[Reported]:
    """Make a run whose replica 1 was killed at step 30 and began again from step 10, and measure it."""
    told = [
        {"event": "replica_failure", "time": 103.0, "replica": 1, "status": -9, "error": "was killed"},
        {"event": "replica_restart", "time": 103.0, "replica": 1, "from_step": 10},
        {"event": "replica_failure", "time": 103.5, "replica": [1], "error": "nobody's"},
    ]
    run = make_run("pair", events=told)
    late = {"event": "something", "time": 108.0, "warning": "later"}
    starts = [{"event": "start", "time": 100.0, "step": 0}, {"event": "start", "time": 107.0, "step": 10}]
    make_run("pair/replica_0", metrics=[train(10, 1.0), train(20, 2.0)], events=starts[:1])
    make_run("pair/replica_1", metrics=[train(10, 1.0), train(20, 2.0)], events=[*starts, late])
    return package._measured(package.subjects.find([run]))


def test_a_replica_that_the_run_starts_again_lost_work_and_time(make_run: MakeRun) -> None:
    steady, killed = of_a_killed_replica(make_run)
    seconds = killed.spent["0"]
    assert seconds["dropped"] == pytest.approx(2.0)
    assert seconds["recovery"] == pytest.approx(4.0)
    assert sum(seconds.values()) == pytest.approx(2.0 + 2.0 + 4.0)
    assert goodput(seconds) == pytest.approx(20 * 0.06 / 8.0)
    assert goodput(steady.spent["0"]) == pytest.approx(20 * 0.06 / 2.0)


def test_what_a_run_says_of_a_replica_stands_in_order_among_its_own_events(make_run: MakeRun) -> None:
    runs = of_a_killed_replica(make_run)
    told = [row[4] for row in tables.faults(runs).rows]
    assert told == ["replica 1 failed: was killed", "replica 1 starts again from step 10", "later"]


def test_faults_of_all_replicas_count_from_the_first_event_of_the_run(make_run: MakeRun) -> None:
    run = make_run("pair")
    for number, start in enumerate((100.0, 103.0)):
        failure = {"event": "failure", "time": 110.0, "rank": 0, "error": "boom"}
        make_run(f"pair/replica_{number}", events=[{"event": "start", "time": start, "step": 0}, failure])
    found = tables.faults(package._measured(package.subjects.find([run])))
    assert [row[1] for row in found.rows] == ["10s", "10s"]


def test_what_is_no_run_is_refused_and_nothing_is_written(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        report([make_run(), tmp_path / "nowhere"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_a_directory_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ConfigError, match=r"out: a file; give a directory"):
        report([make_run()], tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_without_what_draws_it_says_what_to_install(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "dist_train.report.contents":
            raise ModuleNotFoundError("No module named 'matplotlib'")
        return genuine(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r'matplotlib and jinja2: pip install "dist-train\[plots\]"'):
        report([make_run()])


def test_the_more_runs_the_shorter_their_curves(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    genuine = package.measure
    monkeypatch.setattr(package, "measure", lambda *given: asked.append(given[2]) or genuine(*given))
    for number in (1, 8, 50):
        runs = [make_run(f"{number}/{each}") for each in range(number)]
        package._measured(package.subjects.find(runs))
        assert len(set(asked[-number:])) == 1
    assert [asked[0], asked[1], asked[-1]] == [200, 100, 25]
