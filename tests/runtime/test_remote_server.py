"""A member's way to its server over a plain coordinator, from the server's node and from another one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dist_train.exchange.areas import held, held_bytes
from dist_train.exchange.hazards import Displaced, Protector
from dist_train.exchange.published import NotPublished, PublishedWriter
from dist_train.exchange.segments import Segment
from dist_train.exchange.server import MemberMemory, Sizes, Welcome
from dist_train.exchange.slots import published_bytes, slot_count
from dist_train.rules.messages import FIRST, Push, Reply, Version
from dist_train.runtime import remote_server
from dist_train.runtime.letters import Sources
from dist_train.runtime.line import LineBroken
from dist_train.runtime.ray_cluster import Actor
from dist_train.runtime.remote import ActorGone, Process
from dist_train.runtime.remote_server import RemoteServer

SIZE = 32
PARTS = (range(16), range(16, SIZE))
COUNTED = Reply("counted", Version(0, 4))
PUSH = Push(2, 1, 1, 9, FIRST, 4, 1.0, buffer=1)


class PlainShard:
    """Publishes versions for readers on its node and on others; ``gone`` when its process is."""

    def __init__(self, hazards: int = 0) -> None:
        shape = 16, slot_count(hazards), hazards
        self.segment = Segment.create(published_bytes(*shape))
        self._writer = PublishedWriter(self.segment, *shape)
        self._versions: dict[Version, NDArray[np.float32]] = {}
        self._lent: dict[Version, NDArray[np.float32]] = {}
        self.gone = False
        # Whether nobody is quick enough for a version but the newest, which is another each time.
        self.races = False

    def publish(self, number: int, value: float) -> None:
        self._writer.begin(number).fill_(value)
        self._writer.commit(number)
        self._versions[Version(0, number)] = np.full(16, value, np.float32)

    def lend(self, number: int) -> None:
        self._lent = {Version(0, number): np.full(16, float(number), np.float32)}

    def forget(self, number: int) -> None:
        del self._versions[Version(0, number)]

    def ask(self, method: str, version: Version | None, timeout_s: float) -> Any:
        assert method == "read"
        if self.gone:
            raise ActorGone("a shard has ended")
        if self.races:
            newest = max(self._versions)
            self.publish(newest.number + 1, float(newest.number + 1))
            if version is not None:
                return (version, self._lent[version]) if version in self._lent else None
        wanted = version or max(self._versions, default=None)
        return None if wanted not in self._versions else (wanted, self._versions[wanted])


@dataclass
class Fetched:
    array: NDArray[Any]

    def fetch(self, timeout_s: float) -> NDArray[Any]:
        return self.array


@dataclass
class PlainCoordinator:
    """``editions`` are the sources that it names in turn; the last one for good."""

    editions: list[Sources | None]
    line: str | None
    lend: Callable[[], Version | None] = lambda: None
    heard: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    scalars: dict[str, float] | None = None

    def keep_asking(self, verb: str, *arguments: Any) -> Any:
        self.heard.append((verb, arguments))
        match verb:
            case "sources":
                return self.editions.pop(0) if len(self.editions) > 1 else self.editions[0]
            case "line":
                return self.line
            case "lend":
                return self.lend()
            case "held":
                return Fetched(np.full(SIZE, 5.0, np.float32)), np.array([6.0])
            case "enlist":
                return Welcome(3, torch.zeros(1), self.scalars)
            case "handed_over":
                return tuple(Fetched(np.full(SIZE, value, np.float32)) for value in (4.0, 5.0))
        return COUNTED

    def said(self, verb: str) -> list[tuple[Any, ...]]:
        return [arguments for each, arguments in self.heard if each == verb]


class PlainLine:
    """Breaks at its second push, if it is called so."""

    def __init__(self, address: str) -> None:
        self._breaks = address == "breaks"
        self.asked = 0
        self.closed = False

    def ask(self, method: str, push: Push) -> Reply:
        self.asked += 1
        if self._breaks and self.asked == 2:
            raise LineBroken("not answered")
        return COUNTED

    def close(self) -> None:
        self.closed = True


class World:
    """Two shards, and a member on a node of that name; the server's is called ``near``."""

    def __init__(self, node: str, line: str | None = None, sends_base: bool = False, kept: int = 0) -> None:
        sizes = SIZE, 1, kept, sends_base
        self.shards = [PlainShard(), PlainShard()]
        self.held = Segment.create(held_bytes(SIZE, 1))
        self.coordinator = PlainCoordinator([self.sources()], line)
        self.phases: list[tuple[str, int]] = []
        self.memory = MemberMemory(Segment.create(MemberMemory.bytes(*sizes)), *sizes)
        self.node = node
        coordinator = cast(Actor, self.coordinator)
        self.server = RemoteServer(coordinator, 2, 1, self.memory, self.phase, timeout_s=0.05)

    def phase(self, name: str, step: int) -> None:
        self.phases.append((name, step))

    def sources(self, edition: int = 0, hazards: tuple[int, ...] = ()) -> Sources:
        memory, parts = tuple(shard.segment.address for shard in self.shards), PARTS[: len(self.shards)]
        return Sources(edition, "near", parts, memory, tuple(self.shards), self.held.address, hazards)

    def publish(self, number: int, *values: float) -> None:
        for shard, value in zip(self.shards, values, strict=True):
            shard.publish(number, value)

    def read(self, at_least: int = 0) -> tuple[int, list[float]]:
        """Return the version and the first value of each shard's part."""
        into = torch.zeros(SIZE)
        version = self.server.read(Version(0, at_least), into)
        return version.number, [float(into[part.start]) for part in PARTS]


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_server, "this_process", lambda: Process(1, 1, "host", "node"))
    monkeypatch.setattr(remote_server, "put", lambda array: Fetched(array.copy()))
    monkeypatch.setattr(remote_server, "Line", PlainLine)
    monkeypatch.setattr(remote_server, "LOOK_S", 0.02)
    monkeypatch.setattr(remote_server, "RETRY_S", 0.001)


