"""Which samples a worker loads, in which order, from any position on.

The order is arithmetic (rules/sampling.py): it depends on the seed and on how many samples were consumed,
never on the number of workers or loading processes. So a run can continue with another number of workers,
and no sample is skipped or repeated.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from dist_train.config.schema import Data
from dist_train.core.seeds import generators_untouched, seed_all, seed_host
from dist_train.errors import BadSample, TrainingError
from dist_train.rules.sampling import (
    Cursor,
    Draw,
    Run,
    advance,
    draw,
    micro_batches,
    parts_of,
    permutation,
    sample_seed,
    samples_in,
    section,
    split,
)

log = logging.getLogger(__name__)

# Whatever the default: a dataset of the user's own need not be picklable, and a copy costs nothing.
LOADERS = multiprocessing.get_context("fork")

Key = tuple[int, int]  # (epoch, index in the dataset)


@dataclass(frozen=True)
class Order:
    """The global order of samples: what each update consumes, for all workers alike."""

    seed: int
    size: int
    batch: int
    last_batch: Any

    def draw(self, cursor: Cursor) -> Draw:
        return draw(cursor, self.size, self.batch, self.last_batch)

    def after(self, cursor: Cursor) -> Cursor:
        return advance(cursor, self.size, self.batch, self.last_batch)


@dataclass(frozen=True)
class Share:
    """One worker's part of every draw: batches to be accumulated."""

    rank: int
    workers: int
    accumulate: int

    def batches(self, count: int) -> list[range]:
        """Return offsets within a draw of ``count`` samples; empty when there is none for this worker."""
        return micro_batches(count, self.rank, self.workers, self.accumulate)


class Keys:
    """The keys of one worker's batches.

    A worker without a share in few samples still takes part in the exchange of gradients: it is handed the
    first of them, to be weighted with zero.
    """

    def __init__(self, order: Order, share: Share) -> None:
        self._share = share
        # Runs may alternate between an epoch and the next.
        self._shuffled = lru_cache(maxsize=2)(lambda epoch: permutation(order.seed, epoch, order.size))

    def batches(self, runs: Sequence[Run]) -> Iterator[list[Key]]:
        """Yield this worker's batches of the samples that the runs hold."""
        for offsets in self._share.batches(samples_in(runs)) or [range(1)]:
            yield [key for run in section(runs, offsets) for key in self._of(run)]

    def _of(self, run: Run) -> list[Key]:
        rows = self._shuffled(run.epoch)[run.offset : run.offset + run.count]
        return [(run.epoch, row) for row in rows.tolist()]


class Batches:
    """Keys of this worker's batches, update after update, without end (a batch sampler)."""

    def __init__(self, order: Order, share: Share, cursor: Cursor) -> None:
        self._order = order
        self._keys = Keys(order, share)
        self._cursor = cursor

    def __iter__(self) -> Iterator[list[Key]]:
        cursor = self._cursor
        while True:
            taken = self._order.draw(cursor)
            yield from self._keys.batches(taken.runs)
            cursor = self._order.after(cursor)


class LeasedBatches:
    """Keys of this worker's batches of the leases that it is fed with (a batch sampler).

    A loader asks ahead of need, and must never wait for a lease: it is given empty batches meanwhile.
    """

    def __init__(self, order: Order, share: Share) -> None:
        self._keys = Keys(order, share)
        self._waiting: deque[list[Key]] = deque()
        # Batches fed and not yet handed to the worker: waiting, or with the loading processes.
        self.due = 0

    def feed(self, lease: Run, steps: int = 1) -> None:
        """Add this worker's batches of a lease that is trained in ``steps`` steps (``parts_of``)."""
        for part in parts_of(lease, steps):
            batches = list(self._keys.batches([part]))
            self._waiting += batches
            self.due += len(batches)

    def __iter__(self) -> Iterator[list[Key]]:
        while True:
            yield self._waiting.popleft() if self._waiting else []


@dataclass(frozen=True)
class Bubble:
    """Stands in a loader's pipeline for a batch, where there was none to load."""


@dataclass(frozen=True)
class Trouble:
    """What went wrong in a loading process: handed on as a batch, so that its words stay as they are."""

    text: str


def without_trouble(batches: Iterable[Any]) -> Generator[Any, None, None]:
    """Yield the batches; raises TrainingError in the words of a loading process that failed."""
    for batch in batches:
        if isinstance(batch, Trouble):
            raise TrainingError(batch.text)
        yield batch


