"""A member of a replay: the code of a real one (member.py), whose server answers what the log says.

Every member is a thread that computes one gradient when it is its turn, and then waits: what it reads next
may be a version that is yet to be made.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor
from torch.distributed import HashStore

from dist_train import member as real
from dist_train.config import Config
from dist_train.config.schema import ElasticOuter
from dist_train.core.flat import Layout
from dist_train.core.flat_model import FlatModel
from dist_train.core.inner_state import InnerShape, InnerState, kept_vectors
from dist_train.core.learner import Learner, Workplace
from dist_train.core.state import State
from dist_train.couplings import Coupling
from dist_train.errors import ConfigError
from dist_train.exchange.baton import Runner
from dist_train.exchange.collective import Alone
from dist_train.exchange.deposits import Deposit
from dist_train.exchange.segments import Segment
from dist_train.exchange.server import MemberMemory, Sizes, Turn, Welcome
from dist_train.replay.group import Apart, Mate, Together
from dist_train.replay.log import Attempt, Gradient, Who
from dist_train.replay.teachers import Posts, RecordedTeachers
from dist_train.replica import by_version
from dist_train.rules.messages import FIRST, Lease, Measured, Outcome, Push, Reply, Version, Work
from dist_train.runtime.connect import Connection, numerics_of
from dist_train.runtime.place import Place
from dist_train.task import Task

CPU = torch.device("cpu")

# Gives the parameters of a version.
Read = Callable[[Version], Tensor]


class ScriptedServer:
    """The server as the log has it: ``cue`` is the gradient that the member is to compute next."""

    def __init__(
        self, attempt: Attempt, who: Who, beginning: Beginning, memory: MemberMemory, read: Read
    ) -> None:
        self.memory = memory
        self.cue: Gradient | None = None
        self.pushed: Push | None = None
        # Lets the other members have their turn.
        self.hand_back: Callable[[], None] = lambda: None
        # Has the member take parameters.
        self.arrived: Callable[[Version, Tensor], None] = lambda version, vector: None
        # In elastic averaging members go on from where they were.
        self.reads_after_validations = True
        self._attempt = attempt
        # Of all gradients that the process pushed, also of those that are not computed again.
        self._sequences = sorted(each.sequence for _, each in attempt.gradients if each.who == who)
        self._statistics, self._left = beginning.statistics.clone(), beginning.left
        self._read = read
        self._reads: deque[Version] = deque()
        self._leases = 0

    @property
    def reads_in_place(self) -> bool:
        return False

    def enlist(self, sizes: Sizes) -> Welcome:
        if sizes.train != self._attempt.train_size:
            raise ConfigError(
                f"the training set has {sizes.train} samples, and had {self._attempt.train_size} in the run: "
                "replay it with the same data"
            )
        if self._left is None:
            return Welcome(self._attempt.seed, self._statistics)
        for target, row in zip(self.memory.deposits[0], self._left.rows, strict=True):
            target.copy_(row)
        return Welcome(self._attempt.seed, self._statistics, self._left.scalars)

    def join(self, ahead: int) -> Reply:
        del ahead
        return self._answer("welcome")

    def push(self, push: Push) -> Reply:
        self.pushed, done = push, self._now
        self.hand_back()
        return self._answer(self._attempt.heard(done))

    def measured(self, measured: Measured) -> Reply:
        raise AssertionError(f"a replay measures nothing: {measured}")

    def read(self, at_least: Version, into: Tensor) -> Version:
        del at_least
        version = self._reads.popleft()
        into.copy_(self._read(version))
        return version

    def read_in_place(self, at_least: Version) -> tuple[Version, Tensor]:
        raise AssertionError(f"a replay makes versions again, none of which stays: {at_least}")

    def read_exactly(self, version: Version, into: Tensor) -> bool:
        into.copy_(self._read(version))
        return True

    def read_held(self, parameters: Tensor, statistics: Tensor) -> None:
        raise AssertionError(f"a replay holds nothing: {parameters.shape}, {statistics.shape}")

    @property
    def _now(self) -> Gradient:
        assert self.cue is not None
        return self.cue

    def _answer(self, outcome: Outcome) -> Reply:
        """Answer with the next lease of the log."""
        cue = self._now
        self._reads = deque(cue.reads)
        if self.reads_after_validations:
            place = bisect_left(self._sequences, cue.sequence)
            before = self._sequences[place - 1] if place else 0
            self._skip_validations(cue.sequence - before - 1)
        self._leases += 1
        lease = Lease(self._leases, cue.lease.epoch, cue.lease.offset, cue.lease.count)
        return Reply(outcome, FIRST, work=(Work(lease, cue.own),))

    def _skip_validations(self, count: int) -> None:
        """Between two pushes the member has measured ``count`` times, and read again each time."""
        if count <= 0:
            return
        version = self._now.read
        for _ in range(min(count, len(self._reads))):
            version = self._reads.popleft()
        self.arrived(version, self._read(version))


@dataclass(frozen=True)
class Computed:
    """A gradient computed again: what was announced, the vector, the parameters that it came from if needed.

    ``statistics`` are the member's buffers then, ``left`` what it keeps for itself.
    """

    push: Push
    gradient: Tensor
    base: Tensor | None
    statistics: Tensor
    left: Deposit | None


@dataclass(frozen=True)
class Beginning:
    """What a member's process begins with: the values of its buffers, what its predecessor left."""

    statistics: Tensor
    left: Deposit | None


