"""Tests of the server modes' figures as text, and of which workers are worth showing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from dist_train.watch.records import StepTimes, TrainLine, WorkerFigures
from dist_train.watch.server_figures import (
    ledger_text,
    server_outcome,
    server_progress,
    telling,
    together,
    workers_text,
)

EXTRAS = {
    "staleness": 3.125,
    "staleness_p99": 11,
    "computed": 1200,
    "applied": 1170,
    "dropped": 27,
    "refused": 0,
    "requeued": 27,
    "waiting_quorum": 6.0,
    "waiting_server": 3.0,
    "waiting_bound": 0.0,
    "waiting_work": 0.0,
    "waiting_data": 1.0,
}


def worker(name: int, rate: float = 80.0, staleness: float = 3.0, dropped: int = 0) -> WorkerFigures:
    return WorkerFigures(
        name=str(name), samples_per_s=rate, staleness=staleness, dropped=dropped, waiting=0.2
    )


def line(extras: Mapping[str, float] = EXTRAS, workers: tuple[WorkerFigures, ...] | None = None) -> TrainLine:
    return TrainLine(
        step=10,
        samples=640,
        epoch=0.5,
        wall_s=2.0,
        loss=2.1,
        lr=0.1,
        samples_per_s=320.0,
        samples_per_s_per_worker=160.0,
        data_wait=0.02,
        times=StepTimes(data=0.1, forward=0.1, backward=0.1, communication=0.1, update=0.1),
        memory_mb=300.0,
        extras=extras,
        workers=workers,
    )


class TestProgress:
    def test_has_staleness_drops_and_what_is_waited_for_most(self) -> None:
        assert server_progress(line(workers=(worker(0), worker(1)))) == [
            ("staleness", "3.1 (p99 11)"),
            ("dropped", "27 (2.2%)"),
            # 6 of 10 seconds of the 20 % that the workers wait.
            ("waiting", "20% (quorum 12%)"),
        ]

    def test_names_refused_gradients_only_where_there_are_any(self) -> None:
        shown = dict(server_progress(line({**EXTRAS, "dropped": 0, "refused": 3}, (worker(0),))))
        assert "dropped" not in shown
        assert shown["refused"] == "3 (0.2%)"

    def test_names_no_cause_where_nobody_waited(self) -> None:
        nothing = {name: 0.0 if name.startswith("waiting") else value for name, value in EXTRAS.items()}
        assert dict(server_progress(line(nothing, (worker(0),))))["waiting"] == "20%"

    def test_of_a_mode_without_a_server_is_empty(self) -> None:
        assert server_progress(line({})) == []


class TestTelling:
    def test_few_workers_are_all_shown(self) -> None:
        workers = [worker(number) for number in range(5)]
        assert telling(workers, 5) == (workers, [])
        # One left over would take as much room in a row of its own.
        assert telling(workers, 4) == (workers, [])

    @pytest.mark.parametrize(
        "odd",
        [worker(40, rate=16.0), worker(40, staleness=9.0), worker(40, dropped=50), worker(40, rate=0.0)],
    )
    def test_of_many_one_that_differs_is_shown(self, odd: WorkerFigures) -> None:
        workers = [odd if number == 40 else worker(number, dropped=number % 3) for number in range(64)]
        shown, others = telling(workers, 4)
        assert [each.name for each in shown] == ["0", "1", "2", "40"]
        assert len(others) == 60
        assert odd not in others

    def test_small_differences_do_not_change_the_choice(self) -> None:
        even = [worker(number) for number in range(64)]
        uneven = [worker(number, rate=80.0 - number % 7, dropped=number % 3) for number in range(64)]
        names = [[each.name for each in telling(workers, 4)[0]] for workers in (even, uneven)]
        assert names[0] == names[1]

    def test_the_slowest_of_several_slow_ones_are_shown(self) -> None:
        workers = [worker(number, rate=1.0 + number) for number in range(64)]
        assert [each.name for each in telling(workers, 3)[0]] == ["0", "1", "2"]

    def test_the_others_are_shown_together(self) -> None:
        rest = together([worker(0, rate=60.0, dropped=1), worker(1, rate=80.0, staleness=5.0, dropped=3)])
        assert (rest.name, rest.samples_per_s, rest.staleness, rest.dropped) == ("2 others", 70.0, 4.0, 2)


class TestWorkersText:
    def test_of_a_few(self) -> None:
        assert workers_text([worker(0), worker(1, rate=16.04, dropped=21)]) == (
            "0: 80.0 samples/s, staleness 3.0;  1: 16.0 samples/s, staleness 3.0, 21 dropped"
        )

    def test_of_many_stays_short(self) -> None:
        text = workers_text([worker(number) for number in range(1000)])
        assert text.endswith("996 others: on average 80.0 samples/s, staleness 3.0")
        assert len(text) < 250


class TestOutcome:
    def test_has_a_row_for_each_thing_to_know(self) -> None:
        assert server_outcome(
            {
                "gradients": {"computed": 2300, "applied": 1840, "dropped": 457, "refused": 3},
                "staleness": {"mean": 0.514, "p50": 0, "p99": 4, "max": 1200},
                "waiting": {"quorum": 40.2, "bound": 0.0, "server": 3.2},
                "lost_updates": 12,
                "backups": {"chosen": 1, "why": "b = 1 makes more", "table": []},
                "ledger": [{"epochs": [0, 1], "samples": {"1": 1437}}],
            }
        ) == {
            "gradients": "2,300 computed: 1,840 applied, 457 dropped, 3 refused",
            "staleness": "mean 0.51, p99 4, max 1,200",
            "waiting": "quorum 40s, server 3.2s (all workers together)",
            "lost updates": "12",
            "backups": "b = 1 makes more",
            "samples trained": "epochs 0 to 1: 1,437 once",
        }

    def test_says_from_where_on_the_ledger_counts(self) -> None:
        summary = {"ledger": [{"epochs": [2, 2], "samples": {"1": 9}}], "ledger_since": 1200}
        assert server_outcome(summary) == {"samples trained": "epoch 2: 9 once (after the first 1,200)"}

    def test_has_none_for_a_synchronous_run_and_for_nothing(self) -> None:
        assert server_outcome({"status": "done", "workers": 2}) == {}
        nothing: dict[str, Any] = {"waiting": {"quorum": 0.0}, "lost_updates": 0, "ledger": []}
        assert server_outcome(nothing) == {}


class TestLedgerText:
    def test_says_how_often_samples_were_trained(self) -> None:
        entry = {"epochs": [9, 9], "samples": {"0": 37, "1": 1396, "2": 3, "3": 1}}
        assert ledger_text([entry]) == "epoch 9: 37 never, 1,396 once, 3 twice, 1 (3 times)"

    def test_of_many_entries_has_the_last(self) -> None:
        entries = [{"epochs": [number, number], "samples": {"1": 9}} for number in range(5)]
        assert ledger_text(entries) == "...; epoch 2: 9 once; epoch 3: 9 once; epoch 4: 9 once"
