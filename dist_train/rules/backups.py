"""How many backup workers pay: the choice of b from the times at which gradients arrived.

Chen et al. 2016: of W machines, N = W - b decide when an update is complete, so that its time is that of the
N-th arrival. Abadi et al. 2016, section 6.3, compare the samples per second: t(0)/t(b) * N/W.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Candidate:
    """What ``backups`` would cost and bring.

    ``step_s``: expected seconds from the release of a version to its N-th gradient. ``speedup``: samples per
    second, relative to no backups; 0 where updates would not complete.
    """

    backups: int
    step_s: float
    speedup: float


@dataclass(frozen=True)
class Choice:
    """The number of backups that makes the most samples per second, and ``why``, for a person."""

    backups: int
    table: tuple[Candidate, ...]
    why: str

    def record(self) -> dict[str, Any]:
        """Return the choice as it goes into the log and into summary.json."""
        table = [
            {name: round(value, 6) for name, value in asdict(candidate).items()} for candidate in self.table
        ]
        return {"chosen": self.backups, "why": self.why, "table": table}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Read what ``record`` returned."""
        table = tuple(Candidate(**candidate) for candidate in record["table"])
        return cls(record["chosen"], table, record["why"])


def choose(arrivals: Sequence[Sequence[float]], most: int | None = None) -> Choice:
    """Choose b from measured arrivals: the best of 0 to ``most`` (default: all but one), ties to the smaller.

    ``arrivals`` has one row for each version: the seconds from its release to the gradient of each of the W
    workers, in any order, with infinity for one that never came. Leave out rows in which somebody was not
    there. Raises ValueError for no rows, rows of different lengths, and times that are negative or NaN.
    """
    workers = _checked(arrivals)
    ordered = [sorted(row) for row in arrivals]
    tried = range(min(workers - 1, workers if most is None else most) + 1)
    steps = [math.fsum(row[workers - 1 - b] for row in ordered) / len(ordered) for b in tried]
    table = tuple(
        Candidate(b, step_s, _speedup(steps[0], step_s, (workers - b) / workers))
        for b, step_s in enumerate(steps)
    )
    rates = [_rate(workers - b, step_s) for b, step_s in enumerate(steps)]
    best = rates.index(max(rates))
    return Choice(best, table, _why(table, best, workers))


def _checked(arrivals: Sequence[Sequence[float]]) -> int:
    lengths = {len(row) for row in arrivals}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(f"rows of arrivals must be of one length, at least 1, found {sorted(lengths)}")
    if not all(time >= 0 for row in arrivals for time in row):
        raise ValueError("arrivals are seconds of at least 0, or infinity")
    return lengths.pop()


def _rate(gradients: int, step_s: float) -> float:
    return gradients / step_s if step_s else math.inf


def _speedup(without: float, step_s: float, share: float) -> float:
    if math.isinf(step_s):
        return 0.0
    if without == step_s:
        return share
    return without / step_s * share if step_s else math.inf


def _why(table: Sequence[Candidate], best: int, workers: int) -> str:
    chosen = table[best]
    if workers == 1:
        return "b = 0: there is one worker, and nobody to back it up"
    if best:
        late = "the slowest" if best == 1 else f"the slowest {best}"
        if math.isinf(table[0].step_s):
            return f"b = {best}: {late} of {workers} did not always arrive"
        behind = table[0].step_s - chosen.step_s
        verb = "arrives" if best == 1 else "arrive"
        more = f"makes {chosen.speedup - 1:.0%} more samples per second than b = 0"
        return f"b = {best} {more}: {late} of {workers} {verb} {behind:.2g} s after the others"
    if len(table) == 1:
        return "b = 0: no backups are allowed"
    other = max(table[1:], key=lambda candidate: candidate.speedup)
    return (
        f"b = 0: waiting for all {workers} pays; b = {other.backups} would make "
        f"{1 - other.speedup:.0%} fewer samples per second"
    )
