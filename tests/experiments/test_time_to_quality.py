"""Seconds and samples to a loss, from a run's records: restarts take time, and replicas all take samples."""

from __future__ import annotations

import json
import math

import pytest

from dist_train import load_config
from dist_train.plan import make_plan
from experiments.runs import ROOT
from experiments.time_to_quality import BETWEEN, COUPLINGS, LENGTH, _run, cell, reached


def records(folder, losses, events):
    """A run with a validation after every 100 samples and 10 s of training."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text('{"status": "done"}')
    lines = [
        {"kind": "val", "step": number, "samples": 100 * number, "wall_s": 10.0 * number, "loss": loss}
        for number, loss in enumerate(losses, start=1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


START = {"time": 1000.0, "event": "start", "step": 0}


class TestReached:
    def test_is_between_two_validations_by_a_straight_line(self, tmp_path):
        records(tmp_path, [0.5, 0.3, 0.1], [START])
        assert reached(tmp_path, replicas=1, loss=0.2) == pytest.approx((25.0, 250.0))

    def test_is_never_where_the_loss_never_was(self, tmp_path):
        records(tmp_path, [0.5, 0.3], [START])
        assert reached(tmp_path, replicas=1, loss=0.2) == (math.inf, math.inf)

    def test_is_never_where_the_run_gave_up(self, tmp_path):
        records(tmp_path, [0.5, 0.1], [START])
        (tmp_path / "summary.json").write_text('{"status": "failed"}')
        assert reached(tmp_path, replicas=1, loss=0.2) == (math.inf, math.inf)

    def test_includes_what_failures_took(self, tmp_path):
        # After the checkpoint of step 1 (wall time 10 s) it failed, and went on 42 s after its start.
        again = {"time": 1042.0, "event": "start", "step": 1}
        failed = {"time": 1035.0, "event": "failure", "rank": 1, "error": "killed"}
        restart = {"time": 1035.1, "event": "restart", "from_step": 1}
        records(tmp_path, [0.5, 0.3, 0.1], [START, failed, restart, again])
        seconds, samples = reached(tmp_path, replicas=1, loss=0.1)
        assert (seconds, samples) == pytest.approx((42.0 + 20.0, 300.0))

    def test_is_that_of_replica_0_and_counts_the_samples_of_all(self, tmp_path):
        records(tmp_path, [], [])
        records(tmp_path / "replica_0", [0.5, 0.2], [START])
        assert reached(tmp_path, replicas=2, loss=0.2) == pytest.approx((20.0, 400.0))


def test_a_cell_shows_the_median_and_the_range():
    assert cell([(3.0, 2000.0), (1.0, 1000.0), (2.0, 1500.0)]) == "2.0 (1.0 to 3.0); 1.5k"
    assert cell([(math.inf, math.inf), (1.0, 1000.0)]) == "1.0 (1.0 to 1.0); 1.0k, 1 of 2 runs"
    assert cell([(math.inf, math.inf)]) == "not reached"


@pytest.mark.parametrize("name", COUPLINGS)
def test_all_couplings_validate_after_the_same_samples_and_end_with_a_validation(name, tmp_path):
    run = _run(tmp_path, "even", name, 0)
    config = load_config(ROOT / "configs/digits-sync.yaml", list(run.overrides))
    workers = config.parallel.workers
    plan = make_plan(config, workers, 1437)
    between = config.validation.every_steps * plan.samples_per_update
    assert between == BETWEEN
    # Each epoch's last update is as large as all others.
    assert config.train.last_batch == "drop"
    assert LENGTH % BETWEEN == 0
