"""The process around one shard: it obeys the coordinator's commands, in their order, each once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dist_train.config.schema import AnyDamping, AnyOptimizer
from dist_train.core.damping import delay_compensation
from dist_train.core.flat import FlatState, Layout
from dist_train.core.shard import Shard, ShardState
from dist_train.errors import ConfigError
from dist_train.exchange.areas import Area, Vectors, areas, checksum, held
from dist_train.exchange.published import PublishedReader, PublishedWriter
from dist_train.exchange.segments import Address, Segment
from dist_train.exchange.server import MemberMemory
from dist_train.exchange.slots import published_bytes, slot_count
from dist_train.rules.messages import Version
from dist_train.runtime import children
from dist_train.runtime import run_dir as directories
from dist_train.runtime.commands import (
    Apply,
    Attach,
    Command,
    Done,
    Hold,
    Lend,
    Load,
    Snapshot,
    TakeBack,
    TakeGradient,
)
from dist_train.runtime.heart import Heart, leave_interrupts_to_the_conductor, redirect_output
from dist_train.runtime.line import Listener, listen
from dist_train.runtime.ray_cluster import Actor, this_process
from dist_train.runtime.remote import Process


@dataclass(frozen=True)
class Blueprint:
    """All that a shard is made from."""

    number: int
    layout: dict[str, Any]
    part: range
    settings: AnyOptimizer
    damping: AnyDamping
    vectors: Vectors
    area_count: int
    areas: Address
    held: Address
    statistics: int
    checks: bool
    threads: int
    # The members that may compute on what it publishes.
    hazards: int = 0


class ShardProcess:
    """The actor. Holds a slice; its memory can be read by every process of this node."""

    def __init__(self, number: int, serial: int, coordinator: Actor, run_dir: Path, word: str) -> None:
        # On the coordinator's machine, which says so as well.
        if (refusal := directories.another_than(word, run_dir)) is not None:
            raise ConfigError(refusal)
        redirect_output(directories.shard_log(run_dir, number))
        children.dump_stacks_on_request()
        leave_interrupts_to_the_conductor()
        self._number = number
        self._coordinator = coordinator
        self._heart = Heart(coordinator, "shard", serial, 0)
        self._last = Done(0, {})
        self._members: dict[tuple[int, int], MemberMemory] = {}
        # By member, a version that stays until it is taken back.
        self._lent: dict[int, tuple[Version, Tensor]] = {}
        self._built: asyncio.Future[None] | None = None
        self._listener: Listener | None = None

    async def build(self) -> None:
        """Make the shard as the coordinator describes it; once, however often it is asked for."""
        if self._built is None:
            self._built = asyncio.ensure_future(self._build())
        await asyncio.shield(self._built)

    async def _build(self) -> None:
        blueprint: Blueprint = await self._coordinator.insist("blueprint", self._number)
        torch.set_num_threads(blueprint.threads)
        self._blueprint = blueprint
        self._layout = Layout.from_json(blueprint.layout)
        self._part = slice(blueprint.part.start, blueprint.part.stop)
        size = len(blueprint.part)
        shape = slot_count(blueprint.hazards), blueprint.hazards
        self._published = Segment.create(published_bytes(size, *shape))
        self._writer = PublishedWriter(self._published, size, *shape)
        self._reader = PublishedReader(self._published, size, *shape)
        damping = delay_compensation(blueprint.damping)
        self._shard = Shard(self._layout, blueprint.part, blueprint.settings, self._writer, damping)
        self._areas = areas(Segment.open(blueprint.areas), blueprint.vectors, blueprint.area_count)
        self._held, _ = held(Segment.open(blueprint.held), blueprint.vectors.size, blueprint.statistics)
        self._heart.phase("waiting", 0)

    async def line(self) -> str:
        """Return the address of the line by which commands may come."""
        if self._listener is None:
            self._listener = await listen({"obey": self.obey})
        return self._listener.address

    def where(self) -> tuple[Address, Process]:
        """Return where the published versions are, and which process this is."""
        return self._published.address, this_process()

    def obey(self, index: int, commands: Sequence[Command]) -> Done:
        """Obey batch ``index``; a batch that comes twice is answered from memory."""
        if index == self._last.index:
            return self._last
        if index < self._last.index:
            raise RuntimeError(f"batch {index} of commands came after batch {self._last.index}")
        self._heart.phase("update", index)
        check = None
        for command in commands:
            check = self._one(command, check)
        self._heart.phase("waiting", index)
        self._last = Done(index, dict(self._shard.state().optimizer.scalars), check)
        return self._last

    def read(self, version: Version | None) -> tuple[Version, Any] | None:
        """Return a version, or the newest, as an array for another node; None when it is gone."""
        wanted = version or self._reader.newest()
        for lent, values in self._lent.values():
            if lent == wanted:
                return lent, values.numpy()
        into = torch.empty(len(self._blueprint.part))
        if wanted is None or not self._reader.read(wanted, into):
            return None
        return wanted, into.numpy()

    def _one(self, command: Command, check: int | None) -> int | None:
        match command:
            case Attach():
                sizes = self._layout.size, command.statistics
                base = self._blueprint.damping.kind == "delay_compensated"
                memory = MemberMemory(Segment.open(command.memory), *sizes, base=base)
                self._members[command.member, command.incarnation] = memory
            case TakeGradient():
                self._take(command)
            case Apply():
                self._shard.step(command.number, command.made_with)
                if self._blueprint.checks:
                    return checksum([self._writer.current()])
            case Hold():
                self._held[self._part].copy_(self._writer.current())
            case Lend():
                newest = self._reader.newest()
                assert newest is not None
                self._lent[command.member] = newest, self._writer.current().clone()
            case TakeBack():
                self._lent.pop(command.member, None)
            case Snapshot():
                self._shard.export(self._state(self._areas[command.area], {}))
            case Load():
                self._load(command)
        return check

    def _take(self, command: TakeGradient) -> None:
        who = command.member, command.incarnation
        memory = self._members[who]
        # Gradients of one member come in order: its earlier processes have no more to give.
        self._members = {
            each: held for each, held in self._members.items() if each[0] != who[0] or each >= who
        }
        gradient = memory.gradients[command.buffer][self._part]
        base = None if memory.parameters is None else memory.parameters[self._part]
        self._shard.take(
            command.member, gradient, command.weight, base, borrow=command.alone, scale=command.scale
        )

    def _load(self, command: Load) -> None:
        if command.era > self._writer.era:
            self._writer.begin_era(command.era)
            self._lent.clear()
        self._shard.load(command.number, self._state(self._areas[command.area], command.scalars))

    def _state(self, area: Area, scalars: dict[str, float]) -> ShardState:
        def mine(vector: Tensor) -> Tensor:
            return vector[self._part]

        optimizer = FlatState({key: mine(vector) for key, vector in area.optimizer.items()}, scalars)
        squares = {member: mine(vector) for member, vector in area.mean_squares.items()}
        return ShardState(mine(area.parameters), optimizer, squares)