class Samples(Dataset[Any]):
    """A user's dataset behind (epoch, index) keys: seeded for each sample, forgiving a few bad ones."""

    def __init__(self, dataset: Dataset[Any], seed: int, bad_samples: int) -> None:
        self._dataset = dataset
        self._seed = seed
        self._budget = bad_samples
        # The bad samples found so far, shared by the loading processes of this worker; -1 is a free place.
        self._bad = LOADERS.Array(ctypes.c_int64, [-1] * (bad_samples + 1))

    def __getitems__(self, keys: Sequence[Key]) -> Any:
        """Fetch and collate one batch; in a loading process, a failure is returned as Trouble.

        No keys give a Bubble.
        """
        if not keys:
            return Bubble()
        if get_worker_info() is None:
            return self._batch(keys)
        try:
            return self._batch(keys)
        except Exception as error:
            log.exception("a loading process failed")
            text = str(error) if isinstance(error, TrainingError) else f"{type(error).__name__}: {error}"
            return Trouble(text)

    def _batch(self, keys: Sequence[Key]) -> Any:
        fetch_batch = getattr(self._dataset, "batch", None)
        if callable(fetch_batch):
            return fetch_batch([index for _, index in keys])
        with generators_untouched():
            return default_collate([self._fetch(epoch, index) for epoch, index in keys])

    def _fetch(self, epoch: int, index: int) -> Any:
        for candidate in range(index, index + self._budget + 1):
            index_in_range = candidate % size_of(self._dataset)
            seed_host(sample_seed(self._seed, epoch, index_in_range))
            try:
                return self._dataset[index_in_range]
            except BadSample as bad:
                self._count(bad, index_in_range)
        raise TrainingError(f"samples {index} to {index + self._budget} of the dataset are all unreadable")

    def _count(self, bad: BadSample, index: int) -> None:
        """Count a bad sample the first time that it is met; raises TrainingError beyond the budget."""
        with self._bad.get_lock():
            known = [each for each in self._bad[:] if each >= 0]
            if index in known:
                return
            # Other loading processes may go on past the budget before this worker hears of it.
            if len(known) < len(self._bad):
                self._bad[len(known)] = index
            found = len(known) + 1
        if found > self._budget:
            raise TrainingError(
                f"bad sample {bad}; {found} found by this worker and data.bad_samples allows {self._budget}"
            ) from None
        log.warning("bad sample %s; replaced by the next one (%d of %d)", bad, found, self._budget)


def size_of(dataset: Dataset[Any]) -> int:
    """Return the dataset's length; raises TrainingError for one that has none."""
    if not isinstance(dataset, Sized):
        raise TrainingError(
            f"{type(dataset).__name__} has no length: dist_train needs map-style datasets with __len__ and "
            "__getitem__, so that it can resume at any sample"
        )
    return len(dataset)


def made_alike(make: Callable[[], Dataset[Any]], seed: int, device: torch.device) -> Dataset[Any]:
    """Make a dataset from the run's seed: one that is drawn or split at random is the same everywhere."""
    with generators_untouched(device):
        seed_all(seed)
        return make()


def training_batches(
    samples: Samples, order: Order, share: Share, cursor: Cursor, data: Data, pin: bool
) -> Iterator[Any]:
    """Return this worker's collated batches from ``cursor`` on, without end."""
    return without_trouble(_loader(samples, Batches(order, share, cursor), data, pin))


def leased_batches(
    samples: Samples, leased: LeasedBatches, data: Data, pin: bool
) -> Generator[Any, None, None]:
    """Yield this worker's collated batches of the leases fed, in the order they were fed in.

    Loading processes have enough to do while ``data.loaders * data.prefetch + 1`` batches are due; closing
    the generator ends them. Raises RuntimeError when a batch is asked for and none is due.
    """
    loaded = without_trouble(_loader(samples, leased, data, pin))
    while leased.due:
        batch = next(loaded)
        if not isinstance(batch, Bubble):
            leased.due -= 1
            yield batch
    raise RuntimeError("a batch was asked for and no lease holds one: feed a lease first")


def validation_batches(
    dataset: Dataset[Any], rank: int, workers: int, batch_size: int, data: Data, pin: bool
) -> tuple[DataLoader[Any], list[int]]:
    """Return a loader over this worker's part of the set, in order, and the size of each batch.

    The parts are disjoint and cover the set exactly; nothing is padded. A worker without a part gets one
    sample of size zero, so that it knows the names of the metrics. Raises TrainingError for an empty set.
    """
    size = size_of(dataset)
    if size == 0:
        raise TrainingError("the validation set is empty: have the task hold at least one sample out")
    mine = split(size, workers)[rank]
    if not mine:
        return _loader(Samples(dataset, 0, data.bad_samples), [[(0, 0)]], data, pin), [0]
    parts = [
        range(start, min(start + batch_size, mine.stop)) for start in range(mine.start, mine.stop, batch_size)
    ]
    keys = [[(0, index) for index in part] for part in parts]
    samples = Samples(dataset, 0, data.bad_samples)
    return _loader(samples, keys, data, pin), [len(part) for part in parts]


def _loader(samples: Samples, batches: Any, data: Data, pin: bool) -> DataLoader[Any]:
    processes: dict[str, Any] = {}
    if data.loaders:
        processes = {
            "multiprocessing_context": LOADERS,
            "prefetch_factor": data.prefetch,
            "worker_init_fn": _enter_loader,
        }
    return DataLoader(
        samples,
        batch_sampler=batches,
        num_workers=data.loaders,
        collate_fn=_collated,
        pin_memory=pin,
        # An own generator: the loader would otherwise draw from the one that dropout uses.
        generator=torch.Generator(),
        **processes,
    )


def _collated(batch: Any) -> Any:
    return batch


def _enter_loader(_: int) -> None:
    """Let a loading process outlive a request to stop, but never its worker."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    parent_death_signal = 1
    ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)
    torch.set_num_threads(1)
