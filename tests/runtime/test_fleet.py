from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from dist_train.runtime.commands import Command, Done, Hold
from dist_train.runtime.fleet import Fleet, ShardLost
from dist_train.runtime.letters import Copy
from dist_train.runtime.ray_cluster import Actor
from dist_train.runtime.remote import ActorGone


class PlainShard:
    """Stands for a shard's actor: notes what it is told."""

    def __init__(self) -> None:
        self.alive = True
        self.obeyed: list[tuple[int, tuple[Command, ...]]] = []

    async def insist(self, method: str, index: int = 0, commands: tuple[Command, ...] = ()) -> Any:
        if not self.alive:
            raise ActorGone("a shard has ended")
        if method == "line":
            # Nobody listens there: it is to be called the other way.
            return "no such line"
        self.obeyed.append((index, commands))
        return Done(index, {"by": float(id(self))})


def fleet_of(rows: list[list[PlainShard]]) -> Fleet:
    fleet = Fleet(len(rows))
    serial = 0
    for shard, row in enumerate(rows):
        for process in row:
            serial += 1
            fleet.admit(Copy(shard, serial, cast(Actor, process)))
    return fleet


def test_every_copy_of_every_shard_obeys_the_same_in_the_same_order() -> None:
    rows = [[PlainShard(), PlainShard()], [PlainShard(), PlainShard()]]
    fleet = fleet_of(rows)
    asyncio.run(fleet.obey([Hold()]))
    asyncio.run(fleet.obey([]))
    for process in [each for row in rows for each in row]:
        assert process.obeyed == [(1, (Hold(),)), (2, ())]


def test_a_shard_answers_by_its_first_copy_that_is_there() -> None:
    rows = [[PlainShard(), PlainShard()], [PlainShard()]]
    fleet = fleet_of(rows)
    rows[0][0].alive = False
    done = asyncio.run(fleet.obey([]))
    assert [each.scalars["by"] for each in done] == [float(id(rows[0][1])), float(id(rows[1][0]))]
    assert [copy.serial for copy in fleet.gone] == [1]
    assert fleet.is_whole


def test_a_shard_without_a_copy_is_lost_and_the_others_have_obeyed() -> None:
    rows = [[PlainShard()], [PlainShard()]]
    fleet = fleet_of(rows)
    rows[0][0].alive = False
    with pytest.raises(ShardLost, match="shard 0 is lost"):
        asyncio.run(fleet.obey([Hold()]))
    assert rows[1][0].obeyed == [(1, (Hold(),))]
    assert fleet.lacks(0)
    assert not fleet.lacks(1)


def test_a_newcomer_counts_once_it_has_begun() -> None:
    old, new, dead = PlainShard(), PlainShard(), PlainShard()
    dead.alive = False
    fleet = fleet_of([[old]])
    assert asyncio.run(fleet.bring_up(Copy(0, 2, cast(Actor, new)), [Hold()]))
    assert not asyncio.run(fleet.bring_up(Copy(0, 3, cast(Actor, dead)), [Hold()]))
    asyncio.run(fleet.obey([]))
    assert new.obeyed == [(1, (Hold(),)), (3, ())]
    assert [copy.serial for copy in fleet.all] == [1, 2]
