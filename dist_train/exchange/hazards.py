"""A version that stays while somebody computes on it where it lies, for readers that make no copy.

Hazard pointers, after Michael (Hazard pointers: safe memory reclamation for lock-free objects, 2004): a
reader writes down which slot it computes on, in a word of its own, and looks whether the slot still bears the
mark; the writer fills no slot that is written down. With two slots more than readers, there always is another
one. What a dead reader wrote down costs this slot, until its successor writes to the same word.
"""

from __future__ import annotations

from torch import Tensor

from dist_train.errors import TrainingError
from dist_train.exchange.published import PublishedReader, take_newest
from dist_train.exchange.segments import Segment
from dist_train.exchange.slots import PublishedMemory, fence, slot_count, stamp_of
from dist_train.rules.messages import Version


class Displaced(TrainingError):
    """Another process writes down its hazards in this reader's place."""


class Protector:
    """Protects one version after the other for reader ``number`` of ``hazards``.

    The segment's ``PublishedWriter`` has ``slot_count(hazards)`` slots.
    """

    def __init__(self, segment: Segment, size: int, hazards: int, number: int) -> None:
        slots = slot_count(hazards)
        self._memory = PublishedMemory(segment, size, slots, hazards)
        self._reader = PublishedReader(segment, size, slots, hazards)
        self._number = number
        self._written: int | None = None

    def protect(self, version: Version) -> Tensor | None:
        """Protect ``version``, and nothing else from now on; None when it is not there, or not any more.

        Returns its slot, which is not to be written to. Raises Displaced like ``check``.
        """
        self.check()
        memory, stamp = self._memory, stamp_of(version)
        slot = memory.slot_of(stamp)
        if slot is None:
            return None
        # What was protected until now has been read by now.
        fence()
        self._written = memory.hazards[self._number] = 1 + slot
        fence()
        return memory.slots[slot] if memory.stamps[slot] == stamp else None

    def newest(self, at_least: Version, patience_s: float) -> tuple[Version, Tensor]:
        """Protect the newest version; raises NotPublished as ``take_newest`` does, and Displaced."""
        found: list[Tensor] = []

        def protected(version: Version) -> bool:
            slot = self.protect(version)
            found.extend(() if slot is None else (slot,))
            return slot is not None

        version = take_newest([self._reader], protected, at_least, patience_s)
        return version, found[-1]

    def check(self) -> None:
        """Raise Displaced when what is computed on may have been overwritten, as the hazard was."""
        if self._written is not None and self._memory.hazards[self._number] != self._written:
            raise Displaced("another process has taken this one's place")
