"""Tests of the agreement to stop: every interleaving that an all-reduce in each step allows."""

from __future__ import annotations

import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch.distributed import HashStore

from dist_train.exchange.agreement import StopAgreement


class WouldWait(Exception):
    """Raised in place of a pause, so that one thread can drive several workers."""


def refuse_to_wait(_: float) -> None:
    raise WouldWait


class Worker:
    """A worker's loop in slow motion: at a boundary, inside the step that follows it, or stopped."""

    def __init__(self, agreement: StopAgreement, boundary: int) -> None:
        self.agreement = agreement
        self.boundary = boundary
        self.in_step = False
        self.stopped = False

    def arrive(self) -> None:
        """Ask at the boundary; where the real worker would wait, stay there and ask again later."""
        try:
            self.stopped = self.agreement.reached(self.boundary)
        except WouldWait:
            return
        self.in_step = not self.stopped

    def entered(self, step: int) -> bool:
        return self.boundary > step or (self.boundary == step and self.in_step)


class Stopping(RuleBasedStateMachine):
    """Workers under an all-reduce: nobody ends a step that another one has not begun.

    Polls, which a thread of each worker makes, and requests come at any moment.
    """

    @initialize(count=st.integers(1, 4), start=st.sampled_from([0, 7]), steps=st.integers(1, 6))
    def begin(self, count: int, start: int, steps: int) -> None:
        store = HashStore()
        self.end = start + steps
        self.requested = False
        self.workers = [
            Worker(StopAgreement(store, rank, count, pause=refuse_to_wait), start) for rank in range(count)
        ]

    def pick(self, number: int) -> Worker:
        return self.workers[number % len(self.workers)]

    def move(self, worker: Worker) -> None:
        if worker.stopped or worker.boundary == self.end:
            return
        if not worker.in_step:
            worker.arrive()
        elif all(peer.entered(worker.boundary) for peer in self.workers):
            worker.boundary += 1
            worker.in_step = False

    @rule(number=st.integers(0, 3))
    def step(self, number: int) -> None:
        self.move(self.pick(number))

    @rule(number=st.integers(0, 3))
    def poll(self, number: int) -> None:
        self.pick(number).agreement.poll()

    @rule(number=st.integers(0, 3))
    def request(self, number: int) -> None:
        self.requested = True
        self.pick(number).agreement.request("SIGTERM")

    @precondition(lambda self: self.requested)
    @rule(number=st.integers(0, 3))
    def poll_and_step(self, number: int) -> None:
        self.poll(number)
        self.step(number)

    @invariant()
    def all_stop_at_the_same_boundary(self) -> None:
        assert len({worker.boundary for worker in self.workers if worker.stopped}) <= 1

    @invariant()
    def nobody_passes_a_boundary_at_which_another_has_stopped(self) -> None:
        for stopped in (worker for worker in self.workers if worker.stopped):
            assert not any(worker.entered(stopped.boundary) for worker in self.workers)

    @invariant()
    def nobody_stops_unasked(self) -> None:
        assert self.requested or not any(worker.stopped for worker in self.workers)

    def teardown(self) -> None:
        if not hasattr(self, "workers"):
            return
        # From here on everybody gets a turn: pulses tick, workers move.
        for _ in range(3 * (self.end + 1)):
            for worker in self.workers:
                worker.agreement.poll()
                self.move(worker)
        ends = {(worker.stopped, worker.boundary) for worker in self.workers}
        assert len(ends) == 1, "some stopped, some went on or wait for ever"
        ((stopped, boundary),) = ends
        assert stopped or boundary == self.end
        if stopped:
            assert {worker.agreement.reason for worker in self.workers} == {"SIGTERM"}


TestStopping = Stopping.TestCase
TestStopping.settings = settings(deadline=None, max_examples=60, stateful_step_count=40)


def test_a_worker_alone_stops_at_the_next_boundary() -> None:
    agreement = StopAgreement(HashStore(), 0, 1)
    assert not agreement.reached(0)
    agreement.request("SIGINT")
    assert agreement.reached(1)
    assert agreement.reason == "SIGINT"


def test_the_latest_pledge_is_the_boundary_at_which_all_stop() -> None:
    store = HashStore()
    early, late = (StopAgreement(store, rank, 2) for rank in range(2))
    assert not late.reached(4)  # late is inside the step that ends at boundary 5
    early.request("SIGTERM")
    early.poll()
    late.poll()
    assert not early.reached(4)  # its pledge, but late cannot stop there any more
    assert early.reached(5)
    assert late.reached(5)


