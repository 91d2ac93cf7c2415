"""The crew over a plain cluster, whose actors are objects of this process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from dist_train.config import Config
from dist_train.errors import TrainingError
from dist_train.runtime.crew import MEMBER, SERVER_BUNDLE, SHARD, STARTS, Crew
from dist_train.runtime.letters import Order
from dist_train.runtime.ray_cluster import Cluster, Reservation
from dist_train.runtime.remote import ActorGone


class PlainActor:
    def __init__(self, cls: str, arguments: tuple[Any, ...], ends: bool) -> None:
        self.cls = cls
        self.arguments = arguments
        self.ends = ends
        self.killed = False
        self.heard: list[tuple[str, tuple[Any, ...]]] = []

    async def insist(self, method: str, *arguments: Any) -> Any:
        self.heard.append((method, arguments))
        if self.ends:
            raise ActorGone("it has ended")
        return None

    def kill(self) -> None:
        self.killed = True


class PlainCluster:
    """``ending`` of the shards that it starts first end before they are ready."""

    def __init__(self, ending: int = 0) -> None:
        self._ending = ending
        self.actors: list[PlainActor] = []
        # Of each actor, the bundle and the GPUs.
        self.places: list[tuple[int, int]] = []

    def start(
        self,
        cls: str,
        arguments: tuple[Any, ...],
        reservation: Any,
        bundle: int,
        name: str,
        environment: Any,
        gpus: int,
    ) -> PlainActor:
        self.places.append((bundle, gpus))
        ends = cls == SHARD and len(self.of(SHARD)) < self._ending
        self.actors.append(PlainActor(cls, arguments, ends))
        return self.actors[-1]

    def of(self, cls: str) -> list[PlainActor]:
        return [actor for actor in self.actors if actor.cls == cls]


def crew_on(
    cluster: PlainCluster, gpus: int = 0, device: str = "auto", word: str = "", **parallel: int
) -> Crew:
    config = Config.model_validate(
        {
            "name": "t",
            "task": "digits",
            "parallel": {"mode": "async", "workers": 2, "device": device, **parallel},
            "train": {"epochs": 1, "batch_size": 4},
            "optimizer": {"name": "sgd", "lr": 0.1},
        }
    )
    workers = int(config.parallel.workers)
    order = Order(config, Path("run"), "none", 0, workers, "launcher", "CPU", word=word)
    return Crew(cast(Cluster, cluster), cast(Reservation, None), order, {}, gpus)


@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (1, "auto")])
def test_a_member_without_a_gpu_of_its_own_uses_the_cpu(gpus: int, device: str) -> None:
    cluster = PlainCluster()
    crew_on(cluster, gpus).start_member(0, 0)
    (assignment,) = cluster.of(MEMBER)[0].arguments
    assert assignment.config.parallel.device == device


@pytest.mark.parametrize(
    ("size", "bundles"), [(1, [1, 2, 3, 4, 5, 6]), (2, [1, 1, 2, 2, 3, 3]), (3, [1, 1, 1, 2, 2, 2])]
)
def test_the_workers_of_a_group_share_a_bundle_apart_from_the_servers(size: int, bundles: list[int]) -> None:
    cluster = PlainCluster()
    crew = crew_on(cluster, gpus=1, workers=6, group_size=size)
    for member in range(crew.members):
        crew.start_member(member, 0)
    assert cluster.places == [(SERVER_BUNDLE, 0), *((bundle, 1) for bundle in bundles)]


def test_a_shard_that_ends_before_it_is_ready_is_started_again() -> None:
    cluster = PlainCluster(ending=STARTS - 1)
    crew = crew_on(cluster)
    asyncio.run(crew.replace_shard(0))
    *ended, last = cluster.of(SHARD)
    assert [actor.killed for actor in ended] == [True] * (STARTS - 1)
    assert not last.killed
    ((serial, life),) = crew.shards.items()
    assert serial == STARTS
    assert cast(PlainActor, life.actor) is last


def test_a_shard_that_always_ends_before_it_is_ready_is_an_error_that_names_its_log() -> None:
    cluster = PlainCluster(ending=99)
    crew = crew_on(cluster)
    with pytest.raises(TrainingError, match=r"shard 0 ended 3 times while it started; log: .*shard_000\.log"):
        asyncio.run(crew.replace_shard(0))
    assert crew.shards == {}
    assert all(actor.killed for actor in cluster.of(SHARD))


def test_every_event_has_a_number_of_its_own_so_that_a_repeated_call_is_known() -> None:
    cluster = PlainCluster()
    crew = crew_on(cluster)

    async def record() -> None:
        for _ in range(2):
            await crew.record({"event": "hung"})

    asyncio.run(record())
    coordinator = cast(PlainActor, crew.coordinator)
    assert [arguments[0] for _, arguments in coordinator.heard] == [1, 2]


def test_every_process_is_told_the_word_by_which_the_run_directory_is_known() -> None:
    cluster = PlainCluster()
    crew = crew_on(cluster, word="left here")
    asyncio.run(crew.replace_shard(0))
    crew.start_member(0, 0)
    ((order,), shard, (assignment,)) = (actor.arguments for actor in cluster.actors)
    assert order.word == assignment.word == shard[-1] == "left here"
