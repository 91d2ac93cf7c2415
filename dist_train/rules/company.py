"""Which replicas keep step with one another, while they exchange predictions of the same batches.

Nobody waits for one that is gone. One that is only slow is waited for; one that has fallen silent is not,
until it is heard of again, and then it is waited for until it has caught up, as apart they could teach each
other nothing. Times are seconds of one clock, given by the caller.
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
