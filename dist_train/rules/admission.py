"""Which gradient counts when: the one admission rule behind every mode of the parameter server.

Three settings make the modes: how many gradients an update takes (the quorum), what becomes of one that was
computed from an older version (counted or dropped), and how far the fastest member may be ahead of the
slowest (the bound).

    bulk-synchronous   quorum of all members                          bounded with bound 0, backup with b = 0
    backup             quorum of N of N + b, late ones dropped        Chen et al. 2016, section 3
    bounded            quorum of one, bound s at the read             Ho et al. 2013, section 3
    asynchronous       quorum of one                                  Dean et al. 2012, section 4.1
    softsync           quorum of c, nobody waits for the update       Zhang et al. 2015, section 3.1

A single-threaded state machine: it knows nothing of tensors, clocks or messages on their way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

from dist_train.rules.messages import FIRST, Push, Version


@dataclass(frozen=True)
class Rule:
    """The settings. ``read_own``: a member goes on only when the update with its gradient is in."""

    quorum: int
    drop_late: bool = False
    bound: int | None = None
    read_own: bool = True

    @property
    def reads_newest(self) -> bool:
        """Whether members compute in rounds, each from the newest version and no older one."""
        return self.drop_late or (self.read_own and self.quorum > 1)


Verdict = Literal["counted", "repeated", "ended", "dropped", "refused", "void"]


@dataclass
class _Member:
    incarnation: int = -1
    live: bool = False
    sequence: int = 0
    clock: int = 0


@dataclass(frozen=True)
class Contribution:
    """A gradient that counts, and how many versions old it is at its update."""

    push: Push
    staleness: int


@dataclass
class Admission:
    """``version`` is that of the last update decided on, whether or not it is applied yet.

    ``gathered`` is the update in the making; ``waiting`` are gradients that came when it was full.
    """

    rule: Rule
    members: int
    version: Version = FIRST
    gathered: list[Contribution] = field(default_factory=list)
    waiting: deque[Push] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._members = [_Member() for _ in range(self.members)]
        self._next_rule = self.rule
        # Under a bound: the clock that each counted gradient is stamped with, and the update it is in.
        self._unpublished: list[tuple[int, Version]] = []

    def change(self, rule: Rule) -> None:
        """Go by other settings, from the next update on that has no gradient yet."""
        self._next_rule = rule
        if not self.gathered:
            self.rule = rule

    def join(self, member: int, incarnation: int) -> bool:
        """Let a process take a member's place; False when a later one already has.

        It starts at the clock of the slowest, so that it holds nobody back for what it has missed.
        """
        known = self._members[member]
        if incarnation <= known.incarnation:
            return incarnation == known.incarnation and known.live
        slowest = min((each.clock for each in self._members if each.live), default=0)
        self._members[member] = _Member(
            incarnation, True, 0, max(slowest, known.clock) if known.live else slowest
        )
        return True

    def leave(self, member: int, incarnation: int) -> bool:
        """Take note that a process is gone; its gradients that are in stay in. False when it was no more."""
        known = self._members[member]
        if not known.live or incarnation != known.incarnation:
            return False
        known.live = False
        return True

    def hear(self, member: int, incarnation: int, sequence: int) -> Literal["new", "repeated", "ended"]:
        """Tell a new message from one that came before and from one of a process that was replaced."""
        known = self._members[member]
        if incarnation != known.incarnation or not known.live or sequence < known.sequence:
            return "ended"
        if sequence == known.sequence:
            return "repeated"
        known.sequence = sequence
        return "new"

    def catch_up(self, member: int, working: Collection[int]) -> None:
        """Let a member that did something else meanwhile hold nobody back for it."""
        clocks = [self._members[other].clock for other in working if other != member]
        self._members[member].clock = max(self._members[member].clock, min(clocks, default=0))

    def offer(self, push: Push, rightful: bool = True) -> Verdict:
        """Judge a gradient. ``repeated`` changes nothing: whoever asked first gets the answer for both.

        ``rightful``: its samples are this member's to train on. A gradient that comes when the update is
        full, though not yet decided on, is late; where late ones count, it is for the next update.
        """
        heard = self.hear(push.member, push.incarnation, push.sequence)
        if heard != "new":
            return heard
        if push.version.era != self.version.era or not rightful:
            return "void"
        if not push.finite:
            return "refused"
        if self.rule.drop_late and (self._staleness(push) > 0 or self._is_full):
            return "dropped"
        if self._is_full:
            self.waiting.append(push)
        else:
            self.gathered.append(Contribution(push, self._staleness(push)))
        if self.rule.bound is not None:
            self._unpublished.append((self._members[push.member].clock, self.update_of(push)))
        self._members[push.member].clock += 1
        return "counted"

    @property
    def pushes(self) -> list[Push]:
        """The gradients that count and are in no update yet, in the order of arrival."""
        return [*(each.push for each in self.gathered), *self.waiting]

    def update_of(self, push: Push) -> Version:
        """Return the update that one of ``pushes`` is to be in."""
        return Version(
            self.version.era, self.version.number + 1 + self.pushes.index(push) // self.rule.quorum
        )

    def _staleness(self, push: Push) -> int:
        return self.version.number - push.version.number

    @property
    def _is_full(self) -> bool:
        return len(self.gathered) >= self.rule.quorum

    def complete(self, working: Collection[int]) -> bool:
        """Say whether an update is due. ``working`` are the members with work in hand.

        The quorum follows them: nobody waits for a member that is gone or has no data left.
        """
        if self._is_full:
            return True
        return bool(self.gathered) and not any(self._may_still_add(member) for member in working)

    def _may_still_add(self, member: int) -> bool:
        inside = any(each.push.member == member for each in self.gathered)
        return self._members[member].live and not (inside and self.rule.read_own)

    def decide(self) -> tuple[Contribution, ...]:
        """Close the update and return what is in it, in the order of arrival.

        What came meanwhile is gathered for the next one.
        """
        taken, self.gathered = tuple(self.gathered), []
        self.version = Version(self.version.era, self.version.number + 1)
        self.rule = self._next_rule
        while self.waiting and not self._is_full:
            push = self.waiting.popleft()
            self.gathered.append(Contribution(push, self._staleness(push)))
        return taken

    def abandon(self) -> list[Push]:
        """Leave the update in the making, and return the gradients that will be in none."""
        lost = self.pushes
        self._unpublished = [each for each in self._unpublished if each[1] <= self.version]
        self.gathered, self.rule = [], self._next_rule
        self.waiting.clear()
        return lost

    def applied(self, version: Version) -> None:
        """Take note that whoever reads from now on sees at least ``version``."""
        self._unpublished = [each for each in self._unpublished if each[1] > version]

    def sees_enough(self, member: int) -> bool:
        """Say whether what is published holds what the bound promises a member at its clock c.

        That is every gradient stamped c - s - 1 or earlier, whoever gave it: the one that a member gives at
        clock k is stamped k (Ho et al. 2013, section 3).
        """
        if self.rule.bound is None:
            return True
        promised = self._members[member].clock - self.rule.bound - 1
        return all(stamp > promised for stamp, _ in self._unpublished)

    def may_read(self, member: int, working: Collection[int]) -> bool:
        """Say whether the bound lets a member begin its next gradient, once it ``sees_enough``.

        A member at clock c waits until every member with work in hand has reached clock c - s.
        """
        if self.rule.bound is None:
            return True
        clocks = [
            self._members[other].clock for other in working if other != member and self._members[other].live
        ]
        return not clocks or self._members[member].clock - min(clocks) <= self.rule.bound

    def roll_back(self, number: int, era: int | None = None) -> None:
        """Go back to an earlier version in a new era, or in the next: gradients of the lost one are void."""
        self.version = Version(self.version.era + 1 if era is None else era, number)
        self.abandon()
        self._unpublished.clear()

    def incarnation(self, member: int) -> int:
        return self._members[member].incarnation

    def is_live(self, member: int) -> bool:
        return self._members[member].live

    @property
    def live(self) -> list[int]:
        return [number for number, member in enumerate(self._members) if member.live]
