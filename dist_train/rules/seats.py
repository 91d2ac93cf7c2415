"""Who waits for an answer, and what each must see before it may go on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from dist_train.rules.decisions import Waiting
from dist_train.rules.messages import Outcome, Push, Version


@dataclass
class Seat:
    """A member that waits for the answer to its message ``sequence``.

    It gets work once version ``needs`` is published. ``gradient`` is its last one that counted, to be in
    version ``update``; while that is ``untaken``, its memory must not be used again.
    """

    incarnation: int
    sequence: int
    outcome: Outcome
    needs: Version
    gradient: Push | None = None
    update: Version | None = None
    untaken: bool = False
    waited_for: Waiting = "work"

    def waits_for(self, cause: Waiting) -> None:
        """Take note of what it waits for; the server's last moments belong to what it waited for before."""
        if cause != "server" or self.waited_for == "work":
            self.waited_for = cause

    def is_read(self, published: Version) -> bool:
        """Say whether the shards may still read its memory, with its gradient neither taken nor in."""
        return self.untaken and (self.update is None or published < self.update)

    def lose(self, newest: Version) -> None:
        """Take note that its gradient will be in no update."""
        if self.gradient is not None and self.gradient.sequence == self.sequence:
            self.outcome = "void"
        self.needs, self.gradient, self.update, self.untaken = newest, None, None, False


class Seats:
    """The seats of those who wait. Who measures a part of a validation comes back to what it waited for."""

    def __init__(self) -> None:
        self._waiting: dict[int, Seat] = {}
        self._measuring: dict[int, Seat] = {}

    def take(self, member: int, seat: Seat) -> None:
        """Let a member wait."""
        self._waiting[member] = seat

    def come_back(self, member: int, incarnation: int, sequence: int, newest: Version) -> None:
        """Let a member wait after it has measured: still for what it waited for before."""
        seat = self._measuring.pop(member, None) or Seat(incarnation, sequence, "counted", newest)
        needs = max(newest, seat.needs)
        self._waiting[member] = replace(seat, sequence=sequence, outcome="counted", needs=needs)

    def leave(self, member: int, to_measure: bool = False) -> Seat:
        """Return the seat of a member that is answered; KeyError when it does not wait."""
        seat = self._waiting.pop(member)
        if to_measure:
            self._measuring[member] = seat
        return seat

    def vacate(self, member: int) -> None:
        """Forget a member that is gone."""
        self._waiting.pop(member, None)
        self._measuring.pop(member, None)

    def taken(self, push: Push) -> None:
        """Take note that nobody needs this gradient's memory any more."""
        for seat in self._all:
            if seat.gradient == push:
                seat.untaken = False

    def lose(self, pushes: Iterable[Push], newest: Version) -> None:
        """Take note that these gradients will be in no update."""
        lost = list(pushes)
        for seat in self._all:
            if seat.gradient in lost:
                seat.lose(newest)

    def roll_back(self, to: Version) -> None:
        """Let nobody wait for updates after ``to``, the first version of a new era."""
        for seat in self._all:
            if seat.update is not None and seat.update.number > to.number:
                seat.lose(to)
            seat.needs, seat.untaken = to, False

    def all_read(self, members: Iterable[int], published: Version) -> bool:
        """Say whether all of these wait, with memory that the shards may still read."""
        return all(each in self._waiting and self._waiting[each].is_read(published) for each in members)

    @property
    def members(self) -> list[int]:
        """The members that wait, in order."""
        return sorted(self._waiting)

    def __getitem__(self, member: int) -> Seat:
        return self._waiting[member]

    @property
    def _all(self) -> list[Seat]:
        return [*self._waiting.values(), *self._measuring.values()]
