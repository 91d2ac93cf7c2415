"""A member of several real workers: the first one's process holds the whole server, the others read."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import runs
import server_runs
from recorded_runs import Book
from torch import Tensor
from worker_group import Seat

from dist_train.config.schema import Config
from dist_train.exchange.areas import held
from dist_train.exchange.baton import in_step
from dist_train.exchange.published import PublishedReader, PublishedWriter
from dist_train.exchange.segments import Address, Segment
from dist_train.exchange.server import MemberMemory, Turn
from dist_train.exchange.slots import published_bytes
from dist_train.exchange.twin import Seat as Leader
from dist_train.member import RunOfAll, serve
from dist_train.rules.messages import Version
from dist_train.runtime.connect import Connection
from dist_train.runtime.place import Place


class Follower:
    """The server as a worker sees it that does not lead: it reads, and never speaks."""

    reads_in_place = False

    def __init__(self, told: dict[str, Any], sizes: tuple[int, int]) -> None:
        segments = {name: Segment.open(Address(**told[name])) for name in ("memory", "published", "held")}
        self.memory = MemberMemory(segments["memory"], *sizes)
        self._reader = PublishedReader(segments["published"], sizes[0])
        self._held = held(segments["held"], *sizes)

    def enlist(self, *_: Any) -> NoReturn:
        raise AssertionError("only the leader speaks")

    join = push = measured = read = read_in_place = enlist

    def read_exactly(self, version: Version, into: Tensor) -> bool:
        return self._reader.read(version, into)

    def read_held(self, parameters: Tensor, statistics: Tensor) -> None:
        parameters.copy_(self._held[0])
        statistics.copy_(self._held[1])


def connected(seat: Seat) -> Connection:
    place = Place(seat.rank, seat.workers)
    return Connection(place, runs.CPU, seat.store, timedelta(seconds=20), lambda *_: None)


def train(seat: Seat, config: Config, run_dir: Path | None = None) -> dict[str, Any] | None:
    """Train as a group that is the only member; the leader returns what came of it.

    ``run_dir``: where the run is written down, if it is.
    """
    return lead(seat, config, run_dir) if seat.rank == 0 else follow(seat, config)


def lead(seat: Seat, config: Config, run_dir: Path | None) -> dict[str, Any]:
    published: list[Segment] = []

    def slots(size: int) -> PublishedWriter:
        published.append(Segment.create(published_bytes(size)))
        return PublishedWriter(published[-1], size)

    run, connection = server_runs.Run(config, slots=slots), connected(seat)

    def body(leader: Leader) -> None:
        def open_server(*_: int) -> Leader:
            shared = {
                "memory": leader.memory.segment,
                "published": published[0],
                "held": run.twin.held_memory,
            }
            said = {name: vars(segment.address) for name, segment in shared.items()}
            connection.from_rank_0("memory", lambda: said)
            return leader

        serve(config, connection, RunOfAll(run.directory, run.workers), open_server, Turn(0, 0))

    book = None if run_dir is None else Book(run, run_dir)
    run.twin.seat(0, body)
    try:
        run.go(in_step())
        if book is not None:
            book.close()
        pushes = [each.push for step in run.steps for each in step.contributions]
        return {
            "weights": run.weights(),
            "statistics": run.server.statistics[0].clone(),
            "metrics": [dict(each.metrics) for each in run.validated],
            "losses": [push.loss / push.samples for push in pushes],
            "outcomes": run.outcomes,
        }
    finally:
        run.close()
        published[0].close()


def follow(seat: Seat, config: Config) -> None:
    connection = connected(seat)

    def open_server(size: int, statistics: int) -> Follower:
        return Follower(connection.from_rank_0("memory", dict), (size, statistics))

    assert isinstance(config.parallel.workers, int)
    workers = config.parallel.workers
    assert isinstance(workers, int)
    serve(config, connection, RunOfAll(Path("nowhere"), workers), open_server, Turn(0, 0))
