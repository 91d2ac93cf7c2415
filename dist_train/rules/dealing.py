"""Who trains on which samples: pieces of the one order of samples, dealt out, taken back, accounted for.

An update's draw is cut into as many leases as it takes gradients. A lease is *out* until an update holds its
gradient; a late, refused or lost one goes back to the front of the queue, so that no sample is left out. Who
was too late with a lease gets another: else a slow member's samples would never count (Chen et al. 2016).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from dist_train.rules.messages import Lease
from dist_train.rules.sampling import (
    BEGINNING,
    Cursor,
    LastBatch,
    Position,
    Run,
    advance,
    draw,
    samples_in,
    section,
    split,
)


@dataclass(frozen=True)
class Deck:
    """The order of samples that leases are cut from: ``batch`` samples make an update of ``parts`` leases.

    ``in_step``: updates take the samples that synchronous training's would. No lease of an epoch is dealt
    before the last of the epoch before is trained, and none at all before what an earlier run left
    unfinished; whoever has a lease in hand is dealt none of the same update.
    """

    size: int
    batch: int
    parts: int
    last_batch: LastBatch = "keep"
    in_step: bool = False


class Dealer:
    """``may_draw(position, samples)`` says whether training goes on past ``position`` once ``samples`` are
    dealt."""

    def __init__(
        self,
        deck: Deck,
        may_draw: Callable[[Position, int], bool],
        position: Position = BEGINNING,
        unfinished: Iterable[Run] = (),
        trained: int = 0,
    ) -> None:
        self.deck = deck
        self.may_draw = may_draw
        self.position = position
        self.trained = trained
        self._number = self._last_unfinished = 0
        # Which update each lease was cut for.
        self._updates: dict[int, int] = {}
        self._queue: deque[Lease] = deque()
        self._out: dict[int, tuple[int, Lease]] = {}
        # The members that had each lease in vain.
        self._in_vain: dict[int, set[int]] = {}
        self._refill(unfinished)

    def deal(self, member: int, live: Collection[int] = ()) -> Lease | None:
        """Give ``member`` the next lease; None when there is none now.

        One that it had in vain is left to those of ``live`` who had not, unless nothing else is left.
        """
        lease = self._next_for(member, live)
        if lease is None:
            self._draw()
            lease = self._next_for(member, live) or self._next_for(member)
        if lease is not None:
            self._queue.remove(lease)
            self._out[lease.number] = (member, lease)
        return lease

    def _next_for(self, member: int, live: Collection[int] = ()) -> Lease | None:
        if not self.deck.in_step:
            free = (lease for lease in self._queue if not self._is_for_others(lease, member, live))
            return next(free, None)
        held = {self._updates[lease.number] for lease in self.held_by(member)}
        return next((lease for lease in self._queue if self._updates[lease.number] not in held), None)

    def _is_for_others(self, lease: Lease, member: int, live: Collection[int]) -> bool:
        had = self._in_vain.get(lease.number, set())
        return member in had and not had.issuperset(live)

    def held_by(self, member: int) -> list[Lease]:
        return [lease for holder, lease in self._out.values() if holder == member]

    def holders(self) -> list[tuple[int, int]]:
        """Return (lease number, member) of every lease that is out."""
        return [(number, holder) for number, (holder, _) in self._out.items()]

    def holds(self, member: int, number: int) -> bool:
        return number in self._out and self._out[number][0] == member

    @property
    def can_deal(self) -> bool:
        """Whether there is a lease for whoever asks now."""
        return bool(self._queue) or self._next_run() is not None

    def lease(self, number: int) -> Lease | None:
        """Return a lease that is out, by its number."""
        held = self._out.get(number)
        return None if held is None else held[1]

    def count_of(self, number: int) -> int:
        """Return how many samples a lease has that is out; KeyError when it is not."""
        return self._out[number][1].count

    def finish(self, number: int) -> Lease:
        """Take note that an update holds the lease's gradient."""
        _, lease = self._out.pop(number)
        del self._updates[number]
        self._in_vain.pop(number, None)
        self.trained += lease.count
        return lease

    def take_back(self, number: int, in_vain: bool = False) -> Lease:
        """Put a lease back, to be the next one dealt; KeyError when it is not out.

        ``in_vain``: its gradient came too late, or was refused.
        """
        member, lease = self._out.pop(number)
        if in_vain:
            self._in_vain.setdefault(number, set()).add(member)
        self._queue.appendleft(lease)
        return lease

    def take_back_from(self, member: int, but: Iterable[int] = ()) -> list[Lease]:
        """Put back what a member holds, except the leases ``but`` whose gradients are in."""
        kept = set(but)
        lost = [lease for lease in self.held_by(member) if lease.number not in kept]
        for lease in reversed(lost):
            self.take_back(lease.number)
        return lost

    @property
    def unfinished(self) -> tuple[Run, ...]:
        """What is dealt or drawn and not trained, in the order of samples."""
        leases = [*(lease for _, lease in self._out.values()), *self._queue]
        return merged(Run(lease.epoch, lease.offset, lease.count) for lease in leases)

    @property
    def exhausted(self) -> bool:
        """Whether nothing is out, queued, or still to be drawn."""
        return self.exhausted_after(())

    def exhausted_after(self, numbers: Iterable[int]) -> bool:
        """Say whether nothing will be left once these leases are finished."""
        return self._out.keys() <= set(numbers) and not self._queue and not self._may_draw()

    def restart(self, position: Position, unfinished: Iterable[Run], trained: int) -> None:
        """Begin again from an earlier position. Leases are withdrawn, and their numbers never used again."""
        for known in (self._queue, self._out, self._updates, self._in_vain):
            known.clear()
        self.position, self.trained = position, trained
        self._refill(unfinished)

    def _may_draw(self) -> bool:
        pending = sum(lease.count for _, lease in self._out.values()) + sum(
            each.count for each in self._queue
        )
        return self.may_draw(self.position, self.trained + pending)

    def _next_run(self) -> Run | None:
        if not self._may_draw():
            return None
        deck = self.deck
        (run,) = draw(Cursor(self.position), deck.size, deck.batch, deck.last_batch).runs
        if deck.in_step and any(self._comes_before(lease, run) for _, lease in self._out.values()):
            return None
        return run

    def _comes_before(self, lease: Lease, run: Run) -> bool:
        return lease.epoch != run.epoch or lease.number <= self._last_unfinished

    def _draw(self) -> None:
        run = self._next_run()
        if run is not None:
            deck = self.deck
            self._cut([run])
            self.position = advance(Cursor(self.position), deck.size, deck.batch, deck.last_batch).position

    def _refill(self, unfinished: Iterable[Run]) -> None:
        """Queue what was left, in the same updates as any other mode would make of it."""
        runs = tuple(unfinished)
        while runs:
            self._cut(section(runs, range(self.deck.batch)))
            runs = section(runs, range(self.deck.batch, samples_in(runs)))
        self._last_unfinished = self._number

    def _cut(self, runs: Sequence[Run]) -> None:
        """Queue an update's samples, in as many near-equal leases as it takes gradients."""
        update = self._number
        for part in split(samples_in(runs), self.deck.parts):
            for piece in section(runs, part):
                self._number += 1
                self._updates[self._number] = update
                self._queue.append(Lease(self._number, piece.epoch, piece.offset, piece.count))


def merged(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Sort runs and join those that touch."""
    result: list[Run] = []
    for run in sorted(runs, key=lambda each: (each.epoch, each.offset)):
        last = result[-1] if result else None
        if last is not None and last.epoch == run.epoch and last.offset + last.count == run.offset:
            result[-1] = Run(last.epoch, last.offset, last.count + run.count)
        else:
            result.append(run)
    return tuple(result)
