"""The sample ledger: exactly how many times each sample of each epoch was trained.

The places of an epoch's permutation are counted in stretches that were trained equally often, and epochs in
a row that look alike are kept once. A run in order costs a few numbers however long it is. What synchronous
training has trained, which keeps no ledger, follows from the places where it began and ended.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from dist_train.rules.sampling import BEGINNING, Cursor, Position, Run


class Stretch(NamedTuple):
    """Places ``start`` to ``stop`` (not included) of an epoch, each trained ``times`` times (1 or more)."""

    start: int
    stop: int
    times: int


# One epoch: its stretches in order, apart or differing in ``times``. Equal epochs have equal tuples.
Epoch = tuple[Stretch, ...]


@dataclass(frozen=True)
class Alike:
    """The epochs ``first`` to ``last`` (included), trained alike."""

    first: int
    last: int
    epoch: Epoch


class Ledger:
    """Counts the training of a set of ``train_size`` samples, once ``since`` samples have been trained."""

    def __init__(self, train_size: int, since: int = 0) -> None:
        if train_size < 1:
            raise ValueError(f"a training set has at least one sample, not {train_size}")
        self.train_size = train_size
        self.since = since
        self._alike: list[Alike] = []

    def trained(self, epoch: int, offset: int, count: int) -> None:
        """Count places ``offset`` to ``offset + count`` of an epoch's permutation as trained once more.

        Raises ValueError for places that the training set does not have.
        """
        self._change(epoch, offset, count, 1)

    def lost(self, epoch: int, offset: int, count: int) -> None:
        """Take one training of these places back, whose update was lost.

        Raises ValueError, and changes nothing, where one of them was not trained.
        """
        self._change(epoch, offset, count, -1)

    def trained_in_order(self, before: Cursor, after: Cursor) -> None:
        """Count what training in order has trained between two places in the data.

        Raises ValueError where ``after`` leaves something unfinished that was not to be trained.
        """
        for run in before.unfinished:
            self.trained(run.epoch, run.offset, run.count)
        position, end = before.position, after.position
        while (position.epoch, position.offset) < (end.epoch, end.offset):
            stop = end.offset if position.epoch == end.epoch else self.train_size
            if position.offset < stop:
                self.trained(position.epoch, position.offset, stop - position.offset)
            position = end if position.epoch == end.epoch else Position(position.epoch + 1, 0)
        for run in after.unfinished:
            self.lost(run.epoch, run.offset, run.count)

    @property
    def samples(self) -> int:
        """How many samples have been trained, those before the ledger began among them."""
        return self.since + sum(
            (alike.last - alike.first + 1) * stretch.times * (stretch.stop - stretch.start)
            for alike in self._alike
            for stretch in alike.epoch
        )

    def report(self) -> dict[int, dict[int, int]]:
        """Return, for every epoch that was begun, how many samples were trained 0, 1, 2... times.

        Only numbers of times that occur are there; each epoch's samples add up to ``train_size``.
        """
        return {
            epoch: self._times(alike.epoch)
            for alike in self._alike
            for epoch in range(alike.first, alike.last + 1)
        }

    def summary(self) -> list[dict[str, Any]]:
        """Return the report for summary.json: one entry for all epochs in a row that were trained alike.

        ``epochs`` are the first and the last of them, ``samples`` the number of samples by times trained.
        """
        entries: list[dict[str, Any]] = []
        for alike in self._alike:
            samples = {str(times): count for times, count in self._times(alike.epoch).items()}
            before = entries[-1] if entries else None
            follows = before is not None and before["epochs"][1] + 1 == alike.first
            if before is not None and follows and before["samples"] == samples:
                before["epochs"][1] = alike.last
            else:
                entries.append({"epochs": [alike.first, alike.last], "samples": samples})
        return entries

    def to_state(self) -> dict[str, Any]:
        """Return the whole ledger as JSON's types, for a checkpoint."""
        return {
            "train_size": self.train_size,
            "since": self.since,
            "epochs": [
                [each.first, each.last, [list(stretch) for stretch in each.epoch]] for each in self._alike
            ],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Ledger:
        """Read what ``to_state`` returned."""
        ledger = cls(state["train_size"], state.get("since", 0))
        ledger._alike = [
            Alike(first, last, tuple(Stretch(*stretch) for stretch in epoch))
            for first, last, epoch in state["epochs"]
        ]
        return ledger

    def _times(self, epoch: Epoch) -> dict[int, int]:
        found: Counter[int] = Counter()
        for stretch in epoch:
            found[stretch.times] += stretch.stop - stretch.start
        untrained = self.train_size - found.total()
        return dict(sorted(({0: untrained} if untrained else {}).items() | found.items()))

    def _change(self, epoch: int, offset: int, count: int, by: int) -> None:
        if epoch < 0 or offset < 0 or count < 1 or offset + count > self.train_size:
            raise ValueError(
                f"epoch {epoch} of {self.train_size} samples has no places {offset} to {offset + count}"
            )
        index = bisect_right(self._alike, epoch, key=lambda each: each.first) - 1
        here = self._alike[index] if index >= 0 else None
        if here is None or here.last < epoch:
            self._alike.insert(index + 1, Alike(epoch, epoch, changed((), offset, offset + count, by)))
            self._join_around(index + 1)
            return
        after = changed(here.epoch, offset, offset + count, by)
        parts = [
            Alike(here.first, epoch - 1, here.epoch),
            Alike(epoch, epoch, after),
            Alike(epoch + 1, here.last, here.epoch),
        ]
        kept = [part for part in parts if part.first <= part.last and part.epoch]
        self._alike[index : index + 1] = kept
        self._join_around(index + (here.first < epoch))

    def _join_around(self, index: int) -> None:
        """Join the entry at ``index`` with its neighbours where they are alike."""
        for left in (index, index - 1):
            if not 0 <= left < len(self._alike) - 1:
                continue
            one, two = self._alike[left], self._alike[left + 1]
            if one.last + 1 == two.first and one.epoch == two.epoch:
                self._alike[left : left + 2] = [Alike(one.first, two.last, one.epoch)]


def carried(counts: Mapping[str, Any], cursor: Cursor) -> dict[str, Any]:
    """Return what a server has counted by ``cursor``, to be kept while the run trains in order."""
    return {**counts, "cursor": asdict(cursor)}


def ledger_at(counts: Mapping[str, Any], cursor: Cursor, samples: int, train_size: int) -> Ledger:
    """Return the ledger of a run that has trained ``samples`` and goes on at ``cursor``.

    ``counts`` are those that were saved with this state, ``carried`` here from an earlier one, or none.
    Training in order is counted; where that does not make the samples there are (it has left some out, or
    they are of another set), the ledger begins here.
    """
    saved = counts.get("ledger")
    ledger = Ledger(train_size) if saved is None else Ledger.from_state(saved)
    if ledger.train_size != train_size:
        return Ledger(train_size, since=samples)
    if saved is None:
        ledger.trained_in_order(Cursor(BEGINNING), cursor)
    elif "cursor" in counts:
        ledger.trained_in_order(_cursor(counts["cursor"]), cursor)
    return ledger if ledger.samples == samples else Ledger(train_size, since=samples)


def _cursor(saved: Mapping[str, Any]) -> Cursor:
    return Cursor(Position(**saved["position"]), tuple(Run(**run) for run in saved["unfinished"]))


def changed(epoch: Epoch, start: int, stop: int, by: int) -> Epoch:
    """Return the epoch with ``by`` added to the times of its places ``start`` to ``stop``.

    Raises ValueError where a place would have been trained less than never.
    """
    first = bisect_left(epoch, start, key=lambda each: each.stop)
    beyond = bisect_right(epoch, stop, key=lambda each: each.start)
    touched = epoch[first:beyond]
    edges = sorted({start, stop, *(each.start for each in touched), *(each.stop for each in touched)})
    result: list[Stretch] = []
    for left, right in pairwise(edges):
        times = sum(each.times for each in touched if each.start <= left < each.stop)
        times += by if start <= left < stop else 0
        if times < 0:
            raise ValueError(f"places {left} to {right} were not trained; there is nothing to take back")
        if times and result and result[-1].stop == left and result[-1].times == times:
            result[-1] = Stretch(result[-1].start, right, times)
        elif times:
            result.append(Stretch(left, right, times))
    return epoch[:first] + tuple(result) + epoch[beyond:]
