"""The newest versions of a shard's slice, in shared memory: one process writes, many read, no copy is torn.

A sequence lock over several slots, after Lamport (Concurrent reading and writing, 1977): the writer takes the
mark off the oldest slot, fills it, and marks it with the new version; a reader's copy is whole when the slot
bore the same mark before and after. Nobody waits for anybody, and whoever dies leaves no lock behind.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dist_train.errors import TrainingError
from dist_train.exchange.segments import Segment, aligned
from dist_train.rules.messages import Version

SLOTS = 3
_VERSION_BITS = 40
_UNMARKED = 0
_LOOK_AGAIN_S = 0.0005


class NotPublished(TrainingError):
    """The shards have not published what was waited for."""


class PublishedWriter:
    """Publishes the slice of ``size`` float32 elements; the only writer of its segment.

    On a segment that already holds versions it goes on where the last writer died; it must begin a new era
    if that one's last version is to be published again.
    """

    def __init__(self, segment: Segment, size: int, slots: int = SLOTS) -> None:
        self._words, self._slots = _laid_out(segment, size, slots)
        # The last writer may have died between its two marks.
        self._words[0] = max(self._words)
        self.era = self._newest().era
        self._begun: tuple[int, int] | None = None

    def begin_era(self, era: int) -> None:
        """Let versions start again from any number; ValueError when ``era`` is not a later one."""
        if era <= self.era:
            raise ValueError(f"era {era} does not come after era {self.era}")
        self.era = era

    def current(self) -> Tensor:
        """Return the slice of the newest version, not to be written to; ValueError before the first."""
        stamps = self._stamps()
        if max(stamps) == _UNMARKED:
            raise ValueError("nothing is published yet")
        return self._slots[stamps.index(max(stamps))]

    def begin(self, version: int) -> Tensor:
        """Return the memory for ``version``, its content undefined, which readers do not see yet.

        Raises ValueError when the era has had this version, or a later one.
        """
        stamp = _stamp(Version(self.era, version))
        if stamp <= max(self._words):
            raise ValueError(f"version {version} of era {self.era} does not come after {self._newest()}")
        stamps = self._stamps()
        slot = stamps.index(min(stamps))
        self._words[1 + slot] = _UNMARKED
        _fence()
        self._begun = (slot, stamp)
        return self._slots[slot]

    def commit(self, version: int) -> None:
        """Let the readers see what was begun; ValueError when that is not ``version``."""
        if self._begun is None or self._begun[1] != _stamp(Version(self.era, version)):
            raise ValueError(f"version {version} of era {self.era} was not begun")
        slot, stamp = self._begun
        _fence()
        self._words[1 + slot] = stamp
        _fence()
        self._words[0] = stamp
        self._begun = None

    def _newest(self) -> Version:
        return _unstamped(self._words[0]) or Version(0, -1)

    def _stamps(self) -> list[int]:
        return self._words.tolist()[1:]


class PublishedReader:
    """Reads what a ``PublishedWriter`` of the same ``size`` and ``slots`` publishes in the segment."""

    def __init__(self, segment: Segment, size: int, slots: int = SLOTS) -> None:
        self._words, self._slots = _laid_out(segment, size, slots)

    def newest(self) -> Version | None:
        return _unstamped(self._words[0])

    def has(self, version: Version) -> bool:
        return _stamp(version) in self._words.tolist()[1:]

    def read(self, version: Version, into: Tensor) -> bool:
        """Copy ``version`` to ``into``, a tensor of ``size`` elements on any device.

        False when it is not there, or was overwritten during the copy: then ``into`` holds no version.
        """
        stamp = _stamp(version)
        stamps = self._words.tolist()[1:]
        if stamp not in stamps:
            return False
        slot = stamps.index(stamp)
        _fence()
        into.copy_(self._slots[slot])
        _fence()
        return self._words[1 + slot] == stamp


def published_bytes(size: int, slots: int = SLOTS) -> int:
    """Return how large a segment must be for ``slots`` versions of ``size`` float32 elements."""
    return _start(slots) + slots * aligned(4 * size)


def read_all(
    readers: Sequence[PublishedReader],
    parts: Sequence[Tensor],
    at_least: Version,
    patience_s: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> Version:
    """Copy the newest version that all shards have to ``parts``, and return which one it is: never a mix.

    Raises NotPublished when ``at_least`` or later has not come within ``patience_s`` seconds. A copy that was
    torn shows that the shards are at work: patience begins again, however long the copies take.
    """
    deadline = clock() + patience_s
    while True:
        newest = [reader.newest() or Version(-1, -1) for reader in readers]
        version = min(newest)
        if version >= at_least and all(reader.has(version) for reader in readers):
            if all(reader.read(version, part) for reader, part in zip(readers, parts, strict=True)):
                return version
            deadline = clock() + patience_s
        elif clock() > deadline:
            shard = newest.index(version)
            raise NotPublished(
                f"waited {patience_s:g} s for version {at_least.number} (era {at_least.era}) of all shards: "
                f"shard {shard} has published {_told(version)}; look into the log of that shard"
            )
        pause(_LOOK_AGAIN_S)


def _laid_out(segment: Segment, size: int, slots: int) -> tuple[memoryview[int], list[Tensor]]:
    """Return the marks (the newest version's, then one for each slot) and the slots."""
    if slots < 2:
        raise ValueError(f"{slots} slots: one is read while another is written, so there must be two")
    start, stride = _start(slots), aligned(4 * size)
    words = segment.words(0, 1 + slots)
    return words, [segment.tensor(torch.float32, start + slot * stride, size) for slot in range(slots)]


def _start(slots: int) -> int:
    return aligned(8 * (1 + slots))


def _stamp(version: Version) -> int:
    """One word, so that it is never seen half written; above 0, as fresh memory is unmarked."""
    if not 0 <= version.number < 2**_VERSION_BITS:
        raise ValueError(f"no version {version.number}: it must be from 0 to {2**_VERSION_BITS - 1}")
    return (version.era << _VERSION_BITS | version.number) + 1


def _unstamped(stamp: int) -> Version | None:
    if stamp == _UNMARKED:
        return None
    return Version((stamp - 1) >> _VERSION_BITS, (stamp - 1) % 2**_VERSION_BITS)


def _fence() -> None:
    """Order all memory accesses before against all after, as the processors and the compiler see them.

    x86 keeps plain loads in order, and plain stores; ARM does not. There the release of a lock comes after
    all that precedes it, an acquire before all that follows it, and an acquire never overtakes a release.
    """
    lock = threading.Lock()
    with lock:
        pass
    with lock:
        pass


def _told(version: Version) -> str:
    return "nothing" if version.number < 0 else f"version {version.number} (era {version.era})"
