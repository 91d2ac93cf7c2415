"""Which replicas keep step while they exchange predictions of the same batches, and where they stop.

Nobody waits for one that is gone. One that is only slow is waited for; one that has fallen silent is not,
until it is heard of again, and then it is waited for until it has caught up, as apart they could teach each
other nothing.

One that stopped earlier than the others would have to catch up with them when the run goes on, untaught. So
each says the earliest boundary between two updates at which it can stop, and all stop at the latest of these.
Whoever is there first may leave: what the others still need of it is said already. Nobody waits for one that
is gone or silent, nor goes on for ever to catch up. Times are seconds of one clock, given by the caller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple


class Place(NamedTuple):
    """Where a replica is: the batch number ``batch`` of the update after ``updates``."""

    updates: int
    batch: int


Stance = Literal["wait", "without"]


@dataclass
class _Standing:
    """``at`` is where it was last heard of, ``heard`` when; before that, ``expected`` until."""

    at: Place | None = None
    heard: float = 0.0
    expected: float = 0.0
    gone: bool = False
    # Waited for in vain, and not heard of since.
    silent: bool = False


class Company:
    """The replicas 0 to ``replicas`` - 1, who are all expected within ``meeting_s`` from ``now``."""

    def __init__(self, replicas: int, patience_s: float, meeting_s: float, now: float) -> None:
        self._patience_s = patience_s
        self._standings = [_Standing(expected=now + meeting_s) for _ in range(replicas)]

    def heard(self, replica: int, place: Place, now: float) -> None:
        """Take note that a replica is at a place: earlier than before if it has been started again."""
        standing = self._standings[replica]
        standing.at, standing.heard, standing.gone, standing.silent = place, now, False, False

    def gone(self, replica: int) -> None:
        """Take note that a replica has ended, or is to be started again."""
        self._standings[replica] = _Standing(gone=True)

    def stance(self, teacher: int, place: Place, since: float, now: float) -> Stance:
        """Say whether one that waits ``since`` is to wait on for a teacher at ``place``.

        A teacher that was waited for in vain counts as silent from then on.
        """
        standing = self._standings[teacher]
        if standing.gone or standing.silent or (standing.at is not None and standing.at >= place):
            return "without"
        standing.silent = now >= self.until(teacher, since)
        return "without" if standing.silent else "wait"

    def until(self, teacher: int, since: float) -> float:
        """Return until when one that waits ``since`` waits for a teacher, if nothing is heard of it."""
        standing = self._standings[teacher]
        patient = max(standing.heard, since) + self._patience_s
        return max(standing.expected, patient) if standing.at is None else patient


class _Agreed(NamedTuple):
    boundary: int
    since: float


class Halt:
    """Where replicas stop.

    ``patience_s`` is how long a pledge is waited for, and how long one may take to catch up. In the first
    ``apart`` updates, the burn-in, replicas need nothing of one another: each stops where it is.
    """

    def __init__(self, patience_s: float, apart: int = 0) -> None:
        # Why one of them was asked to stop; None while none was.
        self.reason: str | None = None
        self._patience_s = patience_s
        self._apart = apart
        self._asked_at = 0.0
        self._pledges: dict[int, int] = {}
        self._ended: set[int] = set()
        self._gone: set[int] = set()
        self._agreed: dict[tuple[int, ...], _Agreed] = {}

    def asked(self, reason: str, now: float) -> None:
        """Take note that a replica was asked to stop, which then goes for all."""
        if self.reason is None:
            self.reason, self._asked_at = reason, now

    def heard(self, replica: int) -> None:
        """Take note that a replica is at work."""
        self._gone.discard(replica)

    def gone(self, replica: int) -> None:
        """Take note that a replica has no process any more: what it pledged counts if it ended by itself."""
        self._gone.add(replica)
        if replica not in self._ended:
            self._pledges.pop(replica, None)

    def ended(self, replica: int, boundary: int) -> None:
        """Take note that a replica has made its last update before ``boundary``."""
        self._ended.add(replica)
        self._pledges[replica] = max(boundary, self._pledges.get(replica, boundary))

    def pledge(self, replica: int, company: tuple[int, ...], boundary: int, now: float) -> int | None:
        """Take note of the earliest boundary at which a replica can stop; return where it is to.

        ``company`` are all that keep step with one another, it included. None while that is not known; asked
        again later, an earlier boundary where catching up has taken too long.
        """
        self.heard(replica)
        own = self._pledges.setdefault(replica, boundary)
        if company not in self._agreed:
            missing = [each for each in company if each not in self._pledges and each not in self._gone]
            if missing and now < self._asked_at + self._patience_s:
                return None
            pledges = [self._pledges[each] for each in company if each in self._pledges]
            self._agreed[company] = _Agreed(max(pledges), now)
        agreed = self._agreed[company]
        late = now >= agreed.since + self._patience_s
        return own if late or agreed.boundary <= self._apart else max(own, agreed.boundary)