class Make:
    """Makes worlds whose member is on a node of a name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def __call__(self, node: str, **settings: Any) -> World:
        self._monkeypatch.setattr(remote_server, "node_id", lambda: node)
        return World(node, **settings)


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    return Make(monkeypatch)


@pytest.fixture(params=["near", "far"])
def world(make: Make, request: pytest.FixtureRequest) -> World:
    return make(request.param)


def test_a_member_names_its_memory_where_the_server_can_open_it(world: World) -> None:
    assert world.server.enlist(Sizes(10, 5, "32")).seed == 3
    ((hello,),) = world.coordinator.said("enlist")
    assert (hello.member, hello.incarnation, hello.train_size, hello.validation_size) == (2, 1, 10, 5)
    assert hello.memory == (world.memory.segment.address if world.node == "near" else None)


class TestARead:
    def test_is_of_the_newest_version(self, world: World) -> None:
        world.publish(0, 1.0, 2.0)
        world.publish(1, 3.0, 4.0)
        assert world.read() == (1, [3.0, 4.0])

    def test_is_never_a_mix(self, world: World) -> None:
        """The second shard is ahead: what both have is taken."""
        world.publish(0, 1.0, 2.0)
        world.shards[1].publish(1, 4.0)
        assert world.read() == (0, [1.0, 2.0])

    def test_is_given_up_when_the_version_does_not_come(self, world: World) -> None:
        world.publish(0, 1.0, 2.0)
        with pytest.raises(NotPublished, match="version 1"):
            world.read(at_least=1)

    def test_looks_again_where_a_shard_was_replaced(self, world: World) -> None:
        world.publish(0, 1.0, 2.0)
        world.shards[0].gone = True
        world.shards = [PlainShard(), PlainShard()]
        world.publish(1, 5.0, 6.0)
        world.coordinator.editions = [None, world.sources(edition=1)]
        assert world.read(at_least=1) == (1, [5.0, 6.0])
        # It names the edition that it could not use, and then none.
        assert world.coordinator.said("sources")[1:] == [(0,), (None,)]

    def test_shows_that_it_waits_and_that_it_is_over(self, world: World) -> None:
        world.publish(0, 1.0, 2.0)
        world.read()
        with pytest.raises(NotPublished):
            world.read(at_least=1)
        assert world.phases == [("update", 1), *[("waiting", 1)] * (len(world.phases) - 1)]
        assert len(world.phases) > 1

    def test_of_an_exact_version_is_of_no_other(self, world: World) -> None:
        world.publish(0, 1.0, 2.0)
        world.publish(1, 3.0, 4.0)
        into = torch.zeros(SIZE)
        assert world.server.read_exactly(Version(0, 0), into)
        assert (into[0], into[16]) == (1.0, 2.0)
        assert not world.server.read_exactly(Version(0, 7), into)

    def test_of_an_exact_version_looks_again_where_a_shard_was_replaced(self, make: Make) -> None:
        """A worker that does not speak for its group only ever reads exactly."""
        world = make("near")
        world.publish(0, 1.0, 2.0)
        world.shards = [PlainShard(), PlainShard()]
        world.publish(1, 5.0, 6.0)
        world.coordinator.editions = [world.sources(edition=1)]
        into = torch.zeros(SIZE)
        assert [world.server.read_exactly(Version(0, 1), into) for _ in range(2)] == [False, True]
        assert (into[0], into[16]) == (5.0, 6.0)

    def test_from_another_node_takes_a_later_version_when_a_shard_has_gone_on(self, make: Make) -> None:
        world = make("far")
        world.publish(1, 3.0, 4.0)
        world.shards[1].forget(1)
        with pytest.raises(NotPublished):
            world.read(at_least=1)
        world.publish(2, 5.0, 6.0)
        assert world.read(at_least=1) == (2, [5.0, 6.0])

    def test_from_another_node_comes_to_an_end_however_fast_the_shards_are(self, make: Make) -> None:
        world = make("far")
        world.publish(0, 0.0, 0.0)
        answers = [None, Version(0, 5)]

        def lend() -> Version | None:
            # The first time the shards have just gone back to a snapshot.
            version = answers.pop(0)
            for shard in world.shards if version else ():
                shard.lend(5)
            return version

        world.coordinator.lend = lend
        for shard in world.shards:
            shard.races = True
        assert world.read() == (5, [5.0, 5.0])
        assert world.coordinator.said("lend") == [(2,), (2,)]


class TestAReadInPlace:
    """One shard, on the member's node, that has room for members 0, 2 and 5 to compute on its memory."""

    NEAR = (0, 2, 5)

    @pytest.fixture
    def world(self, make: Make) -> World:
        world = make("near")
        world.shards = [PlainShard(hazards=3)]
        world.coordinator.editions = [world.sources(edition=1, hazards=self.NEAR)]
        world.server._find_sources()
        return world

    def test_is_of_the_newest_version_where_it_lies(self, world: World) -> None:
        assert world.server.reads_in_place
        world.publish(0, 1.0)
        world.publish(1, 2.0)
        version, vector = world.server.read_in_place(Version(0, 0))
        assert version == (0, 1)
        for number in range(2, 20):
            world.publish(number, float(number))
        assert vector.eq(2.0).all()
        assert world.server.read_in_place(Version(0, 0))[1].eq(19.0).all()
        assert world.phases == [("update", 2), ("update", 20)]

    def test_is_given_up_when_the_version_does_not_come(self, world: World) -> None:
        world.publish(0, 1.0)
        with pytest.raises(NotPublished, match="version 1"):
            world.server.read_in_place(Version(0, 1))

    def test_looks_again_where_the_shard_was_replaced(self, world: World) -> None:
        world.publish(0, 1.0)
        world.server.read_in_place(Version(0, 0))
        world.shards = [PlainShard(hazards=3)]
        world.publish(1, 5.0)
        world.coordinator.editions = [world.sources(edition=2, hazards=self.NEAR)]
        assert world.server.read_in_place(Version(0, 1))[1].eq(5.0).all()

    def test_copies_are_read_as_well(self, world: World) -> None:
        world.publish(0, 1.0)
        into = torch.zeros(16)
        assert world.server.read(Version(0, 0), into) == (0, 0)
        assert into.eq(1.0).all()

    def test_nothing_is_pushed_that_another_process_may_have_let_be_overwritten(self, world: World) -> None:
        world.publish(0, 1.0)
        world.server.read_in_place(Version(0, 0))
        world.publish(1, 1.0)
        Protector(world.shards[0].segment, 16, 3, 1).newest(Version(0, 1), 1.0)
        with pytest.raises(Displaced, match="has taken this one's place"):
            world.server.push(PUSH)
        assert not world.coordinator.said("push")

    def test_there_is_none_from_another_node_or_without_room_for_it(self, make: Make) -> None:
        assert not make("near").server.reads_in_place
        far = make("far")
        far.coordinator.editions = [far.sources(edition=1, hazards=self.NEAR)]
        far.server._find_sources()
        assert not far.server.reads_in_place

    def test_there_is_none_for_a_member_that_was_not_to_be_near_and_it_copies(self, make: Make) -> None:
        world = make("near")
        world.shards = [PlainShard(hazards=2)]
        world.coordinator.editions = [world.sources(edition=1, hazards=(0, 5))]
        world.server._find_sources()
        assert not world.server.reads_in_place
        world.publish(0, 1.0)
        into = torch.zeros(16)
        assert world.server.read(Version(0, 0), into) == (0, 0)
        assert into.eq(1.0).all()


