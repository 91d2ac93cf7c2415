"""The conductor of a parameter-server run: starts the processes, replaces those that fail, shows how it goes.

It decides nothing about training and touches no tensor; the coordinator, on the cluster, does. Who is frozen
or hung is found by vigil.py; what is done after a failure is in rules/recovery.py.
"""

from __future__ import annotations

import asyncio
import signal
import textwrap
import time
from collections.abc import Callable, Coroutine
from typing import Any

from dist_train.errors import FAILED, INTERRUPTED, REFUSED, ConfigError, Mismatch, TrainingError
from dist_train.rules import recovery
from dist_train.rules.recovery import Attempt, Failure, Stop, after_failure, culprit, fail_alike
from dist_train.runtime.crew import Crew, Life, failure_of
from dist_train.runtime.letters import News, Order, Want
from dist_train.runtime.remote import ActorFailed, ActorGone
from dist_train.runtime.vigil import Verdict, Vigil
from dist_train.watch.display import Display, open_display
from dist_train.watch.forwarded import replay_onto

# What finished workers get to end by themselves.
LEAVE_S = 2.0
# The coordinator, where the rank of a worker that failed is asked for.
NO_RANK = -1
# Characters of an error that are shown; its log has all.
LONGEST_ERROR = 400

Say = Callable[[str], None]


