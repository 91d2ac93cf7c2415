"""Which samples each update takes, and which of them each worker.

One shuffle of the whole set per epoch, cut into disjoint parts (Goyal et al. 2017, remark 4). The order
depends on the seed and the epoch alone, never on the number of workers, so that training can go on with
another number of them and neither skip nor repeat a sample. What was dealt and not trained is carried along
as runs of places, and comes first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

import numpy as np
from numpy.typing import NDArray

LastBatch = Literal["keep", "drop"]

_WORD = 2**64


@dataclass(frozen=True)
class Position:
    """How far the data are dealt: the first ``offset`` places of ``epoch``, and all earlier epochs."""

    epoch: int
    offset: int


BEGINNING = Position(0, 0)


@dataclass(frozen=True)
class Run:
    """``count`` places of the permutation of ``epoch``, from ``offset`` on."""

    epoch: int
    offset: int
    count: int


@dataclass(frozen=True)
class Cursor:
    """Where training goes on in the data.

    ``position`` is the next place that was never dealt; ``unfinished`` are runs before it that were dealt
    and not trained. They come first.
    """

    position: Position
    unfinished: tuple[Run, ...] = ()


@dataclass(frozen=True)
class Draw:
    """The samples of one update: runs laid end to end."""

    runs: tuple[Run, ...]

    @property
    def count(self) -> int:
        return samples_in(self.runs)


def draw(cursor: Cursor, size: int, batch: int, last_batch: LastBatch) -> Draw:
    """Return what the next update takes from a set of ``size`` samples in updates of ``batch``.

    Unfinished runs come first, in their order, and no update holds both them and fresh samples; the last
    of these updates takes what is left. So does an epoch's last update; with "drop" what does not fill a
    batch of an epoch is left out. Raises ValueError if no update could ever be made.
    """
    start = _normalised(cursor.position, size, batch, last_batch)
    if cursor.unfinished:
        return Draw(section(cursor.unfinished, range(batch)))
    return Draw((Run(start.epoch, start.offset, min(batch, size - start.offset)),))


def advance(cursor: Cursor, size: int, batch: int, last_batch: LastBatch) -> Cursor:
    """Return the cursor after the next update; the end of an epoch is the start of the next."""
    start = _normalised(cursor.position, size, batch, last_batch)
    if cursor.unfinished:
        return Cursor(start, section(cursor.unfinished, range(batch, samples_in(cursor.unfinished))))
    after = Position(start.epoch, start.offset + min(batch, size - start.offset))
    return Cursor(_normalised(after, size, batch, last_batch))


def samples_in(runs: Iterable[Run]) -> int:
    """Return how many samples the runs hold."""
    return sum(run.count for run in runs)


def section(runs: Iterable[Run], places: range) -> tuple[Run, ...]:
    """Cut ``places`` out of the runs laid end to end; there is nothing beyond their end."""
    pieces, end = [], 0
    for run in runs:
        start, end = end, end + run.count
        first, last = max(start, places.start), min(end, places.stop)
        if first < last:
            pieces.append(Run(run.epoch, run.offset + first - start, last - first))
    return tuple(pieces)


def parts_of(run: Run, parts: int) -> tuple[Run, ...]:
    """Cut a run into at most ``parts`` near-equal ones, the larger first; none is empty."""
    return tuple(piece for part in split(run.count, parts) for piece in section([run], part))


def updates_per_epoch(size: int, batch: int, last_batch: LastBatch) -> int:
    """Return how many updates of ``batch`` samples one pass over ``size`` samples makes."""
    _check(size, batch, last_batch)
    return size // batch if last_batch == "drop" else -(-size // batch)


def permutation(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    """Return the epoch's order of all samples, shape (size,); ``seed`` and ``epoch`` are below 2**64.

    It is the same on every machine and with every version of numpy.
    """
    for name, value in (("seed", seed), ("epoch", epoch)):
        if not 0 <= value < _WORD:
            raise ValueError(f"the {name} must be from 0 to 2**64 - 1, not {value}")
    # numpy keeps the raw words of a bit generator stable for ever, but not Generator.permutation.
    words = np.random.Philox(key=seed + epoch * _WORD).random_raw(size)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)


def split(count: int, parts: int) -> list[range]:
    """Cut range(count) into ``parts`` contiguous ranges, near-equal, the larger ones first."""
    return [_part(count, parts, index) for index in range(parts)]


def micro_batches(count: int, rank: int, workers: int, accumulate: int) -> list[range]:
    """Return one worker's share of a draw of ``count`` samples, one range per forward and backward pass.

    The ranges are offsets from the start of the draw; together the workers' ranges cover it exactly.
    None is empty: a worker that no sample is left for gets no range at all.
    """
    share = _part(count, workers, rank)
    return [share[piece.start : piece.stop] for piece in split(len(share), accumulate) if piece]


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """Return a 64-bit seed for augmenting sample ``index`` in ``epoch``: the same whichever worker has it."""
    digest = blake2b(f"{seed} {epoch} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _part(count: int, parts: int, index: int) -> range:
    least, larger = divmod(count, parts)
    start = index * least + min(index, larger)
    return range(start, start + least + (index < larger))


def _normalised(position: Position, size: int, batch: int, last_batch: LastBatch) -> Position:
    _check(size, batch, last_batch)
    smallest = batch if last_batch == "drop" else 1
    return position if size - position.offset >= smallest else Position(position.epoch + 1, 0)


def _check(size: int, batch: int, last_batch: LastBatch) -> None:
    if size < 1:
        raise ValueError("the training set is empty: give it at least one sample")
    if last_batch == "drop" and batch > size:
        raise ValueError(
            f"a batch of {batch} samples never fills from a training set of {size}: "
            "make the batch smaller, or set train.last_batch to keep"
        )
