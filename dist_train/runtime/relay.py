"""Where replicas exchange what they predict: the workers of one rank meet, batch by batch.

It lives in the process that started the replicas, which knows who is gone. Workers call by line (line.py);
who waits for whom is decided in rules/company.py, and where all stop in rules/halt.py.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from dist_train.rules.company import Company, Place
from dist_train.rules.halt import Halt
from dist_train.runtime.line import Line, LineBroken, Listener, listen

# For replicas that are behind: the latest predictions of each worker, by number and by size.
KEPT, KEPT_BYTES = 1000, 32 * 2**20

# A thread of the launcher must not keep a run from ending.
CLOSE_S = 5.0

Clock = Callable[[], float]


@dataclass
class _Meeting:
    """The workers of one rank: who is where, and what they have sent."""

    company: Company
    # By replica, and by place in the order of places.
    sent: defaultdict[int, dict[Place, bytes]] = field(default_factory=lambda: defaultdict(dict))
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def find(self, replica: int, place: Place) -> bytes | None:
        return self.sent[replica].get(place)

    def keep(self, replica: int, place: Place, scores: bytes) -> None:
        kept = self.sent[replica]
        # One that was started again says these anew.
        while kept and next(reversed(kept)) >= place:
            kept.popitem()
        kept[place] = scores
        while len(kept) > min(KEPT, max(2, KEPT_BYTES // max(1, len(scores)))):
            del kept[next(iter(kept))]

    def tell(self) -> None:
        self.news.set()
        self.news = asyncio.Event()


@dataclass(frozen=True)
class Waits:
    """In seconds: how long replicas may take to meet, how long a silent one is waited for in training
    (rules/company.py), and how long for a stop (rules/halt.py)."""

    meeting_s: float
    patience_s: float
    halt_s: float


class Relay:
    """``replicas`` exchange nothing in the updates of the ``burn_in``."""

    def __init__(self, replicas: int, waits: Waits, burn_in: int = 0, clock: Clock = time.monotonic) -> None:
        self._replicas = replicas
        self._waits = waits
        self._clock = clock
        self._halt = Halt(waits.halt_s, burn_in)
        self._began = clock()
        self._gone: set[int] = set()
        self._meetings: dict[int, _Meeting] = {}

    async def swap(
        self, rank: int, replica: int, teachers: tuple[int, ...], place: tuple[int, int], scores: bytes
    ) -> list[bytes]:
        """Hand in a worker's predictions; return those of the teachers that have come, in order."""
        meeting, here = self._meeting(rank), Place(*place)
        self._gone.discard(replica)
        self._halt.heard(replica)
        since = self._clock()
        meeting.company.heard(replica, here, since)
        meeting.keep(replica, here, scores)
        meeting.tell()
        while True:
            found = {teacher: meeting.find(teacher, here) for teacher in teachers}
            missing = [teacher for teacher, sent in found.items() if sent is None]
            now = self._clock()
            awaited = [each for each in missing if meeting.company.stance(each, here, since, now) == "wait"]
            if not awaited:
                return [sent for sent in found.values() if sent is not None]
            soonest = min(meeting.company.until(each, since) for each in awaited)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, soonest - now)):
                    await meeting.news.wait()

    def gone(self, replica: int) -> None:
        """Take note that a replica has ended, or is about to be started again."""
        self._gone.add(replica)
        self._halt.gone(replica)
        for meeting in self._meetings.values():
            meeting.company.gone(replica)
            meeting.tell()

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

    def _meeting(self, rank: int) -> _Meeting:
        if rank not in self._meetings:
            company = Company(self._replicas, self._waits.patience_s, self._waits.meeting_s, self._began)
            for replica in self._gone:
                company.gone(replica)
            self._meetings[rank] = _Meeting(company)
        return self._meetings[rank]


class RelayThread:
    """A relay in a thread of its own, at ``address``; ``close`` it in the end."""

    def __init__(self, replicas: int, waits: Waits, burn_in: int = 0) -> None:
        self._relay = relay = Relay(replicas, waits, burn_in)
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
