"""When gradients with NaN or infinity are one member's fault, and when training has diverged."""

from __future__ import annotations

from dist_train.rules.decisions import Fail, Replace
from dist_train.rules.messages import Push

# Refused gradients in a row, from one member or for each member, before giving up on it or on the run.
REFUSALS = 3


class Refusals:
    """Counts refused gradients in a row: those of each member, and those of all together."""

    def __init__(self, members: int) -> None:
        self._of = [0] * members
        self._in_a_row = 0

    def forgive(self, member: int) -> None:
        """Take note that another process has the member's place."""
        self._of[member] = 0

    def counted(self, member: int) -> None:
        """Take note of a gradient that is finite."""
        self._of[member] = self._in_a_row = 0

    def refused(self, push: Push, live: int, step: int) -> list[Fail | Replace]:
        """Judge one more that is not, after ``step`` updates, with ``live`` members there."""
        self._of[push.member] += 1
        self._in_a_row += 1
        if self._in_a_row >= REFUSALS * max(1, live):
            why = (
                f"{self._in_a_row} gradients in a row hold NaN or infinity, by step {step}; lower "
                "optimizer.lr, lengthen schedule.warmup or set train.clip_norm. The last checkpoint is kept"
            )
            return [Fail(why)]
        if self._of[push.member] < REFUSALS or live == 1:
            return []
        self._of[push.member] = 0
        why = f"{REFUSALS} gradients in a row hold NaN or infinity while the others' do not"
        return [Replace(push.member, push.incarnation, why)]
