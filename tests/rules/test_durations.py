"""Tests of what is measured before the number of backup workers is chosen."""

from __future__ import annotations

from dist_train.rules.backups import Choice
from dist_train.rules.decisions import Answer
from dist_train.rules.durations import MEASURED, WARMING, Durations, most_backups
from dist_train.rules.messages import Push, Reply, ValidationPart, Version

# Three workers take a second and one takes nine: b = 1 makes 9/1 * 3/4 as many samples per second.
TIMES = (1.0, 1.0, 1.0, 9.0)
ENOUGH = WARMING + MEASURED


class World:
    """Members that wait for each other, ``between`` seconds from the last gradient to the next version."""

    def __init__(self, groups: int = 4, between: float = 0.0) -> None:
        self.durations = Durations(groups)
        self.between = between
        self.now, self.number = 0.0, 0
        for member in range(groups):
            self.answer(member, sequence=0)
        self.round(*[50.0] * groups)

    def answer(self, member: int, after: float = 0.0, sequence: int = 1, **reply: object) -> None:
        said = Reply("counted", Version(0, self.number), **reply)  # type: ignore[arg-type]
        self.durations.answered(Answer(member, 0, sequence, said, "work"), self.now + after)

    def push(self, member: int, seconds: float, version: Version | None = None) -> None:
        read = Version(0, self.number) if version is None else version
        self.durations.pushed(Push(member, 0, 1, 1, read, 4, 1.0), self.now + seconds)

    def publish(self, seconds: float = 0.0) -> None:
        self.now += seconds + self.between
        self.number += 1
        self.durations.released(Version(0, self.number), self.now)

    def round(self, *times: float) -> None:
        """Have everybody answer the newest version, then go on with the next."""
        for member, seconds in enumerate(times):
            self.push(member, seconds)
        self.publish(max(times))
        for member in range(len(times)):
            self.answer(member)

    def rounds(self, count: int, *times: float) -> None:
        for _ in range(count):
            self.round(*times)

    @property
    def choice(self) -> Choice:
        found = self.durations.choice()
        assert found is not None
        return found


def test_the_choice_is_made_when_enough_updates_were_measured() -> None:
    world = World()
    world.rounds(ENOUGH - 1, *TIMES)
    assert world.durations.choice() is None
    world.round(*TIMES)
    assert world.choice.backups == 1
    assert round(world.choice.table[1].speedup, 6) == 6.75


def test_the_first_updates_do_not_count() -> None:
    world = World(4)
    world.rounds(WARMING, 1.0, 1.0, 1.0, 1000.0)
    world.rounds(MEASURED, 2.0, 2.0, 2.0, 2.0)
    assert round(world.choice.table[0].step_s, 6) == 2.0


def test_at_most_half_of_the_groups_are_backups() -> None:
    assert [most_backups(groups) for groups in (1, 2, 5, 8)] == [0, 1, 2, 4]
    world = World(4)
    world.rounds(ENOUGH, 1.0, 9.0, 9.0, 9.0)
    assert [candidate.backups for candidate in world.choice.table] == [0, 1, 2]


def test_an_update_to_which_somebody_gave_nothing_is_left_out() -> None:
    world = World(4)
    world.rounds(10 * MEASURED, *TIMES[:3])
    assert world.durations.choice() is None


def test_the_first_gradient_of_a_process_tells_nothing() -> None:
    world = World(2)
    world.rounds(ENOUGH - 1, 1.0, 1.0)
    world.answer(1, sequence=0)
    world.round(1.0, 100.0)
    assert world.durations.choice() is None
    world.round(1.0, 1.0)
    assert round(world.choice.table[0].step_s, 6) == 1.0


def test_a_gradient_of_another_version_or_another_era_tells_nothing() -> None:
    world = World(1)
    for _ in range(2 * ENOUGH):
        world.push(0, 1.0, Version(0, world.number - 1))
        world.publish(1.0)
        world.answer(0)
        world.push(0, 1.0, Version(1, world.number))
        world.publish(1.0)
        world.answer(0)
    assert world.durations.choice() is None


def test_what_a_member_measures_of_a_validation_is_not_in_its_gradient() -> None:
    world = World(2)
    part = ValidationPart(1, 1, 0, 2)
    for _ in range(ENOUGH):
        for member, measuring in enumerate((7.0, 8.0)):
            world.answer(member, validation=part)
            world.answer(member, after=measuring)
            world.push(member, measuring + 1.0)
        world.publish(9.0)
        world.answer(0)
        world.answer(1)
    assert round(world.choice.table[0].step_s, 6) == 1.0


def test_who_begins_later_than_others_is_not_slower() -> None:
    world = World(2)
    for _ in range(ENOUGH):
        world.answer(1, after=3.0)
        world.push(0, 1.0)
        world.push(1, 4.0)
        world.publish(4.0)
        world.answer(0)
        world.answer(1)
    assert [round(each.step_s, 6) for each in world.choice.table] == [1.0, 1.0]


def test_every_update_takes_as_long_as_it_mostly_took_to_make_one() -> None:
    world = World(2, between=0.5)
    world.rounds(ENOUGH - 1, 1.0, 1.0)
    world.between = 60.0
    world.round(1.0, 1.0)
    assert round(world.choice.table[0].step_s, 6) == 1.5


def test_each_worker_keeps_its_own_times() -> None:
    # In whatever order they come: each is slow in every other round.
    world = World(2)
    for number in range(ENOUGH):
        slow = number % 2
        world.push(1 - slow, 1.0)
        world.push(slow, 3.0)
        world.publish(3.0)
        world.answer(0)
        world.answer(1)
    assert set(map(tuple, world.durations._rows)) == {(1.0, 3.0), (3.0, 1.0)}
