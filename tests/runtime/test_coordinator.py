"""The coordinator as an object of this process, over a run without data, shards and members."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dist_train.errors import DONE, FAILED, INTERRUPTED, ConfigError, TrainingError
from dist_train.rules.decisions import Action, Answer, Returned, Take
from dist_train.rules.liveness import Beat
from dist_train.rules.messages import FIRST, Push, Reply
from dist_train.rules.sampling import Run
from dist_train.rules.terms import Start
from dist_train.runtime import children
from dist_train.runtime import coordinator as coordinators
from dist_train.runtime import run_dir as directories
from dist_train.runtime.coordinator import Coordinator
from dist_train.runtime.holdings import Kept
from dist_train.runtime.letters import Hello, Order, Pulse, Want
from dist_train.runtime.remote import Process


class PlainReferee:
    """Answers every gradient at once; remembers who joined and who left."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []
        self.stopped = self.finished = self.owes_validation = False
        self.admission = SimpleNamespace(live=())

    def join(self, *who: int) -> list[Action]:
        self.heard.append(("join", who))
        return []

    def leave(self, *who: int) -> list[Action]:
        self.heard.append(("leave", who))
        return []

    def stop(self) -> list[Action]:
        self.stopped = True
        return []

    def push(self, push: Push) -> list[Action]:
        self.heard.append(("push", push.sequence))
        return [Answer(push.member, push.incarnation, push.sequence, Reply("counted", FIRST), "work")]


class PlainHoldings:
    """Holds the state after three updates."""

    def __init__(self) -> None:
        self.kept = Kept(Start(3), {}, {}, ())

    def newest(self) -> tuple[int, Kept]:
        return 0, self.kept

    def keep(self, area: int, kept: Kept) -> None:
        self.kept = kept


class PlainRun:
    members = 2

    def __init__(self, order: Order) -> None:
        self.referee = self.referee_or_none = PlainReferee()
        self.holdings = PlainHoldings()
        self.finished_as: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.pushed_to_records: list[int] = []
        self.records_fail = False
        self.waited = False

    @property
    def records(self) -> Any:
        return SimpleNamespace(returned=lambda lease, push: None)

    def answered(self, answer: Answer) -> None:
        if self.records_fail:
            raise ValueError("write to closed file")

    def event(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def pushed(self, push: Push) -> None:
        self.pushed_to_records.append(push.sequence)

    def mark_now(self) -> Kept:
        return Kept(Start(3, owes_validation=self.referee.owes_validation), {}, {}, ())

    async def saved(self) -> None: ...

    def finish(self, area: int, status: str) -> None:
        self.finished_as.append(status)

    def close(self) -> None: ...

    def length_if_new(self) -> None: ...

    def shown(self) -> list[Any]:
        return []

    def wait_for_records(self) -> None:
        self.waited = True


async def at_once() -> None: ...


PLAIN_PUMP = SimpleNamespace(
    close_entry=lambda: None,
    take=lambda take: None,
    stop_waiting=lambda: None,
    take_back=lambda member: None,
    rest=at_once,
    keep_now=at_once,
)
PLAIN_MEMORIES = SimpleNamespace(knows=lambda push: False)


class World:
    def __init__(self) -> None:
        self.coordinator = Coordinator(cast(Order, SimpleNamespace(run_dir=Path(), word="")))
        self.coordinator._pump = cast(Any, PLAIN_PUMP)
        self.coordinator._memories = cast(Any, PLAIN_MEMORIES)
        self.run = cast(PlainRun, self.coordinator._run)
        self.referee = self.run.referee


Story = Callable[[World], Coroutine[Any, Any, None]]


@pytest.fixture(autouse=True)
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinators, "redirect_output", lambda path: None)
    monkeypatch.setattr(coordinators, "leave_interrupts_to_the_conductor", lambda: None)
    monkeypatch.setattr(children, "dump_stacks_on_request", lambda: None)
    monkeypatch.setattr(coordinators, "ServerRun", PlainRun)


def play(story: Story) -> World:
    async def whole() -> World:
        async with asyncio.timeout(10):
            world = World()
            await story(world)
            return world

    return asyncio.run(whole())


def push(sequence: int, member: int = 0, incarnation: int = 0) -> Push:
    return Push(member, incarnation, sequence, sequence, FIRST, 4, 1.0)


def test_the_end_is_told_when_the_records_are_written() -> None:
    """Whoever hears of it ends the process."""

    async def story(world: World) -> None:
        assert (await world.coordinator.news(0)).status is None
        assert not world.run.waited
        world.coordinator._end(FAILED, "why")
        assert (await world.coordinator.news(1)).status == FAILED
        assert world.run.waited

    play(story)


def test_news_asked_for_twice_at_once_are_the_same_and_nothing_wanted_is_lost() -> None:
    want = Want("shard", 0, 1, "its process is gone")

    async def story(world: World) -> None:
        first = asyncio.ensure_future(world.coordinator.news(0))
        repeated = asyncio.ensure_future(world.coordinator.news(0))
        await asyncio.sleep(0)
        world.coordinator._want(want)
        for news in (await first, await repeated, await world.coordinator.news(0)):
            assert (news.number, news.wants) == (1, [want])

    play(story)


