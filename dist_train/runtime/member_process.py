"""The process around one worker of a member: its heart, its log, its connection to group and server."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import TYPE_CHECKING

from dist_train.errors import DONE, FAILED, REFUSED, ConfigError, Mismatch
from dist_train.runtime import children
from dist_train.runtime import run_dir as directories
from dist_train.runtime.heart import Heart, leave_interrupts_to_the_conductor, redirect_output
from dist_train.runtime.letters import Assignment, Ended
from dist_train.runtime.place import Place
from dist_train.runtime.ray_cluster import node_address
from dist_train.watch.logs import worker_logs

if TYPE_CHECKING:
    from dist_train.exchange.server import Server
    from dist_train.runtime.connect import Connection

log = logging.getLogger(__name__)


class MemberProcess:
    """The actor. ``meeting_point`` of a group's first worker is where ``run`` of all of them meets."""

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        self._listener: socket.socket | None = None
        self._running: asyncio.Future[Ended] | None = None
        self._refusal = directories.another_than(assignment.word, assignment.run_dir)
        if self._refusal is None:
            redirect_output(directories.log_file(assignment.run_dir, assignment.rank))
        children.dump_stacks_on_request()
        leave_interrupts_to_the_conductor()
        name = ("worker", assignment.rank, assignment.incarnation)
        self._heart = Heart(assignment.coordinator, *name)

    def meeting_point(self) -> tuple[str, int]:
        """Open the port at which the workers of the group meet, on this node's own network address."""
        address = node_address()
        if self._listener is None:
            self._listener = socket.create_server((address, 0), backlog=1024)
        return address, self._listener.getsockname()[1]

    async def run(self, meeting: tuple[str, int] | None) -> Ended:
        """Train until the server says stop, or something fails; once, however often it is asked for."""
        if self._running is None:
            self._running = asyncio.get_running_loop().run_in_executor(None, self._work, meeting)
        return await asyncio.shield(self._running)

    def _work(self, meeting: tuple[str, int] | None) -> Ended:
        assignment = self._assignment
        if self._refusal is not None:
            self._heart.close()
            # The others train already when a successor comes.
            status = FAILED if assignment.incarnation else REFUSED
            return Ended(status, kind=ConfigError.__name__, error=self._refusal)
        place = self._place(meeting)
        with worker_logs(assignment.rank, place.host):
            try:
                self._serve(place)
                return Ended(DONE)
            except BaseException as error:
                refused = isinstance(error, ConfigError | Mismatch)
                beat = self._heart.pulse.beat(assignment.rank)
                log.exception("worker %d failed in step %d, phase %s", assignment.rank, beat.step, beat.phase)
                children.report_crash(assignment.run_dir, assignment.rank, beat.phase, beat.step, error)
                text = f"{type(error).__name__}: {error}" if not refused else str(error)
                # The others train already when a successor comes.
                status = REFUSED if refused and not assignment.incarnation else FAILED
                return Ended(status, beat.step, beat.phase, type(error).__name__, text)
            finally:
                self._heart.close()

    def _serve(self, place: Place) -> None:
        from dist_train.exchange.server import Turn
        from dist_train.member import RunOfAll, serve
        from dist_train.runtime.connect import connect

        assignment = self._assignment
        connection = connect(place, assignment.config.parallel, self._heart.phase)

        def open_server(size: int, statistics: int) -> Server:
            return self._open_server(connection, size, statistics)

        turn = Turn(assignment.member, assignment.incarnation)
        run = RunOfAll(assignment.run_dir, assignment.workers)
        serve(assignment.config, connection, run, open_server, turn)

    def _open_server(self, connection: Connection, size: int, statistics: int) -> Server:
        from dist_train.core.inner_state import kept_vectors
        from dist_train.exchange.segments import Address, Segment
        from dist_train.exchange.server import MemberMemory
        from dist_train.runtime.remote_server import RemoteServer

        assignment, config = self._assignment, self._assignment.config
        sizes = size, statistics, kept_vectors(config), config.parallel.needs_base
        made: list[Segment] = []

        def make() -> dict[str, int]:
            made.append(Segment.create(MemberMemory.bytes(*sizes)))
            return dict(vars(made[0].address))

        address = connection.from_rank_0("gradient memory", make)
        segment = made[0] if made else Segment.open(Address(**address))
        if connection.device.type == "cuda":
            segment.pin()
        return RemoteServer(
            assignment.coordinator,
            assignment.member,
            assignment.incarnation,
            MemberMemory(segment, *sizes),
            self._heart.phase,
            config.parallel.timeout_s,
        )

    def _place(self, meeting: tuple[str, int] | None) -> Place:
        assignment = self._assignment
        address, port = meeting or ("127.0.0.1", 0)
        return Place(
            rank=assignment.group_rank,
            workers=assignment.config.parallel.group_size,
            local_rank=0,
            local_workers=1,
            master_address=address,
            master_port=port,
            attempt=assignment.incarnation,
            started_by="ray",
            listen_fd=None if self._listener is None else os.dup(self._listener.fileno()),
            replica=assignment.replica,
        )
