"""The coordinator of a parameter server: messages in, the referee's decisions out; nothing waits.

The referee (rules/referee.py) decides; what the shards are to do is in pump.py, what is held and saved in
holdings.py, what is written down in server_run.py.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

from dist_train.errors import DONE, FAILED, INTERRUPTED, REFUSED, ConfigError, Mismatch, TrainingError
from dist_train.exchange.server import Welcome
from dist_train.layout import LOGS
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
from dist_train.rules.messages import FIRST, Measured, Push, Reply, Version
from dist_train.runtime import children
from dist_train.runtime.answers import Answers
from dist_train.runtime.heart import leave_interrupts_to_the_conductor, redirect_output
from dist_train.runtime.letters import Copy, Hello, News, Order, Pulse, Sources, Want
from dist_train.runtime.line import Listener, listen
from dist_train.runtime.memories import Memories, Parcel
from dist_train.runtime.pump import Pump
from dist_train.runtime.ray_cluster import Ref, put, this_process
from dist_train.runtime.remote import Process
from dist_train.runtime.run_dir import another_than
from dist_train.runtime.server_run import ServerRun
from dist_train.runtime.shard_process import Blueprint

log = logging.getLogger(__name__)

NEWS_EVERY_S = 0.5
# A kind of process, its number, and its incarnation.
Who = tuple[str, int, int]


class Coordinator:
    """The actor. ``prepare``, then ``connect`` the shards; members come by ``enlist`` and ``join``.

    Every verb may be called again with the same arguments when its answer was lost.
    """

    def __init__(self, order: Order) -> None:
        # First of all: everything else would make the directory.
        if (refusal := another_than(order.word, order.run_dir)) is not None:
            # A later attempt may be on another machine: then there is something to fail.
            raise TrainingError(refusal) if order.attempt else ConfigError(refusal)
        redirect_output(order.run_dir / LOGS / "coordinator.log")
        children.dump_stacks_on_request()
        leave_interrupts_to_the_conductor()
        self._run = ServerRun(order)
        self._blueprints: list[Blueprint] = []
        self._answers = Answers()
        self._latest: dict[int, Push] = {}
        self._opened = False
        self._missing: set[int] = set()
        # Of each member, the newest incarnation that is gone.
        self._lost: dict[int, int] = {}
        # Of each member's process, the gradients that were in order, in time or not.
        self._sound: Counter[tuple[int, int]] = Counter()
        self._events: set[int] = set()
        self._pulses: dict[Who, tuple[Pulse, float]] = {}
        self._connected: asyncio.Future[None] | None = None
        self._listener: Listener | None = None
        self._news_ready = asyncio.Event()
        self._news = News()
        self._wants: list[Want] = []
        self._ended: tuple[int, str | None] | None = None
        self._ending = False
        self._tasks: set[asyncio.Task[None]] = set()

    # -- the beginning ---------------------------------------------------------------------------------

    def where(self) -> Process:
        """Say which process this is."""
        return this_process()

    def prepare(self) -> int:
        """Restore the state and lay out the memory; return how many shards there are."""
        if not self._blueprints:
            self._blueprints = self._run.prepare()
            server = self._run.holdings.server
            sizes = server.layout.size, server.statistics_size, server.kept_vectors, server.needs_base
            self._memories = Memories(*sizes)
            self._pump = Pump(self._run, self._memories, self._do, self._want)
        return len(self._blueprints)

    def blueprint(self, number: int) -> Blueprint:
        """Describe a shard to its process."""
        return self._blueprints[number]

    async def connect(self, copies: list[Copy]) -> None:
        """Take the shards into service, and begin to obey."""
        if self._connected is None:
            self._connected = asyncio.ensure_future(self._connect(copies))
        await asyncio.shield(self._connected)

    async def _connect(self, copies: list[Copy]) -> None:
        await self._pump.connect(copies)
        self._spawn(self._pump.work())

    async def line(self) -> str | None:
        """Return the address of the line by which the members of this node may announce gradients."""
        if not self._run.config.parallel.server.direct:
            return None
        if self._listener is None:
            self._listener = await listen({"push": self.push})
        return self._listener.address

    async def enlist(self, hello: Hello) -> Welcome:
        """Get to know a member's process, and have the shards open its memory."""
        if self._is_lost(hello.member, hello.incarnation):
            raise TrainingError(f"another process has taken the place of member {hello.member}")
        await self._run.meet(hello)
        # Beside the loop, which hears hearts meanwhile: a large memory takes seconds to open and to fill.
        await self._pump.attach(await asyncio.to_thread(self._memories.meet, hello))
        saved = self._run.holdings.server.inner.get(hello.member)
        scalars = await asyncio.to_thread(self._memories.hand_over, hello, saved)
        return replace(self._run.welcome(hello.member), scalars=scalars)

    async def handed_over(self, member: int, incarnation: int) -> tuple[Ref, ...]:
        """Return, for a member on another node, what it begins with of its predecessor's."""
        rows = self._memories.handed_over(member, incarnation)
        return tuple([await asyncio.to_thread(put, row.numpy()) for row in rows])

    async def join(self, member: int, incarnation: int, ahead: int) -> Reply:
        """Take a member's process into the run; answered when there is something to do for it."""
        if self._is_lost(member, incarnation):
            return Reply("ended", FIRST)
        answer, new = self._answers.expect((member, incarnation, 0))
        if new:
            self._do(self._run.referee.join(member, incarnation, ahead))
            self._open_when_all_are_there()
        return await answer

    def open_without(self, missing: list[int]) -> None:
        """Begin without some members, who will never come, if all others are there."""
        self._missing = set(missing)
        self._open_when_all_are_there()

    def _open_when_all_are_there(self) -> None:
        wanted = self._run.members - len(self._missing)
        if self._opened or self._run.referee_or_none is None:
            return
        if len(self._run.referee.admission.live) >= wanted > 0:
            self._opened = True
            self._do(self._run.referee.open())

    # -- gradients and validations ---------------------------------------------------------------------

    async def push(self, push: Push, parcel: Parcel | None = None) -> Reply:
        """Judge a gradient; answered when its member may go on. A push that comes twice gets one answer."""
        key = push.member, push.incarnation, push.sequence
        if self._is_lost(push.member, push.incarnation):
            return Reply("ended", FIRST)
        answer, new = self._answers.expect(key)
        if new:
            try:
                if parcel is not None:
                    # What is lost on its way was never there; the loop meanwhile goes on.
                    loop = asyncio.get_running_loop()
                    await loop.run_in_executor(None, self._memories.receive, push, parcel)
            except Exception as error:
                self._answers.decline(key, error)
                raise
            # Its process may have been lost while the gradient came.
            if not self._is_lost(push.member, push.incarnation):
                self._judge(push)
        return await answer

    def _judge(self, push: Push) -> None:
        self._latest[push.member] = push
        self._run.pushed(push)
        self._pump.take_back(push.member)
        self._do(self._run.referee.push(push))

    def _take_statistics(self, push: Push) -> None:
        """Take the buffers that came with a gradient that counts, before its member may write there again."""
        if self._memories.knows(push):
            self._run.holdings.server.statistics[push.member].copy_(self._memories.statistics_of(push))

    async def measured(self, measured: Measured) -> Reply:
        """Take a part of a validation; answered like a push."""
        if self._is_lost(measured.member, measured.incarnation):
            return Reply("ended", FIRST)
        answer, new = self._answers.expect((measured.member, measured.incarnation, measured.sequence))
        if new:
            self._do(self._run.referee.measured(measured))
        return await answer

    def sources(self, unusable: int | None = None) -> Sources | None:
        """Say where the parameters are to be read now, to one who cannot read from edition ``unusable``."""
        found = self._pump.sources if self._connected is not None else None
        if found is not None and found.edition == unusable:
            self._pump.call_the_roll()
        return found

    async def lend(self, member: int) -> Version | None:
        """Have the shards keep a version that a member on another node has time to fetch; say which."""
        return await self._pump.lend(member) if self._connected is not None else None

    async def held(self) -> tuple[Ref, Any]:
        """Return, for another node, the parameters held for a validation and the buffers' values."""
        parameters, statistics = self._run.holdings.held_values()
        return await asyncio.to_thread(put, parameters), statistics

    # -- decisions -------------------------------------------------------------------------------------

    def _do(self, actions: list[Action]) -> None:
        try:
            self._obey(actions)
        except Exception as error:
            # What is decided and not done cannot be made good.
            log.exception("the coordinator failed")
            self._end(FAILED, f"the coordinator failed: {type(error).__name__}: {error}")
            raise

    def _obey(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Take():
                    self._sound[action.push.member, action.push.incarnation] += 1
                    self._take_statistics(action.push)
                    self._pump.take(action)
                case Step():
                    self._run.records.decided(action)
                    self._pump.step(action)
                case Milestone():
                    self._pump.milestone(action)
                case Answer():
                    # First: whatever becomes of the records, its member goes on.
                    self._answers.give((action.member, action.incarnation, action.sequence), action.reply)
                    self._run.answered(action)
                case Returned():
                    self._sound[action.member, action.incarnation] += action.outcome == "dropped"
                    judged = action.outcome in ("dropped", "refused")
                    self._run.records.returned(action, self._latest.get(action.member) if judged else None)
                case Validated():
                    self._run.validated(action)
                case Replace():
                    self._want(Want("member", action.member, action.incarnation, action.why))
                case Fail():
                    self._end(FAILED, action.why)
        self._pump.close_entry()
        self._end_if_over()

    # -- who is there ----------------------------------------------------------------------------------

    def admit_shard(self, copy: Copy) -> None:
        """Take a successor of a shard's process into service."""
        self._pump.admit(copy)

    def lost(self, member: int, incarnation: int, event: dict[str, Any]) -> int:
        """Take note that a member's process is gone: nobody waits for it, and its samples are dealt again.

        Return how many gradients it had got done.
        """
        if self._is_lost(member, incarnation):
            return self._sound[member, incarnation]
        self._lost[member] = incarnation
        self._run.event({**event, "member": member, "incarnation": incarnation})
        if self._run.referee_or_none is not None and self._ended is None:
            self._pump.take_back(member)
            self._do(self._run.referee.leave(member, incarnation))
        self._answers.forget(member, incarnation)
        return self._sound[member, incarnation]

    def _is_lost(self, member: int, incarnation: int) -> bool:
        """Whether a process is gone; what it had sent before may still arrive."""
        return incarnation <= self._lost.get(member, -1)

    def event(self, number: int, event: dict[str, Any]) -> None:
        """Write down what the conductor has seen; ``number`` tells a repeated call."""
        if number not in self._events:
            self._events.add(number)
            self._run.event(event)

    def pulse(self, kind: str, number: int, pulse: Pulse) -> None:
        """Hear a process's heart; the time is the one it arrives at."""
        # A successor's heart beats: its predecessors' are heard no more.
        for incarnation in range(pulse.incarnation):
            self._pulses.pop((kind, number, incarnation), None)
        self._pulses[kind, number, pulse.incarnation] = (pulse, time.monotonic())

    def pulses(self) -> dict[Who, tuple[Pulse, float]]:
        """Return every process's last pulse, and how many seconds ago it came."""
        now = time.monotonic()
        return {who: (pulse, now - at) for who, (pulse, at) in self._pulses.items()}

    # -- news and the end ------------------------------------------------------------------------------

    async def news(self, known: int) -> News:
        """Return what happened since news ``known`` were given; waits a moment when nothing did."""
        if known < self._news.number:
            return self._news
        if not (self._wants or self._ended):
            with suppress(TimeoutError):
                async with asyncio.timeout(NEWS_EVERY_S):
                    await self._news_ready.wait()
        if self._ended:
            # Who hears of the end ends this process.
            await asyncio.to_thread(self._run.wait_for_records)
        if known < self._news.number:
            # The call was repeated: the other one has had what there is.
            return self._news
        self._news_ready.clear()
        wants, self._wants = self._wants, []
        status, error = self._ended or (None, None)
        self._news = News(known + 1, self._run.length_if_new(), self._run.shown(), wants, status, error)
        return self._news

    def stop(self) -> None:
        """Interrupt the run: save what is trained, and end."""
        if self._run.referee_or_none is None or not self._opened:
            self._end(INTERRUPTED, None)
            return
        self._do(self._run.referee.stop())
        self._pump.stop_waiting()

    @property
    def _is_over(self) -> bool:
        referee = self._run.referee
        return referee.stopped or (referee.finished and not referee.owes_validation)

    def _end_if_over(self) -> None:
        if self._is_over and self._opened and not self._ending:
            self._ending = True
            self._spawn(self._finish())

    async def _finish(self) -> None:
        """Save the last state; when training and its last validation are over, deliver the weights first."""
        run = self._run
        await self._pump.rest()
        if not self._is_over:
            # The last updates were lost with a shard: there is more to do.
            self._ending = False
            return
        if not run.referee.finished:
            # The last update of all is kept with it.
            await self._pump.keep_now()
        await run.saved()
        is_done = run.referee.finished and not run.referee.owes_validation
        status: Literal["interrupted", "done"] = "done" if is_done else "interrupted"
        newest = run.holdings.newest()
        assert newest is not None
        area, kept = newest
        run.holdings.keep(area, replace(run.mark_now(), scalars=kept.scalars, inner=kept.inner))
        await asyncio.to_thread(run.finish, area, status)
        await asyncio.to_thread(run.close)
        self._end(DONE if is_done else INTERRUPTED, None)

    def _want(self, want: Want) -> None:
        self._wants.append(want)
        self._news_ready.set()

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
                said = str(error) or type(error).__name__
                self._end(REFUSED if isinstance(error, ConfigError | Mismatch) else FAILED, said)

        task = asyncio.get_running_loop().create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
