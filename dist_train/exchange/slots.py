"""How the newest versions of a shard's slice lie in shared memory: words that tell, and slots to be filled.

Each word is read and written in one instruction: the newest version's mark, a mark for each slot, and a
hazard for each reader that may compute on a slot where it lies (hazards.py).
"""

from __future__ import annotations

import threading

import torch

from dist_train.exchange.segments import Segment, aligned
from dist_train.rules.messages import Version

SLOTS = 3
UNMARKED = 0
_VERSION_BITS = 40


class PublishedMemory:
    """Words, and ``slots`` of ``size`` float32 elements each, in a segment of ``published_bytes``."""

    def __init__(self, segment: Segment, size: int, slots: int, hazards: int) -> None:
        if slots < 2 + hazards:
            raise ValueError(
                f"{slots} slots: one is read while another is written, so there must be two, and one more "
                f"for each of {hazards} hazards"
            )
        start, stride = _start(slots, hazards), aligned(4 * size)
        words = segment.words(0, 1 + slots + hazards)
        self.newest, self.stamps, self.hazards = words[:1], words[1 : 1 + slots], words[1 + slots :]
        self.slots = [segment.tensor(torch.float32, start + slot * stride, size) for slot in range(slots)]

    def slot_of(self, stamp: int) -> int | None:
        stamps = list(self.stamps)
        return stamps.index(stamp) if stamp in stamps else None


def slot_count(hazards: int) -> int:
    """Return how many slots are enough: one is always neither the newest nor protected by a hazard."""
    return max(SLOTS, 2 + hazards)


def published_bytes(size: int, slots: int = SLOTS, hazards: int = 0) -> int:
    """Return how large a segment must be for ``slots`` versions of ``size`` float32 elements."""
    return _start(slots, hazards) + slots * aligned(4 * size)


def stamp_of(version: Version) -> int:
    """One word, so that it is never seen half written; above 0, as fresh memory is unmarked."""
    if not 0 <= version.number < 2**_VERSION_BITS:
        raise ValueError(f"no version {version.number}: it must be from 0 to {2**_VERSION_BITS - 1}")
    return (version.era << _VERSION_BITS | version.number) + 1


def version_of(stamp: int) -> Version | None:
    if stamp == UNMARKED:
        return None
    return Version((stamp - 1) >> _VERSION_BITS, (stamp - 1) % 2**_VERSION_BITS)


def fence() -> None:
    """Order all memory accesses before against all after, as the processors and the compiler see them.

    To take a lock is an atomic exchange. On x86, which else keeps all in order but a store and a later load,
    that is a full fence. ARM keeps no order: there the release of a lock comes after all that precedes it, an
    acquire before all that follows it, and an acquire never overtakes a release.
    """
    lock = threading.Lock()
    with lock:
        pass
    with lock:
        pass


def _start(slots: int, hazards: int) -> int:
    return aligned(8 * (1 + slots + hazards))
