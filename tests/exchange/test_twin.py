"""Tests of the in-process twin: it drives members in a set order, with every fault, and never hangs."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
import server_runs
import torch

from dist_train.errors import TrainingError
from dist_train.exchange.baton import in_step, one_by_one, script, seeded
from dist_train.exchange.twin import Deadlock, Twin
from dist_train.rules.decisions import Take
from dist_train.rules.messages import Version


@pytest.fixture
def run():
    with server_runs.running() as make:
        yield make


ASYNC = {"mode": "async", "workers": 3}
TOGETHER = {"mode": "bounded", "max_staleness": 0, "workers": 2}


def taken(found):
    return [(each.push.member, each.push.lease) for each in found.twin.decisions if isinstance(each, Take)]


class TestOrder:
    @pytest.mark.parametrize("make", [in_step, one_by_one, lambda: seeded(4)])
    def test_the_same_schedule_makes_the_same_run_bit_for_bit(self, run, make):
        first, second = (run(ASYNC, 9).go(make()) for _ in range(2))
        assert taken(first) == taken(second)
        weights = second.weights()
        for name, tensor in first.weights().items():
            assert torch.equal(tensor, weights[name])

    def test_other_schedules_make_other_runs(self, run):
        runs = [tuple(taken(run(ASYNC, 9).go(seeded(seed)))) for seed in range(4)]
        assert len(set(runs)) == 4

    def test_a_script_makes_any_staleness(self, run):
        # Joining takes two moves of each; then member 0 reads, and the others push before it does.
        begin = [0, 1, 2, 0, 1, 2]
        pushes = [1, 1, 1, 1, 2, 2, 0]
        found = run(ASYNC, 4).go(script([*begin, 0, *pushes], in_step()))
        read = {each.push.member: each.staleness for step in found.steps for each in step.contributions}
        assert read[0] == 3
        assert [member for member, _ in taken(found)[:2]] == [1, 1]

    def test_threads_do_not_outlive_the_twin(self):
        before = threading.active_count()
        with server_runs.running() as make:
            make(ASYNC, 9).go_to(3)
            assert threading.active_count() == before + 3
        assert threading.active_count() == before


class TestDeadlock:
    def test_it_says_who_waits_for_what(self, run):
        found = run(TOGETHER)
        found.twin._seats.clear()
        # A server that expects two members, of whom one never comes.
        found.twin.seat(0, found.body)
        found.twin.referee.join(1, 0)
        with pytest.raises(Deadlock, match=r"nobody can move: .*member 0 for the answer to"):
            found.twin.go(in_step())

    def test_a_run_that_ends_is_none(self, run):
        found = run(TOGETHER).go()
        assert found.twin.moves == []

    def test_what_a_member_raises_is_raised(self, run):
        found = run({"mode": "async"})

        def body(seat):
            raise OSError("no data")

        found.twin.seat(0, body)
        with pytest.raises(OSError, match="no data"):
            found.twin.go(in_step())


class TestFaults:
    def test_a_message_that_comes_twice_is_judged_once(self, run):
        plain, repeated = run(ASYNC, 6), run(ASYNC, 6)
        plain.go(in_step())
        for member in range(3):
            repeated.seat(member)
        repeated.go_to(2, in_step())
        seat = repeated.twin._seats[1]
        assert repeated.twin.deliver(seat) == []
        repeated.go(in_step())
        assert Counter(taken(repeated)).most_common(1)[0][1] == 1

    def test_a_message_that_came_before_it_was_sent_gets_its_answer_all_the_same(self, run):
        found = run({"mode": "async", "workers": 2}, 6).go_to(1, in_step())
        seat = found.twin._seats[1]
        assert found.twin.moves[1].goes_on is False
        assert isinstance(found.twin.deliver(seat)[0], Take)
        assert found.go(in_step()).steps[-1].version.number == 6

    def test_a_ghost_s_gradient_does_not_count(self, run):
        found = run(ASYNC, 8).go_to(2, in_step())
        ghost = found.twin.kill(2)
        found.seat(2)
        found.go_to(5, in_step())
        weights = found.weights()
        (answer,) = found.twin.deliver(ghost)
        assert (answer.reply.outcome, answer.incarnation) == ("ended", 0)
        for name, tensor in found.weights().items():
            assert torch.equal(tensor, weights[name])
        assert found.go().steps[-1].version.number == 8

    def test_a_gradient_that_was_in_stays_in_when_its_member_dies(self, run):
        found = run(TOGETHER | {"workers": 3}, 3)
        found.go(in_step(), until=lambda: len(taken(found)) == 2)
        gone, lease = taken(found)[0]
        found.twin.kill(gone)
        found.go(in_step())
        assert lease in [each.push.lease for each in found.steps[0].contributions]

    def test_a_process_that_hangs_gives_way_to_its_successor(self, run):
        found = run(TOGETHER, 5).go_to(2)
        found.twin.kill(1, noticed=False)
        found.seat(1)
        found.go()
        assert found.steps[-1].version.number == 5
        assert all(step.samples == 8 for step in found.steps)
        assert found.twin._seats[1].incarnation == 1

    def test_a_return_to_an_earlier_state_begins_an_era(self, run):
        parallel = ASYNC | {"server": {"snapshot_every": 2}}
        found = run(parallel, 8).go_to(5, one_by_one())
        start, state = found.snapshots[-1]
        found.load(start, state)
        found.twin.roll_back(start)
        assert found.twin.version == Version(1, 4)
        found.go(one_by_one())
        assert found.steps[-1].version == Version(1, 8)
        assert "void" in found.outcomes

    @pytest.mark.parametrize("seed", range(4))
    def test_under_any_order_and_many_deaths_every_sample_is_trained_once(self, run, seed):
        found = run(ASYNC, train={"steps": None, "epochs": 2})
        schedule = seeded(seed)
        for update in (3, 7, 12, 20):
            found.go_to(update, schedule)
            found.twin.kill((update + seed) % 3)
            found.seat((update + seed) % 3)
        found.go(schedule)
        assert sum(step.samples for step in found.steps) == 100
        leases = [each.push.lease for step in found.steps for each in step.contributions]
        assert len(leases) == len(set(leases))


def test_a_read_that_is_older_than_promised_is_an_error(run):
    found = run({"mode": "async"})
    assert isinstance(found.twin, Twin)
    seat = found.seat(0)
    into = torch.empty(found.server.layout.size)
    assert seat.read(Version(0, 0), into) == Version(0, 0)
    assert seat.read_exactly(Version(0, 0), into)
    assert not seat.read_exactly(Version(0, 1), into)
    with pytest.raises(TrainingError, match="member 0 was promised"):
        seat.read(Version(0, 1), into)
