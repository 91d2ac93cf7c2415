"""Tests of the referee: each mode by hand and in order. All of them under faults: tests/faults."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_train.rules.decisions import Fail, Milestone, Replace
from dist_train.rules.referee import Start
from dist_train.rules.sampling import Cursor, Position, Run, advance, draw
from tests.rules.server_world import FROM_THE_BEGINNING, Setup, World, places


def started(setup: Setup, start: Start = FROM_THE_BEGINNING) -> World:
    """A run in which everybody has joined and got the first answer."""
    world = World(setup, start)
    for member in range(setup.members):
        world.join(member)
    world.obey(world.referee.open())
    for process in world.processes.values():
        if process.inbox is not None:
            world.advance(process)
    return world


def push(world: World, member: int, finite: bool = True) -> None:
    """Let a member read, and send the gradient of the lease it has in hand."""
    process = world.processes[member]
    while process.outbox is None:
        assert world.advance(process, finite), f"member {member} has nothing to do"
    world.advance(process)


def shards_obey(world: World) -> None:
    while world.commands:
        world.obey_one()


def obey(world: World, commands: int) -> None:
    for _ in range(commands):
        world.obey_one()


def answers(world: World) -> dict[int, str]:
    """What those have heard who have not yet acted upon it."""
    heard = {member: process.inbox for member, process in world.processes.items()}
    return {member: reply.outcome for member, reply in heard.items() if reply is not None}


def updates(world: World) -> list[list[int]]:
    """The members whose gradients each update holds."""
    return [[each.push.member for each in step.contributions] for step, _ in world.steps]


def in_hand(world: World, member: int) -> list[tuple[int, int]]:
    """The samples a member is to train on, as (offset, count)."""
    return [(lease.offset, lease.count) for holder, lease in world.out.values() if holder == member]


class TestBackup:
    """Chen et al. 2016: N = 2 of three members make an update, b = 1."""

    @pytest.fixture
    def world(self) -> World:
        return started(Setup("backup", members=3, setting=1, size=24, share=4, epochs=1))

    def test_the_first_n_gradients_make_the_update(self, world: World) -> None:
        push(world, 2)
        assert updates(world) == []
        push(world, 0)
        assert updates(world) == [[2, 0]]

    def test_the_late_one_is_dropped_and_told(self, world: World) -> None:
        for member in (0, 1, 2):
            push(world, member)
        shards_obey(world)
        assert updates(world) == [[0, 1]]
        assert answers(world) == {0: "counted", 1: "counted", 2: "dropped"}

    def test_its_samples_are_the_next_to_be_drawn(self, world: World) -> None:
        assert in_hand(world, 2) == [(8, 4)]
        for member in (0, 1, 2):
            push(world, member)
        shards_obey(world)
        assert [in_hand(world, member) for member in range(3)] == [[(8, 4)], [(12, 4)], [(16, 4)]]

    def test_others_are_dealt_what_it_was_late_with(self, world: World) -> None:
        assert in_hand(world, 0) == [(0, 4)]
        for member in (1, 2, 0):
            push(world, member)
        shards_obey(world)
        assert [in_hand(world, member) for member in range(3)] == [[(12, 4)], [(0, 4)], [(16, 4)]]

    @given(
        members=st.integers(2, 5),
        backups=st.integers(1, 3),
        ahead=st.integers(1, 3),
        seed=st.integers(0, 2**32),
    )
    @settings(max_examples=25, deadline=None)
    def test_nobody_is_late_twice_with_the_same_samples_while_there_are_others(
        self, members: int, backups: int, ahead: int, seed: int
    ) -> None:
        setup = Setup("backup", members, min(backups, members - 1), 4000, 4, updates=20, ahead=ahead)
        world = started(setup)
        at_random(world, Random(seed))
        for late in world.late.values():
            assert len(set(late[:members])) == len(late[:members])

    def test_the_late_one_goes_on_from_the_newest_version(self, world: World) -> None:
        for member in (0, 1, 2):
            push(world, member)
        assert answers(world) == {}
        shards_obey(world)
        reply = world.processes[2].inbox
        assert reply is not None
        assert reply.version.number == 1

    def test_who_comes_when_the_update_is_full_is_late_though_it_must_wait_for_a_validation(self) -> None:
        world = started(Setup("backup", members=3, setting=1, size=24, share=4, epochs=1, validate_steps=1))
        for member in (0, 1):
            push(world, member)
        obey(world, 3)
        for member in (2, 0, 1, 2):
            push(world, member)
        assert [world.processes[member].awaits for member in range(3)] == ["counted", "counted", "dropped"]
        world.finish()
        assert updates(world)[:2] == [[0, 1], [0, 1]]

    def test_the_quorum_follows_the_dead(self, world: World) -> None:
        push(world, 0)
        world.crash(1)
        assert updates(world) == []
        world.crash(2)
        assert updates(world) == [[0]]


class TestBulkSynchronous:
    def test_everybody_is_in_every_update(self) -> None:
        world = started(Setup("bulk", members=3, size=24, share=4, epochs=1))
        for member in (1, 0, 2):
            assert updates(world) == []
            push(world, member)
        assert updates(world) == [[1, 0, 2]]

    def test_nobody_waits_for_who_is_gone(self) -> None:
        world = started(Setup("bulk", members=3, size=24, share=4, epochs=1))
        push(world, 0)
        push(world, 1)
        world.crash(2)
        assert updates(world) == [[0, 1]]

    def test_the_last_round_of_an_epoch_is_made_by_those_who_have_samples(self) -> None:
        world = started(Setup("bulk", members=3, size=14, share=4, epochs=2, validate_epochs=2))
        for member in range(3):
            push(world, member)
        shards_obey(world)
        assert [in_hand(world, member) for member in range(3)] == [[(12, 1)], [(13, 1)], []]
        push(world, 0)
        push(world, 1)
        assert updates(world)[1:] == [[0, 1]]

    def test_who_was_idle_begins_with_the_others_from_the_newest_version(self) -> None:
        world = started(Setup("bulk", members=2, size=9, share=4, epochs=2, validate_epochs=2))
        for member in (0, 1):
            push(world, member)
        shards_obey(world)
        push(world, 0)
        assert len(world.steps) == 2
        assert in_hand(world, 1) == []
        shards_obey(world)
        assert in_hand(world, 1) == [(4, 4)]

    def test_who_is_replaced_gives_no_second_gradient_to_an_update(self) -> None:
        world = started(Setup("bulk", members=2, size=24, share=4, epochs=1))
        push(world, 0)
        world.join(0)
        assert in_hand(world, 0) == []
        push(world, 1)
        shards_obey(world)
        assert answers(world) == {0: "welcome", 1: "counted"}

    @pytest.mark.parametrize("mode", ["bulk", "backup"])
    @given(data=st.data())
    @settings(max_examples=40, deadline=None)
    def test_each_update_takes_the_samples_that_synchronous_training_would(
        self, mode: str, data: st.DataObject
    ) -> None:
        setup = Setup(
            mode,
            members=data.draw(st.integers(1, 4)),
            size=data.draw(st.integers(16, 40)),
            share=data.draw(st.integers(1, 4)),
            epochs=3,
            ahead=data.draw(st.integers(1, 3)),
            last_batch=data.draw(st.sampled_from(["keep", "drop"])),
            validate_steps=data.draw(st.sampled_from([None, 1])),
        )
        batch = setup.share * setup.members
        first = data.draw(st.integers(0, setup.epoch - 1))
        first -= first % batch if setup.last_batch == "drop" else 0
        left = data.draw(st.integers(0, first))
        unfinished = (Run(0, first - left, left),) if left else ()
        world = started(setup, Start(position=Position(0, first), unfinished=unfinished))
        at_random(world, Random(data.draw(st.integers(0, 2**32))))
        cursor = Cursor(Position(0, first), unfinished)
        for _, trained in world.steps:
            taken = draw(cursor, setup.size, batch, setup.last_batch)
            assert sorted(trained) == sorted(places(taken.runs))
            cursor = advance(cursor, setup.size, batch, setup.last_batch)
        assert cursor == Cursor(Position(3, 0))


class TestBounded:
    """Ho et al. 2013: nobody is more than s = 1 clock ahead when it begins."""

    @pytest.fixture
    def world(self) -> World:
        return started(Setup("bounded", members=2, setting=1, size=40, share=4, epochs=1))

    def test_the_fast_one_waits_for_the_slow(self, world: World) -> None:
        push(world, 0)
        shards_obey(world)
        push(world, 0)
        shards_obey(world)
        assert len(world.steps) == 2
        assert answers(world) == {}
        push(world, 1)
        shards_obey(world)
        assert answers(world) == {0: "counted", 1: "counted"}

    def test_and_for_the_slow_ones_gradient_to_be_published(self, world: World) -> None:
        for _ in range(2):
            push(world, 0)
            shards_obey(world)
        push(world, 1)
        assert answers(world) == {}
        obey(world, 1)
        assert world.published.number == 2
        assert answers(world) == {}
        obey(world, 1)
        assert answers(world) == {0: "counted", 1: "counted"}

    def test_what_the_bound_leaves_open_need_not_be_published(self, world: World) -> None:
        push(world, 0)
        push(world, 1)
        obey(world, 2)
        assert world.published.number == 1
        assert answers(world) == {0: "counted"}

    def test_a_gradient_lost_with_its_update_is_not_waited_for(self, world: World) -> None:
        for _ in range(2):
            push(world, 0)
            shards_obey(world)
        push(world, 1)
        world.roll_back(world.snapshots[-1])
        assert set(answers(world)) == {0, 1}

    def test_a_late_gradient_is_never_dropped(self, world: World) -> None:
        for member in (0, 0, 1):
            push(world, member)
            shards_obey(world)
        assert [step.contributions[0].staleness for step, _ in world.steps] == [0, 0, 2]

    def test_nobody_waits_for_who_is_gone(self, world: World) -> None:
        for _ in range(2):
            push(world, 0)
            shards_obey(world)
        world.crash(1)
        assert answers(world) == {0: "counted"}

    def test_who_takes_a_place_holds_nobody_back_for_what_it_missed(self, world: World) -> None:
        world.crash(1)
        for _ in range(5):
            push(world, 0)
            shards_obey(world)
        world.join(1)
        push(world, 0)
        shards_obey(world)
        assert answers(world)[0] == "counted"


class TestAsync:
    def test_a_gradient_is_an_update(self) -> None:
        world = started(Setup("async", members=2, size=40, share=4, epochs=1))
        for member in (0, 1, 0, 0):
            push(world, member)
            shards_obey(world)
        assert updates(world) == [[0], [1], [0], [0]]
        assert [step.contributions[0].staleness for step, _ in world.steps] == [0, 1, 0, 0]

    def test_a_member_goes_on_when_its_own_update_is_in(self) -> None:
        world = started(Setup("async", members=2, size=40, share=4, epochs=1))
        push(world, 0)
        assert answers(world) == {}
        shards_obey(world)
        assert answers(world) == {0: "counted"}

    def test_gradients_that_came_during_a_validation_are_an_update_each(self) -> None:
        world = started(Setup("async", members=3, size=40, share=4, epochs=1, validate_steps=1))
        for member in range(3):
            push(world, member)
        assert updates(world) == [[0]]
        world.finish()
        assert [len(step.contributions) for step, _ in world.steps] == [1] * 10

    def test_who_dies_while_it_measures_leaves_nobody_waiting(self) -> None:
        world = started(Setup("async", members=2, size=8, share=4, epochs=1, validate_steps=1))
        push(world, 0)
        shards_obey(world)
        world.advance(world.processes[0])
        assert world.processes[0].part is not None
        push(world, 1)
        world.crash(0)
        world.finish()
        assert world.validated == [1, 2]


class TestSoftsync:
    """Zhang et al. 2015: the mean of c = 2 gradients, for which nobody waits."""

    @pytest.fixture
    def world(self) -> World:
        return started(Setup("softsync", members=3, setting=2, size=40, share=4, epochs=1))

    def test_a_member_goes_on_before_its_gradient_is_in(self, world: World) -> None:
        push(world, 0)
        shards_obey(world)
        assert updates(world) == []
        assert answers(world) == {0: "counted"}

    def test_but_not_before_the_shards_have_read_it(self, world: World) -> None:
        push(world, 0)
        assert answers(world) == {}

    def test_one_member_may_give_all_gradients_of_an_update(self, world: World) -> None:
        for _ in range(2):
            push(world, 0)
            shards_obey(world)
        assert updates(world) == [[0, 0]]

    def test_what_is_lost_before_the_shards_read_it_leaves_nobody_waiting(self, world: World) -> None:
        push(world, 0)
        world.roll_back(world.start)
        assert answers(world) == {0: "void"}


class TestRefusals:
    def test_what_is_not_finite_is_drawn_again(self) -> None:
        world = started(Setup("async", members=2, size=40, share=4, epochs=1))
        lease = in_hand(world, 0)
        push(world, 0, finite=False)
        assert answers(world) == {0: "refused"}
        # By somebody else first.
        assert in_hand(world, 0) != lease
        push(world, 1)
        shards_obey(world)
        assert in_hand(world, 1) == lease

    def test_three_in_a_row_fail_a_run_of_one(self) -> None:
        world = started(Setup("async", members=1, size=40, share=4, epochs=1))
        for _ in range(2):
            push(world, 0, finite=False)
            assert world.verdicts == []
        push(world, 0, finite=False)
        assert [type(each) for each in world.verdicts] == [Fail]

    def test_a_lone_bad_member_is_replaced(self) -> None:
        world = started(Setup("async", members=2, size=40, share=4, epochs=1))
        for _ in range(3):
            assert world.verdicts == []
            push(world, 1)
            shards_obey(world)
            push(world, 0, finite=False)
        (verdict,) = world.verdicts
        assert isinstance(verdict, Replace)
        assert (verdict.member, verdict.incarnation) == (0, 0)

    def test_samples_that_nobody_can_train_on_fail_the_run_and_nobody_is_replaced(self) -> None:
        world = started(Setup("async", members=4, size=400, share=4, epochs=1))
        poisoned = in_hand(world, 0)
        for turn in range(100):
            if world.verdicts:
                break
            member = turn % 4
            push(world, member, finite=in_hand(world, member) != poisoned)
            shards_obey(world)
        (verdict,) = world.verdicts
        assert isinstance(verdict, Fail)
        assert verdict.why.startswith("samples 0 to 3 in the order of epoch 0 ")


def held_up_by_a_validation(compensates: bool = False) -> World:
    """Update 1 waits to be measured, member 1's gradient to be update 2, and member 2's to be update 3."""
    setup = Setup("bounded", members=3, setting=3, size=40, share=4, epochs=1, validate_steps=1)
    world = started(setup)
    world.obey(world.referee.change(replace(setup.terms(3), compensates=compensates)))
    push(world, 0)
    shards_obey(world)
    push(world, 1)
    push(world, 2)
    return world


class TestValidation:
    def test_it_is_measured_by_all_and_put_together(self) -> None:
        world = started(Setup("async", members=2, size=8, share=4, epochs=1))
        world.finish()
        assert world.validated == [2]

    def test_one_after_each_update_of_all_comes_to_an_end(self) -> None:
        world = started(Setup("bulk", members=2, size=24, share=4, epochs=1, validate_steps=1))
        for member in (0, 1):
            push(world, member)
        # The update is published, and everybody goes on, before the shards hold it.
        obey(world, 3)
        for member in (0, 1):
            push(world, member)
        world.finish()
        assert world.validated == [1, 2, 3]

    def test_the_last_one_waits_for_the_one_before(self) -> None:
        world = started(Setup("async", members=2, size=40, share=4, updates=3, validate_steps=2))
        for member in (0, 1):
            push(world, member)
            shards_obey(world)
        world.advance(world.processes[0])
        world.processes[1].stopped = False
        world.finish()
        assert world.validated == [2, 3]

    def test_one_owed_from_before_is_measured_first(self) -> None:
        world = started(Setup("async", members=1, size=8, share=4), Start(updates=1, owes_validation=True))
        assert [command.hold for command in world.commands if isinstance(command, Milestone)] == [True]
        shards_obey(world)
        push(world, 0)
        shards_obey(world)
        world.finish()
        assert world.validated[0] == 1

    def test_one_whose_version_is_lost_is_measured_when_it_comes_again(self) -> None:
        world = started(Setup("async", members=1, size=8, share=4, epochs=1))
        push(world, 0)
        shards_obey(world)
        push(world, 0)
        shards_obey(world)
        world.roll_back(world.start)
        world.finish()
        assert world.validated == [2]

    def test_one_that_was_not_held_yet_is_held_again(self) -> None:
        world = started(Setup("async", members=1, size=8, share=4, epochs=1))
        push(world, 0)
        shards_obey(world)
        push(world, 0)
        saved = world.commands[-1]
        assert isinstance(saved, Milestone)
        world.roll_back(Start(2, 8, saved.position, saved.unfinished))
        world.finish()
        assert world.validated == [2]

    def test_the_last_member_left_measures_though_its_gradient_waits_for_the_validation(self) -> None:
        world = held_up_by_a_validation()
        world.crash(0)
        world.crash(1)
        shards_obey(world)
        reply = world.processes[2].inbox
        assert reply is not None
        assert reply.validation is not None

    def test_nobody_measures_while_shards_need_what_its_gradient_was_computed_from(self) -> None:
        world = held_up_by_a_validation(compensates=True)
        shards_obey(world)
        assert 2 not in answers(world)

    def test_a_validation_is_left_out_where_nobody_could_measure_the_one_before(self) -> None:
        world = held_up_by_a_validation(compensates=True)
        world.crash(0)
        world.crash(1)
        # Update 2 is made, and takes along what member 2 computed its gradient from.
        shards_obey(world)
        reply = world.processes[2].inbox
        assert reply is not None
        assert reply.validation is not None
        world.finish()
        assert 1 in world.validated
        assert 2 not in world.validated
        assert world.validated[-1] == 10


class TestLossOfUpdates:
    def test_each_member_is_told_once_to_forget_its_leases(self) -> None:
        world = started(Setup("async", members=2, size=40, share=4, epochs=1, ahead=2))
        push(world, 0)
        world.roll_back(world.start)
        reply = world.processes[0].inbox
        assert reply is not None
        assert (reply.outcome, reply.forget, len(reply.work)) == ("void", True, 2)
        push(world, 0)
        shards_obey(world)
        reply = world.processes[0].inbox
        assert reply is not None
        assert (reply.outcome, reply.forget) == ("counted", False)
        push(world, 1)
        reply = world.processes[1].inbox
        assert reply is not None
        assert (reply.outcome, reply.forget) == ("void", True)

    def test_what_was_trained_is_trained_again(self) -> None:
        world = started(Setup("bulk", members=2, size=24, share=4, epochs=1))
        for member in (0, 1):
            push(world, member)
        shards_obey(world)
        world.roll_back(world.start)
        assert world.referee.samples == 0
        for member in (0, 1):
            push(world, member)
        assert answers(world) == {0: "void", 1: "void"}
        assert in_hand(world, 0) + in_hand(world, 1) == [(0, 4), (4, 4)]


class TestTheEnd:
    def test_a_length_in_updates_leaves_the_rest_undone(self) -> None:
        world = started(Setup("async", members=3, size=40, share=4, updates=2))
        world.finish()
        assert len(world.steps) == 2
        assert all(process.stopped for process in world.processes.values())

    def test_a_run_that_is_over_validates_and_stops(self) -> None:
        world = started(Setup("async", members=2, size=8, share=4, epochs=1), Start(2, 8, Position(1, 0)))
        world.finish()
        assert world.steps == []
        assert world.validated == [2]

    def test_stopping_tells_everybody_even_before_the_start(self) -> None:
        world = World(Setup("bulk", members=2))
        world.join(0)
        world.stop()
        world.join(1)
        world.finish()
        assert all(process.stopped for process in world.processes.values())

    def test_who_joins_when_training_is_over_stops(self) -> None:
        world = started(Setup("async", members=2, size=8, share=4, epochs=1))
        world.finish()
        world.join(0)
        world.finish()
        assert world.processes[0].stopped

    def test_stopping_loses_no_sample(self) -> None:
        world = started(Setup("bulk", members=2, size=24, share=4, epochs=1))
        push(world, 0)
        world.stop()
        assert answers(world) == {0: "void"}
        assert world.referee.dealer.unfinished == (Run(0, 0, 8),)

    def test_stopping_breaks_a_validation_off_and_the_next_start_makes_up_for_it(self) -> None:
        world = started(Setup("async", members=2, size=8, share=4, epochs=1))
        for member in (0, 1):
            push(world, member)
        shards_obey(world)
        for process in world.processes.values():
            world.advance(process)
            assert process.part
        world.stop()
        world.finish()
        assert world.validated == []
        assert world.referee.owes_validation
        again = started(world.setup, Start(2, 8, Position(1, 0), owes_validation=True))
        again.finish()
        assert again.validated == [2]


class TestChange:
    def test_another_number_of_backups_is_in_force_from_the_next_update_on(self) -> None:
        world = started(Setup("backup", members=3, setting=0, size=48, share=4, epochs=1))
        push(world, 0)
        world.change(1)
        push(world, 1)
        assert updates(world) == []
        push(world, 2)
        shards_obey(world)
        for member in (2, 1):
            push(world, member)
        assert updates(world) == [[0, 1, 2], [2, 1]]


def at_random(world: World, random: Random) -> None:
    """Let a whole run happen in any order."""
    while not all(process.stopped for process in world.processes.values()):
        number = random.randrange(len(world.processes) + 1)
        if number < len(world.processes):
            world.advance(world.processes[number])
        elif world.commands:
            world.obey_one()