def test_what_is_held_for_a_validation_is_read_in_memory_or_fetched(world: World) -> None:
    for tensor, value in zip(held(Segment.open(world.held.address), SIZE, 1), (5.0, 6.0), strict=True):
        tensor.fill_(value)
    parameters, statistics = torch.zeros(SIZE), torch.zeros(1, dtype=torch.float64)
    world.server.read_held(parameters, statistics)
    assert parameters.eq(5.0).all()
    assert statistics.eq(6.0).all()
    assert len(world.coordinator.said("held")) == (world.node == "far")


class TestAPush:
    def test_is_announced_by_line(self, make: Make) -> None:
        world = make("near", line="holds")
        assert world.server.push(PUSH) == COUNTED
        assert not world.coordinator.said("push")
        assert world.phases == [("waiting", 1), ("update", 5)]

    def test_goes_the_long_way_from_when_the_line_breaks(self, make: Make) -> None:
        world = make("near", line="breaks")
        line = cast(PlainLine, world.server._line)
        assert [world.server.push(PUSH) for _ in range(4)] == [COUNTED] * 4
        # The one that met the break was sent again.
        assert world.coordinator.said("push") == [(PUSH,)] * 3
        assert (line.asked, line.closed) == (2, True)

    @pytest.mark.parametrize("sends_base", [True, False])
    def test_from_another_node_takes_along_what_was_computed(self, make: Make, sends_base: bool) -> None:
        world = make("far", line="holds", sends_base=sends_base)
        world.memory.gradients[1].fill_(7.0)
        if world.memory.parameters is not None:
            world.memory.parameters.fill_(8.0)
        world.memory.statistics.fill_(9.0)
        world.server.push(PUSH)
        ((_, parcel),) = world.coordinator.said("push")
        # The member goes on to the next while this one is on its way.
        world.memory.statistics.fill_(0.0)
        assert np.all(parcel.gradient.array == 7.0)
        assert np.all(parcel.statistics == 9.0)
        assert (parcel.base is not None) == sends_base
        assert not sends_base or np.all(parcel.base.array == 8.0)

    def test_from_another_node_takes_along_what_the_member_keeps_for_itself(self, make: Make) -> None:
        world = make("far", kept=2)
        for number, row in enumerate(world.memory.deposits[1]):
            row.fill_(float(number))
        world.server.push(replace(PUSH, deposit=1))
        ((_, parcel),) = world.coordinator.said("push")
        world.memory.deposits[1][0].fill_(9.0)
        assert [row.array[0] for row in parcel.deposit] == [0.0, 1.0]


def test_a_successor_begins_with_what_its_predecessor_left(make: Make) -> None:
    for node in ("near", "far"):
        world = make(node, kept=2)
        sizes = Sizes(train=1, validation=1, parameters="8")
        # There is nothing yet.
        assert world.server.enlist(sizes).scalars is None
        assert not world.coordinator.said("handed_over")
        world.coordinator.scalars = {"step": 7.0}
        assert world.server.enlist(sizes).scalars == {"step": 7.0}
        # On the server's own node the coordinator has put it there itself.
        expected = [4.0, 5.0] if node == "far" else [0.0, 0.0]
        assert [row[0].item() for row in world.memory.deposits[0]] == expected
