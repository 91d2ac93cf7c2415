"""The processes of a parameter-server run, as the conductor handles them: coordinator, shards, members."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from dist_train.config import Config
from dist_train.errors import DONE, FAILED, TrainingError
from dist_train.rules.recovery import Failure
from dist_train.runtime import run_dir as directories
from dist_train.runtime.letters import Assignment, Copy, Ended, Order
from dist_train.runtime.ray_cluster import Actor, Cluster, Reservation, kill_process
from dist_train.runtime.remote import ActorGone, Process

# Named, not imported: the conductor does without what they load.
COORDINATOR = "dist_train.runtime.coordinator:Coordinator"
SHARD = "dist_train.runtime.shard_process:ShardProcess"
MEMBER = "dist_train.runtime.member_process:MemberProcess"
# The reservation's first bundle is the server's; then one for each member, whose workers share memory.
SERVER_BUNDLE, FIRST_MEMBER_BUNDLE = 0, 1
# A shard that ends this often before it is ready has a reason that will not go away.
STARTS = 3
# After a worker of a group failed: what the others get to report theirs, before they are killed.
LAST_WORDS_S = 1.0


@dataclass
class Life:
    """One life of a member: the actors of its workers, by rank among all workers."""

    member: int
    incarnation: int
    actors: dict[int, Actor] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def kill(self) -> None:
        for actor in self.actors.values():
            actor.kill()


@dataclass
class ShardLife:
    """A process of shard ``number``."""

    number: int
    actor: Actor
    began: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class End:
    """How a worker's life ended, and when; ``how`` is None when it could not say so itself."""

    rank: int
    at: float
    how: Ended | None

    @property
    def status(self) -> int:
        return FAILED if self.how is None else self.how.status


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
        # Members that were given no GPU must not all turn to the first that they find.
        self._members_config = order.config if gpus else on_the_cpu(order.config)
        self._serial = 0
        self._events = 0
        self._coordinator_process: Process | None = None
        self.lives: dict[int, Life] = {}
        # By serial number.
        self.shards: dict[int, ShardLife] = {}
        self.members = order.workers // self._group_size
        self.prepared = False
        self.coordinator = self._start(COORDINATOR, (order,), SERVER_BUNDLE, "the coordinator")

    async def prepare(self) -> None:
        """Have the coordinator restore the state, and put the shards into service."""
        server = self._order.config.parallel.server
        # All processes at once: most of what they take to start is loading libraries.
        started = [self._start_shard(number) for number in range(server.shards) for _ in range(server.copies)]
        self._coordinator_process = await self.coordinator.insist("where")
        await self.coordinator.insist("prepare")
        await self.coordinator.insist("connect", await asyncio.gather(*map(self._built, started)))
        self.prepared = True

    async def replace_shard(self, number: int) -> None:
        """Start another process for a shard, and have the coordinator take it into service."""
        await self.coordinator.insist("admit_shard", await self._built(self._start_shard(number)))

    def _start_shard(self, number: int) -> Copy:
        self._serial += 1
        order = self._order
        arguments = (number, self._serial, self.coordinator, order.run_dir, order.word)
        actor = self._start(SHARD, arguments, SERVER_BUNDLE, f"shard {number}")
        self.shards[self._serial] = ShardLife(number, actor)
        return Copy(number, self._serial, actor)

    async def _built(self, copy: Copy) -> Copy:
        """Wait until a shard's process is ready; start another when it ends before."""
        ended = 0
        while True:
            try:
                await copy.actor.insist("build")
                return copy
            except ActorGone:
                self.bury(copy.serial)
                # If it ended because the coordinator has, this says so.
                await self.coordinator.insist("where")
                ended += 1
                if ended == STARTS:
                    log = directories.shard_log(self._order.run_dir, copy.shard)
                    what = f"shard {copy.shard} ended {STARTS} times while it started"
                    raise TrainingError(f"{what}; log: {log}") from None
                copy = self._start_shard(copy.shard)

    def bury(self, serial: int) -> None:
        """Let go of a shard's process, which may still be about to end."""
        self.shards.pop(serial).actor.kill()

    def start_member(self, member: int, incarnation: int) -> Life:
        """Start the processes of a member; they do nothing before ``run_member``."""
        life = Life(member, incarnation)
        order, bundle = self._order, FIRST_MEMBER_BUNDLE + member
        for group_rank in range(self._group_size):
            rank = member * self._group_size + group_rank
            assignment = Assignment(
                config=self._members_config,
                run_dir=order.run_dir,
                workers=order.workers,
                rank=rank,
                member=member,
                incarnation=incarnation,
                group_rank=group_rank,
                coordinator=self.coordinator,
                replica=order.replica,
                word=order.word,
            )
            name = f"worker {rank}"
            life.actors[rank] = self._start(MEMBER, (assignment,), bundle, name, self._gpus)
        self.lives[member] = life
        return life

    async def run_member(self, life: Life) -> list[End]:
        """Run a member's workers to their end, and return those that failed; none of them lives on.

        When one fails, the others get a moment to fail as well: they say more than that it is gone.
        """
        try:
            meeting = await self._meeting(life)
            runs = {
                asyncio.ensure_future(_run_one(rank, actor, meeting)) for rank, actor in life.actors.items()
            }
            while runs:
                done, runs = await asyncio.wait(runs, return_when=asyncio.FIRST_COMPLETED)
                if all(task.result().status == DONE for task in done):
                    continue
                if runs:
                    late, runs = await asyncio.wait(runs, timeout=LAST_WORDS_S)
                    done |= late
                for task in runs:
                    task.cancel()
                return [end for end in (task.result() for task in done) if end.status != DONE]
            return []
        finally:
            life.over.set()
            life.kill()

    async def _meeting(self, life: Life) -> tuple[str, int] | None:
        """Have a group's first worker open the port at which all of them meet."""
        if self._group_size == 1:
            return None
        first = next(iter(life.actors.values()))
        with suppress(ActorGone):
            meeting: tuple[str, int] = await first.insist("meeting_point")
            return meeting
        return None

    async def kill_all(self) -> None:
        """End every process of this attempt."""
        for life in self.lives.values():
            life.kill()
        for shard in self.shards.values():
            shard.actor.kill()
        self.coordinator.kill()
        if self._coordinator_process is not None:
            # One that is stopped would hear of it only when it goes on.
            process = self._coordinator_process
            await asyncio.to_thread(kill_process, process, signal.SIGKILL)

    async def record(self, event: dict[str, Any]) -> None:
        """Have the coordinator write an event down, once."""
        self._events += 1
        await self.coordinator.insist("event", self._events, event)

    async def wait_for_members(self, seconds: float) -> None:
        """Give the members a moment to end by themselves."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(life.over.wait() for life in self.lives.values()))

    def log_of(self, rank: int) -> str:
        return str(directories.log_file(self._order.run_dir, rank))

    def _start(self, cls: str, arguments: tuple[Any, ...], bundle: int, name: str, gpus: int = 0) -> Actor:
        return self._cluster.start(cls, arguments, self._reservation, bundle, name, self._environment, gpus)


async def _run_one(rank: int, actor: Actor, meeting: Any) -> End:
    try:
        ended: Ended = await actor.insist("run", meeting)
    except ActorGone:
        return End(rank, time.monotonic(), None)
    return End(rank, time.monotonic(), ended)


def failure_of(end: End, step: int, phase: str) -> Failure:
    """Describe a failure; ``step`` and ``phase`` are where the worker was last seen, if it cannot say."""
    how = end.how
    if how is None:
        return Failure(end.rank, step, phase, "SIGKILL", "its process is gone", end.at, killed=True)
    return Failure(end.rank, how.step, how.phase, how.kind, how.error, end.at)


def on_the_cpu(config: Config) -> Config:
    """Return the configuration of a worker that has no GPU of its own."""
    parallel = config.parallel.model_copy(update={"device": "cpu"})
    return config.model_copy(update={"parallel": parallel})
