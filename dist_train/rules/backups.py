"""How many backup workers pay: the choice of b from the seconds that each worker's gradients took.

Chen et al. 2016: of W machines, the first N = W - b decide when an update is complete. A late worker first
finishes what it has begun, so it is late for the next update as well: the N-th of W times drawn afresh would
promise too much. Abadi et al. 2016, section 6.3, compare the samples per second: t(0)/t(b) * N/W.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Self

from dist_train.rules.sampling import permutation

# A gain below this one is taken for noise, and the smaller b with it: as good within what twenty measured
# rounds can tell apart, and nothing is dropped for it.
NOISE = 0.02
# How often the measured rounds are gone through, each time in another order. The first time, in which workers
# are not late yet, does not count.
PASSES = 5


@dataclass(frozen=True)
class Candidate:
    """What ``backups`` would cost and bring.

    ``step_s``: expected seconds from one version to the next. ``speedup``: samples per second, relative to no
    backups.
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


def choose(rounds: Sequence[Sequence[float]], between_s: float = 0.0, most: int | None = None) -> Choice:
    """Choose b, the smallest of those from 0 to ``most`` (default: all but one) that are best within NOISE.

    ``rounds`` has one row for each measured update: the seconds that the gradient of each of the W workers
    took, always in the same order of workers. ``between_s`` pass from an update's last gradient to the moment
    when workers can go on. Raises ValueError for no rows, rows of different lengths, and seconds that are not
    above 0.
    """
    workers = _checked(rounds)
    coming = list(_shuffled(rounds))
    tried = range(min(workers - 1, workers if most is None else most) + 1)
    steps = [_step_s(coming, len(rounds), workers - b, between_s) for b in tried]
    speedups = [steps[0] / step_s * (workers - b) / workers for b, step_s in enumerate(steps)]
    table = tuple(map(Candidate, tried, steps, speedups))
    best = next(b for b, speedup in enumerate(speedups) if speedup * (1 + NOISE) >= max(speedups))
    return Choice(best, table, _why(table, best, workers))


def completions(rounds: Iterable[Sequence[float]], quorum: int, between_s: float = 0.0) -> Iterator[float]:
    """Yield when each update is there, the first begun at 0: it takes the first ``quorum`` gradients.

    A gradient begun for an update takes the seconds of that update's row. A worker whose gradient comes when
    the update is complete begins anew at once, for the update that is then in the making.
    """
    now = 0.0
    # By worker: when it has finished what it had begun before.
    free: list[float] = []
    for row in rounds:
        free = free or [now] * len(row)
        done = [(at if at > now else now) + seconds for at, seconds in zip(free, row, strict=True)]
        complete = sorted(done)[quorum - 1]
        free = [at if at >= complete else own for at, own in zip(free, done, strict=True)]
        now = complete + between_s
        yield now


def _checked(rounds: Sequence[Sequence[float]]) -> int:
    lengths = {len(row) for row in rounds}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(f"rounds must be of one length, at least 1, found {sorted(lengths)}")
    if not all(0 < seconds < math.inf for row in rounds for seconds in row):
        raise ValueError("gradients take seconds above 0")
    return lengths.pop()


def _shuffled(rounds: Sequence[Sequence[float]]) -> Iterator[Sequence[float]]:
    """Go through the rounds again and again: who is late at the same time as whom stays as measured."""
    for number in range(PASSES):
        yield from (rounds[index] for index in permutation(0, number, len(rounds)))


def _step_s(coming: Sequence[Sequence[float]], measured: int, quorum: int, between_s: float) -> float:
    ends = list(islice(completions(coming, quorum, between_s), measured - 1, None))
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def _why(table: Sequence[Candidate], best: int, workers: int) -> str:
    if workers == 1:
        return "b = 0: there is one worker, and nobody to back it up"
    if len(table) == 1:
        return "b = 0: no backups are allowed"
    if best:
        more = f"should make {table[best].speedup - 1:.0%} more samples per second than b = 0"
        instead = f"an update takes {table[best].step_s:.2g} s instead of {table[0].step_s:.2g} s"
        return f"b = {best} {more}: {instead}"
    other = max(table[1:], key=lambda candidate: candidate.speedup)
    gain = other.speedup - 1
    compared = f"{-gain:.0%} fewer" if gain < 0 else f"only {gain:.0%} more"
    pays = f"b = 0: waiting for all {workers} pays"
    return f"{pays}; b = {other.backups} should make {compared} samples per second"
