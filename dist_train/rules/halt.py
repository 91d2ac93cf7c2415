"""After which update replicas stop that exchange predictions, once one of them is asked to.

One that stopped earlier than the others would have to catch up with them when the run goes on, untaught. So
each says the earliest boundary between two updates at which it can stop, and all stop at the latest of these.
Whoever is there first may leave: what the others still need of it is said already. Nobody waits for one that
is gone or silent, nor goes on for ever to catch up. Times are seconds of one clock, given by the caller.
"""

from __future__ import annotations

from typing import NamedTuple


class _Agreed(NamedTuple):
    boundary: int
    since: float


class Halt:
    """``patience_s`` is how long a pledge is waited for, and how long one may take to catch up.

    In the first ``apart`` updates, the burn-in, replicas need nothing of one another: each stops where it is.
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
