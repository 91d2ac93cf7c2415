"""The conductor over a plain crew, whose processes end as a test has them end."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dist_train.errors import DONE, FAILED, INTERRUPTED, REFUSED, Mismatch
from dist_train.rules.recovery import Failure
from dist_train.runtime import conductor as conductors
from dist_train.runtime import vigil
from dist_train.runtime.conductor import Conductor
from dist_train.runtime.crew import Crew, End, Life, ShardLife
from dist_train.runtime.letters import Ended, News, Order, Want
from dist_train.runtime.ray_cluster import Actor
from dist_train.runtime.remote import ActorFailed, ActorGone

SHARD = ShardLife(0, cast(Actor, None))


class PlainCoordinator:
    """Answers everything; its news are those that a test has put there.

    ``gradients`` is what each process that is lost had got done.
    """

    def __init__(self) -> None:
        self.heard: list[tuple[str, tuple[Any, ...]]] = []
        self.news: asyncio.Queue[News] = asyncio.Queue()
        self.gone = asyncio.Event()
        self.last_word = DONE
        self.gradients = 0

    async def insist(self, method: str, *arguments: Any) -> Any:
        if self.gone.is_set():
            raise ActorGone("the coordinator has ended")
        if method == "news":
            return await self.news.get()
        if method == "pulses":
            return {}
        self.heard.append((method, arguments))
        return self.gradients if method == "lost" else None

    def calls(self, method: str) -> list[tuple[Any, ...]]:
        return [arguments for each, arguments in self.heard if each == method]


class PlainCrew:
    """``ends`` holds, for each member, how its lives end; a life without an end goes on."""

    def __init__(self, ends: dict[int, list[Ended | None]], refusal: Exception | None = None) -> None:
        self.coordinator = PlainCoordinator()
        self.members = len(ends)
        self.lives: dict[int, Life] = {}
        self.shards: dict[int, Any] = {3: SHARD}
        self.buried: list[int] = []
        self.prepared = False
        self.started: list[tuple[int, int]] = []
        self.replaced: list[tuple[int, int]] = []
        self._ends = ends
        self._refusal = refusal
        self.shard_error: Exception | None = None

    async def prepare(self) -> None:
        if self._refusal is not None:
            raise self._refusal
        self.prepared = True

    def start_member(self, member: int, incarnation: int) -> Life:
        self.started.append((member, incarnation))
        self.lives[member] = Life(member, incarnation)
        return self.lives[member]

    async def run_member(self, life: Life) -> list[End]:
        ends = self._ends[life.member]
        if life.incarnation >= len(ends):
            await asyncio.Event().wait()
        how = ends[life.incarnation]
        life.over.set()
        if how is not None and how.status == DONE:
            return []
        return [End(life.member, time.monotonic(), how)]

    def bury(self, serial: int) -> None:
        self.buried.append(serial)
        del self.shards[serial]

    async def replace_shard(self, number: int) -> None:
        if self.shard_error is not None:
            raise self.shard_error
        self.replaced.append((number, self.buried[-1]))
        self.shards[self.buried[-1] + 1] = SHARD

    async def record(self, event: dict[str, Any]) -> None:
        await self.coordinator.insist("event", event)

    async def wait_for_members(self, seconds: float) -> None: ...

    def log_of(self, rank: int) -> str:
        return f"logs/rank_{rank:05d}.log"


class Told:
    """How an attempt ended, what was said, and what the crew was told."""

    def __init__(self, crew: PlainCrew) -> None:
        self.crew = crew
        self.said: list[str] = []
        self.outcome: int | Failure = FAILED

    def calls(self, method: str) -> list[tuple[Any, ...]]:
        return self.crew.coordinator.calls(method)


Story = Callable[[Conductor, PlainCrew], Coroutine[Any, Any, None]]


async def no_story(conductor: Conductor, crew: PlainCrew) -> None: ...


def conduct(crew: PlainCrew, story: Story = no_story, **recovery: Any) -> Told:
    told = Told(crew)
    settings = {"max_restarts": 3, "backoff_s": 0.0, "grace_s": 30.0, **recovery}
    limits = {"max_backoff_s": 0.0, "frozen_after_s": 5.0, "hung_after_s": 30.0, "start_timeout_s": 600.0}
    config = SimpleNamespace(
        recovery=SimpleNamespace(**limits, **settings), parallel=SimpleNamespace(group_size=1)
    )
    order = cast(Order, SimpleNamespace(config=config, run_dir=Path()))

    async def whole() -> int | Failure:
        async with asyncio.timeout(10):
            conductor = Conductor(order, cast(Crew, crew), told.said.append)
            running = asyncio.ensure_future(conductor.run())
            await story(conductor, crew)
            return await running

    told.outcome = asyncio.run(whole())
    return told


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0)


def failed(error: str = "boom", step: int = 5, kind: str = "RuntimeError") -> Ended:
    return Ended(FAILED, step, "forward", kind, f"{kind}: {error}")


async def saved(conductor: Conductor, crew: PlainCrew) -> None:
    """Have the coordinator answer a stop by saving."""
    await until(lambda: crew.coordinator.calls("stop"))
    crew.coordinator.news.put_nowait(News(number=1, status=INTERRUPTED))


async def finish(conductor: Conductor, crew: PlainCrew) -> None:
    """Let what can happen happen, then have the coordinator end the run."""
    for _ in range(50):
        await asyncio.sleep(0)
    crew.coordinator.news.put_nowait(News(number=1, status=crew.coordinator.last_word))


@pytest.fixture(autouse=True)
def no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conductors, "open_display", lambda length: None)


def test_the_run_ends_as_the_coordinator_says() -> None:
    async def story(conductor: Conductor, crew: PlainCrew) -> None:
        crew.coordinator.news.put_nowait(News(number=1, status=FAILED, error="60 gradients hold NaN"))

    told = conduct(PlainCrew({0: [], 1: []}), story)
    assert told.outcome == FAILED
    assert told.said == ["60 gradients hold NaN"]


class TestAMemberThatFails:
    def test_is_reported_named_and_replaced(self) -> None:
        told = conduct(PlainCrew({0: [failed()], 1: []}), finish)
        assert told.outcome == DONE
        assert told.crew.started == [(0, 0), (1, 0), (0, 1)]
        assert told.calls("lost")[0][:2] == (0, 0)
        where = "in step 5, phase forward; log: logs/rank_00000.log"
        assert told.said == [
            f"worker 0 failed: RuntimeError: boom, {where}",
            "worker 0 is replaced in 0.0 s; the others go on",
        ]

    def test_by_a_signal_is_said_to_have_been_killed(self) -> None:
        told = conduct(PlainCrew({0: [], 1: [None]}), finish)
        assert told.said[0].startswith("worker 1 was killed (the kernel does so when memory runs out)")

    def test_twice_alike_is_given_up_and_the_others_go_on_without(self) -> None:
        told = conduct(PlainCrew({0: [failed(), failed()], 1: []}), finish)
        assert told.outcome == DONE
        assert told.calls("open_without") == [([0],)]
        assert "failed twice" in told.said[-1]

    @pytest.mark.parametrize(("gradients", "lives"), [(0, 4), (1, 7)])
    def test_again_and_again_is_given_up_unless_it_gets_something_done(
        self, gradients: int, lives: int
    ) -> None:
        # The others go on meanwhile: each time it fails in a later step.
        crew = PlainCrew({0: [failed(f"error {life}", step=10 * life) for life in range(1, 7)], 1: []})
        crew.coordinator.gradients = gradients
        told = conduct(crew, finish)
        assert [life for member, life in told.crew.started if member == 0] == [*range(lives)]
        assert told.calls("open_without") == ([([0],)] if gradients == 0 else [])

    def test_the_only_one_ends_the_run(self) -> None:
        told = conduct(PlainCrew({0: [failed(), failed()]}), saved)
        assert told.outcome == FAILED
        assert told.calls("stop") == [()], "what is trained is saved first"

    def test_by_the_error_of_all_others_ends_the_run_at_once(self) -> None:
        told = conduct(PlainCrew({0: [failed(), failed()], 1: [failed()]}), saved)
        assert told.outcome == FAILED
        assert told.said[-1] == "not going on: all workers failed in step 5: RuntimeError: boom"

    def test_by_its_configuration_refuses_the_run(self) -> None:
        told = conduct(PlainCrew({0: [Ended(REFUSED, error="one\ntwo")], 1: []}))
        assert told.outcome == REFUSED
        assert told.said == ["one", "two"]


class TestTheCoordinator:
    def test_that_is_gone_is_the_failure_of_all(self) -> None:
        async def story(conductor: Conductor, crew: PlainCrew) -> None:
            await until(lambda: crew.prepared)
            crew.coordinator.gone.set()
            crew.coordinator.news.put_nowait(News(number=1))

        outcome = conduct(PlainCrew({0: [], 1: []}), story).outcome
        assert isinstance(outcome, Failure)
        assert outcome.error == "the coordinator is lost: the coordinator has ended"
        assert outcome.killed

    def test_that_is_gone_is_news_and_what_members_say_of_it_is_not(self) -> None:
        crew = PlainCrew({0: [failed("the coordinator has ended", kind="ActorGone")], 1: []})
        crew.coordinator.gone.set()
        told = conduct(crew)
        assert isinstance(told.outcome, Failure)
        assert told.said == []

    def test_that_refuses_the_checkpoint_refuses_the_run(self) -> None:
        told = conduct(PlainCrew({0: []}, Mismatch("other data")))
        assert told.outcome == REFUSED
        assert told.said == ["other data"]

    def test_that_has_an_error_shows_where(self) -> None:
        told = conduct(PlainCrew({0: []}, ActorFailed("it broke", "in line 7")))
        assert told.outcome == FAILED
        assert told.said == ["it broke", "in line 7"]

    def test_has_shards_and_members_replaced(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def story(conductor: Conductor, crew: PlainCrew) -> None:
            wants = [
                Want("shard", 0, 3, "its process is gone"),
                Want("member", 0, 0, "NaN"),
                Want("member", 1, 9, "NaN"),
            ]
            crew.coordinator.news.put_nowait(News(number=1, wants=wants))
            await until(lambda: crew.replaced)
            crew.coordinator.news.put_nowait(News(number=2, status=DONE))

        monkeypatch.setattr(vigil.Life, "kill", lambda life: None)
        crew = PlainCrew({0: [], 1: []})
        # A want for a process that was replaced already is out of date.
        for member in (0, 1):
            crew.lives[member] = Life(member, 0, {member: None})  # type: ignore[dict-item]
        crew.start_member = lambda member, incarnation: crew.lives[member]  # type: ignore[method-assign]
        told = conduct(crew, story)
        assert crew.replaced == [(0, 3)]
        assert sorted(told.said) == ["killed: worker 0: NaN", "shard 0 is replaced: its process is gone"]


class TestAShard:
    @staticmethod
    def lost(times: int) -> Story:
        async def story(conductor: Conductor, crew: PlainCrew) -> None:
            for serial in range(3, 3 + times):
                wants = [Want("shard", 0, serial, "its process is gone")]
                crew.coordinator.news.put_nowait(News(number=serial, wants=wants))
                while (0, serial) not in crew.replaced and not crew.coordinator.calls("stop"):
                    await asyncio.sleep(0)
            await finish(conductor, crew)

        return story

    def test_is_replaced_as_often_as_is_allowed_without_progress(self) -> None:
        told = conduct(PlainCrew({0: []}), self.lost(3))
        assert told.outcome == DONE
        assert told.crew.replaced == [(0, 3), (0, 4), (0, 5)]

    def test_that_is_lost_more_often_has_the_run_saved_and_failed(self) -> None:
        crew = PlainCrew({0: []})
        crew.coordinator.last_word = INTERRUPTED
        told = conduct(crew, self.lost(5))
        assert told.outcome == FAILED
        assert told.calls("stop") == [()]
        assert "recovery.max_restarts" in told.said[-1]

    def test_that_is_lost_too_often_is_done_without_while_it_has_another_copy(self) -> None:
        crew = PlainCrew({0: []})
        crew.shards[99] = SHARD

        async def story(conductor: Conductor, crew: PlainCrew) -> None:
            wants = [Want("shard", 0, 3, "its process is gone")]
            crew.coordinator.news.put_nowait(News(number=1, wants=wants))
            await finish(conductor, crew)

        told = conduct(crew, story, max_restarts=0)
        assert told.outcome == DONE
        assert told.calls("stop") == []
        assert told.said == ["shard 0 goes on with one copy less: not restarting: recovery.max_restarts is 0"]

    def test_that_cannot_be_built_has_the_run_saved_and_failed(self) -> None:
        crew = PlainCrew({0: []})
        crew.shard_error = ActorFailed("no memory")
        crew.coordinator.last_word = INTERRUPTED
        told = conduct(crew, self.lost(1))
        assert told.outcome == FAILED
        assert told.calls("stop") == [()]
        assert told.said[-1] == "shard 0 cannot be replaced: no memory"

    def test_wanted_twice_is_replaced_once(self) -> None:
        crew = PlainCrew({0: []})

        async def story(conductor: Conductor, crew: PlainCrew) -> None:
            for number in (1, 2):
                crew.coordinator.news.put_nowait(News(number, wants=[Want("shard", 0, 3, "gone")]))
            await finish(conductor, crew)

        assert conduct(crew, story).crew.replaced == [(0, 3)]


class TestAtTheEnd:
    """What happens between the coordinator's last word and the end of the members' processes."""

    @pytest.mark.parametrize("status", [DONE, INTERRUPTED])
    def test_no_error_no_signal_and_no_silence_changes_how_it_ended(self, status: int) -> None:
        class LeavingCrew(PlainCrew):
            async def run_member(self, life: Life) -> list[End]:
                await leaving.wait()
                life.over.set()
                return [End(life.member, time.monotonic(), failed("I/O operation on closed file"))]

            async def wait_for_members(self, seconds: float) -> None:
                leaving.set()
                self.coordinator.gone.set()
                await self.lives[0].over.wait()
                for number in (signal.SIGTERM, signal.SIGINT):
                    conductor_of[0].stop(number)
                for _ in range(20):
                    await asyncio.sleep(0)

        async def story(conductor: Conductor, crew: PlainCrew) -> None:
            conductor_of.append(conductor)
            await until(lambda: crew.prepared)
            crew.coordinator.news.put_nowait(News(number=1, status=status))

        leaving = asyncio.Event()
        conductor_of: list[Conductor] = []
        told = conduct(LeavingCrew({0: []}), story)
        assert told.outcome == status
        assert told.said == []


class TestAskedToStop:
    def test_it_does_not_begin_again_when_the_coordinator_is_lost_meanwhile(self) -> None:
        async def story(conductor: Conductor, crew: PlainCrew) -> None:
            await until(lambda: crew.prepared)
            conductor.stop(signal.SIGTERM)
            await until(lambda: crew.coordinator.calls("stop"))
            crew.coordinator.gone.set()
            crew.coordinator.news.put_nowait(News(number=1))

        told = conduct(PlainCrew({0: [], 1: []}), story)
        assert told.outcome == FAILED
        assert told.said[-1].startswith("the coordinator is lost: ")
        assert told.said[-1].endswith("since the last checkpoint is not saved")

    def test_it_has_the_state_saved(self) -> None:
        async def story(conductor: Conductor, crew: PlainCrew) -> None:
            await until(lambda: crew.prepared)
            conductor.stop(signal.SIGTERM)
            await until(lambda: crew.coordinator.calls("stop"))
            crew.coordinator.news.put_nowait(News(number=1, status=INTERRUPTED))

        told = conduct(PlainCrew({0: [], 1: []}), story)
        assert told.outcome == INTERRUPTED
        assert told.calls("event")[0][0]["signal"] == "SIGTERM"

    def test_before_there_is_anything_to_save_it_just_ends(self) -> None:
        async def story(conductor: Conductor, crew: PlainCrew) -> None:
            await until(lambda: crew.started)
            conductor.stop(signal.SIGINT)

        class StartingCrew(PlainCrew):
            async def prepare(self) -> None:
                await asyncio.Event().wait()

        told = conduct(StartingCrew({0: []}), story)
        assert told.outcome == INTERRUPTED
        assert told.calls("stop") == []

    @pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
    def test_a_second_time_it_does_not_wait(self, second: signal.Signals) -> None:
        async def story(conductor: Conductor, crew: PlainCrew) -> None:
            await until(lambda: crew.prepared)
            conductor.stop(signal.SIGUSR1)
            conductor.stop(signal.SIGUSR1)
            conductor.stop(second)

        told = conduct(PlainCrew({0: []}), story)
        assert told.outcome == FAILED
        assert "second" in told.said[-1]

    def test_it_waits_no_longer_than_the_grace(self) -> None:
        async def story(conductor: Conductor, crew: PlainCrew) -> None:
            await until(lambda: crew.prepared)
            conductor.stop(signal.SIGTERM)

        told = conduct(PlainCrew({0: []}), story, grace_s=0.0)
        assert told.outcome == FAILED
        assert "recovery.grace_s" in told.said[-1]
