"""What the shards are to do, in order: decisions are queued, obeyed by all shards, and followed up.

Here too a lost shard is made good: its second copy goes on, or all go back to the newest snapshot.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from dist_train.rules.decisions import Action, Milestone, Step, Take
from dist_train.rules.messages import Push, Version
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
from dist_train.runtime.fleet import Fleet, ShardLost
from dist_train.runtime.holdings import Kept
from dist_train.runtime.letters import Copy, Sources, Want
from dist_train.runtime.memories import Memories
from dist_train.runtime.ray_cluster import node_id
from dist_train.runtime.remote import ActorGone
from dist_train.runtime.server_run import ServerRun

React = Callable[[list[Action]], None]
Ask = Callable[[Want], None]


@dataclass
class Entry:
    """Commands that belong together, and what follows when all shards have obeyed them."""

    commands: list[Command] = field(default_factory=list)
    takes: list[Push] = field(default_factory=list)
    step: Step | None = None
    milestone: Milestone | None = None
    # The counts that belong to the state after this entry, which is then to be kept.
    kept: Kept | None = None
    # It is to be kept only if there still are new copies of shards to begin from it.
    for_newcomers: bool = False
    # What the shards had published when they had obeyed, unless this entry was given up.
    published: Version | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def belongs_to_a_timeline(self) -> bool:
        return self.kept is not None or not all(isinstance(each, Attach) for each in self.commands)


class Pump:
    """``react`` obeys what the referee decides on a report, ``ask`` has the conductor start a process."""

    def __init__(self, run: ServerRun, memories: Memories, react: React, ask: Ask) -> None:
        self._run = run
        self._memories = memories
        self._react = react
        self._ask = ask
        server = run.config.parallel.server
        self._fleet = Fleet(server.shards, server.direct)
        self._entry = Entry()
        self._queue: deque[Entry] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._arrived = asyncio.Event()
        self._newcomers: list[Copy] = []
        self._known: set[int] = set()
        # The members for which shards keep a version.
        self._borrowers: set[int] = set()
        # Counted here: an era that only some shards have begun is never used again.
        self._era = 0
        self._begun = False
        self.sources: Sources | None = None

    async def connect(self, copies: list[Copy]) -> None:
        """Take the shards into service; one that ends meanwhile is waited for until it has a successor."""
        area, kept = self._run.begin()
        load = Load(area, 0, kept.start.updates, kept.scalars)
        self._newcomers = list(copies)
        while not self._begun:
            newcomers, self._newcomers = self._newcomers, []
            begun = await asyncio.gather(*(self._fleet.bring_up(copy, [load]) for copy in newcomers))
            with suppress(ShardLost):
                # An empty batch is a roll call.
                await self._fleet.obey([])
            gone = [copy for copy, has_begun in zip(newcomers, begun, strict=True) if not has_begun]
            for copy in (*gone, *self._fleet.gone):
                self._want(copy)
            self._fleet.gone.clear()
            while not (self._fleet.is_whole or self._newcomers):
                self._arrived.clear()
                await self._arrived.wait()
            self._begun = self._fleet.is_whole and await self._find_sources()

    # -- what is to be done ----------------------------------------------------------------------------

    def take(self, take: Take) -> None:
        """Queue the use of a gradient."""
        if self._entry.step is not None:
            self.close_entry()
        push = take.push
        who = push.member, push.incarnation
        command = TakeGradient(*who, push.buffer, take.weight, take.scale, take.alone)
        self._entry.commands.append(command)
        self._entry.takes.append(push)

    def step(self, step: Step) -> None:
        """Queue an update.

        The last of all is kept with it, since no member comes back after it. So is one after which new copies
        of shards begin: its state is written for them anyway, over an older one.
        """
        if self._entry.step is not None:
            self.close_entry()
        self._entry.commands.append(Apply(step.version.number, step.made_with))
        self._entry.step = step
        referee = self._run.referee
        if (referee.finished or self._newcomers) and step.version == referee.admission.version:
            self._entry.kept = self._run.mark_now()
            self._entry.for_newcomers = not referee.finished

    def milestone(self, milestone: Milestone) -> None:
        """Queue what is due after the update queued last."""
        entry = self._entry
        entry.milestone = milestone
        if milestone.hold:
            entry.commands.append(Hold())
        if milestone.save or milestone.snapshot:
            entry.kept, entry.for_newcomers = self._run.mark(milestone), False

    def close_entry(self) -> None:
        """Let what was queued belong together."""
        if self._entry.commands or self._entry.kept:
            self._put(self._entry)
            self._entry = Entry()

    async def attach(self, attach: Attach) -> None:
        """Have all shards open a member's memory; returns when they have."""
        entry = Entry([attach])
        self._put(entry)
        await entry.over.wait()

    async def lend(self, member: int) -> Version | None:
        """Have all shards keep one version for a member far away; None when it must ask again."""
        self._borrowers.add(member)
        entry = Entry([Lend(member)])
        self._put(entry)
        await entry.over.wait()
        return entry.published

    def take_back(self, member: int) -> None:
        """Queue the end of what a member was lent, if it was: it has fetched it, or is gone."""
        if member in self._borrowers:
            self._borrowers.remove(member)
            self._entry.commands.append(TakeBack(member))

    async def keep_now(self) -> None:
        """Keep the state as it is; returns when there is a state that is kept."""
        entry = Entry(kept=self._run.mark_now())
        self._put(entry)
        await entry.over.wait()

    async def rest(self) -> None:
        """Wait until all that was queued is done."""
        await self._idle.wait()

    def call_the_roll(self) -> None:
        """Look whether all shards are there, when somebody cannot read from one."""
        if self._idle.is_set():
            self._put(Entry())

    def admit(self, copy: Copy) -> None:
        """Take a successor into service: at once if all wait for it, else after the next update decided on.

        A second copy begins from a snapshot made between two updates, where none is half taken.
        """
        if copy.serial in self._known:
            return
        self._known.add(copy.serial)
        if self._begun and self._fleet.lacks(copy.shard):
            self._fleet.admit(copy)
        else:
            self._newcomers.append(copy)
        self._arrived.set()

    def stop_waiting(self) -> None:
        """Wait for no lost shard any longer: the run is to be interrupted."""
        self._arrived.set()

    def _put(self, entry: Entry) -> None:
        self._queue.append(entry)
        self._idle.clear()
        self._wake.set()

    # -- doing it --------------------------------------------------------------------------------------

    async def work(self) -> None:
        """Have the shards obey, entry after entry, for ever."""
        while True:
            while not self._queue:
                self._idle.set()
                self._wake.clear()
                await self._wake.wait()
            entry = self._queue.popleft()
            # A run that stops while a shard is missing ends with the newest snapshot.
            if self._fleet.is_whole:
                try:
                    await self._obey(entry)
                except ShardLost as loss:
                    await self._recover(loss)
            entry.over.set()

    async def _obey(self, entry: Entry) -> None:
        holdings, commands = self._run.holdings, list(entry.commands)
        kept = entry.kept if self._newcomers or not entry.for_newcomers else None
        area: int | None = None
        if kept is not None:
            if not holdings.has_room:
                await self._run.saved()
            area = holdings.next_area()
            commands.append(Snapshot(area))
        done = await self._fleet.obey(commands)
        for push in self._settled(entry):
            self._memories.settled(push)
        if area is not None and kept is not None:
            inner = await asyncio.to_thread(self._memories.deposits.copies)
            holdings.keep(area, replace(kept, scalars=done[0].scalars, inner=inner))
        if self._fleet.gone:
            await self._mourn()
        if area is not None and self._newcomers and entry.step is not None:
            await self._bring_up(entry, Load(area, 0, 0, done[0].scalars))
        await self._follow_up(entry, done, area)

    def _settled(self, entry: Entry) -> list[Push]:
        """Return the gradients that are in for good: of an update or, where no member waits for it, taken."""
        if not (entry.takes or entry.step):
            return []
        if not self._run.referee.terms.rule.read_own:
            return entry.takes
        return [] if entry.step is None else [each.push for each in entry.step.contributions]

    async def _follow_up(self, entry: Entry, done: list[Done], area: int | None) -> None:
        run, milestone = self._run, entry.milestone
        for push in entry.takes:
            self._react(run.referee.taken(push))
        if milestone is not None and milestone.hold:
            run.hold(milestone)
            self._react(run.referee.held(milestone.version.number))
        if entry.step is not None:
            run.applied(entry.step, [each.checksum for each in done])
            self._react(run.referee.applied(entry.step.version))
            self._react(run.reconsider_backups())
        if run.referee_or_none is not None:
            entry.published = run.referee.published
        if milestone is not None and milestone.log:
            run.log(milestone)
        if milestone is not None and milestone.save and area is not None and not run.referee.finished:
            await run.start_saving(area)

    # -- shards that come and go -----------------------------------------------------------------------

    async def _bring_up(self, entry: Entry, load: Load) -> None:
        """Let new copies begin where the others are: right after an update."""
        assert entry.step is not None
        era, number = entry.step.version
        newcomers, self._newcomers = self._newcomers, []
        for copy in newcomers:
            begin: list[Command] = [*self._memories.attachments(), replace(load, era=era, number=number)]
            if await self._fleet.bring_up(copy, begin):
                self._run.event({"event": "shard_copy_added", "shard": copy.shard, "step": number})
            else:
                self._want(copy)
        await self._find_sources()

    async def _mourn(self) -> None:
        """Ask for successors of copies that are gone, and let readers turn to those that are left."""
        for copy in self._fleet.gone:
            self._run.event(
                {
                    "event": "shard_copy_lost",
                    "shard": copy.shard,
                    "step": self._step,
                    "lost_updates": 0,
                    "warning": f"a copy of shard {copy.shard} is gone; the other goes on and nothing is lost",
                }
            )
            self._want(copy)
        self._fleet.gone.clear()
        await self._find_sources()

    async def _recover(self, loss: ShardLost) -> None:
        """Have all shards go back to the newest snapshot, once those that are lost have successors."""
        run = self._run
        if run.referee_or_none is None:
            # Nobody has begun: what the shards hold is what all began from.
            while not (self._stopped or await self._go_back()):
                pass
            return
        gone_back = False
        while not (self._stopped or gone_back):
            self._era += 1
            gone_back = await self._go_back()
        if not gone_back:
            self._era += 1
        newest = run.holdings.newest()
        assert newest is not None
        _, kept = newest
        self._give_up_queue()
        self._memories.deposits.go_back(kept.inner)
        run.rolled_back(loss.number, kept, self._era)
        self._react(run.referee.roll_back(kept.start, self._era))

    def _give_up_queue(self) -> None:
        """Forget what was decided on the lost timeline, until this very moment; members still come."""
        # Shards that have gone back lend nothing.
        self._borrowers.clear()
        queued = [*self._queue]
        self._queue.clear()
        for entry in queued:
            if entry.belongs_to_a_timeline:
                entry.over.set()
            else:
                self._queue.append(entry)

    async def _go_back(self) -> bool:
        """Wait for the successors, then load the snapshot; False if that has to be begun again."""
        run = self._run
        for copy in self._fleet.gone:
            self._want(copy)
        self._fleet.gone.clear()
        while not (self._fleet.is_whole or self._stopped):
            self._arrived.clear()
            await self._arrived.wait()
        if not self._fleet.is_whole:
            return False
        newest = run.holdings.newest()
        assert newest is not None
        area, kept = newest
        load = Load(area, self._era, kept.start.updates, kept.scalars)
        try:
            await self._fleet.obey([*self._memories.attachments(), load])
        except ShardLost:
            return False
        await self._find_sources()
        return True

    @property
    def _stopped(self) -> bool:
        referee = self._run.referee_or_none
        return referee is not None and referee.stopped

    @property
    def _step(self) -> int:
        """The newest update decided on."""
        if self._run.referee_or_none is not None:
            return self._run.referee.admission.version.number
        newest = self._run.holdings.newest()
        assert newest is not None
        return newest[1].start.updates

    def _want(self, copy: Copy) -> None:
        self._ask(Want("shard", copy.shard, copy.serial, "its process is gone"))

    async def _find_sources(self) -> bool:
        """Note where the parameters are to be read; False if a shard is gone, as the next entry will find."""
        first = [row[0] for row in self._fleet.copies]
        with suppress(ActorGone):
            places = [await copy.actor.insist("where") for copy in first]
            self.sources = Sources(
                edition=0 if self.sources is None else self.sources.edition + 1,
                node=node_id(),
                parts=self._run.parts,
                memory=tuple(address for address, _ in places),
                actors=tuple(copy.actor for copy in first),
                held=self._run.holdings.held_memory.address,
                hazards=self._run.hazards,
            )
            return True
        return False
