"""How long gradients take, until there is enough to choose the number of backup workers by."""

from __future__ import annotations

from statistics import median

from dist_train.rules.backups import Choice, choose
from dist_train.rules.decisions import Answer
from dist_train.rules.messages import Push, Version

# Updates that are measured before the number of backups is chosen, after some to warm up on.
MEASURED, WARMING = 20, 3
UNDECIDED = f"0: the run ended before {WARMING + MEASURED} updates had a gradient of everybody"


def most_backups(groups: int) -> int:
    """Return how many backups may be chosen: at most half of the groups, so that most gradients count."""
    return groups // 2


class Durations:
    """Measures while each update waits for all. Times are seconds of any one clock.

    A gradient takes from the answer by which its member goes on to its arrival: neither waiting nor a part of
    a validation is in it. Updates to which not everybody gave a gradient are left out, and so is each
    process's first gradient, which takes longer than those that follow.
    """

    def __init__(self, groups: int) -> None:
        self._groups = groups
        self._newest: Version | None = None
        self._new: set[int] = set()
        self._began: dict[int, float] = {}
        self._row: dict[int, float] = {}
        self._last = 0.0
        self._rows: list[list[float]] = []
        self._between: list[float] = []

    def answered(self, answer: Answer, now: float) -> None:
        """Take note that a member goes on: with a gradient, or with something else."""
        if answer.sequence == 0:
            self._new.add(answer.member)
        if answer.reply.stop or answer.reply.validation is not None:
            self._began.pop(answer.member, None)
        else:
            self._began[answer.member] = now

    def pushed(self, push: Push, now: float) -> None:
        """Take note of a gradient."""
        began = self._began.pop(push.member, None)
        if push.member in self._new:
            self._new.discard(push.member)
        elif push.version == self._newest and began is not None and now > began:
            self._row[push.member], self._last = now - began, now

    def released(self, version: Version, now: float) -> None:
        """Take note that members can read ``version``."""
        if len(self._row) == self._groups:
            self._rows.append([self._row[member] for member in sorted(self._row)])
            self._between.append(now - self._last)
        self._newest, self._row = version, {}

    def choice(self) -> Choice | None:
        """Choose the number of backups; None while there is too little to go by."""
        if len(self._rows) < WARMING + MEASURED:
            return None
        # Now and then something else comes between two updates, such as a snapshot.
        between_s = median(self._between[WARMING:])
        return choose(self._rows[WARMING:], between_s, most=most_backups(self._groups))
