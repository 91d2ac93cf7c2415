"""When gradients arrived, until there is enough to choose the number of backup workers by."""

from __future__ import annotations

from dist_train.rules.backups import Choice, choose
from dist_train.rules.messages import Version

# Versions whose arrivals are measured before the number of backups is chosen, after some to warm up on.
MEASURED, WARMING = 20, 3
UNDECIDED = f"0: the run ended before the {WARMING + MEASURED} updates were made that a choice needs"


def most_backups(groups: int) -> int:
    """Return how many backups may be chosen: at most half of the groups, so that most gradients count."""
    return groups // 2


class Arrivals:
    """Measures while each update waits for all: then no gradient of a version comes after the next one.

    Versions to which not everybody gave a gradient are left out. Times are seconds of any one clock.
    """

    def __init__(self, groups: int) -> None:
        self._groups = groups
        self._newest: Version | None = None
        self._since = 0.0
        self._row: dict[int, float] = {}
        self._whole: list[list[float]] = []

    def released(self, version: Version, now: float) -> None:
        """Take note that members can read ``version``."""
        if len(self._row) == self._groups:
            self._whole.append(list(self._row.values()))
        self._newest, self._since, self._row = version, now, {}

    def arrived(self, member: int, version: Version, now: float) -> None:
        """Take note of a gradient that was computed from ``version``; of one member's, the first counts."""
        if version == self._newest:
            self._row.setdefault(member, now - self._since)

    def choice(self) -> Choice | None:
        """Choose the number of backups; None while there is too little to go by."""
        if len(self._whole) < WARMING + MEASURED:
            return None
        return choose(self._whole[WARMING:], most=most_backups(self._groups))
