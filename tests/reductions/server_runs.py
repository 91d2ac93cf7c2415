"""Whole parameter-server runs in one process: the real members and shards around the in-process twin."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import runs
import torch
import toys
from torch import Tensor
from torch.distributed import HashStore

from dist_train import tasks
from dist_train.config.schema import Config
from dist_train.core.checkpoint import Facts
from dist_train.core.commit import Committer, Draft
from dist_train.core.damping import delay_compensation
from dist_train.core.flat import FlatState
from dist_train.core.keeper import plan_from
from dist_train.core.shard import PlainSlots, Shard, ShardState, parts
from dist_train.exchange.areas import Area
from dist_train.exchange.ballot import StoreBallot
from dist_train.exchange.baton import Schedule, in_step
from dist_train.exchange.deposits import Deposit
from dist_train.exchange.server import Turn
from dist_train.exchange.twin import Seat, Twin
from dist_train.member import RunOfAll, serve
from dist_train.plan import group_count
from dist_train.rules.decisions import Answer, Milestone, Step, Validated
from dist_train.rules.referee import Referee, Start
from dist_train.rules.teaching import replica_seed
from dist_train.runtime.connect import Connection
from dist_train.runtime.holdings import Holdings
from dist_train.runtime.place import Place
from dist_train.runtime.server_terms import terms_of
from dist_train.task import Task

THIS = __file__
NEVER = 10**6


class Single(toys.Plain):
    """The two-layer network in single precision, which a server needs."""

    dtype = torch.float32


def config_of(**sections: Any) -> Config:
    """Make a configuration of a server mode: ``Single``, 4 updates, validated at the end, or as given."""
    tree: dict[str, Any] = {
        "task": f"{THIS}:Single",
        "train": {"steps": 4, "batch_size": 4},
        "validation": {"every_steps": NEVER},
    }
    return runs.config_of(**tree | sections)


@contextmanager
def running() -> Iterator[Callable[..., Run]]:
    """Give what makes runs, one member if not told otherwise, and end them all."""
    made: list[Run] = []

    def make(
        parallel: Mapping[str, Any],
        steps: int = 4,
        origin: Path | None = None,
        replica: int = 0,
        directory: Path = Path("nowhere"),
        **sections: Any,
    ) -> Run:
        train = {"steps": steps, "batch_size": 4} | sections.pop("train", {})
        config = config_of(parallel={"workers": 1} | parallel, train=train, **sections)
        made.append(Run(config, origin, replica=replica, directory=directory))
        return made[-1]

    try:
        yield make
    finally:
        for each in made:
            each.close()


@dataclass
class Run:
    """A run of as many members as the configuration has workers; groups have one worker."""

    config: Config
    origin: Path | None = None
    slots: Callable[[int], Any] = PlainSlots
    # Of one of several replicas: which, and where it lies beside the board.
    replica: int = 0
    directory: Path = Path("nowhere")
    snapshots: list[tuple[Start, ShardState]] = field(default_factory=list)
    # By the update of a snapshot: what members kept for themselves then.
    left: dict[int, dict[int, Deposit]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert isinstance(self.config.parallel.workers, int)
        self.workers = self.config.parallel.workers
        self.members = group_count(self.config.parallel, self.workers)
        self.holdings = Holdings(self.config, self.workers, self.origin, self.replica)
        self.server = self.holdings.server
        counted = self.server.state.counted
        own_seed = replica_seed(self.config.seed, self.replica)
        counted.seed = own_seed if counted.seed is None else counted.seed
        counted.train_size = len(self.task.train_data())
        self.plan, _ = plan_from(self.config, self.server.state, self.workers, counted.train_size)
        self.start = Start(
            counted.updates, counted.samples, counted.position, counted.unfinished, counted.owes_validation
        )
        self.area, kept = self.holdings.begin(self.start)
        self.shards = self._shards()
        self.load(self.start, self.whole(self._area, kept.scalars))
        terms = terms_of(self.config, self.plan, self.members)
        referee = Referee(terms, self.members, self.start)
        self.twin = Twin(referee, self.shards, self.parts, self.server, counted.seed)
        self.twin.keep = self.keep

    @property
    def task(self) -> Task:
        return tasks.make(self.config)

    # -- the shards ------------------------------------------------------------------------------------

    def _shards(self) -> list[Shard]:
        settings, layout = self.server.shape.optimizer, self.server.layout
        self.parts = parts(layout, self.config.parallel.server.shards, settings)
        return [
            Shard(
                layout,
                part,
                settings,
                self.slots(len(part)),
                delay_compensation(self.config.parallel.damping),
            )
            for part in self.parts
        ]

    @property
    def _area(self) -> Area:
        return self.holdings._areas[self.area]

    def whole(self, area: Area, scalars: dict[str, float]) -> ShardState:
        return ShardState(area.parameters, FlatState(area.optimizer, scalars), area.mean_squares)

    def load(self, start: Start, state: ShardState) -> None:
        for shard, part in zip(self.shards, self.parts, strict=True):
            shard.load(start.updates, state.part(part))

    def export(self, area: Area) -> dict[str, float]:
        """Copy what the shards hold; return the optimizer's scalars."""
        state = self.whole(area, {})
        for shard, part in zip(self.shards, self.parts, strict=True):
            shard.export(state.part(part))
        return dict(self.shards[0].state().optimizer.scalars)

    def keep(self, milestone: Milestone) -> None:
        if milestone.snapshot:
            state = self.copied()
            where = milestone.samples, milestone.position, milestone.unfinished
            self.snapshots.append((Start(milestone.version.number, *where), state))
            self.left[milestone.version.number] = self.twin.deposits.copies()

    def copied(self) -> ShardState:
        """Return a copy of what the shards hold."""
        empty = self._area
        area = Area(
            torch.zeros_like(empty.parameters),
            {key: torch.zeros_like(vector) for key, vector in empty.optimizer.items()},
            {member: torch.zeros_like(vector) for member, vector in empty.mean_squares.items()},
        )
        return self.whole(area, self.export(area))

    # -- the members -----------------------------------------------------------------------------------

    def seat(self, member: int) -> Seat:
        return self.twin.seat(member, self.body)

    def body(self, seat: Seat) -> None:
        """Be the only worker of a member, through the door."""
        place = Place(0, 1, replica=self.replica)
        connection = Connection(place, runs.CPU, HashStore(), timedelta(seconds=20), lambda *_: None)
        turn = Turn(seat.member, seat.incarnation)

        def open_server(size: int, statistics: int) -> Seat:
            assert size == self.server.layout.size
            assert statistics == self.server.statistics_size
            return seat

        serve(self.config, connection, RunOfAll(self.directory, self.workers), open_server, turn)

    def go(self, schedule: Schedule | None = None, until: Callable[[], bool] = lambda: False) -> Run:
        """Seat whoever is missing, and let all move."""
        for member in range(self.members):
            if member not in self.twin._seats:
                self.seat(member)
        self.twin.go(schedule or in_step(), until)
        return self

    def go_to(self, update: int, schedule: Schedule | None = None) -> Run:
        """Go on until ``update`` is made."""
        return self.go(schedule, lambda: self.twin.version.number >= update)

    def close(self) -> None:
        self.twin.__exit__()

    # -- what came of it -------------------------------------------------------------------------------

    @property
    def steps(self) -> list[Step]:
        return [each for each in self.twin.decisions if isinstance(each, Step)]

    @property
    def staleness(self) -> list[int]:
        """Each gradient's staleness, in the order in which they count."""
        return [each.staleness for step in self.steps for each in step.contributions]

    @property
    def outcomes(self) -> list[str]:
        return [each.reply.outcome for each in self.twin.decisions if isinstance(each, Answer)]

    @property
    def validated(self) -> list[Validated]:
        return [each for each in self.twin.decisions if isinstance(each, Validated)]

    def take(self) -> None:
        """Have the server's state take what the shards hold now, and the counts that belong to it."""
        scalars = self.export(self._area)
        self.server.inner |= self.twin.deposits.copies()
        self.server.take(self._area, scalars)
        referee, counted = self.twin.referee, self.server.state.counted
        counted.updates, counted.samples = referee.admission.version.number, referee.samples
        counted.position, counted.unfinished = referee.dealer.position, referee.dealer.unfinished
        counted.owes_validation = referee.owes_validation
        self.server.state.chosen.rate = referee.terms.scheduled(referee.samples).rate

    def weights(self) -> dict[str, Tensor]:
        """Return what would be delivered now."""
        self.take()
        self.server.deliver()
        delivered = self.server.state.model.state_dict()
        return {name: tensor.clone() for name, tensor in delivered.items()}

    def save(self, run_dir: Path) -> Path:
        """Write a checkpoint, as the coordinator does."""
        self.take()
        state = self.server.state
        ballot = StoreBallot(HashStore(), "ballot", 0, 1)
        committer = Committer(run_dir / "checkpoints", 0, 1, "server", ballot, (3, None))
        facts = Facts(state.counted.samples, "hash")
        outcome = committer.commit(Draft(1, state.counted.updates, facts, self.server.parts()))
        assert outcome.path is not None, outcome.reason
        return outcome.path
