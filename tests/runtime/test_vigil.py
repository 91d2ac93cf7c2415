from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Collection
from dataclasses import replace
from typing import Any, cast

import pytest

from dist_train.config.schema import Recovery
from dist_train.rules.liveness import Beat
from dist_train.runtime import vigil
from dist_train.runtime.crew import Crew, Life, ShardLife
from dist_train.runtime.letters import Pulse
from dist_train.runtime.ray_cluster import Actor
from dist_train.runtime.remote import Process
from dist_train.runtime.vigil import Verdict, Vigil

SETTINGS = Recovery(frozen_after_s=5, hung_after_s=30, start_timeout_s=600)
Heard = tuple[Pulse, float]


def heard(rank: int, phase: str = "forward", age: float = 0.0, silence: float = 0.0, step: int = 7) -> Heard:
    """A pulse whose phase has lasted ``age`` seconds, heard ``silence`` seconds ago."""
    beat = Beat(rank, step, phase, 0.0, 0.0, longest=0.1)
    return Pulse(beat, age, Process(100 + rank, 1, "host", "node"), 0), silence


class PlainActor:
    """Stands for the coordinator: has heard some pulses, then does not answer any more."""

    def __init__(self, pulses: dict[tuple[str, int, int], Heard]) -> None:
        self._pulses = pulses
        self.looks = 0
        self.events: list[dict[str, Any]] = []
        self.killed = False

    async def insist(self, method: str, *arguments: Any) -> Any:
        self.looks += 1
        if self.looks > 2:
            raise TimeoutError
        return self._pulses

    def kill(self) -> None:
        self.killed = True


class PlainCrew:
    def __init__(self, pulses: dict[tuple[str, int, int], Heard], ranks: list[list[int]]) -> None:
        self.coordinator = PlainActor(pulses)
        self.lives = {
            member: Life(member, 0, {rank: cast(Actor, PlainActor({})) for rank in row})
            for member, row in enumerate(ranks)
        }
        self.shards: dict[int, ShardLife] = {}
        self.prepared = True

    async def record(self, event: dict[str, Any]) -> None:
        self.coordinator.events.append(event)


class Watched:
    """What a vigil over ``crew`` has said and done, two looks long."""

    def __init__(self, crew: PlainCrew, monkeypatch: pytest.MonkeyPatch, gone: Collection[int] = ()) -> None:
        self._gone = gone
        self.said: list[str] = []
        self.signals: list[tuple[int, int]] = []
        self.events = crew.coordinator.events
        monkeypatch.setattr(vigil, "STACKS_S", 0.0)
        monkeypatch.setattr(vigil, "kill_process", self._signal)
        self.vigil = Vigil(cast(Crew, crew), SETTINGS, self.said.append)
        monkeypatch.setattr(vigil, "LOOK_S", 0.0)
        self.end = asyncio.run(self.vigil.watch())

    def _signal(self, process: Process, number: int) -> bool:
        if number != vigil.ALIVE:
            self.signals.append((process.pid, number))
        return process.pid not in self._gone


KILLED = [signal.SIGQUIT, signal.SIGCONT, signal.SIGKILL]


def test_all_is_well_while_everybody_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = PlainCrew({("worker", 0, 0): heard(0), ("worker", 1, 0): heard(1, "backward", step=9)}, [[0], [1]])
    watched = Watched(crew, monkeypatch)
    assert watched.said == watched.signals == []
    assert watched.vigil.step == 9
    assert watched.vigil.place_of(1) == (9, "backward")


def test_a_silent_worker_writes_its_stacks_and_is_killed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = PlainCrew({("worker", 0, 0): heard(0), ("worker", 1, 0): heard(1, silence=6)}, [[0], [1]])
    watched = Watched(crew, monkeypatch)
    assert watched.signals == [(101, number) for number in KILLED]
    assert len(watched.said) == 1
    assert watched.said[0].startswith(
        "worker 1 is frozen in step 7, phase forward: no sign of life for 6.0 s"
    )
    assert watched.events[0]["ranks"] == [1]
    assert watched.vigil.verdict_on(crew.lives[0]) is None
    verdict = watched.vigil.verdict_on(crew.lives[1])
    assert verdict is not None
    assert verdict.kind == "frozen"


def test_of_a_group_only_the_one_that_the_others_wait_for_is_hung(monkeypatch: pytest.MonkeyPatch) -> None:
    pulses = {("worker", 0, 0): heard(0, "backward", age=40), ("worker", 1, 0): heard(1, "forward", age=40)}
    watched = Watched(PlainCrew(pulses, [[0, 1]]), monkeypatch)
    assert watched.signals == [(101, number) for number in KILLED]


