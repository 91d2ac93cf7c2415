"""Where replicas exchange what they predict: their workers meet, batch by batch, each those of its own rank.

It lives in the process that started the replicas, which knows who is gone. Workers call by line (line.py);
who waits for whom, and where all stop, is decided in rules/company.py.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dist_train.rules.company import Company, Halt, Place
from dist_train.runtime.line import Line, LineBroken, Listener, listen

# For replicas that are behind: the latest predictions of each worker, by number and by size.
KEPT, KEPT_BYTES = 1000, 32 * 2**20
# Of a worker that has not been heard of.
NOWHERE = Place(-1, 0)
# A thread of the launcher must not keep a run from ending.
CLOSE_S = 5.0
# Turns of the event loop from an incoming call to the first wait of whoever answers it, with some to spare.
ACCEPTED = 10

Clock = Callable[[], float]


class Seat(NamedTuple):
    """Who calls: worker ``rank`` of a replica, which learns from ``teachers``.

    ``life`` is the same for the workers of the replica, and another one whenever they are started.
    """

    replica: int
    rank: int
    life: str
    teachers: tuple[int, ...]


@dataclass
class _Answer:
    """What each teacher said of a batch, by rank, and how many workers have still to fetch it."""

    said: dict[int, dict[int, bytes]]
    left: int


@dataclass
class _Group:
    """The workers of one replica: where they are, what they have said, what they are to learn from."""

    kept: int
    life: str = ""
    at: dict[int, Place] = field(default_factory=dict)
    # By place, in the order of places, and by rank.
    said: dict[Place, dict[int, bytes]] = field(default_factory=dict)
    answers: dict[Place, _Answer] = field(default_factory=dict)

    def begin(self, life: str, place: Place) -> None:
        """Forget what those said who were killed, as far as it is said anew."""
        self.life = life
        self.at.clear()
        self.answers.clear()
        while self.said and next(reversed(self.said)) >= place:
            self.said.popitem()

    def keep(self, rank: int, place: Place, scores: bytes) -> None:
        self.at[rank] = place
        self.said.setdefault(place, {})[rank] = scores
        while len(self.said) > min(KEPT, max(self.kept, KEPT_BYTES // max(1, len(scores)))):
            del self.said[next(iter(self.said))]

    def whole(self, place: Place, workers: int) -> dict[int, bytes] | None:
        """Return what all ``workers`` that have such a batch said of it; None while one has not."""
        said = self.said.get(place, {})
        return said if all(rank in said for rank in range(workers)) else None

    def fetch(self, rank: int, place: Place) -> dict[int, bytes]:
        answer = self.answers[place]
        answer.left -= 1
        if not answer.left:
            del self.answers[place]
        return {teacher: said[rank] for teacher, said in answer.said.items()}


@dataclass(frozen=True)
class Waits:
    """In seconds: how long replicas may take to meet; how long a silent one is waited for, in training and
    for a stop."""

    meeting_s: float
    patience_s: float
    halt_s: float


class Relay:
    """``replicas`` of ``workers`` each, which exchange nothing in the updates of the ``burn_in``."""

    def __init__(
        self, replicas: int, workers: int, waits: Waits, burn_in: int = 0, clock: Clock = time.monotonic
    ) -> None:
        self._workers = workers
        self._clock = clock
        self._halt = Halt(waits.halt_s, burn_in)
        self._company = Company(replicas, waits.patience_s, waits.meeting_s, clock())
        # In a ring one may be ahead by as many places as there are others.
        self._groups = [_Group(kept=replicas + 1) for _ in range(replicas)]
        self._news = asyncio.Event()

    async def swap(self, seat: Seat, place: tuple[int, int], workers: int, scores: bytes) -> dict[int, bytes]:
        """Hand in a worker's predictions; return those of the teachers that have come, by replica, in order.

        The first ``workers`` of its group have such a batch, and all of them get the same teachers: those of
        which each worker has sent something. Who has nothing to teach sends nothing.
        """
        own, here, since = self._groups[seat.replica], Place(*place), self._clock()
        if seat.life != own.life:
            own.begin(seat.life, here)
        own.keep(seat.rank, here, scores)
        behind = min(own.at.get(rank, NOWHERE) for rank in range(self._workers))
        self._company.heard(seat.replica, behind, since)
        self._halt.heard(seat.replica)
        self._tell()
        while own.life == seat.life:
            if here not in own.answers:
                self._decide(seat, here, since, workers)
            if here in own.answers:
                return own.fetch(seat.rank, here)
            await self._wait(seat.teachers, since)
        return {}

    def _decide(self, seat: Seat, here: Place, since: float, workers: int) -> None:
        """Settle from whom a group learns of a batch, once nobody else is waited for."""
        now = self._clock()
        found = {teacher: self._groups[teacher].whole(here, workers) for teacher in seat.teachers}
        missing = [teacher for teacher, said in found.items() if said is None]
        # Each is asked: who was waited for in vain is to be known as silent.
        if "wait" in [self._company.stance(each, here, since, now) for each in missing]:
            return
        said = {name: each for name, each in found.items() if each is not None and all(each.values())}
        self._groups[seat.replica].answers[here] = _Answer(said, workers)

    async def _wait(self, teachers: tuple[int, ...], since: float) -> None:
        """Wait for news, at most until patience with a teacher is over."""
        now = self._clock()
        ends = [end for each in teachers if (end := self._company.until(each, since)) > now]
        with suppress(TimeoutError):
            async with asyncio.timeout(min(ends, default=now) - now):
                await self._news.wait()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def gone(self, replica: int) -> None:
        """Take note that a replica has ended, or is about to be started again."""
        self._company.gone(replica)
        self._halt.gone(replica)
        self._tell()

    def asked(self) -> str | None:
        """Return why a replica was asked to stop, which then goes for all; None while none was."""
        return self._halt.reason

    def pledge(self, replica: int, company: tuple[int, ...], boundary: int, reason: str) -> int | None:
        """Say the earliest boundary at which a replica can stop; return where it is to, once it is known."""
        now = self._clock()
        self._halt.asked(reason, now)
        return self._halt.pledge(replica, company, boundary, now)

    def ended(self, replica: int, boundary: int) -> None:
        """Say that a replica has made its last update before ``boundary``."""
        self._halt.ended(replica, boundary)


class RelayThread:
    """A relay in a thread of its own, at ``address``; ``close`` it in the end."""

    def __init__(self, replicas: int, workers: int, waits: Waits, burn_in: int = 0) -> None:
        self._relay = relay = Relay(replicas, workers, waits, burn_in)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._thread.start()
        calls = (relay.swap, relay.asked, relay.pledge, relay.ended)
        opened = asyncio.run_coroutine_threadsafe(listen({call.__name__: call for call in calls}), self._loop)
        self._listener: Listener = opened.result()
        self._closing: Future[None] | None = None

    @property
    def address(self) -> str:
        return self._listener.address

    def gone(self, replica: int) -> None:
        self._loop.call_soon_threadsafe(self._relay.gone, replica)

    def close(self, limit_s: float = CLOSE_S) -> bool:
        """Take no more calls, as the workers have ended; False when that takes too long."""
        if self._closing is None:
            self._closing = asyncio.run_coroutine_threadsafe(self._hang_up(), self._loop)
        with suppress(TimeoutError):
            self._closing.result(limit_s)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            return True
        return False

    async def _hang_up(self) -> None:
        # Who has just called gets to a first wait: ended before that, nobody would close the socket.
        for _ in range(ACCEPTED):
            await asyncio.sleep(0)
        self._listener.close()
        lines = asyncio.all_tasks() - {asyncio.current_task()}
        for line in lines:
            line.cancel()
        await asyncio.gather(*lines, return_exceptions=True)


class HaltByLine:
    """A replica's way to agree with its ``company`` on where to stop: ``Others`` of exchange/agreement.py."""

    def __init__(self, address: str, replica: int, company: tuple[int, ...]) -> None:
        self._line = Line(address)
        self._replica = replica
        self._company = company

    def asked(self) -> str | None:
        found: str | None = self._ask(None, "asked")
        return found

    def pledge(self, boundary: int, reason: str) -> int | None:
        found: int | None = self._ask(boundary, "pledge", self._replica, self._company, boundary, reason)
        return found

    def close(self, boundary: int) -> None:
        self._ask(None, "ended", self._replica, boundary)
        self._line.close()

    def _ask(self, alone: Any, method: str, *arguments: Any) -> Any:
        """Without the relay there is no company any more: then the answer is that of one ``alone``."""
        try:
            return self._line.ask(method, *arguments)
        except LineBroken:
            return alone
