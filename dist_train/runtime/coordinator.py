"""The coordinator of a parameter server: messages in, the referee's decisions out. One event loop, no waiting.

The referee (rules/referee.py) decides; the shards (fleet.py) compute; what is held and saved is in holdings.py,
what is written down in server_run.py.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from dist_train.errors import DONE, FAILED, INTERRUPTED, REFUSED, ConfigError, Mismatch, TrainingError
from dist_train.exchange.segments import Segment
from dist_train.exchange.server import MemberMemory, Welcome
from dist_train.rules.decisions import (
    Action,
    Answer,
    Fail,
    Milestone,
    Replace,
    Returned,
    Step,
    Take,
    Validated,
)
from dist_train.rules.messages import Measured, Push, Reply
from dist_train.runtime.commands import Apply, Attach, Command, Done, Hold, Load, Snapshot, TakeGradient
from dist_train.runtime.fleet import Fleet, ShardLost
from dist_train.runtime.holdings import Kept
from dist_train.runtime.letters import Copy, Hello, News, Order, Pulse, Sources, Want
from dist_train.runtime.ray_cluster import node_id
from dist_train.runtime.server_run import ServerRun
from dist_train.runtime.shard_process import Blueprint

log = logging.getLogger(__name__)

Key = tuple[int, int, int]
NEWS_EVERY_S = 0.2


@dataclass
class Entry:
    """Commands that belong together, and what follows when all shards have obeyed them."""

    commands: list[Command] = field(default_factory=list)
    takes: list[Push] = field(default_factory=list)
    step: Step | None = None
    milestone: Milestone | None = None
    area: int | None = None
    kept: Kept | None = None
    newcomers: list[Copy] = field(default_factory=list)


class Coordinator:
    """The actor. ``prepare``, then ``connect`` the shards; members come by ``enlist`` and ``join``."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._run = ServerRun(order)
        self._fleet = Fleet(order.config.parallel.server.shards)
        self._node = node_id()
        self._answers: dict[Key, asyncio.Future[Reply]] = {}
        self._pushes: dict[Key, tuple[Push, Any]] = {}
        self._entry = Entry()
        self._queue: deque[Entry] = deque()
        self._wake = asyncio.Event()
        self._news_ready = asyncio.Event()
        self._wants: list[Want] = []
        self._ended: tuple[int, str | None] | None = None
        self._ending = False
        self._busy = False
        self._opened = False
        self._missing: set[int] = set()
        self._hellos: dict[int, Hello] = {}
        self._memories: dict[int, MemberMemory | None] = {}
        self._pulses: dict[tuple[str, int], tuple[Pulse, float]] = {}
        self._sources: Sources | None = None
        self._blueprints: list[Blueprint] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._newcomers: list[Copy] = []
        self._whole = asyncio.Event()

    # -- the beginning ---------------------------------------------------------------------------------

    def prepare(self) -> int:
        """Restore the state and lay out the memory; return how many shards there are."""
        self._blueprints = self._run.prepare()
        return len(self._blueprints)

    def blueprint(self, number: int) -> Blueprint:
        """Describe a shard to its process."""
        return self._blueprints[number]

    async def connect(self, copies: list[Copy]) -> None:
        """Take the shards into service, and begin to obey."""
        for copy in copies:
            self._fleet.copies[copy.shard].append(copy)
        area, kept = self._run.begin()
        await self._fleet.obey([Load(area, 0, kept.start.updates, kept.scalars)])
        await self._find_sources()
        self._spawn(self._pump())

    async def enlist(self, hello: Hello) -> Welcome:
        """Get to know a member's process, and have the shards open its memory."""
        self._run.meet(hello)
        memory = None
        if hello.memory is not None:
            holdings = self._run.holdings
            size = holdings.server.layout.size
            memory = MemberMemory(Segment.open(hello.memory), size, holdings.server.statistics_size)
        self._memories[hello.member] = memory
        self._hellos[hello.member] = hello
        attach = Attach(
            hello.member, hello.incarnation, hello.memory, self._run.holdings.server.statistics_size
        )
        await self._in_order([attach])
        return self._run.welcome(hello.member)

    async def join(self, member: int, incarnation: int, ahead: int) -> Reply:
        """Take a member's process into the run; answered when there is something to do for it."""
        answer, new = self._expect((member, incarnation, 0))
        if new:
            self._do(self._run.referee.join(member, incarnation, ahead))
            self._open_when_all_are_there()
        return await answer

    def _open_when_all_are_there(self) -> None:
        referee = self._run.referee
        wanted = self._run.members - len(self._missing)
        if not self._opened and len(referee.admission.live) >= wanted > 0:
            self.open()

    def open_without(self, missing: list[int]) -> None:
        """Begin without some members, who will never come, if all others are there."""
        self._missing = set(missing)
        self._open_when_all_are_there()

    def open(self) -> None:
        """Begin training with the members that are there."""
        if not self._opened:
            self._opened = True
            self._do(self._run.referee.open())

    # -- gradients and validations ---------------------------------------------------------------------

    async def push(self, push: Push, parcel: Any = None) -> Reply:
        """Judge a gradient; answered when its member may go on. A push that comes twice gets one answer."""
        key = (push.member, push.incarnation, push.sequence)
        answer, new = self._expect(key)
        if new:
            self._pushes[key] = (push, parcel)
            self._take_statistics(push, parcel)
            self._run.pushed(push)
            self._do(self._run.referee.push(push))
        return await answer

    async def measured(self, measured: Measured) -> Reply:
        """Take a part of a validation; answered like a push."""
        answer, new = self._expect((measured.member, measured.incarnation, measured.sequence))
        if new:
            self._do(self._run.referee.measured(measured))
        return await answer

    def _expect(self, key: Key) -> tuple[asyncio.Future[Reply], bool]:
        """Return the answer to a message, and whether it comes for the first time."""
        if key in self._answers:
            return self._answers[key], False
        for old in [each for each in self._answers if each[0] == key[0] and each < key]:
            # Whoever sends the next message has had the answer to the one before.
            if self._answers[old].done():
                del self._answers[old]
        self._answers[key] = asyncio.get_running_loop().create_future()
        return self._answers[key], True

    def _take_statistics(self, push: Push, parcel: Any) -> None:
        memory = self._memories.get(push.member)
        hello = self._hellos.get(push.member)
        if hello is None or hello.incarnation != push.incarnation:
            return
        target = self._run.holdings.server.statistics[push.member]
        if memory is not None:
            target.copy_(memory.statistics)
        elif parcel is not None:
            target.copy_(parcel[-1])

    # -- decisions -------------------------------------------------------------------------------------

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Take():
                    self._add_take(action)
                case Step():
                    self._add_step(action)
                case Milestone():
                    self._add_milestone(action)
                case Answer():
                    self._answer(action)
                case Returned():
                    self._returned(action)
                case Validated():
                    self._run.validated(action)
                case Replace():
                    self._want(Want("member", action.member, action.incarnation, action.why))
                case Fail():
                    self._fail(TrainingError(action.why))
        self._close_entry()
        self._end_if_over()

    def _returned(self, lease: Returned) -> None:
        pushes = [push for push, _ in self._pushes.values() if push.member == lease.member]
        judged = lease.outcome in ("dropped", "refused") and bool(pushes)
        self._run.records.returned(lease, max(pushes, key=lambda push: push.sequence) if judged else None)

    def _add_take(self, take: Take) -> None:
        if self._entry.step is not None:
            self._close_entry()
        push = take.push
        _, parcel = self._pushes.pop((push.member, push.incarnation, push.sequence), (push, None))
        parts = None if parcel is None else parcel[:-1]
        command = TakeGradient(push.member, push.incarnation, push.buffer, take.weight, take.alone, parts)
        self._entry.commands.append(command)
        self._entry.takes.append(push)

    def _add_step(self, step: Step) -> None:
        if self._entry.step is not None:
            self._close_entry()
        self._run.records.decided(step)
        self._entry.commands.append(Apply(step.version.number, step.rate, step.momentum))
        self._entry.step = step
        if self._newcomers:
            self._entry.newcomers, self._newcomers = self._newcomers, []
            self._snapshot()

    def _add_milestone(self, milestone: Milestone) -> None:
        entry = self._entry
        entry.milestone = milestone
        entry.kept = self._run.mark(milestone)
        if milestone.hold:
            entry.commands.append(Hold())
        if milestone.save or milestone.snapshot:
            self._snapshot()

    def _snapshot(self) -> None:
        if self._entry.area is None:
            self._entry.area = self._run.holdings.next_area()
            self._entry.commands.append(Snapshot(self._entry.area))

    def _close_entry(self) -> None:
        if self._entry.commands:
            self._queue.append(self._entry)
            self._entry = Entry()
            self._wake.set()

    def _answer(self, answer: Answer) -> None:
        self._run.records.answered(answer)
        future = self._answers.get((answer.member, answer.incarnation, answer.sequence))
        if future is not None and not future.done():
            future.set_result(answer.reply)

    # -- the shards ------------------------------------------------------------------------------------

    async def _pump(self) -> None:
        """Have the shards obey, entry after entry, and tell the referee what is done."""
        while True:
            while not self._queue:
                self._wake.clear()
                await self._wake.wait()
            entry, self._busy = self._queue.popleft(), True
            try:
                done = await self._fleet.obey(entry.commands)
            except ShardLost as loss:
                await self._recover(loss)
            else:
                self._mourn()
                await self._follow_up(entry, done)
            self._busy = False

    async def _follow_up(self, entry: Entry, done: list[Done]) -> None:
        referee = self._run.referee
        if entry.area is not None and entry.kept is not None:
            self._run.holdings.keep(entry.area, replace(entry.kept, scalars=done[0].scalars))
        if entry.newcomers:
            await self._bring_up(entry, done[0].scalars)
        if entry.step is None:
            for push in entry.takes:
                self._do(referee.taken(push))
        milestone = entry.milestone
        if milestone is not None and milestone.hold:
            self._run.hold(milestone)
            self._do(referee.held(milestone.version.number))
        if entry.step is not None:
            self._run.applied(entry.step, [each.checksum for each in done])
            self._do(referee.applied(entry.step.version))
            self._do(self._run.reconsider_backups())
        if milestone is not None and milestone.log:
            self._run.log(milestone)
            self._news_ready.set()
        if milestone is not None and milestone.save and entry.area is not None and not referee.finished:
            await self._save(entry.area)

    async def _in_order(self, commands: list[Command]) -> None:
        """Have the shards obey between two entries."""
        while True:
            try:
                await self._fleet.obey(commands)
                return
            except ShardLost:
                # The pump meets the same loss at its next entry, and recovers.
                self._wake.set()
                await asyncio.sleep(NEWS_EVERY_S)

    async def _save(self, area: int) -> None:
        """Start a checkpoint; training goes on, unless the one before is still under way."""
        if self._run.saving is not None:
            await self._run.saving
        self._run.saving = asyncio.get_running_loop().run_in_executor(None, self._run.save, area)

    def _mourn(self) -> None:
        """Ask for successors of copies that are gone."""
        for copy in self._fleet.gone:
            self._run.event(
                {
                    "event": "shard_copy_lost",
                    "shard": copy.shard,
                    "lost_updates": 0,
                    "warning": f"a copy of shard {copy.shard} is gone; the other goes on and nothing is lost",
                }
            )
            self._want(Want("shard", copy.shard, copy.serial, "its process is gone"))
            self._spawn(self._find_sources())
        self._fleet.gone.clear()

    async def _recover(self, loss: ShardLost) -> None:
        """Wait for a successor of a lost shard, then have all shards go back to the newest snapshot."""
        self._queue.clear()
        self._entry = Entry()
        for copy in self._fleet.gone:
            self._want(Want("shard", copy.shard, copy.serial, "its process is gone"))
        self._fleet.gone.clear()
        self._whole.clear()
        await self._whole.wait()
        newest = self._run.holdings.newest()
        assert newest is not None
        area, kept = newest
        referee = self._run.referee
        era = referee.admission.version.era + 1
        try:
            await self._fleet.obey([*self._attachments(), Load(area, era, kept.start.updates, kept.scalars)])
        except ShardLost as again:
            await self._recover(again)
            return
        await self._find_sources()
        self._pushes.clear()
        self._run.rolled_back(loss.number, kept)
        self._do(referee.roll_back(kept.start))

    async def admit_shard(self, copy: Copy) -> None:
        """Take a successor of a shard's process into service: at once if all wait for it, else after a step.

        A second copy begins from a snapshot made between two updates, where none is half taken.
        """
        row = self._fleet.copies[copy.shard]
        if row:
            self._newcomers.append(copy)
            return
        row.append(copy)
        if all(self._fleet.copies):
            self._whole.set()

    async def _bring_up(self, entry: Entry, scalars: dict[str, float]) -> None:
        assert entry.area is not None
        assert entry.step is not None
        era, number = entry.step.version
        begin: list[Command] = [*self._attachments(), Load(entry.area, era, number, scalars)]
        for copy in entry.newcomers:
            await self._fleet.admit(copy, begin)
            self._run.event({"event": "shard_copy_added", "shard": copy.shard, "step": number})

    def _attachments(self) -> list[Attach]:
        statistics = self._run.holdings.server.statistics_size
        return [
            Attach(hello.member, hello.incarnation, hello.memory, statistics)
            for hello in self._hellos.values()
        ]

    async def _find_sources(self) -> None:
        rows = [row[0] for row in self._fleet.copies]
        places = [await copy.actor.insist("where") for copy in rows]
        edition = 0 if self._sources is None else self._sources.edition + 1
        self._sources = Sources(
            edition=edition,
            node=self._node,
            parts=tuple(each.part for each in self._blueprints),
            memory=tuple(address for address, _ in places),
            actors=tuple(copy.actor for copy in rows),
            held=self._run.holdings.held_memory.address,
        )

    def sources(self) -> Sources | None:
        """Say where the parameters are to be read now."""
        return self._sources

    # -- who is there ----------------------------------------------------------------------------------

    def lost(self, member: int, incarnation: int, event: dict[str, Any]) -> None:
        """Take note that a member's process is gone: nobody waits for it, and its samples are dealt again."""
        self._run.event({**event, "member": member, "incarnation": incarnation})
        if self._run.referee_or_none is not None:
            self._do(self._run.referee.leave(member, incarnation))

    def event(self, event: dict[str, Any]) -> None:
        """Write down what the conductor has seen."""
        self._run.event(event)

    def pulse(self, kind: str, number: int, pulse: Pulse) -> None:
        """Hear a process's heart; the time is the one it arrives at."""
        self._pulses[(kind, number)] = (pulse, time.monotonic())

    def pulses(self) -> dict[tuple[str, int], tuple[Pulse, float]]:
        """Return every process's last pulse, and how many seconds ago it came."""
        now = time.monotonic()
        return {who: (pulse, now - at) for who, (pulse, at) in self._pulses.items()}

    # -- news and the end ------------------------------------------------------------------------------

    async def news(self) -> News:
        """Return what happened since the last time; waits a moment when nothing did."""
        if not (self._wants or self._ended):
            with suppress(TimeoutError):
                async with asyncio.timeout(NEWS_EVERY_S):
                    await self._news_ready.wait()
        self._news_ready.clear()
        wants, self._wants = self._wants, []
        status, error = self._ended or (None, None)
        return News(self._run.length_if_new(), self._run.shown(), wants, status, error)

    async def stop(self) -> None:
        """Interrupt the run: save what is trained, and end."""
        if self._run.referee_or_none is None or not self._opened:
            self._end(INTERRUPTED, None)
            return
        self._do(self._run.referee.stop())
        self._end_if_over()

    def _end_if_over(self) -> None:
        referee = self._run.referee
        over = referee.stopped or (referee.finished and not referee.owes_validation)
        if over and not self._ending and self._opened:
            self._ending = True
            self._spawn(self._finish("interrupted" if not referee.finished else "done"))

    async def _finish(self, status: Literal["interrupted", "done"]) -> None:
        """Save the last state; when training is over, deliver the weights first."""
        while self._queue or self._busy:
            await asyncio.sleep(0.01)
        if self._run.saving is not None:
            await self._run.saving
        area = self._run.holdings.next_area()
        done = await self._fleet.obey([Snapshot(area)])
        self._run.holdings.keep(area, replace(self._run.mark_now(), scalars=done[0].scalars))
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._run.finish, area, status)
        self._end(DONE if status == "done" else INTERRUPTED, None)

    def _want(self, want: Want) -> None:
        self._wants.append(want)
        self._news_ready.set()

    def _fail(self, error: Exception) -> None:
        refused = isinstance(error, ConfigError | Mismatch)
        self._end(REFUSED if refused else FAILED, str(error))

    def _end(self, status: int, error: str | None) -> None:
        if self._ended is None:
            self._ended = (status, error)
        self._news_ready.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        async def guarded() -> None:
            try:
                await work
            except Exception as error:
                log.exception("the coordinator failed")
                self._fail(error)

        task = asyncio.get_running_loop().create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
