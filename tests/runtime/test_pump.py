"""The pump over plain shards: objects of this process that note what they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dist_train.exchange.segments import Address
from dist_train.rules.decisions import Action, Milestone, Step, Take
from dist_train.rules.messages import Push, Version
from dist_train.rules.referee import Start
from dist_train.rules.sampling import Position
from dist_train.rules.schedule import Scheduled
from dist_train.runtime import pump as pumps
from dist_train.runtime.commands import (
    Apply,
    Attach,
    Command,
    Done,
    Lend,
    Load,
    Snapshot,
    TakeBack,
    TakeGradient,
)
from dist_train.runtime.holdings import Kept
from dist_train.runtime.letters import Copy, Want
from dist_train.runtime.memories import Memories
from dist_train.runtime.pump import Pump
from dist_train.runtime.ray_cluster import Actor
from dist_train.runtime.remote import ActorGone
from dist_train.runtime.server_run import ServerRun

NOWHERE = Address(1, 1, 1, 1, 1)


class PlainShard:
    """``ends_at`` is the kind of command, or the verb, at which it ends."""

    def __init__(self, ends_at: Any = None) -> None:
        self.alive = True
        self.ends_at = ends_at
        self.obeyed: list[Command] = []

    async def insist(self, method: str, index: int = 0, commands: tuple[Command, ...] = ()) -> Any:
        if method == self.ends_at or any(type(command) is self.ends_at for command in commands):
            self.alive = False
        if not self.alive:
            raise ActorGone("a shard has ended")
        if method == "line":
            return "no such line"
        if method == "where":
            return NOWHERE, None
        self.obeyed += commands
        return Done(index, {"steps": float(index)})

    @property
    def updates(self) -> list[int]:
        return [command.number for command in self.obeyed if isinstance(command, Apply)]


class PlainHoldings:
    """Two areas, of which the older is written next."""

    held_memory = SimpleNamespace(address=NOWHERE)

    def __init__(self) -> None:
        self.kept: dict[int, Kept | None] = {0: kept_after(0), 1: None}
        self.has_room = True

    def next_area(self) -> int:
        area = min(self.kept, key=lambda each: self._updates(each))
        self.kept[area] = None
        return area

    def _updates(self, area: int) -> int:
        kept = self.kept[area]
        return -1 if kept is None else kept.start.updates

    def keep(self, area: int, kept: Kept) -> None:
        self.kept[area] = kept

    def newest(self) -> tuple[int, Kept] | None:
        area = max(self.kept, key=self._updates)
        kept = self.kept[area]
        return None if kept is None else (area, kept)


class PlainReferee:
    """Notes what is reported to it; has no opinion."""

    def __init__(self) -> None:
        self.admission = SimpleNamespace(version=Version(0, 0))
        self.terms = SimpleNamespace(rule=SimpleNamespace(read_own=True))
        self.published = Version(0, 0)
        self.stopped = self.finished = False
        self.reports: list[tuple[str, Any]] = []

    def roll_back(self, to: Start, era: int) -> list[Action]:
        self.reports.append(("roll_back", (to, era)))
        self.admission.version = Version(era, to.updates)
        return []

    def __getattr__(self, verb: str) -> Callable[[Any], list[Action]]:
        def report(what: Any) -> list[Action]:
            self.reports.append((verb, what))
            return []

        return report


class PlainRun:
    parts = (range(16),)
    hazards = ()

    def __init__(self) -> None:
        self.config = SimpleNamespace(parallel=SimpleNamespace(server=SimpleNamespace(shards=1, direct=True)))
        self.holdings = PlainHoldings()
        self.referee = PlainReferee()
        # None until the first member has come.
        self.referee_or_none: PlainReferee | None = self.referee
        self.events: list[str] = []
        self.lost: list[tuple[int, int]] = []
        self.written: list[int] = []
        self.is_saved = asyncio.Event()

    def begin(self) -> tuple[int, Kept]:
        return 0, kept_after(0)

    def mark(self, milestone: Milestone) -> Kept:
        return kept_after(milestone.version.number)

    def mark_now(self) -> Kept:
        return kept_after(self.referee.admission.version.number)

    def event(self, event: dict[str, Any]) -> None:
        self.events.append(event["event"])

    def rolled_back(self, shard: int, kept: Kept, era: int) -> None:
        self.lost.append((shard, kept.start.updates))

    def reconsider_backups(self) -> list[Action]:
        return []

    def applied(self, step: Step, checksums: list[int | None]) -> None: ...
    def hold(self, milestone: Milestone) -> None: ...
    def log(self, milestone: Milestone) -> None: ...

    async def start_saving(self, area: int) -> None:
        self.written.append(area)

    async def saved(self) -> None:
        await self.is_saved.wait()
        self.holdings.has_room = True


class PlainMemories:
    deposits = SimpleNamespace(copies=dict, go_back=lambda kept: None)

    def attachments(self) -> list[Attach]:
        return [ATTACH]

    def settled(self, push: Push) -> None: ...


def kept_after(updates: int) -> Kept:
    return Kept(Start(updates, 4 * updates), {}, {}, ())


ATTACH = Attach(0, 0, NOWHERE, 0)


class World:
    """A pump at work, and what it asks for."""

    def __init__(self, copies: int = 1) -> None:
        self.run = PlainRun()
        self.wants: list[Want] = []
        self.shards = [PlainShard() for _ in range(copies)]
        self.pump = Pump(
            cast(ServerRun, self.run),
            cast(Memories, PlainMemories()),
            lambda actions: None,
            self.wants.append,
        )

    async def begin(self) -> None:
        await self.pump.connect(
            [Copy(0, serial, cast(Actor, shard)) for serial, shard in enumerate(self.shards)]
        )
        self.work = asyncio.ensure_future(self.pump.work())

    def decide(self, number: int, **due: bool) -> Push:
        """Queue an update of one gradient, and what is due after it."""
        push = Push(0, 0, number, number, Version(0, number - 1), 4, 1.0)
        self.run.referee.admission.version = version = Version(0, number)
        self.pump.take(Take(push, 4.0, 0.5, True))
        self.pump.step(Step(version, Scheduled(0.1), (), 4))
        if due:
            self.pump.milestone(Milestone(version, 4 * number, Position(0, 0), (), **due))
        self.pump.close_entry()
        return push

    def successor(self, serial: int, ends_at: Any = None) -> PlainShard:
        shard = PlainShard(ends_at)
        self.pump.admit(Copy(0, serial, cast(Actor, shard)))
        return shard

    @property
    def kept(self) -> set[int]:
        """The updates after which a state is kept."""
        return {kept.start.updates for kept in self.run.holdings.kept.values() if kept}

    async def asked(self, count: int) -> None:
        while len(self.wants) < count:
            await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pumps, "node_id", lambda: "here")


def play(story: Callable[[World], Coroutine[Any, Any, None]], copies: int = 1) -> World:
    world = World(copies)

    async def whole() -> None:
        async with asyncio.timeout(10):
            await world.begin()
            told = asyncio.ensure_future(story(world))
            done, _ = await asyncio.wait({told, world.work}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            world.work.cancel()

    asyncio.run(whole())
    return world


def test_a_member_far_away_is_lent_what_is_published_when_the_shards_have_kept_it() -> None:
    async def story(world: World) -> None:
        world.decide(1)
        world.run.referee.published = Version(0, 1)
        assert await world.pump.lend(3) == Version(0, 1)

    world = play(story)
    assert [type(command) for command in world.shards[0].obeyed][1:] == [TakeGradient, Apply, Lend]


def test_what_is_lent_is_taken_back_once_with_what_comes_next_from_its_member() -> None:
    async def story(world: World) -> None:
        world.decide(1)
        await world.pump.lend(3)
        world.pump.take_back(2)
        world.decide(2)
        for number in (3, 4):
            world.pump.take_back(3)
            world.decide(number)
        await world.pump.rest()

    obeyed = [type(command) for command in play(story).shards[0].obeyed]
    update = [TakeGradient, Apply]
    assert obeyed[1:] == [*update, Lend, *update, TakeBack, *update, *update]


def test_nobody_is_lent_what_is_lost_with_a_shard() -> None:
    async def story(world: World) -> None:
        world.shards[0].ends_at = Apply
        world.decide(1)
        lent = asyncio.ensure_future(world.pump.lend(3))
        await world.asked(1)
        world.successor(7)
        assert await lent is None

    play(story)


def test_updates_are_obeyed_in_order_and_reported() -> None:
    async def story(world: World) -> None:
        world.pushes = [world.decide(1), world.decide(2)]  # type: ignore[attr-defined]
        await world.pump.rest()

    world = play(story)
    _, *obeyed = world.shards[0].obeyed
    assert [type(command) for command in obeyed] == [TakeGradient, Apply, TakeGradient, Apply]
    assert world.shards[0].updates == [1, 2]
    first, second = world.pushes  # type: ignore[attr-defined]
    assert world.run.referee.reports == [
        ("taken", first),
        ("applied", Version(0, 1)),
        ("taken", second),
        ("applied", Version(0, 2)),
    ]


def test_two_snapshots_in_the_queue_are_written_one_after_the_other_to_two_areas() -> None:
    async def story(world: World) -> None:
        world.decide(1, save=True)
        world.decide(2, snapshot=True)
        await world.pump.rest()

    world = play(story)
    areas = [command.area for command in world.shards[0].obeyed if isinstance(command, Snapshot)]
    assert areas == [1, 0]
    assert world.run.written == [1]
    assert world.kept == {1, 2}


def test_a_snapshot_waits_for_a_save_where_it_would_cost_the_newest() -> None:
    async def story(world: World) -> None:
        world.decide(1, snapshot=True)
        await world.pump.rest()
        world.run.holdings.has_room = False
        world.decide(2, snapshot=True)
        for _ in range(20):
            await asyncio.sleep(0)
        assert world.shards[0].updates == [1]
        assert world.kept == {0, 1}
        world.run.is_saved.set()
        await world.pump.rest()

    assert play(story).kept == {1, 2}


def test_the_last_update_of_all_is_kept_with_it() -> None:
    async def story(world: World) -> None:
        world.run.referee.finished = True
        world.decide(1)
        await world.pump.rest()

    newest = play(story).run.holdings.newest()
    assert newest is not None
    assert newest[1].start.updates == 1


class TestASecondCopy:
    def test_goes_on_alone_and_a_successor_is_asked_for(self) -> None:
        async def story(world: World) -> None:
            world.decide(1)
            await world.pump.rest()
            world.shards[0].alive = False
            world.decide(2)
            await world.pump.rest()

        world = play(story, copies=2)
        assert world.shards[1].updates == [1, 2]
        assert world.run.events == ["shard_copy_lost"]
        assert [want.incarnation for want in world.wants] == [0]
        assert world.run.lost == []
        assert world.pump.sources is not None
        assert world.pump.sources.actors == (world.shards[1],)

    def test_begins_right_after_an_update_and_only_once(self) -> None:
        async def story(world: World) -> None:
            world.new = world.successor(7)  # type: ignore[attr-defined]
            world.pump.admit(Copy(0, 7, cast(Actor, PlainShard())))
            world.decide(5)
            world.decide(6)
            await world.pump.rest()

        world = play(story)
        attach, load, *rest = world.new.obeyed  # type: ignore[attr-defined]
        assert attach == ATTACH
        assert (load.era, load.number) == (0, 5)
        assert [type(command) for command in rest] == [TakeGradient, Apply]
        assert world.run.events == ["shard_copy_added"]

    def test_begins_from_a_state_that_is_kept_with_the_counts_of_its_update(self) -> None:
        async def story(world: World) -> None:
            world.decide(1)
            world.successor(7)
            world.decide(2)
            await world.pump.rest()
            world.decide(3)
            await world.pump.rest()

        world = play(story)
        assert world.run.events == ["shard_copy_added"]
        assert world.kept == {0, 2}

    def test_waits_for_an_update_whose_counts_are_known(self) -> None:
        async def story(world: World) -> None:
            world.decide(1)
            world.new = world.successor(7)  # type: ignore[attr-defined]
            await world.pump.rest()
            assert world.new.obeyed == []  # type: ignore[attr-defined]
            world.decide(2)
            await world.pump.rest()

        _, load = play(story).new.obeyed  # type: ignore[attr-defined]
        assert (load.era, load.number) == (0, 2)


class TestALostShard:
    def test_has_all_go_back_to_the_newest_snapshot_once_its_successor_is_there(self) -> None:
        async def story(world: World) -> None:
            world.decide(1, snapshot=True)
            world.decide(2)
            await world.pump.rest()
            world.shards[0].alive = False
            world.decide(3)
            await world.asked(1)
            world.new = world.successor(7)  # type: ignore[attr-defined]
            await world.pump.rest()

        world = play(story)
        assert world.run.lost == [(0, 1)]
        assert world.run.referee.reports[-1] == ("roll_back", (Start(1, 4), 1))
        attach, load = world.new.obeyed  # type: ignore[attr-defined]
        assert attach == ATTACH
        assert load == Load(1, 1, 1, {"steps": 3.0})

    def test_before_anybody_has_begun_is_replaced_and_nothing_is_lost(self) -> None:
        async def story(world: World) -> None:
            world.run.referee_or_none = None
            world.shards[0].alive = False
            world.pump.call_the_roll()
            await world.asked(1)
            world.new = world.successor(7)  # type: ignore[attr-defined]
            await world.pump.rest()
            world.run.referee_or_none = world.run.referee
            world.decide(1)
            await world.pump.rest()

        world = play(story)
        assert world.run.lost == []
        assert world.new.obeyed[:2] == [ATTACH, Load(0, 0, 0, {})]  # type: ignore[attr-defined]
        assert world.new.updates == [1]  # type: ignore[attr-defined]

    def test_takes_with_it_what_was_decided_until_then(self) -> None:
        async def story(world: World) -> None:
            world.shards[0].alive = False
            world.decide(1)
            world.decide(2)
            await world.asked(1)
            # Members that were computing are judged all the while.
            world.decide(3)
            world.new = world.successor(7)  # type: ignore[attr-defined]
            await world.pump.rest()

        world = play(story)
        assert world.new.updates == []  # type: ignore[attr-defined]
        assert all(verb == "roll_back" for verb, _ in world.run.referee.reports)

    def test_does_not_take_with_it_who_came_meanwhile(self) -> None:
        late = Attach(1, 0, NOWHERE, 0)

        async def story(world: World) -> None:
            world.shards[0].alive = False
            world.decide(1)
            await world.asked(1)
            coming = asyncio.ensure_future(world.pump.attach(late))
            await asyncio.sleep(0)
            world.new = world.successor(7)  # type: ignore[attr-defined]
            await coming

        assert play(story).new.obeyed[-1] == late  # type: ignore[attr-defined]

    def test_is_waited_for_no_longer_when_the_run_is_to_stop(self) -> None:
        async def story(world: World) -> None:
            world.shards[0].alive = False
            world.decide(1)
            await world.asked(1)
            world.run.referee.stopped = True
            world.pump.stop_waiting()
            await world.pump.rest()
            await world.pump.keep_now()

        world = play(story)
        assert world.run.lost == [(0, 0)]
        # The snapshot that it ends with is not written over.
        newest = world.run.holdings.newest()
        assert newest is not None
        assert newest[1].start.updates == 0

    def test_is_missed_when_somebody_cannot_read_from_it(self) -> None:
        async def story(world: World) -> None:
            await world.pump.rest()
            world.shards[0].alive = False
            world.pump.call_the_roll()
            await world.asked(1)

        assert [want.kind for want in play(story).wants] == ["shard"]

    def test_twice_begins_an_era_that_none_of_the_shards_has_begun(self) -> None:
        async def story(world: World) -> None:
            world.decide(1, snapshot=True)
            await world.pump.rest()
            world.shards[0].alive = False
            world.decide(2)
            await world.asked(1)
            # It obeys the first of the two commands, then it is lost as well.
            world.successor(7, ends_at=Load)
            await world.asked(2)
            world.new = world.successor(8)  # type: ignore[attr-defined]
            await world.pump.rest()

        world = play(story)
        assert world.run.referee.reports[-1] == ("roll_back", (Start(1, 4), 2))
        assert world.new.obeyed[-1] == Load(1, 2, 1, {"steps": 3.0})  # type: ignore[attr-defined]

    def test_has_one_successor_however_often_it_is_announced(self) -> None:
        async def story(world: World) -> None:
            world.shards[0].alive = False
            world.decide(1)
            await world.asked(1)
            world.successor(7).alive = False
            await world.asked(2)
            # The call was repeated, its answer lost: that process has come and gone.
            world.again = world.successor(7)  # type: ignore[attr-defined]
            world.successor(8)
            await world.pump.rest()

        world = play(story)
        assert world.again.obeyed == []  # type: ignore[attr-defined]
        assert [want.incarnation for want in world.wants] == [0, 7]


class TestAShardThatEndsBeforeTheRunBegins:
    @pytest.mark.parametrize("ends_at", [Load, "where"])
    def test_is_waited_for_until_it_has_a_successor(self, ends_at: Any) -> None:
        async def whole() -> World:
            world = World()
            world.shards[0].ends_at = ends_at
            begins = asyncio.ensure_future(world.begin())
            async with asyncio.timeout(10):
                await world.asked(1)
                assert world.pump.sources is None
                world.new = world.successor(7)  # type: ignore[attr-defined]
                await begins
                world.decide(1)
                await world.pump.rest()
            world.work.cancel()
            return world

        world = asyncio.run(whole())
        assert world.new.obeyed[0] == Load(0, 0, 0, {})  # type: ignore[attr-defined]
        assert world.new.updates == [1]  # type: ignore[attr-defined]
        assert world.pump.sources is not None
        assert [want.incarnation for want in world.wants] == [0]
