"""Tests of versions that are computed on where they lie: none changes meanwhile, whoever does what when.

Writer and readers are the real ones, each on a thread that hands the baton back before every access to a
word. All orders are tried in which somebody is interrupted at most so often, and each store is seen by the
others at once, or as late as a processor of x86 may put it off: until the next fence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, cast

import pytest

from dist_train.exchange import hazards, published
from dist_train.exchange.baton import Runner
from dist_train.exchange.hazards import Displaced, Protector
from dist_train.exchange.published import PublishedReader, PublishedWriter
from dist_train.exchange.segments import Segment
from dist_train.exchange.slots import published_bytes, slot_count
from dist_train.rules.messages import Version

SIZE = 16


def published_segment(readers: int) -> Segment:
    return Segment.create(published_bytes(SIZE, slot_count(readers), readers))


def writer_of(segment: Segment, readers: int) -> PublishedWriter:
    return PublishedWriter(segment, SIZE, slot_count(readers), readers)


def publish(writer: PublishedWriter, version: int) -> None:
    writer.begin(version).fill_(version)
    writer.commit(version)


class TestOneAfterTheOther:
    @pytest.fixture
    def segment(self) -> Iterator[Segment]:
        with closing(published_segment(2)) as segment:
            yield segment

    def test_a_protected_version_stays_however_many_follow(self, segment: Segment) -> None:
        writer, reader = writer_of(segment, 2), Protector(segment, SIZE, 2, 0)
        publish(writer, 0)
        version, vector = reader.newest(Version(0, 0), 1.0)
        for number in range(1, 20):
            publish(writer, number)
        assert version == (0, 0)
        assert vector.tolist() == [0] * SIZE

    def test_what_is_protected_is_the_very_memory(self, segment: Segment) -> None:
        writer, reader = writer_of(segment, 2), Protector(segment, SIZE, 2, 0)
        publish(writer, 3)
        writer.current().fill_(9)
        assert reader.newest(Version(0, 0), 1.0)[1].tolist() == [9] * SIZE

    def test_to_protect_one_is_to_let_go_of_the_one_before(self, segment: Segment) -> None:
        writer, reader = writer_of(segment, 2), Protector(segment, SIZE, 2, 0)
        publish(writer, 0)
        reader.newest(Version(0, 0), 1.0)
        publish(writer, 1)
        reader.newest(Version(0, 1), 1.0)
        for number in range(2, 20):
            publish(writer, number)
        there = PublishedReader(segment, SIZE, slot_count(2), 2)
        assert [number for number in range(20) if there.has(Version(0, number))] == [1, 17, 18, 19]

    def test_a_version_that_is_gone_cannot_be_protected(self, segment: Segment) -> None:
        writer, reader = writer_of(segment, 2), Protector(segment, SIZE, 2, 0)
        for number in range(10):
            publish(writer, number)
        assert reader.protect(Version(0, 2)) is None
        assert reader.protect(Version(1, 9)) is None

    def test_all_members_may_protect_a_version_each(self, segment: Segment) -> None:
        writer, readers = writer_of(segment, 2), [Protector(segment, SIZE, 2, number) for number in (0, 1)]
        held = []
        for number, reader in enumerate(readers):
            publish(writer, number)
            held.append(reader.newest(Version(0, number), 1.0)[1])
        for number in range(2, 20):
            publish(writer, number)
        assert [vector.tolist() for vector in held] == [[0] * SIZE, [1] * SIZE]

    def test_a_successor_frees_what_its_predecessor_protected(self, segment: Segment) -> None:
        writer = writer_of(segment, 2)
        publish(writer, 0)
        Protector(segment, SIZE, 2, 1).newest(Version(0, 0), 1.0)
        publish(writer, 1)
        Protector(segment, SIZE, 2, 1).newest(Version(0, 1), 1.0)
        for number in range(2, 20):
            publish(writer, number)
        assert not PublishedReader(segment, SIZE, slot_count(2), 2).has(Version(0, 0))

    def test_a_successor_of_the_writer_respects_what_is_protected(self, segment: Segment) -> None:
        writer, reader = writer_of(segment, 2), Protector(segment, SIZE, 2, 0)
        publish(writer, 0)
        _, vector = reader.newest(Version(0, 0), 1.0)
        writer.begin(1)
        heir = writer_of(segment, 2)
        for number in range(1, 20):
            publish(heir, number)
        assert vector.tolist() == [0] * SIZE

    def test_who_was_displaced_learns_it(self, segment: Segment) -> None:
        writer, reader = writer_of(segment, 2), Protector(segment, SIZE, 2, 1)
        publish(writer, 0)
        reader.newest(Version(0, 0), 1.0)
        reader.check()
        publish(writer, 1)
        Protector(segment, SIZE, 2, 1).newest(Version(0, 1), 1.0)
        for verb in (reader.check, lambda: reader.protect(Version(0, 1))):
            with pytest.raises(Displaced, match="another process has taken this one's place"):
                verb()

    def test_fewer_slots_than_are_needed_are_refused(self, segment: Segment) -> None:
        with pytest.raises(ValueError, match="one more for each of 2 hazards"):
            PublishedWriter(segment, SIZE, slots=3, hazards=2)


# -- all orders ----------------------------------------------------------------------------------------

WRITER, READERS, SUCCESSOR = 0, (1, 2), 3
VERSIONS = 3
# More accesses than any order of these takes that comes to an end.
ENDLESS = 600


class Words:
    """Shared words as the thread whose turn it is sees them; before each access others may have theirs."""

    def __init__(self, world: World, words: range) -> None:
        self._world, self._words = world, words

    def __len__(self) -> int:
        return len(self._words)

    def __getitem__(self, which: Any) -> Any:
        if isinstance(which, slice):
            return Words(self._world, self._words[which])
        return self._world.load(self._words[which])

    def __setitem__(self, which: int, value: int) -> None:
        self._world.store(self._words[which], value)


class World:
    """A writer, readers and a successor of the first of them, who begins when that one has died.

    It is the segment that they share, and the processor: stores are ``late`` if they are seen by others from
    the next fence on.
    """

    def __init__(self, readers: int, mortal: bool, late: bool, fences: list[Callable[[], None]]) -> None:
        fences.append(self.fence)
        self.mortal = mortal
        # One of two readers reads again, lets go of what it has, and meets the other.
        self._rounds = readers
        self._readers, self._late = readers, late
        self._words = [0] * (1 + slot_count(readers) + readers)
        self._slots: dict[int, list[int]] = {}
        # By thread: stores that others do not see yet, and all that it has seen, which decides what it does.
        self._unseen: list[dict[int, int]] = [{} for _ in range(4)]
        self._seen: list[tuple[Any, ...]] = [()] * 4
        self._moves = [0] * 4
        self._turn = WRITER
        self._runners: dict[int, Runner] = {}
        self.dead = False
        self._first = slot_count(readers)
        writer = self._writer()
        for version in range(self._first):
            # All slots have been used.
            self._publish(writer, version)
        self.fence()
        self._runners[WRITER] = Runner("writer", self._write)
        for number, thread in enumerate(READERS[:readers]):
            self._runners[thread] = Runner(f"reader {number}", lambda number=number: self._read(number))
        if mortal:
            self._runners[SUCCESSOR] = Runner("successor", lambda: self._read(0))

    def words(self, start: int, count: int) -> Words:
        assert (start, count) == (0, len(self._words))
        return Words(self, range(count))

    def tensor(self, dtype: object, start: int, count: int) -> list[int]:
        """Return the two halves of a slot."""
        return self._slots.setdefault(start, [0, 0])

    def load(self, word: int) -> int:
        # Where nobody else writes it makes no difference who has had a turn.
        if self._turn != WRITER or word > self._first:
            self._let_others()
        value = self._unseen[self._turn].get(word, self._words[word])
        self._seen[self._turn] = (*self._seen[self._turn], value)
        return value

    def store(self, word: int, value: int) -> None:
        self._let_others()
        if self._late:
            self._unseen[self._turn][word] = value
        else:
            self._words[word] = value

    def fence(self) -> None:
        if self._unseen[self._turn]:
            self._let_others()
        for word, value in self._unseen[self._turn].items():
            self._words[word] = value
        self._unseen[self._turn].clear()

    def _let_others(self) -> None:
        if self._runners:
            self._runners[self._turn].hand_back()

    def _writer(self) -> PublishedWriter:
        return writer_of(cast(Segment, self), self._readers)

    def _write(self) -> None:
        writer = self._writer()
        for version in range(self._first, self._first + VERSIONS):
            self._publish(writer, version)

    def _publish(self, writer: PublishedWriter, version: int) -> None:
        slot = writer.begin(version)
        for half in (0, 1):
            slot[half] = version
            self._let_others()
        writer.commit(version)

    def _read(self, number: int) -> None:
        segment = cast(Segment, self)
        shape = slot_count(self._readers), self._readers
        there, protector = PublishedReader(segment, SIZE, *shape), Protector(segment, SIZE, shape[1], number)
        computed = 0
        while computed < self._rounds:
            version = there.newest()
            assert version is not None
            vector = protector.protect(version)
            if vector is None:
                continue
            for _ in range(2):
                assert vector == [version.number] * 2
                self._let_others()
            computed += 1

    # -- whose turn it is ------------------------------------------------------------------------------

    def able(self) -> list[int]:
        """Return the threads that have something to do."""
        gone = READERS[0] if self.dead else SUCCESSOR
        return [thread for thread, runner in self._runners.items() if thread != gone and not runner.done]

    def move(self, thread: int) -> None:
        """Let a thread make its next access, and go on to the one after it."""
        self._turn = thread
        self._moves[thread] += 1
        self._runners[thread].move()

    def state(self) -> tuple[Any, ...]:
        """Return all that decides what may come."""
        slots = tuple(map(tuple, self._slots.values()))
        unseen = tuple(tuple(each.items()) for each in self._unseen)
        return (*self._words, slots, unseen, *self._seen, *self._moves, self.dead)

    def end(self) -> None:
        for runner in self._runners.values():
            runner.end()


# Threads in the order of their moves; the reader that has a successor may die in between.
Order = tuple[int, ...]
DEATH = -1


def follow(world: World, order: Order, interruptions: int, known: set[Any]) -> list[tuple[Order, int]]:
    """Go on in ``order`` and then without an interruption; return the orders that differ in what came then.

    With each comes the number of interruptions that are left to it. Stops where all was the same before.
    """
    others: list[tuple[Order, int]] = []
    done: Order = ()
    while able := world.able():
        assert len(done) < ENDLESS, "somebody never comes to an end"
        last = next((thread for thread in reversed(done) if thread != DEATH), None)
        if len(done) < len(order):
            choice = order[len(done)]
        else:
            key = (world.state(), last, interruptions)
            if key in known:
                break
            known.add(key)
            choice = last if last in able else able[0]
            # Where somebody has come to an end, nobody is interrupted by who comes next.
            left = interruptions - (choice == last)
            if left >= 0:
                others += [((*done, thread), left) for thread in able if thread != choice]
            if interruptions and world.mortal and not world.dead and READERS[0] in able:
                others.append(((*done, DEATH), interruptions - 1))
        if choice == DEATH:
            world.dead = True
        else:
            world.move(choice)
        done = (*done, choice)
    return others


@pytest.mark.parametrize("late", [False, True], ids=["seen at once", "seen late"])
@pytest.mark.parametrize(("readers", "mortal", "interruptions"), [(1, False, 3), (1, True, 2), (2, False, 1)])
def test_nothing_changes_under_a_reader_in_any_order(
    monkeypatch: pytest.MonkeyPatch, readers: int, mortal: bool, interruptions: int, late: bool
) -> None:
    known: set[Any] = set()
    left: list[tuple[Order, int]] = [((), interruptions)]
    fences: list[Callable[[], None]] = []
    for module in (published, hazards):
        monkeypatch.setattr(module, "fence", lambda: fences[-1]())
    tried = 0
    while left:
        order, allowed = left.pop()
        world = World(readers, mortal, late, fences)
        try:
            left += follow(world, order, allowed, known)
        finally:
            world.end()
        tried += 1
    assert tried > 100
