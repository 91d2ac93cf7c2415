"""The processes of a parameter-server run, as the conductor handles them: coordinator, shards, members."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dist_train.errors import DONE, FAILED
from dist_train.runtime import run_dir as directories
from dist_train.runtime.letters import Assignment, Copy, Ended, Order
from dist_train.runtime.ray_cluster import Actor, Cluster, Reservation
from dist_train.runtime.remote import ActorGone, Unreachable

# Named, not imported: the conductor does without what they load.
COORDINATOR = "dist_train.runtime.coordinator:Coordinator"
SHARD = "dist_train.runtime.shard_process:ShardProcess"
MEMBER = "dist_train.runtime.member_process:MemberProcess"
# The reservation's first bundle is the server's; then one for each worker.
SERVER_BUNDLE = 0


@dataclass
class Life:
    """One life of a member: the actors of its workers, by rank among all workers."""

    member: int
    incarnation: int
    actors: dict[int, Actor] = field(default_factory=dict)
    over: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True)
class End:
    """How a member's life ended, by the worker that ended first. ``reported``: it said so itself."""

    rank: int
    how: Ended
    reported: bool


class Crew:
    """Starts, finds and kills; ``environment`` is what every process gets."""

    def __init__(
        self, cluster: Cluster, reservation: Reservation, order: Order, environment: dict[str, str], gpus: int
    ) -> None:
        self._cluster = cluster
        self._reservation = reservation
        self._order = order
        self._environment = environment
        self._gpus = gpus
        self._group_size = order.config.parallel.group_size
        self._lives: dict[int, Life] = {}
        self._shards: dict[int, int] = {}
        self._serial = 0
        self.members = order.workers // self._group_size
        self.prepared = False
        self.coordinator = self._start(COORDINATOR, (order,), SERVER_BUNDLE, "the coordinator")

    async def prepare(self) -> None:
        """Have the coordinator restore the state, and put the shards into service."""
        shards: int = await self.coordinator.request("prepare")
        copies = self._order.config.parallel.server.copies
        built = [self._build_shard(number) for number in range(shards) for _ in range(copies)]
        await self.coordinator.request("connect", await asyncio.gather(*built))
        self.prepared = True

    async def replace_shard(self, number: int) -> None:
        """Start another process for a shard, and have the coordinator take it into service."""
        await self.coordinator.insist("admit_shard", await self._build_shard(number))

    async def _build_shard(self, number: int) -> Copy:
        self._serial += 1
        log_file = Path(self.log_of(0)).with_name(f"shard_{number:03d}.log")
        log_file.parent.mkdir(parents=True, exist_ok=True)
        arguments = (number, self._serial, self.coordinator, str(log_file))
        actor = self._start(SHARD, arguments, SERVER_BUNDLE, f"shard {number}")
        await actor.request("build")
        self._shards[number] = self._serial
        return Copy(number, self._serial, actor)

    def start_member(self, member: int, incarnation: int) -> Life:
        """Start the processes of a member; they do nothing before ``run_member``."""
        life = Life(member, incarnation)
        order = self._order
        for group_rank in range(self._group_size):
            rank = member * self._group_size + group_rank
            assignment = Assignment(
                config=order.config,
                run_dir=order.run_dir,
                workers=order.workers,
                rank=rank,
                member=member,
                incarnation=incarnation,
                group_rank=group_rank,
                coordinator=self.coordinator,
            )
            name = f"worker {rank}"
            life.actors[rank] = self._start(MEMBER, (assignment,), 1 + rank, name, self._gpus)
        self._lives[member] = life
        return life

    async def run_member(self, life: Life) -> End:
        """Run a member's workers to the end of the first that fails, or of all; none of them lives on."""
        try:
            return await self._run(life)
        finally:
            life.over.set()
            for actor in life.actors.values():
                actor.kill()

    async def _run(self, life: Life) -> End:
        meeting: Any = None
        first = next(iter(life.actors))
        if self._group_size > 1:
            try:
                meeting = await life.actors[first].insist("meeting_point")
            except ActorGone:
                return End(first, Ended(FAILED), reported=False)
        runs = {
            asyncio.ensure_future(self._run_one(rank, actor, meeting)) for rank, actor in life.actors.items()
        }
        while runs:
            done, runs = await asyncio.wait(runs, return_when=asyncio.FIRST_COMPLETED)
            failed = [end for end in (task.result() for task in done) if end.how.status != DONE]
            if failed:
                for task in runs:
                    task.cancel()
                # What a worker reports says more than that its peer is gone.
                return max(failed, key=lambda end: end.reported)
        return End(first, Ended(DONE), reported=True)

    async def _run_one(self, rank: int, actor: Actor, meeting: Any) -> End:
        try:
            ended: Ended = await actor.insist("run", meeting)
        except ActorGone:
            return End(rank, Ended(FAILED, kind="SIGKILL", error="its process is gone"), reported=False)
        return End(rank, ended, reported=True)

    def is_running(self, kind: str, number: int, incarnation: int) -> bool:
        """Say whether a pulse is that of a process in service."""
        if kind == "shard":
            return self._shards.get(number) == incarnation
        life = self._lives.get(number // self._group_size)
        return life is not None and life.incarnation == incarnation and not life.over.is_set()

    def kill_member(self, member: int) -> None:
        for actor in self._lives[member].actors.values():
            actor.kill()

    def kill_all(self) -> None:
        """End every process of this attempt."""
        for life in self._lives.values():
            for actor in life.actors.values():
                actor.kill()
        self.coordinator.kill()

    async def wait_for_members(self, seconds: float) -> None:
        """Give the members a moment to end by themselves."""
        waits = [life.over.wait() for life in self._lives.values()]
        with suppress(TimeoutError, Unreachable):
            async with asyncio.timeout(seconds):
                await asyncio.gather(*waits)

    def log_of(self, rank: int) -> str:
        return str(directories.log_file(self._order.run_dir, rank))

    def _start(self, cls: str, arguments: tuple[Any, ...], bundle: int, name: str, gpus: int = 0) -> Actor:
        return self._cluster.start(cls, arguments, self._reservation, bundle, name, self._environment, gpus)