def test_a_group_whose_speaker_waits_for_the_server_is_not_hung(monkeypatch: pytest.MonkeyPatch) -> None:
    pulses = {("worker", 0, 0): heard(0, "waiting", age=90), ("worker", 1, 0): heard(1, "update", age=90)}
    assert Watched(PlainCrew(pulses, [[0, 1]]), monkeypatch).signals == []
    pulses["worker", 1, 0] = heard(1, "update", age=90, silence=6)
    assert Watched(PlainCrew(pulses, [[0, 1]]), monkeypatch).signals == [(101, number) for number in KILLED]


def test_one_copy_of_a_shard_is_not_taken_for_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = PlainCrew({("shard", 1, 0): heard(1), ("shard", 2, 0): heard(2, silence=6)}, [])
    crew.shards = {serial: ShardLife(0, cast(Actor, PlainActor({}))) for serial in (1, 2)}
    watched = Watched(crew, monkeypatch)
    assert watched.signals == [(102, number) for number in KILLED]
    assert watched.said[0].startswith("shard 0 is frozen: no sign of life")


def test_a_shard_that_has_ended_is_not_called_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = PlainCrew({("shard", 1, 0): heard(1, silence=6)}, [])
    crew.shards = {1: ShardLife(0, cast(Actor, PlainActor({})))}
    watched = Watched(crew, monkeypatch, gone={101})
    assert watched.said == watched.signals == []


def test_a_process_that_never_comes_is_given_up_after_the_time_for_a_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crew = PlainCrew({("worker", 0, 0): heard(0)}, [[0, 1], [2]])
    crew.lives[0].began = time.monotonic() - 601
    watched = Watched(crew, monkeypatch)
    assert watched.said == ["killed: worker 1 did not start within 601 s"]
    assert all(cast(PlainActor, actor).killed for actor in crew.lives[0].actors.values())
    assert watched.vigil.verdict_on(crew.lives[1]) is None


def test_pulses_of_an_earlier_process_say_nothing_of_its_successor(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = PlainCrew({("worker", 0, 0): heard(0, silence=99), ("worker", 0, 1): heard(0)}, [])
    crew.lives[0] = Life(0, 1, {0: cast(Actor, PlainActor({}))})
    assert Watched(crew, monkeypatch).signals == []


def test_a_pulse_that_was_closed_in_good_order_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    pulse, _ = heard(0)
    closed = replace(pulse, beat=replace(pulse.beat, pulse_at=float("inf")))
    assert Watched(PlainCrew({("worker", 0, 0): (closed, 20.0)}, [[0]]), monkeypatch).signals == []


def test_a_coordinator_that_does_not_answer_ends_the_vigil(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = PlainCrew({}, [])
    assert Watched(crew, monkeypatch).end.startswith("no answer for ")
    assert crew.coordinator.looks == 4, "twice there was an answer, and two questions were in vain"


def test_what_somebody_else_condemns_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = PlainCrew({}, [[0]])
    watched = Watched(crew, monkeypatch)
    watched.vigil.condemn(crew.lives[0], Verdict("refused", "worker 0: NaN three times"))
    assert watched.vigil.verdict_on(crew.lives[0]) == Verdict("refused", "worker 0: NaN three times")
    assert watched.said == ["killed: worker 0: NaN three times"]


def test_a_frozen_process_is_found_in_less_than_the_five_seconds_of_the_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # It ends right after a look, and the next look comes half a second later.
    worst = 5.0 - vigil.LOOK_S
    silent = PlainCrew({("worker", 0, 0): heard(0, silence=worst)}, [[0]])
    assert Watched(silent, monkeypatch).signals == [(100, number) for number in KILLED]


def test_a_shard_that_never_comes_is_killed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = PlainCrew({}, [])
    actor = PlainActor({})
    crew.shards = {4: ShardLife(1, cast(Actor, actor), time.monotonic() - 601)}
    watched = Watched(crew, monkeypatch)
    assert watched.said == ["killed: shard 1 did not start within 601 s"]
    assert actor.killed


def test_what_is_seen_right_after_this_process_stood_still_is_held_against_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crew = PlainCrew({("worker", 0, 0): heard(0, silence=60)}, [[0]])
    clock = StandingStill()
    monkeypatch.setattr(vigil, "time", clock)
    monkeypatch.setattr(asyncio, "sleep", clock.sleep)

    async def beat_again(method: str) -> Any:
        # All are heard again as soon as they have had a moment.
        crew.coordinator.looks += 1
        if crew.coordinator.looks > 2:
            raise TimeoutError
        return {("worker", 0, 0): heard(0, silence=60 if clock.now < 61.0 else 0.2)}

    monkeypatch.setattr(crew.coordinator, "insist", beat_again)
    watched = Watched(crew, monkeypatch)
    assert clock.now == 60.0 + vigil.LATE_S
    assert watched.signals == []


class StandingStill:
    """A clock that time has to be slept on, and whose first sleep lasts a minute."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds if self.now else 60.0
