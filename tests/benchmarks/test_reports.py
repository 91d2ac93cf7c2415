"""Tests of the run that a report is measured on."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.reports import write_run
from dist_train.report.measured import measure


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_it_has_as_many_lines_as_asked_for_and_all_can_be_read(tmp_path: Path, kind: str) -> None:
    write_run(tmp_path / kind, kind, lines=50)
    found = measure(kind, tmp_path / kind, points=10)
    assert (found.lines, found.damaged) == (50, 0)
    assert len(found.spent()) == 2