class Conductor:
    """One attempt: from the first process to the coordinator's last word."""

    def __init__(self, order: Order, crew: Crew, say: Say) -> None:
        self._config = order.config
        self._crew = crew
        self._say = say
        self._vigil = Vigil(crew, order.config.recovery, say)
        self._display: Display | None = None
        self._given_up: set[int] = set()
        self._last_failures: list[Failure | None] = [None] * crew.members
        settings = order.config.recovery
        self._limits = recovery.Limits(settings.max_restarts, settings.backoff_s, settings.max_backoff_s)
        self._loop = asyncio.get_running_loop()
        self._outcome: asyncio.Future[int | Failure] = self._loop.create_future()
        self._asked = False
        self._leaving = False
        # Why the run is ended although nobody asked for it: what is trained is saved, and it has failed.
        self._abandoned = False
        self._shard_failures: dict[int, list[Attempt]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int | Failure:
        """Return the exit status, or the failure of the coordinator, after which all may begin again."""
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
        for life in lives:
            self._spawn(self._supervise(life))
        self._spawn(self._follow())
        self._spawn(self._watch())
        await crew.prepare()

    async def _follow(self) -> None:
        """Show what the coordinator has to show, do what it wants done, and end when it ends."""
        known = 0
        while True:
            news: News = await self._crew.coordinator.insist("news", known)
            known = news.number
            if news.length is not None:
                self._display = open_display(news.length)
            if self._display is not None:
                replay_onto(self._display, news.shown)
            for want in news.wants:
                self._provide(want)
            if news.status is not None:
                # What members still on their way meet now is no news.
                self._leaving = True
                if news.error:
                    self._say(news.error)
                await self._crew.wait_for_members(LEAVE_S)
                self._end(FAILED if self._abandoned and news.status == INTERRUPTED else news.status)
                return

    def _provide(self, want: Want) -> None:
        if want.kind == "shard":
            self._spawn(self._replace_shard(want))
            return
        life = self._crew.lives[want.number]
        if life.incarnation == want.incarnation:
            self._vigil.condemn(life, Verdict("refused", f"worker {min(life.actors)}: {want.why}"))

    async def _replace_shard(self, want: Want) -> None:
        """Start another process for a shard: at once the first time, then with the pauses of a restart."""
        number, serial, step = want.number, want.incarnation, self._vigil.step
        if serial not in self._crew.shards:
            return
        self._crew.bury(serial)
        # Each serial is a process of its own: no two of these failures are the same one twice.
        failure = Failure(serial, step, "update", "gone", want.why, time.monotonic(), killed=True)
        failures = self._shard_failures.setdefault(number, [])
        failures.append(Attempt(step, failure))
        decision = after_failure(failures, self._limits)
        if isinstance(decision, Stop):
            if any(life.number == number for life in self._crew.shards.values()):
                self._say(f"shard {number} goes on with one copy less: {decision.reason}")
            else:
                await self._abandon(f"shard {number}: {decision.reason}")
            return
        self._say(f"shard {number} is replaced: {want.why}")
        await asyncio.sleep(decision.delay_s if len(failures) > 1 else 0.0)
        try:
            await self._crew.replace_shard(number)
        except (ActorGone, ConfigError, Mismatch):
            raise
        except TrainingError as error:
            await self._abandon(f"shard {number} cannot be replaced: {_short(str(error))}")

    async def _watch(self) -> None:
        self._lose_coordinator("frozen", await self._vigil.watch())

    # -- members ---------------------------------------------------------------------------------------

    async def _supervise(self, life: Life) -> None:
        """Follow a member through its lives."""
        attempts: list[Attempt] = []
        gradients = 0
        while True:
            started_from = self._vigil.step
            failure = await self._live(life)
            if failure is None:
                return
            self._last_failures[life.member] = failure
            gradients += await self._report(life, failure)
            attempts.append(Attempt(started_from, failure, gradients))
            if fail_alike(self._last_failures):
                same = f"all workers failed in step {failure.step}: {_short(failure.error)}"
                await self._abandon(f"not going on: {same}")
                return
            decision = after_failure(attempts, self._limits)
            if isinstance(decision, Stop):
                await self._give_up(life.member, decision.reason)
                return
            self._say(f"worker {failure.rank} is replaced in {decision.delay_s:.1f} s; the others go on")
            await asyncio.sleep(decision.delay_s)
            life = self._crew.start_member(life.member, life.incarnation + 1)

    async def _live(self, life: Life) -> Failure | None:
        """Run a member's processes to their end; None when it came as it should, or ends the run."""
        ends = await self._crew.run_member(life)
        if self._leaving:
            return None
        refusals = [end.how.error for end in ends if end.how is not None and end.how.status == REFUSED]
        if refusals:
            self._refuse(refusals[0])
        if not ends or refusals or self._outcome.done():
            return None
        failure = culprit([failure_of(end, *self._vigil.place_of(end.rank)) for end in ends])
        verdict = self._vigil.verdict_on(life)
        if verdict is None:
            return failure
        step, phase = self._vigil.place_of(failure.rank)
        return Failure(failure.rank, step, phase, verdict.kind, verdict.why, failure.at, killed=True)

    async def _report(self, life: Life, failure: Failure) -> int:
        """Have the samples of a lost member dealt anew, and say what happened to it.

        Return how many gradients it had got done.
        """
        event = {
            "event": "failure",
            "rank": failure.rank,
            "step": failure.step,
            "phase": failure.phase,
            "error": failure.error,
        }
        # If the coordinator is gone as well, that is the news, and what the members say its echo.
        gradients: int = await self._crew.coordinator.insist("lost", life.member, life.incarnation, event)
        verdict = self._vigil.verdict_on(life)
        place = f"in step {failure.step}, phase {failure.phase}; log: {self._crew.log_of(failure.rank)}"
        if verdict is not None:
            # The vigil has said so already.
            return gradients
        if failure.killed:
            what = "was killed (the kernel does so when memory runs out)"
            self._say(f"worker {failure.rank} {what} {place}")
        else:
            self._say(f"worker {failure.rank} failed: {_short(failure.error)}, {place}")
        return gradients

    async def _give_up(self, member: int, reason: str) -> None:
        self._given_up.add(member)
        await self._crew.record({"event": "gave_up", "member": member, "reason": reason})
        said = f"worker {member * self._config.parallel.group_size}: {reason}"
        if len(self._given_up) == self._crew.members:
            await self._abandon(said)
            return
        self._say(said)
        # Those who wait for the start wait no longer for this one.
        await self._crew.coordinator.insist("open_without", sorted(self._given_up))

    def _refuse(self, error: str) -> None:
        """End as refused, by the first of those who say so."""
        if self._outcome.done():
            return
        for line in error.splitlines():
            self._say(line)
        self._end(REFUSED)

    # -- the end ---------------------------------------------------------------------------------------

    def stop(self, number: signal.Signals) -> None:
        """Have the run saved and ended; the second time, end it at once."""
        if self._leaving:
            return
        if not self._asked:
            self._asked = True
            self._say("stopping: the state is saved (a second Ctrl-C kills the workers)")
            self._spawn(self._stop(number))
        elif number in (signal.SIGTERM, signal.SIGINT):
            self._say(f"killed the workers on a second {number.name}: what was not saved is lost")
            self._end(FAILED)

    async def _stop(self, number: signal.Signals) -> None:
        if not self._crew.prepared:
            self._end(INTERRUPTED)
            return
        await self._crew.record({"event": "signal", "signal": number.name})
        await self._save()

    async def _abandon(self, reason: str) -> None:
        """Have what is trained saved, then end the run as failed: it cannot go on."""
        self._say(reason)
        self._abandoned = True
        if not self._crew.prepared:
            self._end(FAILED)
            return
        await self._save()

    async def _save(self) -> None:
        grace_s = self._config.recovery.grace_s
        await self._crew.coordinator.insist("stop")
        await asyncio.sleep(grace_s)
        if not self._leaving:
            self._say(f"killed the workers: not saved within {grace_s:g} s (recovery.grace_s)")
            self._end(FAILED)

    def _lose_coordinator(self, kind: str, why: str) -> None:
        error = f"the coordinator is lost: {why}"
        if self._leaving:
            return
        if self._asked or self._abandoned:
            # It would only begin again what is to end.
            self._say(f"{error}; what was trained since the last checkpoint is not saved")
            self._end(FAILED)
            return
        failure = Failure(NO_RANK, self._vigil.step, "update", kind, error, time.monotonic(), killed=True)
        self._end(failure)

    def _end(self, outcome: int | Failure) -> None:
        if not self._outcome.done():
            self._outcome.set_result(outcome)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside; whatever of it fails ends the attempt."""

        async def guarded() -> None:
            try:
                await work
            except Exception as error:
                if not self._leaving:
                    self._fail(error)

        task = self._loop.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _fail(self, error: Exception) -> None:
        match error:
            case ActorGone():
                self._lose_coordinator("gone", str(error))
            case ConfigError() | Mismatch():
                self._refuse(str(error))
            case ActorFailed():
                self._say(str(error))
                self._say(error.trace)
                self._end(FAILED)
            case TrainingError():
                self._say(str(error))
                self._end(FAILED)
            case _ if not self._outcome.done():
                self._outcome.set_exception(error)


def _short(error: str) -> str:
    return textwrap.shorten(error, LONGEST_ERROR)
