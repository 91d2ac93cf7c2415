"""A member of a replay: the code of a real one (member.py), whose server answers what the log says.

Every member is a thread that computes one gradient whenever it is its turn, and then waits: what it reads next
may be a version that is yet to be made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor
from torch.distributed import HashStore

from dist_train import member as real
from dist_train import optimizers, tasks
from dist_train.config import Config
from dist_train.core.flat import Layout
from dist_train.core.flat_model import FlatModel, statistics_of, statistics_size
from dist_train.core.learner import Learner, Workplace
from dist_train.core.seeds import seed_all
from dist_train.core.state import State
from dist_train.errors import ConfigError
from dist_train.exchange.baton import Runner
from dist_train.exchange.collective import Alone
from dist_train.exchange.segments import Segment
from dist_train.exchange.server import MemberMemory, Sizes, Turn, Welcome
from dist_train.replay.group import Together
from dist_train.replay.log import Attempt, Gradient, Who
from dist_train.rules.messages import FIRST, Lease, Measured, Outcome, Push, Reply, Version, Work
from dist_train.runtime.connect import Connection, numerics_of
from dist_train.runtime.place import Place

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Computed:
    """A gradient computed again: what was announced, the vector itself, the parameters it came from."""

    push: Push
    gradient: Tensor
    base: Tensor


class ScriptedServer:
    """The server as the log has it. ``read_version`` gives the parameters of a version."""

    def __init__(self, attempt: Attempt, memory: MemberMemory, read_version: Callable[[Version], Tensor]) -> None:
        self.memory = memory
        self.cue: Gradient | None = None
        self.pushed: Push | None = None
        # Have the member take what was written to its parameters behind its back.
        self.refreshed: Callable[[Version], None] = lambda version: None
        self.hand_back: Callable[[], None] = lambda: None
        self.statistics = torch.zeros_like(memory.statistics)
        self._attempt = attempt
        self._read_version = read_version
        self._reads: deque[Version] = deque()
        self._leases = 0

    def enlist(self, sizes: Sizes) -> Welcome:
        if sizes.train != self._attempt.train_size:
            raise ConfigError(
                f"the training set has {sizes.train} samples, and had {self._attempt.train_size} in the run: "
                "replay it with the same data"
            )
        return Welcome(self._attempt.seed, self.statistics.clone())

    def join(self, ahead: int) -> Reply:
        del ahead
        return self._answer("welcome", 0)

    def push(self, push: Push) -> Reply:
        self.pushed = push
        before = self._now
        self.hand_back()
        return self._answer(before.outcome, before.sequence)

    def measured(self, measured: Measured) -> Reply:
        raise AssertionError("a replay measures nothing")

    def read(self, at_least: Version, into: Tensor) -> Version:
        del at_least
        version = self._reads.popleft() if self._reads else self._now.read
        into.copy_(self._read_version(version))
        return version

    def read_exactly(self, version: Version, into: Tensor) -> bool:
        raise AssertionError("a replay has no second reader")

    def read_held(self, parameters: Tensor, statistics: Tensor) -> None:
        raise AssertionError("a replay validates nothing")

    @property
    def _now(self) -> Gradient:
        assert self.cue is not None
        return self.cue

    def _answer(self, outcome: Outcome, sequence: int) -> Reply:
        """Answer with the next lease of the log."""
        cue = self._now
        self._leases += 1
        self._reads = deque(cue.reads)
        self._skip_validations(cue.sequence - sequence - 1)
        lease = Lease(self._leases, cue.lease.epoch, cue.lease.offset, cue.lease.count)
        return Reply(outcome, FIRST, work=(Work(lease, cue.rates),))

    def _skip_validations(self, count: int) -> None:
        """Between two pushes a member measured ``count`` times, and read again after each."""
        if not count:
            return
        version = self._now.read
        for _ in range(min(count, len(self._reads))):
            version = self._reads.popleft()
        self.memory.parameters.copy_(self._read_version(version))
        self.refreshed(version)


class ReplayedMember:
    """One process of a member, made when its first gradient is wanted; ``close`` it in the end."""

    def __init__(
        self, config: Config, attempt: Attempt, who: Who, layout: Layout, statistics: Tensor | None
    ) -> None:
        self._config = config
        self._attempt = attempt
        self._who = who
        self._layout = layout
        self._statistics = statistics
        self._segment: Segment | None = None

    def begin(self, read_version: Callable[[Version], Tensor]) -> None:
        """Make the member's model and memory."""
        config = self._config
        seed_all(config.seed)
        self._task = tasks.make(config)
        channels = torch.channels_last if config.train.channels_last else torch.preserve_format
        self._model = self._task.model().to(memory_format=channels)  # type: ignore[call-overload]
        self._size = statistics_size(statistics_of(self._model))
        self._segment = Segment.create(MemberMemory.bytes(self._layout.size, self._size))
        memory = MemberMemory(self._segment, self._layout.size, self._size)
        self._server = ScriptedServer(self._attempt, memory, read_version)
        if self._statistics is None:
            FlatModel
        self._runner = Runner(f"member {self._who[0]}", self._live)
