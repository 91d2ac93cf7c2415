"""Whose fault gradients with NaN or infinity are: one member's, the samples', or that of a high rate."""

from __future__ import annotations

from dist_train.rules.decisions import Fail, Replace
from dist_train.rules.messages import Lease, Push

# Refused gradients in a row, from one member or for each member, before giving up on it or on the run.
REFUSALS = 3
# Refused gradients of the same samples, from more than one member, before giving up on the run.
OF_A_LEASE = 2 * REFUSALS


class Refusals:
    """Counts refused gradients in a row: those of each member, of each lease, and of all together."""

    def __init__(self, members: int) -> None:
        self._of = [0] * members
        self._in_a_row = 0
        # Of each lease, by its number: who was refused with it, time after time.
        self._with: dict[int, list[int]] = {}
        # Leases that were refused before one that counted: training had not diverged.
        self._outlived: set[int] = set()

    def forgive(self, member: int) -> None:
        """Take note that another process has the member's place."""
        self._of[member] = 0

    def counted(self, push: Push) -> None:
        """Take note of a gradient that is finite."""
        self._of[push.member] = self._in_a_row = 0
        self._with.pop(push.lease, None)
        self._outlived = set(self._with)

    def refused(self, push: Push, lease: Lease, live: int, step: int) -> list[Fail | Replace]:
        """Judge one more that is not, of ``lease``, after ``step`` updates, with ``live`` members there."""
        self._of[push.member] += 1
        self._in_a_row += 1
        before = self._with.setdefault(push.lease, [])
        before.append(push.member)
        with_others_too = len(set(before)) > 1
        gives_up = self._in_a_row >= REFUSALS * max(1, live)
        if with_others_too and push.lease in self._outlived:
            # The samples are at fault.
            for member in before:
                self._of[member] = 0
            if gives_up or len(before) >= OF_A_LEASE:
                return [Fail(_blames(lease, len(before), step))]
            return []
        if gives_up:
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


def _blames(lease: Lease, refusals: int, step: int) -> str:
    return (
        f"samples {lease.offset} to {lease.offset + lease.count - 1} in the order of epoch {lease.epoch} "
        f"gave a gradient with NaN or infinity {refusals} times, to several workers, by step {step}, and "
        "other samples did not; look for bad values in the training data. The last checkpoint is kept"
    )
