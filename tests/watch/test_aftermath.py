"""Tests of the summary that a failed run gets."""

from __future__ import annotations

import json
from pathlib import Path

from dist_train.config import load_config
from dist_train.layout import EVENTS, METRICS, SUMMARY
from dist_train.watch.aftermath import write_failure
from dist_train.watch.records import JsonLines

CONFIG = load_config(
    {
        "name": "aftermath",
        "task": "digits",
        "parallel": {"workers": 2},
        "train": {"epochs": 1, "batch_size": 8},
        "optimizer": {"name": "sgd", "lr": 0.1},
    }
)


def test_a_failed_run_is_summed_up_from_its_records(tmp_path: Path) -> None:
    with JsonLines(tmp_path / METRICS) as metrics:
        metrics.write({"kind": "train", "step": 10, "samples": 640, "wall_s": 1.0, "samples_per_s": 640.0})
        metrics.write(
            {"kind": "val", "step": 10, "samples": 640, "wall_s": 2.0, "loss": 0.5, "accuracy": 0.75}
        )
        metrics.write({"kind": "train", "step": 20, "samples": 1280, "wall_s": 3.0, "samples_per_s": 320.0})
    (tmp_path / EVENTS).write_text('{"event": "restart"}\nnot JSON\n{"event": "start"}\n')
    write_failure(CONFIG, tmp_path, "worker 1 was killed")
    summary = json.loads((tmp_path / SUMMARY).read_text())
    assert summary["status"] == "failed"
    assert summary["error"] == "worker 1 was killed"
    assert (summary["steps"], summary["samples"], summary["wall_s"]) == (20, 1280, 3.0)
    assert summary["val"] == {"loss": 0.5, "accuracy": 0.75}
    assert (summary["workers"], summary["restarts"], summary["samples_per_s"]) == (2, 1, 320.0)


def test_a_run_that_failed_before_its_first_line_has_a_summary_too(tmp_path: Path) -> None:
    write_failure(CONFIG, tmp_path, "no memory")
    assert json.loads((tmp_path / SUMMARY).read_text())["steps"] == 0
