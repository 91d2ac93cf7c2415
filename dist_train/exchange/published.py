"""The newest versions of a shard's slice, in shared memory: one process writes, many read, no copy is torn.

A sequence lock over several slots, after Lamport (Concurrent reading and writing, 1977): the writer takes the
mark off the oldest slot, fills it, and marks it with the new version; a reader's copy is whole when the slot
bore the same mark before and after. The writer passes over slots that a reader protects (hazards.py). Nobody
waits for anybody, and whoever dies leaves no lock behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from dist_train.errors import TrainingError
from dist_train.exchange.segments import Segment
from dist_train.exchange.slots import SLOTS, UNMARKED, PublishedMemory, fence, stamp_of, version_of
from dist_train.rules.messages import Version

_LOOK_AGAIN_S = 0.0005


class NotPublished(TrainingError):
    """The shards have not published what was waited for."""


class PublishedWriter:
    """Publishes the slice of ``size`` float32 elements; the only writer of its segment.

    On a segment that already holds versions it goes on where the last writer died; it must begin a new era
    if that one's last version is to be published again.
    """

    def __init__(self, segment: Segment, size: int, slots: int = SLOTS, hazards: int = 0) -> None:
        self._memory = PublishedMemory(segment, size, slots, hazards)
        # The last writer may have died between its two marks.
        self._memory.newest[0] = max(self._memory.newest[0], *self._memory.stamps)
        self.era = self._newest().era
        self._begun: tuple[int, int] | None = None

    def begin_era(self, era: int) -> None:
        """Let versions start again from any number; ValueError when ``era`` is not a later one."""
        if era <= self.era:
            raise ValueError(f"era {era} does not come after era {self.era}")
        self.era = era

    def current(self) -> Tensor:
        """Return the slice of the newest version, not to be written to; ValueError before the first."""
        stamps = list(self._memory.stamps)
        if max(stamps) == UNMARKED:
            raise ValueError("nothing is published yet")
        return self._memory.slots[stamps.index(max(stamps))]

    def begin(self, version: int) -> Tensor:
        """Return the memory for ``version``, its content undefined, which readers do not see yet.

        Raises ValueError when the era has had this version, or a later one.
        """
        stamp = stamp_of(Version(self.era, version))
        if stamp <= self._memory.newest[0]:
            raise ValueError(f"version {version} of era {self.era} does not come after {self._newest()}")
        slot = self._take_off_a_mark()
        self._begun = (slot, stamp)
        return self._memory.slots[slot]

    def commit(self, version: int) -> None:
        """Let the readers see what was begun; ValueError when that is not ``version``."""
        if self._begun is None or self._begun[1] != stamp_of(Version(self.era, version)):
            raise ValueError(f"version {version} of era {self.era} was not begun")
        slot, stamp = self._begun
        fence()
        self._memory.stamps[slot] = stamp
        fence()
        self._memory.newest[0] = stamp
        self._begun = None

    def _take_off_a_mark(self) -> int:
        """Return the oldest slot that is neither the newest nor protected, its mark taken off.

        A reader writes its hazard and looks for the mark again, the writer takes off the mark and looks for
        hazards again: with a full fence in between, one of the two sees the other.
        """
        stamps = self._memory.stamps
        oldest_first = sorted(range(len(stamps)), key=list(stamps).__getitem__)[:-1]
        while True:
            # A reader that was slow may turn to one of them just now, so that all seem to be taken.
            for slot in oldest_first:
                if self._is_protected(slot):
                    continue
                stamps[slot] = UNMARKED
                fence()
                if not self._is_protected(slot):
                    fence()
                    return slot

    def _is_protected(self, slot: int) -> bool:
        return 1 + slot in self._memory.hazards

    def _newest(self) -> Version:
        return version_of(self._memory.newest[0]) or Version(0, -1)


class PublishedReader:
    """Reads what a ``PublishedWriter`` of the same ``size``, ``slots`` and ``hazards`` publishes."""

    def __init__(self, segment: Segment, size: int, slots: int = SLOTS, hazards: int = 0) -> None:
        self._memory = PublishedMemory(segment, size, slots, hazards)

    def newest(self) -> Version | None:
        return version_of(self._memory.newest[0])

    def has(self, version: Version) -> bool:
        return self._memory.slot_of(stamp_of(version)) is not None

    def read(self, version: Version, into: Tensor) -> bool:
        """Copy ``version`` to ``into``, a tensor of ``size`` elements on any device.

        False when it is not there, or was overwritten during the copy: then ``into`` holds no version.
        """
        stamp = stamp_of(version)
        slot = self._memory.slot_of(stamp)
        if slot is None:
            return False
        fence()
        into.copy_(self._memory.slots[slot])
        fence()
        return self._memory.stamps[slot] == stamp


class Tells(Protocol):
    """Tells which versions of a shard there are."""

    def newest(self) -> Version | None: ...

    def has(self, version: Version) -> bool: ...


def read_all(
    readers: Sequence[PublishedReader],
    parts: Sequence[Tensor],
    at_least: Version,
    patience_s: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> Version:
    """Copy the newest version that all shards have to ``parts``, and return which one it is: never a mix.

    Raises NotPublished as ``take_newest`` does.
    """

    def copied(version: Version) -> bool:
        return all(reader.read(version, part) for reader, part in zip(readers, parts, strict=True))

    return take_newest(readers, copied, at_least, patience_s, clock, pause)


def take_newest(
    shards: Sequence[Tells],
    take: Callable[[Version], bool],
    at_least: Version,
    patience_s: float,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> Version:
    """Have ``take`` take the newest version that all shards have, and return which one it is.

    Raises NotPublished when ``at_least`` or later has not come within ``patience_s`` seconds. If ``take`` was
    too late for a version, the shards are at work: patience begins again, however long it takes.
    """
    deadline = clock() + patience_s
    while True:
        newest = [shard.newest() or Version(-1, -1) for shard in shards]
        version = min(newest)
        if version >= at_least and all(shard.has(version) for shard in shards):
            if take(version):
                return version
            deadline = clock() + patience_s
        elif clock() > deadline:
            late = newest.index(version)
            raise NotPublished(
                f"waited {patience_s:g} s for version {at_least.number} (era {at_least.era}) of all shards: "
                f"shard {late} has published {_told(version)}; look into the log of that shard"
            )
        pause(_LOOK_AGAIN_S)


def _told(version: Version) -> str:
    return "nothing" if version.number < 0 else f"version {version.number} (era {version.era})"
