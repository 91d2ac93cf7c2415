"""Tests of what goes on the page, and what becomes a file."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")

from dist_train.report.contents import contents
from dist_train.report.subjects import find
from tests.report.conftest import MakeRun, train, validation
from tests.report.test_tables import reported

HISTOGRAM = {"event": "staleness", "since_step": 0, "step": 10, "gradients": {"0": 1}}


def test_a_run_is_drawn_with_all_that_it_has(make_run: MakeRun) -> None:
    run = make_run(metrics=[train(10, 1.0, staleness=0.5), validation(10, 1.2)], events=[HISTOGRAM])
    found = contents(reported(run), find([run]), "files/", "trace.json")
    assert [drawn.name for drawn in found.images] == [
        "training-loss",
        "validation-loss",
        "validation-accuracy",
        "training-lr",
        "training-samples-per-s",
        "training-staleness",
        "staleness",
        "time-0",
    ]
    assert all(drawn.png for drawn in found.images)
    for title in (
        "Learning and speed",
        "Stale and dropped gradients",
        "Where the time went",
        "Configuration",
    ):
        assert f"<h2>{title}</h2>" in found.html
    assert 'href="files/trace.json"' in found.html
    assert 'href="files/training-loss.png"' in found.html


def test_a_run_that_has_logged_nothing_has_a_page_that_says_so(make_run: MakeRun) -> None:
    run = make_run()
    found = contents(reported(run), find([run]), "", "trace.json")
    assert found.images == ()
    assert "nothing to draw" in found.html
