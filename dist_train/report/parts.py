"""The lines of metrics.jsonl taken apart, a large file by several processes at once.

To read a million lines keeps one processor busy for as long as all the rest of a report takes together.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from dist_train.report.columns import Columns, Gatherer
from dist_train.report.reading import Reader, Record, without_collector

# Lines that become columns together.
BLOCK = 4096
# Bytes of a part, and of a file that is worth starting processes for.
PART, LARGE = 1 << 25, 1 << 27
MOST_PROCESSES = 4


@dataclass(frozen=True)
class Block:
    """Some lines as columns of each kind, the last of them, and how many others could not be read."""

    by_kind: Mapping[str, Columns]
    last: Record
    damaged: int


def blocks(path: Path) -> Iterator[Block]:
    """Yield a file of metrics, block by block in its order; nothing where there is no file."""
    size = path.stat().st_size if path.is_file() else 0
    processes = min(MOST_PROCESSES, len(os.sched_getaffinity(0)))
    if size < LARGE or processes == 1:
        yield from _blocks_of(path, 0, size)
    else:
        yield from _by_processes(path, size, processes)


def _by_processes(path: Path, size: int, processes: int) -> Iterator[Block]:
    ranges = deque((start, min(start + PART, size)) for start in range(0, size, PART))
    begun: deque[tuple[tuple[int, int], Future[list[Block]]]] = deque()
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        try:
            while ranges or begun:
                # No more at once than are soon taken: memory stays bounded.
                while ranges and len(begun) <= processes:
                    begun.append((ranges[0], pool.submit(_part, path, *ranges[0])))
                    ranges.popleft()
                yield from begun[0][1].result()
                begun.popleft()
        except BrokenProcessPool:
            # Processes may not be had, in a program that cannot be imported twice say: one will do.
            left = begun[0][0][0] if begun else ranges[0][0]
            yield from _blocks_of(path, left, size)


def _part(path: Path, start: int, end: int) -> list[Block]:
    return list(_blocks_of(path, start, end))


def _blocks_of(path: Path, start: int, end: int) -> Iterator[Block]:
    """Yield the lines that begin in a range of bytes."""
    reader, gathered, last, strange = Reader(path), Gatherer(), Record(), 0
    with without_collector():
        for line in reader.between(start, end):
            if gathered.add(line):
                last = line
            else:
                strange += 1
            if gathered.size == BLOCK:
                yield Block(gathered.take(), last, strange + reader.damaged)
                reader.damaged = strange = 0
    yield Block(gathered.take(), last, strange + reader.damaged)