class TestAProcessThatIsGone:
    def test_is_not_let_in_by_what_it_said_before(self) -> None:
        async def story(world: World) -> None:
            world.coordinator.lost(0, 0, {"event": "failure"})
            assert (await world.coordinator.join(0, 0, 1)).outcome == "ended"
            assert (await world.coordinator.push(push(3))).outcome == "ended"
            with pytest.raises(TrainingError, match="another process has taken the place of member 0"):
                await world.coordinator.enlist(cast(Hello, SimpleNamespace(member=0, incarnation=0)))

        assert play(story).referee.heard == [("leave", (0, 0))]

    def test_has_a_successor_that_is(self) -> None:
        async def story(world: World) -> None:
            world.coordinator.lost(0, 0, {"event": "failure"})
            joining = asyncio.ensure_future(world.coordinator.join(0, 1, 1))
            await asyncio.sleep(0)
            joining.cancel()

        assert play(story).referee.heard[-1] == ("join", (0, 1, 1))

    def test_is_lost_once(self) -> None:
        async def story(world: World) -> None:
            for _ in range(2):
                world.coordinator.lost(0, 0, {"event": "failure"})

        world = play(story)
        assert len(world.run.events) == len(world.referee.heard) == 1

    def test_is_known_by_how_many_of_its_gradients_were_in_order(self) -> None:
        run = Run(0, 0, 4)
        late, refused = (Returned(0, 0, outcome, FIRST, FIRST, run) for outcome in ("dropped", "refused"))

        async def story(world: World) -> None:
            world.coordinator._do(
                [Take(push(1), 4.0, 1.0, True), late, refused, Take(push(1, 1), 4.0, 1.0, True)]
            )
            assert world.coordinator.lost(0, 0, {"event": "failure"}) == 2
            assert world.coordinator.lost(0, 0, {"event": "failure"}) == 2, "the call may be repeated"
            assert world.coordinator.lost(0, 1, {"event": "failure"}) == 0

        play(story)

    def test_leaves_no_pulse_behind_once_its_successor_beats(self) -> None:
        async def story(world: World) -> None:
            for incarnation in range(3):
                beat = Beat(0, 1, "forward", 0.0, 0.0)
                pulse = Pulse(beat, 0.0, Process(1, 1, "host", "node"), incarnation)
                world.coordinator.pulse("worker", 0, pulse)
            assert list(world.coordinator.pulses()) == [("worker", 0, 2)]

        play(story)


def test_a_very_late_repeat_of_a_gradient_is_not_judged() -> None:
    async def story(world: World) -> None:
        for sequence in (1, 2):
            assert (await world.coordinator.push(push(sequence))).outcome == "counted"
        assert (await world.coordinator.push(push(1))).outcome == "ended"

    world = play(story)
    assert world.referee.heard == [("push", 1), ("push", 2)]
    assert world.run.pushed_to_records == [1, 2]


def test_what_a_member_was_lent_is_taken_back_when_it_is_heard_of_or_lost() -> None:
    back: list[int] = []

    async def story(world: World) -> None:
        pump = SimpleNamespace(**{**vars(PLAIN_PUMP), "take_back": back.append})
        world.coordinator._pump = cast(Any, pump)
        await world.coordinator.push(push(1, member=1))
        assert back == [1]
        world.coordinator.lost(0, 0, {"event": "failure"})
        assert back == [1, 0]

    play(story)


def test_an_event_is_written_once_however_often_it_is_told() -> None:
    async def story(world: World) -> None:
        for number in (1, 2, 1):
            world.coordinator.event(number, {"event": "hung", "number": number})

    assert [event["number"] for event in play(story).run.events] == [1, 2]


def test_a_member_has_its_answer_whatever_becomes_of_the_records() -> None:
    async def story(world: World) -> None:
        world.run.records_fail = True
        with pytest.raises(ValueError, match="closed file"):
            await world.coordinator.push(push(1))
        assert (await world.coordinator.push(push(1))).outcome == "counted"

    play(story)


class TestTheEnd:
    @staticmethod
    async def ended(world: World) -> int | None:
        known = 0
        while True:
            news = await world.coordinator.news(known)
            if news.status is not None:
                return news.status
            known = news.number

    @pytest.mark.parametrize(
        ("finished", "owes", "status", "called"),
        [
            (False, False, INTERRUPTED, "interrupted"),
            (False, True, INTERRUPTED, "interrupted"),
            (True, True, INTERRUPTED, "interrupted"),
            (True, False, DONE, "done"),
        ],
    )
    def test_of_a_run_that_is_stopped_is_done_only_when_the_last_validation_is(
        self, finished: bool, owes: bool, status: int, called: str
    ) -> None:
        async def story(world: World) -> None:
            world.coordinator._opened = True
            world.referee.finished, world.referee.owes_validation = finished, owes
            world.coordinator.stop()
            assert await self.ended(world) == status

        run = play(story).run
        assert run.finished_as == [called]
        assert run.holdings.kept.start.owes_validation == owes

    def test_waits_for_the_last_validation(self) -> None:
        async def story(world: World) -> None:
            world.coordinator._opened = True
            world.referee.finished = world.referee.owes_validation = True
            world.coordinator._do([])
            assert not world.coordinator._ending
            world.referee.owes_validation = False
            world.coordinator._do([])
            assert await self.ended(world) == DONE

        assert play(story).run.finished_as == ["done"]


@pytest.mark.parametrize(("attempt", "kind"), [(0, ConfigError), (1, TrainingError)])
def test_on_a_machine_with_another_run_directory_it_makes_none_and_refuses_or_later_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempt: int, kind: type[Exception]
) -> None:
    monkeypatch.setattr(directories, "SEEN_AFTER_S", 0.0)
    order = SimpleNamespace(run_dir=tmp_path / "run", word="left elsewhere", attempt=attempt)
    with pytest.raises(kind, match=f"{socket.gethostname()} is not the one that the run was started in"):
        Coordinator(cast(Order, order))
    assert list(tmp_path.iterdir()) == []
