"""A shard's process as an object of this one: what it makes of the coordinator's commands."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import server_runs
import torch
from torch import Tensor

from dist_train.errors import ConfigError
from dist_train.exchange.areas import areas, checksum, held
from dist_train.exchange.published import PublishedReader
from dist_train.exchange.segments import Segment
from dist_train.exchange.server import MemberMemory
from dist_train.rules.messages import Version
from dist_train.rules.referee import Start
from dist_train.rules.sampling import Position
from dist_train.rules.schedule import Scheduled
from dist_train.runtime import run_dir as directories
from dist_train.runtime import shard_process
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
from dist_train.runtime.holdings import Holdings
from dist_train.runtime.ray_cluster import Actor
from dist_train.runtime.remote import Process
from dist_train.runtime.shard_process import ShardProcess

RATE = 0.5


class PlainCoordinator:
    """Knows the blueprints; counts how often it is asked for one."""

    def __init__(self, deterministic: bool) -> None:
        config = server_runs.config_of(
            parallel={"mode": "async", "workers": 2},
            train={"steps": 4, "batch_size": 4, "deterministic": deterministic},
            optimizer={"name": "sgd", "lr": RATE},
        )
        self.holdings = Holdings(config, 2, None)
        self.blueprints = self.holdings.blueprints(1, threads=torch.get_num_threads())
        self.asked = 0

    async def insist(self, method: str, number: int) -> Any:
        assert method == "blueprint"
        self.asked += 1
        return self.blueprints[number]


class PlainHeart:
    def __init__(self, *who: Any) -> None: ...

    def phase(self, name: str, step: int) -> None: ...


class World:
    """The only shard of a run, and two members' memory."""

    def __init__(self, deterministic: bool = True) -> None:
        self.coordinator = PlainCoordinator(deterministic)
        self.shard = ShardProcess(0, 0, cast(Actor, self.coordinator), Path(), "")
        asyncio.run(self.shard.build())
        _, kept = self.coordinator.holdings.begin(Start(0, 0, Position(0, 0), ()))
        self.scalars = kept.scalars
        self.blueprint = self.coordinator.blueprints[0]
        self.size = len(self.blueprint.part)
        self.areas = areas(Segment.open(self.blueprint.areas), self.blueprint.vectors, 2)
        self.first = self.areas[0].parameters.clone()
        address, _ = self.shard.where()
        self.reader = PublishedReader(Segment.open(address), self.size)
        self.index = 0

    def obey(self, *commands: Command) -> Done:
        self.index += 1
        return self.shard.obey(self.index, commands)

    def begin(self) -> World:
        self.obey(Load(0, 0, 0, self.scalars))
        return self

    def member(self, incarnation: int = 0) -> MemberMemory:
        """Give member 0's process its memory, and the shard its address."""
        memory = MemberMemory(Segment.create(MemberMemory.bytes(self.size, 0)), self.size, 0)
        self.obey(Attach(0, incarnation, memory.segment.address, 0))
        return memory

    def update(self, number: int, memory: MemberMemory, gradient: float, incarnation: int = 0) -> Done:
        memory.gradients[0].fill_(gradient)
        return self.obey(TakeGradient(0, incarnation, 0, 4.0, 1.0, True), Apply(number, Scheduled(RATE)))

    def after(self, step: float) -> Tensor:
        """Return the first parameters less ``step``; what lies between them stays as it is."""
        moved = self.first.clone()
        for own in self.coordinator.holdings.server.layout.views(moved).values():
            own -= step
        return moved

    def published(self, era: int, number: int) -> Tensor | None:
        into = torch.empty(self.size)
        return into if self.reader.read(Version(era, number), into) else None


@pytest.fixture(autouse=True)
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_process, "redirect_output", lambda path: None)
    monkeypatch.setattr(shard_process, "leave_interrupts_to_the_conductor", lambda: None)
    monkeypatch.setattr(shard_process, "children", SimpleNamespace(dump_stacks_on_request=lambda: None))
    monkeypatch.setattr(shard_process, "Heart", PlainHeart)
    monkeypatch.setattr(shard_process, "this_process", lambda: Process(1, 1, "host", "node"))


def test_it_is_built_once_however_often_it_is_asked_for() -> None:
    world = World()
    asyncio.run(world.shard.build())
    assert world.coordinator.asked == 1


def test_it_publishes_what_it_is_told_to_begin_from() -> None:
    found = World().begin().published(0, 0)
    assert found is not None
    assert found.any()


def test_a_gradient_takes_it_one_version_further() -> None:
    world = World().begin()
    world.update(1, world.member(), 2.0)
    found = world.published(0, 1)
    assert found is not None
    torch.testing.assert_close(found, world.after(RATE * 2.0))


