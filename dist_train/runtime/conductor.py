"""The conductor of a parameter-server run: starts the processes, watches them, replaces those that fail.

It decides nothing about training and touches no tensor; the coordinator, on the cluster, does. What it watches
for is in rules/liveness.py, what it does after a failure in rules/recovery.py.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from dist_train.config import Config
from dist_train.errors import DONE, FAILED, INTERRUPTED, REFUSED, TrainingError
from dist_train.rules import recovery
from dist_train.rules.liveness import Hung, Limits, judge
from dist_train.rules.recovery import Attempt, Failure, Stop, after_failure
from dist_train.runtime.crew import Crew, Life
from dist_train.runtime.letters import News, Order, Pulse, Want
from dist_train.runtime.ray_cluster import kill_process
from dist_train.runtime.remote import ActorFailed, ActorGone, Unreachable
from dist_train.watch.display import Display, open_display
from dist_train.watch.forwarded import replay_onto

LOOK_S = 0.5
# What finished workers get to end by themselves, and what stopped ones get to write their stacks.
LEAVE_S, STACKS_S = 2.0, 1.0
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Verdict:
    """Why the conductor killed a process."""

    kind: str
    why: str


class Conductor:
    """One attempt: from the first process to the coordinator's last word."""

    def __init__(self, order: Order, crew: Crew, say: Say) -> None:
        self._order = order
        self._config: Config = order.config
        self._crew = crew
        self._say = say
        self._display: Display | None = None
        self._verdicts: dict[tuple[str, int], Verdict] = {}
        self._given_up: set[int] = set()
        self._outcome: asyncio.Future[int | Failure] = asyncio.get_running_loop().create_future()
        self._asked = False
        self._step = 0
        self._places: dict[int, tuple[int, str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int | Failure:
        """Return the exit status, or the failure of the coordinator, after which all may begin again."""
        loop = asyncio.get_running_loop()
        for number in STOPPING:
            with suppress(ValueError, RuntimeError):
                if signal.getsignal(number) != signal.SIG_IGN:
                    loop.add_signal_handler(number, self._asked_to_stop, number)
        self._spawn(self._bring_up())
        try:
            return await self._outcome
        finally:
            for task in self._tasks:
                task.cancel()
            if self._display is not None:
                self._display.close()

    async def _bring_up(self) -> None:
        crew = self._crew
        lives = [crew.start_member(member, 0) for member in range(crew.members)]
        await crew.prepare()
        self._spawn(self._follow())
        self._spawn(self._watch())
        for life in lives:
            self._spawn(self._supervise(life))

    # -- members ---------------------------------------------------------------------------------------

    async def _supervise(self, life: Life) -> None:
        """Follow a member through its lives."""
        settings = self._config.recovery
        limits = recovery.Limits(settings.max_restarts, settings.backoff_s, settings.max_backoff_s)
        attempts: list[Attempt] = []
        while True:
            started_from = self._step
            failure = await self._live(life)
            if failure is None or self._outcome.done():
                return
            attempts.append(Attempt(started_from, failure))
            decision = after_failure(attempts, limits)
            what = {"event": "failure", "rank": failure.rank, "step": failure.step, "error": failure.error}
            await self._crew.coordinator.insist("lost", life.member, life.incarnation, what)
            if isinstance(decision, Stop):
                await self._give_up(life.member, decision.reason)
                return
            self._say(f"worker {failure.rank} is replaced in {decision.delay_s:.1f} s; the others go on")
            await asyncio.sleep(decision.delay_s)
            life = self._crew.start_member(life.member, life.incarnation + 1)

    async def _live(self, life: Life) -> Failure | None:
        """Run a member's processes to their end; None when it came as it should."""
        end = await self._crew.run_member(life)
        how = end.how
        if how.status == DONE:
            return None
        if how.status == REFUSED:
            self._refuse(how.error)
            return None
        verdict = self._verdicts.pop(("worker", end.rank), None)
        kind, error = (verdict.kind, verdict.why) if verdict else (how.kind, how.error)
        killed = verdict is not None or not end.reported
        step, phase = (how.step, how.phase) if end.reported else self._place_of(end.rank)
        failure = Failure(end.rank, step, phase, kind, error, time.monotonic(), killed)
        if verdict is None:
            self._say(self._sentence(failure))
        return failure

    def _place_of(self, rank: int) -> tuple[int, str]:
        """Where a worker was when its pulse was last heard."""
        return self._places.get(rank, (self._step, "starting"))

    def _sentence(self, failure: Failure) -> str:
        log = self._crew.log_of(failure.rank)
        how = "was killed" if failure.killed else f"failed: {failure.error},"
        return f"worker {failure.rank} {how} in step {failure.step}, phase {failure.phase}; log: {log}"

    async def _give_up(self, member: int, reason: str) -> None:
        self._given_up.add(member)
        left = self._crew.members - len(self._given_up)
        await self._event({"event": "gave_up", "member": member, "reason": reason})
        self._say(f"worker {member}: {reason}")
        if left == 0:
            self._end(FAILED)
            return
        # Those who wait for the start wait no longer for this one.
        await self._crew.coordinator.insist("open_without", sorted(self._given_up))

    def _refuse(self, error: str) -> None:
        for line in error.splitlines():
            self._say(line)
        self._end(REFUSED)

    # -- the coordinator -------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Show what the coordinator has to show, do what it wants done, and end when it ends."""
        while True:
            news: News = await self._crew.coordinator.request("news")
            if news.length is not None:
                self._display = open_display(news.length)
            if self._display is not None:
                replay_onto(self._display, news.shown)
            for want in news.wants:
                await self._provide(want)
            if news.status is not None:
                if news.error:
                    self._say(news.error)
                await self._crew.wait_for_members(LEAVE_S)
                self._end(news.status)
                return

    async def _provide(self, want: Want) -> None:
        if want.kind == "shard":
            self._say(f"shard {want.number} is replaced: {want.why}")
            self._spawn(self._crew.replace_shard(want.number))
        else:
            rank = want.number * self._config.parallel.group_size
            self._verdicts[("worker", rank)] = Verdict("refused", want.why)
            self._say(f"worker {rank} is replaced: {want.why}")
            self._crew.kill_member(want.number)

    async def _watch(self) -> None:
        """Look at every process's pulse; kill those that are frozen or hung."""
        settings = self._config.recovery
        limits = Limits(
            max(settings.frozen_after_s, 3 * LOOK_S), settings.hung_after_s, settings.start_timeout_s
        )
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                async with asyncio.timeout(limits.frozen_after_s):
                    pulses = await self._crew.coordinator.request("pulses")
            except (TimeoutError, Unreachable):
                self._lose_coordinator("frozen", f"no answer for {limits.frozen_after_s:.1f} s")
                return
            self._step = max([self._step, *(pulse.beat.step for pulse, _ in pulses.values())])
            for (kind, number), (pulse, silence) in pulses.items():
                if kind == "worker":
                    self._places[number] = (pulse.beat.step, pulse.beat.phase)
                if self._crew.is_running(kind, number, pulse.incarnation):
                    await self._judge(kind, number, pulse, silence, limits)

    async def _judge(self, kind: str, number: int, pulse: Pulse, silence: float, limits: Limits) -> None:
        now = time.monotonic()
        age = pulse.phase_age + silence
        beat = replace(pulse.beat, phase_since=now - age, pulse_at=_pulse_at(pulse, now - silence))
        verdict = judge([beat], now, limits)
        if not isinstance(verdict, Hung) or (kind, number) in self._verdicts:
            return
        why = verdict.why.replace("worker", kind, 1)
        self._verdicts[(kind, number)] = Verdict(verdict.kind, why)
        self._say(why)
        await self._event({"event": "hung", "kind": kind, "rank": number, "reason": why})
        loop = asyncio.get_running_loop()
        for signal_number, pause in (
            (signal.SIGQUIT, 0.0),
            (signal.SIGCONT, STACKS_S),
            (signal.SIGKILL, 0.0),
        ):
            await loop.run_in_executor(None, kill_process, pulse.process, signal_number)
            await asyncio.sleep(pause)
        if kind == "shard":
            self._verdicts.pop((kind, number))

    def _lose_coordinator(self, kind: str, why: str) -> None:
        rank = -1
        self._end(
            Failure(
                rank, self._step, "update", kind, f"the coordinator is lost: {why}", time.monotonic(), True
            )
        )

    async def _event(self, event: dict[str, Any]) -> None:
        with suppress(TrainingError):
            await self._crew.coordinator.insist("event", event)

    # -- the end ---------------------------------------------------------------------------------------

    def _asked_to_stop(self, number: signal.Signals) -> None:
        if self._asked and number in (signal.SIGTERM, signal.SIGINT):
            self._say(f"killed the workers on a second {number.name}: what was not saved is lost")
            self._end(FAILED)
        elif not self._asked:
            self._asked = True
            self._say(f"{number.name}: saving, then stopping")
            self._spawn(self._stop())

    async def _stop(self) -> None:
        if not self._crew.prepared:
            self._end(INTERRUPTED)
            return
        await self._crew.coordinator.insist("stop")
        await asyncio.sleep(self._config.recovery.grace_s)
        self._say(f"not saved within {self._config.recovery.grace_s:g} s (recovery.grace_s): killed")
        self._end(FAILED)

    def _end(self, outcome: int | Failure) -> None:
        if not self._outcome.done():
            self._outcome.set_result(outcome)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        async def guarded() -> None:
            try:
                await work
            except ActorGone as error:
                self._lose_coordinator("gone", str(error))
            except ActorFailed as error:
                self._say(str(error))
                self._say(error.trace)
                self._end(FAILED)
            except Exception as error:
                if not self._outcome.done():
                    self._outcome.set_exception(error)

        task = asyncio.get_running_loop().create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _pulse_at(pulse: Pulse, heard: float) -> float | None:
    """Translate to this machine's clock: a pulse was alive when it was heard of; a closed one stays closed."""
    at = pulse.beat.pulse_at
    return at if at in (None, float("inf")) else heard
