"""What a run through a parameter server agrees on at its start, and the arithmetic that follows from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dist_train.rules.admission import Contribution, Rule
from dist_train.rules.dealing import Deck
from dist_train.rules.decisions import Take
from dist_train.rules.messages import Lease, Work
from dist_train.rules.sampling import BEGINNING, Cursor, Position, Run, parts_of
from dist_train.rules.schedule import Scheduled
from dist_train.rules.timetable import Due, Timetable


@dataclass(frozen=True)
class Start:
    """Where a run begins or goes on from."""

    updates: int = 0
    samples: int = 0
    position: Position = BEGINNING
    unfinished: tuple[Run, ...] = ()
    owes_validation: bool = False


@dataclass(frozen=True)
class Terms:
    """The settings.

    ``scheduled(samples)`` is what an update is made with once ``samples`` are trained;
    ``finished(updates, samples, position)`` ends training; ``own_steps`` are the steps that a member makes by
    itself for one push. With ``outer_rate``, the rate of the server's optimizer, each of them is at the
    scheduled rate, and else at that part of it which its samples are of an update's: so far the server will
    move by them. ``inverse``: a gradient counts by one over its staleness (Zhang et al. 2015). Where the
    server's optimizer ``normalises`` gradients, their size says nothing, and the rate takes its place. A
    shard that ``compensates`` for delay reads, with a gradient, the parameters it was computed from.
    """

    rule: Rule
    deck: Deck
    timetable: Timetable
    epoch_samples: int
    scheduled: Callable[[int], Scheduled]
    finished: Callable[[int, int, Position], bool]
    own_steps: int = 0
    outer_rate: float | None = None
    inverse: bool = False
    normalises: bool = False
    compensates: bool = False
    snapshot_every: int = 0

    def made_with(self, samples: int, taken: Sequence[Contribution]) -> Scheduled:
        """Return what an update of these gradients is made with, once ``samples`` are trained."""
        made = self.scheduled(samples) if self.outer_rate is None else Scheduled(self.outer_rate)
        if self.inverse and self.normalises:
            # The mean weighs gradients by samples over staleness; its size is lost, so the rate has it.
            weights = [worth(each.push.samples, each.staleness, normalises=True)[0] for each in taken]
            share = sum(weights) / sum(each.push.samples for each in taken)
            made = replace(made, rate=made.rate * share)
        return made

    def take(self, gathered: Contribution, rule: Rule) -> Take:
        """Have the shards add a gradient to the update that ``rule`` completes."""
        staleness = gathered.staleness if self.inverse else 0
        weight, scale = worth(gathered.push.samples, staleness, self.normalises)
        return Take(gathered.push, weight, scale, alone=rule.quorum == 1)

    def due(self, number: int, before: int, after: int, ends: bool) -> Due:
        """Say what is due after update ``number``, which brings the samples from ``before`` to ``after``.

        An epoch ends when its samples add up, whichever they are.
        """
        # One update may bring several epochs to an end: the last that is validated tells.
        ended = after // self.epoch_samples
        epoch = ended - ended % self.timetable.validate_epochs
        crossed = epoch > before // self.epoch_samples
        return self.timetable.after(number, Cursor(Position(epoch, 0 if crossed else 1)), ends)

    def ends_at(self, updates: int) -> bool:
        """Say whether a length in updates ends training; what is still out is then left over."""
        return self.finished(updates, 0, BEGINNING)

    def work(self, lease: Lease, samples: int) -> Work:
        """Add what a lease's own steps are made with: an update has ``quorum`` times as many samples."""
        whole, steps = lease.count * self.rule.quorum, self.own_steps
        if self.outer_rate is not None:
            trained = [samples + whole * step // steps for step in range(steps)]
            return Work(lease, tuple(self.scheduled(each) for each in trained))
        if not steps:
            return Work(lease)
        pieces = parts_of(Run(lease.epoch, lease.offset, lease.count), steps)
        rate = self.scheduled(samples).rate
        return Work(lease, tuple(Scheduled(rate * piece.count / whole) for piece in pieces))


def worth(samples: int, staleness: int, normalises: bool) -> tuple[float, float]:
    """Return what a gradient weighs in the mean of its update, and what it is multiplied by before.

    One over its staleness (Zhang et al. 2015, section 3.2) goes on the gradient itself, so that momentum
    holds it damped as well; where the optimizer undoes a gradient's size, on its weight. A fresh one counts
    whole.
    """
    damped = 1 / max(1, staleness)
    return (samples * damped, 1.0) if normalises else (float(samples), damped)