class TestABatchOfCommands:
    def test_that_comes_twice_is_obeyed_once_and_answered_alike(self) -> None:
        world = World().begin()
        done = world.update(1, world.member(), 2.0)
        repeated = (TakeGradient(0, 0, 0, 4.0, 1.0, True), Apply(1, Scheduled(RATE)))
        assert world.shard.obey(world.index, repeated) == done
        assert world.reader.newest() == Version(0, 1)
        found = world.published(0, 1)
        assert found is not None
        torch.testing.assert_close(found, world.after(RATE * 2.0))

    def test_that_comes_after_a_later_one_is_refused(self) -> None:
        world = World().begin()
        world.member()
        with pytest.raises(RuntimeError, match="batch 1 of commands came after batch 2"):
            world.shard.obey(1, ())


class TestTheChecksum:
    def test_is_that_of_the_parameters_after_an_update(self) -> None:
        world = World().begin()
        done = world.update(1, world.member(), 2.0)
        found = world.published(0, 1)
        assert found is not None
        assert done.checksum == checksum([found])

    def test_is_not_made_without_an_update(self) -> None:
        assert World().begin().obey(Hold()).checksum is None

    def test_is_not_made_in_a_run_that_is_not_deterministic(self) -> None:
        world = World(deterministic=False).begin()
        assert world.update(1, world.member(), 2.0).checksum is None


def test_a_process_that_was_replaced_has_no_more_to_give() -> None:
    world = World().begin()
    ghost = world.member(incarnation=0)
    world.update(1, world.member(incarnation=1), 2.0, incarnation=1)
    with pytest.raises(KeyError):
        world.update(2, ghost, 2.0)


def test_a_snapshot_is_what_it_goes_back_to_in_a_new_era() -> None:
    world = World().begin()
    memory = world.member()
    world.update(1, memory, 2.0)
    done = world.obey(Snapshot(1))
    kept = world.published(0, 1)
    world.update(2, memory, 2.0)
    world.obey(Load(1, 1, 1, done.scalars))
    found = world.published(1, 1)
    assert kept is not None
    assert found is not None
    assert torch.equal(world.areas[1].parameters, kept)
    assert torch.equal(found, kept)
    assert world.reader.newest() == Version(1, 1)


def test_what_is_held_for_a_validation_stays_while_training_goes_on() -> None:
    world = World().begin()
    memory = world.member()
    world.obey(Hold())
    world.update(1, memory, 2.0)
    there, _ = held(Segment.open(world.blueprint.held), world.size, 0)
    assert torch.equal(there, world.first)


class TestAReaderOnAnotherNode:
    def test_gets_a_version_or_the_newest_as_an_array(self) -> None:
        world = World().begin()
        world.update(1, world.member(), 2.0)
        for wanted, version in ((Version(0, 0), Version(0, 0)), (None, Version(0, 1))):
            found = world.shard.read(wanted)
            assert found is not None
            assert found[0] == version
            assert torch.equal(torch.from_numpy(found[1]), cast(Tensor, world.published(*version)))

    def test_hears_that_a_version_is_gone(self) -> None:
        world = World().begin()
        memory = world.member()
        for number in range(1, 4):
            world.update(number, memory, 1.0)
        assert world.shard.read(Version(0, 0)) is None

    def test_hears_that_there_is_none_yet(self) -> None:
        assert World().shard.read(None) is None


class TestAVersionThatIsLent:
    @staticmethod
    def lent() -> tuple[World, Tensor]:
        """Return a shard that lent version 1 to member 3 and is at version 7, and what it lent."""
        world = World().begin()
        memory = world.member()
        world.update(1, memory, 2.0)
        lent = world.published(0, 1)
        assert lent is not None
        world.obey(Lend(3))
        for number in range(2, 8):
            world.update(number, memory, 2.0)
        assert world.published(0, 1) is None
        return world, lent

    def test_can_be_fetched_however_many_follow(self) -> None:
        world, lent = self.lent()
        found = world.shard.read(Version(0, 1))
        assert found is not None
        assert found[0] == (0, 1)
        assert torch.equal(torch.from_numpy(found[1]), lent)

    def test_makes_room_for_the_next_that_its_member_is_lent(self) -> None:
        world, _ = self.lent()
        world.obey(Lend(3))
        assert world.shard.read(Version(0, 1)) is None

    def test_is_gone_when_it_is_taken_back(self) -> None:
        world, _ = self.lent()
        world.obey(TakeBack(2))
        assert world.shard.read(Version(0, 1)) is not None
        for _ in range(2):
            world.obey(TakeBack(3))
            assert world.shard.read(Version(0, 1)) is None

    def test_is_gone_with_its_era(self) -> None:
        world, _ = self.lent()
        world.obey(Load(0, 1, 0, world.scalars))
        assert world.shard.read(Version(0, 1)) is None


def test_a_shard_on_a_machine_with_another_run_directory_makes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directories, "SEEN_AFTER_S", 0.0)
    with pytest.raises(ConfigError, match="give a --run-dir on storage that all machines"):
        ShardProcess(0, 0, cast(Actor, None), tmp_path / "run", "left elsewhere")
    assert list(tmp_path.iterdir()) == []
