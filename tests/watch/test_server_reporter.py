"""Tests of what is made of a server's decisions: lines, histograms, stragglers, the summary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dist_train.config import load_config
from dist_train.rules.admission import Contribution
from dist_train.rules.decisions import Returned, Step
from dist_train.rules.messages import Outcome, Push, Version
from dist_train.rules.sampling import Run
from dist_train.rules.schedule import Scheduled
from dist_train.rules.staleness import Staleness
from dist_train.watch.course import Course, Earlier, End, Standing
from dist_train.watch.logbook import NoLogbook
from dist_train.watch.records import TrainLine, ValLine
from dist_train.watch.server_reporter import ServerReporter
from dist_train.watch.tally import Tally

END = End("done", Path("run"), None)
SECONDS = {"data": 0.25, "forward": 0.25, "backward": 0.5}
ZERO = Version(0, 0)


class Book(NoLogbook):
    def __init__(self) -> None:
        self.lines: list[TrainLine] = []
        self.validations: list[ValLine] = []
        self.events: list[Mapping[str, Any]] = []
        self.summary: Mapping[str, Any] = {}

    def train(self, line: TrainLine) -> None:
        self.lines.append(line)

    def event(self, event: Mapping[str, Any]) -> None:
        self.events.append(event)

    def validation(self, line: ValLine) -> None:
        self.validations.append(line)

    def finish(self, summary: Mapping[str, Any], resume: str | None = None) -> None:
        self.summary = summary

    def named(self, kind: str) -> list[Mapping[str, Any]]:
        return [event for event in self.events if event["event"] == kind]


class Rehearsal:
    """A run of four workers, driven by hand."""

    def __init__(self, group_size: int = 1, tally: Tally | None = None, step: int = 0) -> None:
        config = load_config(
            {
                "name": "served",
                "task": "digits",
                "parallel": {"mode": "async", "workers": 4, "group_size": group_size},
                "train": {"epochs": 2, "batch_size": 8},
                "optimizer": {"name": "sgd", "lr": 0.1},
            }
        )
        self.now = 100.0
        self.book = Book()
        self.course = Course(self.book, config, 4, 0, Earlier(), lambda: self.now)
        self.reporter = ServerReporter(self.course, config, tally or Tally(), step, lambda: self.now)
        self.step = step

    def push(
        self, member: int, loss: float = 4.0, seconds: Mapping[str, float] = SECONDS, **further: Any
    ) -> Push:
        push = Push(member, 0, 1, 1, ZERO, samples=8, loss=loss, seconds=seconds, **further)
        self.reporter.pushed(push)
        return push

    def apply(self, *pushes: tuple[Push, int], rate: float = 0.1) -> None:
        self.step += 1
        contributions = tuple(Contribution(push, staleness) for push, staleness in pushes)
        samples = sum(push.samples for push, _ in pushes)
        self.reporter.applied(Step(Version(0, self.step), Scheduled(rate), contributions, samples))

    def give_back(self, member: int, outcome: Outcome) -> None:
        self.reporter.returned(Returned(member, 0, outcome, ZERO, ZERO, Run(0, 0, 8)))

    @property
    def at(self) -> Standing:
        return Standing(self.step, 8 * self.step, 0.5)

    def line(self) -> TrainLine:
        self.reporter.logged(self.at)
        return self.book.lines[-1]


class TestLine:
    def test_says_where_training_stands_and_how_fast_it_goes(self) -> None:
        run = Rehearsal()
        run.apply((run.push(0, loss=4.0, memory_mb=300.0), 0))
        run.apply((run.push(1, loss=12.0, memory_mb=200.0, gradient_norm=1.5), 1), rate=0.05)
        run.now += 4
        line = run.line()
        assert (line.step, line.samples, line.epoch, line.wall_s, line.lr) == (2, 16, 0.5, 4.0, 0.05)
        assert line.loss == 1.0
        assert (line.samples_per_s, line.samples_per_s_per_worker) == (4.0, 1.0)
        assert (line.memory_mb, line.grad_norm) == (300.0, 1.5)

    def test_is_about_what_happened_since_the_one_before(self) -> None:
        run = Rehearsal()
        run.apply((run.push(0, loss=80.0), 9))
        run.now += 1
        run.line()
        run.apply((run.push(0, loss=8.0), 1))
        run.now += 2
        line = run.line()
        assert (line.loss, line.samples_per_s, line.extras["staleness"]) == (1.0, 4.0, 1.0)

    def test_is_not_made_of_nothing(self) -> None:
        run = Rehearsal()
        run.push(0)
        run.reporter.logged(run.at)
        assert run.book.lines == []

    def test_counts_what_became_of_gradients_in_the_whole_run(self) -> None:
        run = Rehearsal(tally=Tally(computed=100, applied=90, dropped=6, refused=4, requeued=10))
        for member in range(4):
            run.push(member)
        run.apply((run.push(0), 0))
        run.give_back(1, "dropped")
        run.give_back(2, "refused")
        run.give_back(3, "ended")
        extras = run.line().extras
        names = ("computed", "applied", "dropped", "refused", "requeued")
        assert [extras[name] for name in names] == [105, 91, 7, 5, 13]

    def test_has_the_staleness_of_the_gradients_applied(self) -> None:
        run = Rehearsal()
        for staleness in [0] * 98 + [5] * 2:
            run.apply((run.push(0), staleness))
        extras = run.line().extras
        assert (extras["staleness"], extras["staleness_p99"]) == (0.1, 5)

    def test_has_the_seconds_waited_by_cause(self) -> None:
        run = Rehearsal(tally=Tally(waiting={"quorum": 50.0, "server": 0, "bound": 0, "work": 0, "data": 0}))
        run.apply((run.push(0), 0), (run.push(1), 0))
        run.reporter.waited(0, "quorum", 1.0)
        run.reporter.waited(1, "server", 0.5)
        extras = run.line().extras
        causes = ("quorum", "server", "bound", "work", "data")
        assert [extras[f"waiting_{cause}"] for cause in causes] == [1.0, 0.5, 0.0, 0.0, 0.5]

    def test_has_the_mean_times_of_a_gradient_and_waiting_is_communication(self) -> None:
        run = Rehearsal()
        run.apply((run.push(0), 0), (run.push(1, seconds={**SECONDS, "data": 0.75}), 0))
        run.reporter.waited(0, "server", 3.0)
        line = run.line()
        assert (line.times.data, line.times.forward, line.times.communication) == (0.5, 0.25, 1.5)
        assert line.data_wait == pytest.approx(0.5 / 2.75)
        assert line.slowest_rank == 1

    def test_has_each_workers_own_figures(self) -> None:
        run = Rehearsal()
        run.now += 4
        run.apply((run.push(0), 0), (run.push(3), 6))
        run.give_back(3, "dropped")
        run.reporter.waited(0, "quorum", 1.75)
        workers = run.line().workers
        assert workers is not None
        assert [worker.name for worker in workers] == ["0", "1", "2", "3"]
        assert [worker.samples_per_s for worker in workers] == [2.0, 0.0, 0.0, 2.0]
        assert [worker.staleness for worker in workers] == [0.0, 0.0, 0.0, 6.0]
        assert [worker.dropped for worker in workers] == [0, 0, 0, 1]
        # Loading samples is waiting too: 0.25 s for each gradient.
        assert [worker.waiting for worker in workers] == [0.5, 0.0, 0.0, 0.0625]

    def test_names_a_group_by_its_workers(self) -> None:
        run = Rehearsal(group_size=2)
        run.apply((run.push(0), 0), (run.push(1, seconds={"backward": 9.0}), 0))
        line = run.line()
        assert [worker.name for worker in line.workers or ()] == ["0-1", "2-3"]
        assert line.slowest_rank == 2

    def test_has_the_age_of_the_oldest_teacher(self) -> None:
        found = Rehearsal()
        taught = {"agreement": 0.5, "teachers": ((1, -5), (2, -11))}
        found.apply((found.push(0, **taught), 0), (found.push(1), 0))
        line = found.line()
        assert (line.extras["agreement"], line.extras["teacher_age"]) == (0.5, 11.0)


class TestValidation:
    def test_carries_what_training_lines_carry_since_the_one_before(self) -> None:
        run = Rehearsal()
        run.apply((run.push(0), 8))
        run.give_back(1, "dropped")
        run.reporter.validated(run.at, {"loss": 0.5}, 0.1)
        run.line()
        run.apply((run.push(0), 2))
        run.reporter.waited(1, "quorum", 3.0)
        run.reporter.validated(run.at, {"loss": 0.4}, 0.1)
        first, second = (line.record() for line in run.book.validations)
        assert (first["staleness"], first["staleness_p99"], first["dropped"]) == (8.0, 8, 1)
        assert (second["staleness"], second["dropped"], second["waiting_quorum"]) == (2.0, 1, 3.0)
        assert run.book.lines[0].extras.keys() <= second.keys()


class TestBlame:
    def test_names_workers_not_members_and_whose_loss_was_not_finite(self) -> None:
        run = Rehearsal(group_size=2)
        push = run.push(1, loss=float("nan"), not_finite=(1,))
        assert run.reporter.blamed(1, push) == "workers 2-3 (the loss of worker 3)"
        assert run.reporter.blamed(1, None) == "workers 2-3"
        assert Rehearsal().reporter.blamed(3, push) == "worker 3"


class TestHistogram:
    def test_of_staleness_is_an_event_at_each_validation_and_at_the_end(self) -> None:
        run = Rehearsal()
        run.apply((run.push(0), 0))
        run.apply((run.push(0), 3))
        run.reporter.validated(run.at, {"loss": 0.5}, 0.1)
        run.apply((run.push(0), 1))
        run.reporter.validated(run.at, {"loss": 0.5}, 0.1)
        run.reporter.finish(run.at, END)
        found = [(e["since_step"], e["step"], e["gradients"]) for e in run.book.named("staleness")]
        assert found == [(0, 2, {"0": 1, "3": 1}), (2, 3, {"1": 1}), (0, 3, {"0": 1, "1": 1, "3": 1})]

    def test_of_a_resumed_run_begins_where_it_was_resumed(self) -> None:
        run = Rehearsal(tally=Tally(staleness=Staleness({7: 5})), step=20)
        run.apply((run.push(0), 1))
        run.reporter.validated(run.at, {"loss": 0.5}, 0.1)
        (event,) = run.book.named("staleness")
        assert (event["since_step"], event["step"], event["gradients"]) == (20, 21, {"1": 1})


class TestStraggler:
    def test_that_stays_slow_is_named(self) -> None:
        run = Rehearsal(group_size=2)
        for _ in range(4):
            slow = run.push(1, seconds={**SECONDS, "backward": 2.5})
            run.apply((run.push(0), 0), (slow, 0))
            run.line()
        (event,) = run.book.named("straggler")
        assert (event["rank"], event["phase"], event["step"]) == (2, "backward", 3)
        assert event["warning"].startswith("workers 2-3 are 3.0 times slower than the others")

    def test_is_nobody_whose_process_is_gone(self) -> None:
        run = Rehearsal()
        run.apply((run.push(1, seconds={**SECONDS, "backward": 2.5}), 0))
        run.give_back(1, "ended")
        for _ in range(4):
            run.apply(*((run.push(member), 0) for member in (0, 2, 3)))
            run.line()
        assert run.book.named("straggler") == []


class TestSummary:
    def test_has_the_keys_of_the_tally_and_those_of_the_caller(self) -> None:
        run = Rehearsal()
        run.now += 2
        run.apply((run.push(0), 2))
        run.give_back(1, "dropped")
        run.reporter.rolled_back(3)
        ledger = [{"epochs": [0, 0], "samples": {"1": 8}}]
        run.reporter.finish(run.at, End("done", Path("run"), None, extras={"ledger": ledger}))
        summary = run.book.summary
        assert summary["gradients"] == {"computed": 1, "applied": 1, "dropped": 1, "refused": 0}
        assert summary["staleness"] == {"mean": 2.0, "p50": 2, "p99": 2, "max": 2}
        assert (summary["requeued"], summary["lost_updates"], summary["ledger"]) == (1, 3, ledger)
        assert summary["waiting"]["data"] == 0.25
        assert (summary["mode"], summary["workers"], summary["samples_per_s"]) == ("async", 4, 4.0)

    def test_is_preceded_by_a_line_of_what_was_not_told_yet(self) -> None:
        run = Rehearsal()
        run.apply((run.push(0), 0))
        run.reporter.finish(run.at, END)
        assert [line.step for line in run.book.lines] == [1]

    def test_of_a_run_that_made_no_update_is_there_too(self) -> None:
        run = Rehearsal()
        run.reporter.finish(run.at, END)
        assert run.book.summary["samples_per_s"] == 0.0
        assert run.book.summary["gradients"]["computed"] == 0