@dataclass(frozen=True)
class Past:
    """What was there to be read: the parameters of a version, and what other replicas posted, if any did."""

    read: Read
    posts: Posts | None = None


class ReplayedMember:
    """One process of a member, ``who`` of the log; ``close`` it in the end."""

    def __init__(self, config: Config, attempt: Attempt, who: Who, beginning: Beginning, past: Past) -> None:
        self._config, self._attempt = config, attempt
        self._numerics = numerics_of(config, CPU)
        self._turn = Turn(*who)
        task, state = real.made(config, CPU, attempt.replica)
        model, shape = state.model, InnerShape.of(config)
        layout = Layout.of(model, config.optimizer)
        sizes = layout.size, beginning.statistics.numel(), kept_vectors(config), config.parallel.needs_base
        self._segment = Segment.create(MemberMemory.bytes(*sizes))
        self._memory = MemberMemory(self._segment, *sizes)
        self._server = ScriptedServer(attempt, who, beginning, self._memory, past.read)
        flat = FlatModel(model, layout, self._memory.parameters)
        self._inner = None if shape is None else InnerState(shape, state.optimizer, layout, model)
        connection = Connection(Place(), CPU, HashStore(), timedelta(seconds=1), lambda *_: None)
        coupling = real.coupling_of(
            config, connection, attempt.workers, self._server, flat, self._turn, self._inner
        )
        self._teachers = None if past.posts is None else RecordedTeachers(config, past.posts, task)
        self._mates = self._made_mates(flat)
        self._group = None
        if self._mates:
            self._group = Together(config.parallel, coupling, self._mates, flat, self._turn)
        learner = self._learner(task, state, self._taught(self._group or coupling), 0)
        self._member = real.Member(config, learner, self._server, flat, self._turn, Place())
        self._runner = Runner(f"member {who[0]}", self._live)
        self._server.hand_back, self._server.arrived = self._hand_back, self._arrived
        self._server.reads_after_validations = not isinstance(config.parallel.outer, ElasticOuter)

    def compute(self, gradient: Gradient) -> Computed:
        """Compute a gradient of the log again; they come in the order of their sequence."""
        self._server.cue = gradient
        if self._teachers is not None:
            self._teachers.versions = gradient.teachers
        self._runner.move()
        push, memory = self._server.pushed, self._memory
        assert push is not None
        left = None
        if push.deposit is not None:
            left = Deposit(tuple(row.clone() for row in memory.deposits[push.deposit]), push.scalars)
        vector = memory.gradients[push.buffer].clone()
        base = None if memory.parameters is None else memory.parameters.clone()
        statistics = memory.statistics.clone()
        if self._group is not None:
            statistics = self._group.statistics(statistics)
        return Computed(push, vector, base, statistics, left)

    def close(self) -> None:
        self._runner.end()
        self._segment.close()

    def _live(self) -> None:
        torch.set_num_threads(self._attempt.threads)
        workers = self._attempt.workers
        for mate in self._mates:
            turn = Turn(self._turn.member, self._turn.incarnation)
            beside = real.Member(self._config, mate.learner, self._server, mate.flat, turn, Place())
            real.begin(beside, workers)
        real.begin(self._member, workers, self._inner)
        if self._group is not None:
            group, learner = self._group, self._member.learner
            self._turn.figures = lambda: group.figures(learner.figures())
        real.train(self._member)

    def _hand_back(self) -> None:
        self._runner.hand_back()
        torch.set_num_threads(self._attempt.threads)

    def _arrived(self, version: Version, vector: Tensor) -> None:
        self._member.flat.host.copy_(vector)
        self._member.flat.arrived()
        self._turn.version = version

    def _made_mates(self, flat: FlatModel) -> list[Mate]:
        """Make the other workers of the group, on the same parameters as the first."""
        mates = []
        for rank in range(1, self._config.parallel.group_size):
            task, state = real.made(self._config, CPU, self._attempt.replica)
            apart = Apart(self._config.parallel)
            learner = self._learner(task, state, self._taught(apart), rank)
            mates.append(Mate(learner, FlatModel(state.model, flat.layout, flat.host), rank, apart))
        return mates

    def _taught(self, coupling: Coupling) -> Coupling:
        """Add what is learnt from other replicas."""
        return (
            coupling if self._teachers is None else self._teachers.coupled(coupling, by_version(self._turn))
        )

    def _learner(self, task: Task, state: State, coupling: Coupling, rank: int) -> Learner:
        at = Workplace(
            rank,
            self._config.parallel.group_size,
            self._numerics,
            Alone(),
            lambda *_: None,
            replica=self._attempt.replica,
        )
        return Learner(self._config, task, state, coupling, at)