def test_a_worker_waits_for_a_pledge_made_by_another_thread() -> None:
    store = HashStore()
    busy = StopAgreement(store, 1, 2)
    busy.reached(0)
    answer: list[bool] = []

    def pulse(_: float) -> None:
        busy.poll()

    waiting = StopAgreement(store, 0, 2, pause=pulse)
    waiting.request("SIGTERM")
    thread = threading.Thread(target=lambda: answer.append(waiting.reached(0)))
    thread.start()
    thread.join(timeout=10)
    assert answer == [False]
    assert waiting.reached(1)
    assert busy.reached(1)


class Neighbours:
    """Others who stop where they are told to."""

    def __init__(self, target: int | None, reason: str | None = None) -> None:
        self.target, self.reason = target, reason
        self.pledged: list[int] = []
        self.closed: list[int] = []

    def asked(self) -> str | None:
        return self.reason

    def pledge(self, boundary: int, reason: str) -> int | None:
        self.pledged.append(boundary)
        return self.target

    def close(self, boundary: int) -> None:
        self.closed.append(boundary)


class TestOthers:
    def group(self, others: Neighbours) -> tuple[StopAgreement, StopAgreement]:
        store = HashStore()
        return (
            StopAgreement(store, 0, 2, pause=refuse_to_wait, others=others),
            StopAgreement(store, 1, 2, pause=refuse_to_wait),
        )

    def test_the_group_stops_where_they_do(self) -> None:
        others = Neighbours(None)
        lead, mate = self.group(others)
        assert not mate.reached(4)
        lead.request("SIGTERM")
        with pytest.raises(WouldWait):
            lead.reached(4)
        mate.poll()
        with pytest.raises(WouldWait):
            mate.reached(5)
        assert not lead.agreed_at(7)
        others.target = 7
        lead.poll()
        # What the group itself could not do before 5 was told to them.
        assert others.pledged[0] == 5
        assert [lead.reached(boundary) for boundary in (5, 6, 7)] == [False, False, True]
        assert [mate.reached(boundary) for boundary in (5, 6, 7)] == [False, False, True]

    def test_a_request_to_one_of_them_goes_for_the_group(self) -> None:
        lead, mate = self.group(Neighbours(5, reason="SIGTERM"))
        for worker in (lead, mate):
            assert not worker.reached(4)
        for _ in range(2):
            lead.poll()
            mate.poll()
        assert (lead.reached(5), mate.reached(5)) == (True, True)
        assert (lead.reason, mate.reason) == ("SIGTERM", "SIGTERM")

    def test_a_stop_that_is_put_forward_reaches_all_workers_at_the_next_boundary(self) -> None:
        others = Neighbours(90)
        lead, mate = self.group(others)
        lead.request("SIGTERM")
        for _ in range(2):
            lead.poll()
            mate.poll()
        # The mate asked before the news, the lead after it.
        assert not mate.reached(5)
        others.target = 2
        assert not lead.reached(5)
        assert (lead.reached(6), mate.reached(6)) == (True, True)

    def test_they_are_told_where_the_group_has_ended_once(self) -> None:
        others = Neighbours(None)
        lead, _ = self.group(others)
        for boundary in range(4):
            lead.reached(boundary)
        lead.close()
        lead.close()
        assert others.closed == [4]


def test_silent_ranks_are_named_when_patience_ends() -> None:
    store = HashStore()
    StopAgreement(store, 1, 4, patience_s=0.0).request("unheard: nobody polls it")
    agreement = StopAgreement(store, 0, 4, patience_s=0.0)
    store.set("stop/pledge/2", "0")
    agreement.request("SIGTERM")
    with pytest.raises(TimeoutError, match=r"ranks \[1, 3\] have not answered"):
        agreement.reached(0)


def test_after_the_end_nobody_looks_at_the_store_any_more() -> None:
    store = HashStore()
    agreement, peer = (StopAgreement(store, rank, 2) for rank in range(2))
    agreement.close()
    peer.request("SIGTERM")
    peer.poll()
    agreement.poll()
    assert not store.check(["stop/pledge/0"])


def test_a_worker_learns_without_waiting_that_all_stop_where_it_is():
    agreement = StopAgreement(HashStore(), 0, 1)
    assert not agreement.reached(4)
    assert not agreement.agreed_at(5)
    agreement.request("SIGTERM")
    agreement.poll()
    assert not agreement.agreed_at(4)
    assert agreement.agreed_at(5)
    assert agreement.reached(5)
