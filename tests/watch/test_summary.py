"""Tests of summary.json, and of files that are replaced whole."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from dist_train.watch.atomic import replacing
from dist_train.watch.summary import Summary, write_summary

SUMMARY = Summary(
    status="done",
    mode="sync",
    workers=2,
    replicas=1,
    steps=460,
    samples=29440,
    wall_s=12.5,
    samples_per_s=2400.0,
    restarts=0,
    val={"loss": 0.1, "accuracy": 0.97},
    run_dir="runs/digits",
)


def test_the_file_holds_the_keys_of_the_contract(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_summary(path, SUMMARY.record())
    assert json.loads(path.read_text()) == {
        "status": "done",
        "mode": "sync",
        "workers": 2,
        "replicas": 1,
        "steps": 460,
        "samples": 29440,
        "wall_s": 12.5,
        "samples_per_s": 2400.0,
        "restarts": 0,
        "val": {"loss": 0.1, "accuracy": 0.97},
        "run_dir": "runs/digits",
    }


def test_a_mode_adds_its_own_keys() -> None:
    summary = Summary(**{**vars(SUMMARY), "extras": {"gradients": {"applied": 3}}, "error": "no disk"})
    assert summary.record()["gradients"] == {"applied": 3}
    assert summary.record()["error"] == "no disk"
    assert "extras" not in summary.record()


def test_a_diverged_run_still_has_a_summary_that_is_json(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_summary(path, {**SUMMARY.record(), "val": {"loss": math.nan}})
    assert json.loads(path.read_text())["val"] == {"loss": "NaN"}


def test_an_error_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text("old")

    def fail_half_way() -> None:
        with replacing(path) as file:
            file.write(b"new")
            assert path.read_text() == "old"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
