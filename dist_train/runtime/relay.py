"""Where replicas exchange what they predict: the workers of one rank meet, batch by batch.

It lives in the process that started the replicas, which knows who is gone. Workers call by line (line.py);
who waits for whom is decided in rules/company.py.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from dist_train.rules.company import Company, Place
from dist_train.runtime.line import Listener, listen

# For replicas that are behind: the latest predictions of each worker, by number and by size.
KEPT, KEPT_BYTES = 1000, 32 * 2**20

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


class Relay:
    """``replicas`` meet within ``meeting_s``; ``patience_s`` as in rules/company.py."""

    def __init__(
        self, replicas: int, patience_s: float, meeting_s: float, clock: Clock = time.monotonic
    ) -> None:
        self._replicas = replicas
        self._patience_s = patience_s
        self._meeting_s = meeting_s
        self._clock = clock
        self._began = clock()
        self._gone: set[int] = set()
        self._meetings: dict[int, _Meeting] = {}

    async def swap(
        self, rank: int, replica: int, teachers: tuple[int, ...], place: tuple[int, int], scores: bytes
    ) -> list[bytes]:
        """Hand in a worker's predictions; return those of the teachers that have come, in order."""
        meeting, here = self._meeting(rank), Place(*place)
        self._gone.discard(replica)
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
        for meeting in self._meetings.values():
            meeting.company.gone(replica)
            meeting.tell()

    def _meeting(self, rank: int) -> _Meeting:
        if rank not in self._meetings:
            company = Company(self._replicas, self._patience_s, self._meeting_s, self._began)
            for replica in self._gone:
                company.gone(replica)
            self._meetings[rank] = _Meeting(company)
        return self._meetings[rank]


class RelayThread:
    """A relay in a thread of its own, at ``address``; ``close`` it in the end."""

    def __init__(self, replicas: int, patience_s: float, meeting_s: float) -> None:
        self._relay = Relay(replicas, patience_s, meeting_s)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._thread.start()
        opened = asyncio.run_coroutine_threadsafe(listen({"swap": self._relay.swap}), self._loop)
        self._listener: Listener = opened.result()

    @property
    def address(self) -> str:
        return self._listener.address

    def gone(self, replica: int) -> None:
        self._loop.call_soon_threadsafe(self._relay.gone, replica)

    def close(self) -> None:
        """Take no more calls; the workers have ended."""
        asyncio.run_coroutine_threadsafe(self._hang_up(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _hang_up(self) -> None:
        self._listener.close()
        lines = asyncio.all_tasks() - {asyncio.current_task()}
        for line in lines:
            line.cancel()
        await asyncio.gather(*lines, return_exceptions=True)
