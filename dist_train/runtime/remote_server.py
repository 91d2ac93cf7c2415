"""A member's way to its parameter server in a real run: words to the coordinator, numbers through memory.

On the server's own node the numbers go through shared memory; from another node, through the object store.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dist_train.exchange.areas import held
from dist_train.exchange.hazards import Protector
from dist_train.exchange.published import NotPublished, PublishedReader, read_all
from dist_train.exchange.segments import Segment, SegmentGone
from dist_train.exchange.server import MemberMemory, Sizes, Welcome
from dist_train.exchange.slots import slot_count
from dist_train.rules.messages import Measured, Push, Reply, Version
from dist_train.runtime.letters import Hello, Sources
from dist_train.runtime.line import Line, LineBroken
from dist_train.runtime.memories import Parcel
from dist_train.runtime.ray_cluster import RETRY_S, Actor, node_id, put, this_process
from dist_train.runtime.remote import ActorGone, Unreachable

# How long a reader waits for a version before it asks whether a shard was replaced.
LOOK_S = 0.2
# How often the shards may overtake one who fetches from them, before they are asked to keep a version for it.
OVERTAKEN = 3
# What a read may meet while a shard is being replaced.
_TRANSIENT = (NotPublished, SegmentGone, ActorGone, Unreachable)


class RemoteServer:
    """``phase`` is told when the member waits."""

    def __init__(
        self,
        coordinator: Actor,
        member: int,
        incarnation: int,
        memory: MemberMemory,
        phase: Callable[[str, int], None],
        timeout_s: float,
    ) -> None:
        self.memory = memory
        self._coordinator = coordinator
        self._member = member
        self._incarnation = incarnation
        self._phase = phase
        self._timeout_s = timeout_s
        self._version = Version(0, 0)
        self._node = node_id()
        self._sources: Sources | None = None
        self._protector: Protector | None = None
        self._find_sources()
        self._line = self._line_if_near()

    def enlist(self, sizes: Sizes) -> Welcome:
        hello = Hello(
            member=self._member,
            incarnation=self._incarnation,
            process=this_process(),
            train_size=sizes.train,
            validation_size=sizes.validation,
            parameters=sizes.parameters,
            memory=self.memory.segment.address if self._is_near else None,
            threads=torch.get_num_threads(),
        )
        welcome: Welcome = self._coordinator.keep_asking("enlist", hello)
        if welcome.scalars is not None and not self._is_near:
            left = self._coordinator.keep_asking("handed_over", self._member, self._incarnation)
            for target, row in zip(self.memory.deposits[0], left, strict=True):
                target.copy_(_tensor(row.fetch(self._timeout_s)))
        return welcome

    def join(self, ahead: int) -> Reply:
        return self._speak("join", self._member, self._incarnation, ahead)

    def push(self, push: Push) -> Reply:
        if not self._is_near:
            return self._speak("push", push, self._parcel(push))
        if self._protector is not None:
            self._protector.check()
        if self._line is not None:
            try:
                self._phase("waiting", self._version.number + 1)
                return self._heard(self._line.ask("push", push))
            except LineBroken:
                self._line.close()
                self._line = None
        # Ray knows whether the coordinator is gone.
        return self._speak("push", push)

    def measured(self, measured: Measured) -> Reply:
        return self._speak("measured", measured)

    @property
    def reads_in_place(self) -> bool:
        return self._protector is not None

    def read(self, at_least: Version, into: Tensor) -> Version:
        return self._persist(lambda: (self._read(at_least, into), into))[0]

    def read_in_place(self, at_least: Version) -> tuple[Version, Tensor]:
        def protected() -> tuple[Version, Tensor]:
            assert self._protector is not None
            return self._protector.newest(at_least, LOOK_S)

        return self._persist(protected)

    def _persist(self, read: Callable[[], tuple[Version, Tensor]]) -> tuple[Version, Tensor]:
        """Read, until all shards are there that it takes."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                self._version, vector = read()
                break
            except _TRANSIENT as error:
                if time.monotonic() > deadline:
                    limit = f"{self._timeout_s:g} s (parallel.timeout_s)"
                    raise NotPublished(f"no parameters could be read for {limit}: {error}") from error
                # A shard's successor may be on its way, which takes as long as it takes.
                self._phase("waiting", self._version.number + 1)
                self._find_sources(unusable=self._now.edition)
        self._phase("update", self._version.number + 1)
        return self._version, vector

    def read_exactly(self, version: Version, into: Tensor) -> bool:
        parts = [into[part.start : part.stop] for part in self._now.parts]
        with suppress(*_TRANSIENT):
            if not self._is_near:
                return self._fetch_all(version, parts)
            if all(reader.read(version, part) for reader, part in zip(self._readers, parts, strict=True)):
                return True
            # It may be the memory of a shard that another has taken the place of.
            self._find_sources()
            return False
        self._find_sources(unusable=self._now.edition)
        return False

    def read_held(self, parameters: Tensor, statistics: Tensor) -> None:
        if self._is_near:
            parameters.copy_(self._held[0])
            statistics.copy_(self._held[1])
            return
        there, values = self._coordinator.keep_asking("held")
        parameters.copy_(_tensor(there.fetch(self._timeout_s)))
        statistics.copy_(_tensor(values))

    @property
    def _now(self) -> Sources:
        assert self._sources is not None
        return self._sources

    @property
    def _is_near(self) -> bool:
        return self._now.node == self._node

    def _read(self, at_least: Version, into: Tensor) -> Version:
        parts = [into[part.start : part.stop] for part in self._now.parts]
        if self._is_near:
            return read_all(self._readers, parts, at_least, LOOK_S)
        return self._read_from_afar(parts, at_least)

    def _read_from_afar(self, parts: list[Tensor], at_least: Version) -> Version:
        deadline, last, overtaken = time.monotonic() + LOOK_S, None, 0
        while time.monotonic() < deadline:
            version = self._fetch(0, None, parts[0])
            if version != last:
                # The shards are at work; to fetch a large part may take longer than that.
                deadline, last = time.monotonic() + LOOK_S, version
            if version is None or version < at_least:
                time.sleep(RETRY_S)
            elif self._fetch_all(version, parts, first=1):
                return version
            elif (overtaken := overtaken + 1) >= OVERTAKEN:
                lent: Version | None = self._coordinator.keep_asking("lend", self._member)
                if lent is not None and lent >= at_least and self._fetch_all(lent, parts):
                    return lent
        raise NotPublished(f"version {at_least.number} (era {at_least.era}) has not come")

    def _fetch_all(self, version: Version, parts: list[Tensor], first: int = 0) -> bool:
        """Fetch a version from the shards number ``first`` and up; False when one has it no more."""
        return all(
            self._fetch(shard, version, parts[shard]) is not None for shard in range(first, len(parts))
        )

    def _fetch(self, shard: int, version: Version | None, into: Tensor) -> Version | None:
        found = self._now.actors[shard].ask("read", version, timeout_s=self._timeout_s)
        if found is None:
            return None
        into.copy_(_tensor(found[1]))
        return Version(*found[0])

    def _parcel(self, push: Push) -> Parcel:
        """Put what goes with a push into the object store, from where the coordinator fetches it."""
        memory = self.memory
        base = None if memory.parameters is None else put(memory.parameters.numpy())
        rows = [] if push.deposit is None else memory.deposits[push.deposit]
        return Parcel(
            put(memory.gradients[push.buffer].numpy()),
            base,
            memory.statistics.numpy().copy(),
            tuple(put(row.numpy()) for row in rows),
        )

    def _find_sources(self, unusable: int | None = None) -> None:
        """Ask where the parameters are to be read, and open what is near; ``unusable`` was not to be read."""
        while True:
            sources: Sources | None = self._coordinator.keep_asking("sources", unusable)
            with suppress(*_TRANSIENT):
                if sources is not None:
                    if self._sources is None or sources.edition != self._sources.edition:
                        self._open(sources)
                    return
            unusable = None if sources is None else sources.edition
            time.sleep(LOOK_S)

    def _open(self, sources: Sources) -> None:
        if sources.node == self._node:
            segments, hazards = [Segment.open(address) for address in sources.memory], len(sources.hazards)
            self._readers = [
                PublishedReader(segment, len(part), slot_count(hazards), hazards)
                for segment, part in zip(segments, sources.parts, strict=True)
            ]
            size = sources.parts[-1].stop
            # A member whose bundle has come here from another node has none, and copies.
            if self._member in sources.hazards:
                (segment,) = segments
                self._protector = Protector(segment, size, hazards, sources.hazards.index(self._member))
            self._held = held(Segment.open(sources.held), size, self.memory.statistics.numel())
        self._sources = sources

    def _line_if_near(self) -> Line | None:
        """Open a line to the coordinator; None where there can be none."""
        address = self._coordinator.keep_asking("line") if self._is_near else None
        with suppress(LineBroken):
            return None if address is None else Line(address)
        return None

    def _speak(self, verb: str, *arguments: Any) -> Reply:
        self._phase("waiting", self._version.number + 1)
        # The coordinator knows a message that it has had before.
        return self._heard(self._coordinator.keep_asking(verb, *arguments))

    def _heard(self, reply: Reply) -> Reply:
        self._phase("update", reply.version.number + 1)
        return reply


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array))
