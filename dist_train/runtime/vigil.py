"""The vigil over the processes of a parameter-server run: those that are frozen or hung are ended.

A frozen one is found within ``recovery.frozen_after_s`` of its last sign of life (never in less than two
seconds and a half): it is judged a look and an answer's time sooner.

What counts as frozen or hung is in rules/liveness.py. Pulses come to the coordinator, which may be on another
machine: they are told as ages.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from dist_train.config.schema import Recovery
from dist_train.rules.liveness import PATIENT, Beat, Hung, Limits, judge
from dist_train.runtime.crew import Crew, Life, ShardLife
from dist_train.runtime.letters import Pulse
from dist_train.runtime.ray_cluster import kill_process
from dist_train.runtime.remote import Process

LOOK_S = 0.5
# The signal that only asks whether there is such a process.
ALIVE = 0
# An answer that took longer says nothing of the others: their pulses may have had to wait as well.
LATE_S = 1.0
# What a stopped process gets to write its stacks.
STACKS_S = 2.0

Say = Callable[[str], None]
# A kind of process, its number, and its incarnation.
Who = tuple[str, int, int]
Pulses = Mapping[Who, tuple[Pulse, float]]


@dataclass(frozen=True)
class Verdict:
    """Why a process was ended."""

    kind: str
    why: str


class Vigil:
    """Looks twice a second; ``step`` is the furthest that any worker has been seen at."""

    def __init__(self, crew: Crew, settings: Recovery, say: Say) -> None:
        self._crew = crew
        self._say = say
        frozen_after_s = max(settings.frozen_after_s - 2 * LOOK_S, 3 * LOOK_S)
        self._limits = Limits(frozen_after_s, settings.hung_after_s, settings.start_timeout_s)
        self._verdicts: dict[tuple[int, int], Verdict] = {}
        self._places: dict[int, tuple[int, str]] = {}
        self._condemned: set[Process] = set()
        self.step = 0

    def condemn(self, life: Life, verdict: Verdict) -> None:
        """End a member's processes, for a reason that will be asked for."""
        self._verdicts[life.member, life.incarnation] = verdict
        self._say(f"killed: {verdict.why}")
        life.kill()

    def verdict_on(self, life: Life) -> Verdict | None:
        """Say why a member was ended; None if nobody here ended it."""
        return self._verdicts.get((life.member, life.incarnation))

    def place_of(self, rank: int) -> tuple[int, str]:
        """Say in which step and phase a worker was when its pulse was last heard."""
        return self._places.get(rank, (self.step, "starting"))

    async def watch(self) -> str:
        """Watch for ever; or until the coordinator does not answer: return since when."""
        while True:
            slept = time.monotonic()
            await asyncio.sleep(LOOK_S)
            asked = time.monotonic()
            if asked - slept > LOOK_S + LATE_S:
                # This process stood still; if the others did as well, they need a moment to be heard.
                await asyncio.sleep(LATE_S)
                continue
            pulses = await self._pulses()
            if pulses is None:
                return f"no answer for {time.monotonic() - asked:.1f} s"
            self._note(pulses)
            if time.monotonic() - asked < LATE_S:
                await asyncio.gather(*self._look(pulses))

    async def _pulses(self) -> Pulses | None:
        """Ask the coordinator; once more if it does not answer, since all may have stood still meanwhile."""
        limits = self._limits
        # While it starts, it may have a large checkpoint to read.
        patience_s = limits.frozen_after_s if self._crew.prepared else limits.start_timeout_s
        for seconds in (max(patience_s - LATE_S, LOOK_S), LATE_S):
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    pulses: Pulses = await self._crew.coordinator.insist("pulses")
                    return pulses
        return None

    def _note(self, pulses: Pulses) -> None:
        for (kind, number, _), (pulse, _) in pulses.items():
            if kind == "worker":
                self._places[number] = (pulse.beat.step, pulse.beat.phase)
                self.step = max(self.step, pulse.beat.step)

    def _look(self, pulses: Pulses) -> list[Any]:
        """Judge all that run, those of a group together; return what is to be done about them."""
        ends = []
        for life in self._crew.lives.values():
            if life.over.is_set() or self.verdict_on(life):
                continue
            who: list[Who] = [("worker", rank, life.incarnation) for rank in life.actors]
            if not self._have_begun(life, who, pulses):
                continue
            found = [pulses[each] for each in who if each in pulses]
            if (hung := self._judge(found)) is not None:
                self._verdicts[life.member, life.incarnation] = Verdict(hung.kind, hung.why)
                ends.append(self._end("worker", hung, [pulse for pulse, _ in found], hung.why))
        for serial, shard in list(self._crew.shards.items()):
            number = shard.number
            heard = pulses.get(("shard", serial, 0))
            if heard is None:
                self._miss(shard)
                continue
            if heard[0].process in self._condemned:
                continue
            if (hung := self._judge([heard])) is not None:
                # Its steps are not the run's.
                why = f"shard {number} is {hung.kind}: {hung.why.partition(': ')[2]}"
                ends.append(self._end("shard", hung, [heard[0]], why))
        return ends

    def _have_begun(self, life: Life, who: Sequence[Who], pulses: Pulses) -> bool:
        """Whether all of a member's processes have been heard; one that never comes is ended."""
        if all(each in pulses for each in who):
            return True
        silence = time.monotonic() - life.began
        if silence > self._limits.start_timeout_s:
            missing = next(rank for kind, rank, _ in who if (kind, rank, life.incarnation) not in pulses)
            self.condemn(life, Verdict("hung", f"worker {missing} did not start within {silence:.0f} s"))
        return False

    def _miss(self, shard: ShardLife) -> None:
        """End a shard's process that was never heard; whoever waits for it starts another."""
        silence = time.monotonic() - shard.began
        if silence > self._limits.start_timeout_s:
            # Once is enough.
            shard.began = inf
            self._say(f"killed: shard {shard.number} did not start within {silence:.0f} s")
            shard.actor.kill()

    def _judge(self, heard: Sequence[tuple[Pulse, float]]) -> Hung | None:
        now = time.monotonic()
        beats = [_here(pulse, silence, now) for pulse, silence in heard]
        limits = self._limits
        if any(beat.phase == PATIENT for beat in beats):
            # The one that speaks for its group waits for the server, the others wait for it.
            limits = replace(limits, hung_after_s=inf)
        verdict = judge(beats, now, limits)
        return verdict if isinstance(verdict, Hung) else None

    async def _end(self, kind: str, hung: Hung, pulses: Sequence[Pulse], why: str) -> None:
        """Have the culprits write their stacks, then kill them."""
        culprits = [pulse.process for pulse in pulses if pulse.beat.rank in hung.ranks]
        self._condemned.update(culprits)
        if kind == "shard" and not await asyncio.to_thread(kill_process, culprits[0], ALIVE):
            # It has ended, which the next update finds.
            return
        self._say(f"{why}; its stacks are in its log")
        event = {"event": "hung", "kind": kind, "ranks": list(hung.ranks), "reason": why}
        await self._crew.record(event)
        for number, pause in ((signal.SIGQUIT, 0.0), (signal.SIGCONT, STACKS_S), (signal.SIGKILL, 0.0)):
            for process in culprits:
                await asyncio.to_thread(kill_process, process, number)
            await asyncio.sleep(pause)


def _here(pulse: Pulse, silence: float, now: float) -> Beat:
    """Translate a beat to this machine's clock; a pulse that was closed stays closed."""
    beat = pulse.beat
    heard = beat.pulse_at if beat.pulse_at in (None, inf) else now - silence
    return replace(beat, phase_since=now - pulse.phase_age - silence, pulse_at=heard)
