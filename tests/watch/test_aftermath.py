"""Tests of the summary that a run gets whose workers wrote none."""

from __future__ import annotations

import json
from pathlib import Path

from dist_train.config import load_config
from dist_train.layout import EVENTS, METRICS, SUMMARY
from dist_train.watch.aftermath import write_failure, write_interruption
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


def test_a_run_that_was_stopped_before_it_could_save_says_so(tmp_path: Path) -> None:
    write_interruption(CONFIG, tmp_path / "never begun")
    summary = json.loads((tmp_path / "never begun" / SUMMARY).read_text())
    assert (summary["status"], summary["steps"]) == ("interrupted", 0)
    assert "error" not in summary


def test_what_the_workers_wrote_of_an_interruption_stands(tmp_path: Path) -> None:
    (tmp_path / SUMMARY).write_text('{"status": "interrupted", "steps": 7}')
    write_interruption(CONFIG, tmp_path)
    assert json.loads((tmp_path / SUMMARY).read_text())["steps"] == 7


def test_of_a_server_it_has_what_became_of_the_gradients(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"parallel": CONFIG.parallel.model_copy(update={"mode": "async"})})
    counts = {"computed": 9, "applied": 7, "dropped": 1, "refused": 1}
    with JsonLines(tmp_path / METRICS) as metrics:
        metrics.write({"kind": "train", "step": 10, "computed": 4, "applied": 4})
        metrics.write({"kind": "train", "step": 20, **counts})
    with JsonLines(tmp_path / EVENTS) as events:
        events.write({"event": "staleness", "since_step": 0, "step": 10, "gradients": {"0": 2}})
        events.write({"event": "staleness", "since_step": 10, "step": 20, "gradients": {"9": 99}})
        # Resumed at step 10: what came after it was trained again.
        events.write({"event": "staleness", "since_step": 10, "step": 20, "gradients": {"3": 2}})
    write_failure(config, tmp_path, "shard 0 was killed")
    summary = json.loads((tmp_path / SUMMARY).read_text())
    assert summary["gradients"] == counts
    assert summary["staleness"] == {"mean": 1.5, "p50": 0, "p99": 3, "max": 3}


def test_of_a_server_that_failed_at_once_the_counts_are_zero(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"parallel": CONFIG.parallel.model_copy(update={"mode": "async"})})
    write_failure(config, tmp_path, "no memory")
    summary = json.loads((tmp_path / SUMMARY).read_text())
    assert set(summary["gradients"].values()) == {0}
