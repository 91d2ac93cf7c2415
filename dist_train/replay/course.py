"""An attempt of a run made again, entry by entry: no referee decides, the log does.

It stops at the first thing that differs: the loss of a gradient, or the checksum of an update.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from dataclasses import dataclass

import torch
from torch import Tensor

from dist_train import optimizers
from dist_train.config import Config
from dist_train.core.server_state import ServerState
from dist_train.core.shard import ShardState
from dist_train.errors import TrainingError
from dist_train.exchange.deposits import Deposit
from dist_train.replay.log import Attempt, Gradient, Key, RolledBack, Update, Who
from dist_train.replay.member import Beginning, Computed, Past, ReplayedMember
from dist_train.replay.shards import Shards, Versions
from dist_train.replay.teachers import Posts
from dist_train.rules.messages import Version
from dist_train.rules.terms import worth


class Different(TrainingError):
    """The replay has not come to what the run came to; the message says where."""


@dataclass
class Counts:
    """How much was made again, over all attempts; ``checked``: updates whose checksums were compared."""

    updates: int = 0
    gradients: int = 0
    checked: int = 0


class Course:
    """``server`` and ``beginning`` are what the attempt begins from; ``close`` it in the end."""

    def __init__(
        self,
        config: Config,
        attempt: Attempt,
        server: ServerState,
        beginning: ShardState,
        counts: Counts,
        posts: Posts | None = None,
    ) -> None:
        self._posts = posts
        self._config = config
        self._attempt = attempt
        # Of each member: its buffers, what it keeps for itself. Later attempts go on from them.
        self._statistics, self._left = server.statistics, server.inner
        self._counts = counts
        damping = config.parallel.damping
        self._inverse, self._needs_base = damping.kind == "inverse", damping.kind == "delay_compensated"
        self._normalises = optimizers.normalises(server.shape.optimizer)
        self.shards = Shards(server.layout, server.shape.optimizer, attempt.shards, damping)
        self.shards.load(attempt.step, beginning)
        # Whether a member's gradient depends on those that it computed before.
        parallel = config.parallel
        remembers = parallel.outer_in_force is not None or parallel.fetch_every > 1
        # A group arranges its buckets anew after its first gradient; some compressions leave a rest to add.
        self._computes_all = remembers or server.statistics_size > 0 or parallel.group_size > 1
        self._versions = Versions(_last_reads(attempt))
        self._coming = self._in_order()
        self._ready: dict[Key, Computed] = {}
        self._members: dict[Who, ReplayedMember] = {}
        # After an update: the shards, and what members keep for themselves.
        self._saved: dict[int, tuple[ShardState, dict[int, Deposit]]] = {}

    def run(self, keep: int | None = None) -> Tensor | None:
        """Make the attempt again; return the parameters after update ``keep``, if it came to that.

        Raises Different.
        """
        self._now = Version(0, self._attempt.step)
        self._publish()
        returns, kept = _returns(self._attempt), None
        if -1 in returns:
            self._save()
        for index, entry in enumerate(self._attempt.entries):
            match entry:
                case Update():
                    self._update(entry)
                case RolledBack():
                    self._now = entry.version
                    shards, left = self._saved[self._now.number]
                    self.shards.load(self._now.number, shards)
                    self._left = dict(left)
                    self._publish()
                case Gradient() if self._computes_all:
                    self._computed(entry, f"after update {self._now.number}")
            if index in returns:
                self._save()
            if self._now.number == keep:
                kept = self.shards.parameters()
            self._versions.forget_after(index)
        return kept if self._attempt.entries or keep != self._now.number else self.shards.parameters()

    def _save(self) -> None:
        self._saved[self._now.number] = self.shards.copy(), dict(self._left)

    def close(self) -> None:
        for member in self._members.values():
            member.close()

    def _update(self, update: Update) -> None:
        number = update.version.number
        if update.version != (self._now.era, self._now.number + 1):
            raise Different(
                f"update {number} follows update {self._now.number} in the log: lines are missing"
            )
        for gradient in update.gradients:
            self._take(gradient, self._computed(gradient, f"update {number}"))
        self._now = update.version
        self.shards.step(number, update.made_with)
        self._counts.updates += 1
        expected = self._attempt.checks.get(update.version)
        if expected is not None:
            self._compare(number, expected)
        self._publish()

    def _take(self, gradient: Gradient, computed: Computed) -> None:
        staleness = self._now.number - gradient.read.number if self._inverse else 0
        # The shards of the run had a thread each.
        torch.set_num_threads(1)
        weight, scale = worth(computed.push.samples, staleness, self._normalises)
        base = computed.base if self._needs_base else None
        self.shards.take(gradient.who[0], computed.gradient, weight, base, scale)
        if computed.left is not None:
            self._left[gradient.who[0]] = computed.left

    def _compare(self, number: int, expected: list[int]) -> None:
        self._counts.checked += 1
        found = self.shards.checksums()
        for shard, (own, wanted) in enumerate(zip(found, expected, strict=True)):
            if own != wanted:
                raise Different(
                    f"update {number}: the parameters of shard {shard} differ from those of the run, though "
                    "the losses of all gradients up to it are the same"
                )

    def _publish(self) -> None:
        if self._versions.wants(self._now):
            self._versions.keep(self._now, self.shards.parameters())

    # -- gradients -------------------------------------------------------------------------------------

    def _in_order(self) -> dict[Who, deque[Gradient]]:
        """Return the gradients to be computed, by process, in the order in which it computed them."""
        rows: dict[Who, list[Gradient]] = defaultdict(list)
        for _, gradient in self._attempt.gradients:
            if self._computes_all or gradient.outcome == "counted":
                rows[gradient.who].append(gradient)
        return {who: deque(sorted(row, key=lambda each: each.sequence)) for who, row in rows.items()}

    def _computed(self, gradient: Gradient, where: str) -> Computed:
        """Compute a gradient, after all that its process computed before it, and compare its loss."""
        while gradient.key not in self._ready:
            coming = self._coming[gradient.who].popleft()
            self._ready[coming.key] = self._compute(coming, where)
        computed = self._ready.pop(gradient.key)
        loss = computed.push.loss
        if loss != gradient.loss and not (math.isnan(loss) and math.isnan(gradient.loss)):
            raise Different(
                f"{where}: {gradient}, has a loss of {loss!r} over its samples, and had {gradient.loss!r} in "
                "the run"
            )
        return computed

    def _compute(self, gradient: Gradient, where: str) -> Computed:
        member = self._members.get(gradient.who) or self._enter(gradient)
        try:
            computed = member.compute(gradient)
        except KeyError:
            raise Different(f"{where}: {gradient}, was computed before that version was there") from None
        if gradient.outcome == "counted":
            self._statistics[gradient.who[0]] = computed.statistics
        self._counts.gradients += 1
        return computed

    def _enter(self, gradient: Gradient) -> ReplayedMember:
        """Begin a member's process; its predecessors have nothing more to compute."""
        for who in [who for who in self._members if who[0] == gradient.who[0] and not self._coming[who]]:
            self._members.pop(who).close()
        number = gradient.who[0]
        begins = Beginning(self._statistics[number], self._left.get(number))
        past = Past(self._versions.read, self._posts)
        member = ReplayedMember(self._config, self._attempt, gradient.who, begins, past)
        self._members[gradient.who] = member
        return member


def _last_reads(attempt: Attempt) -> dict[Version, int]:
    """Return the last entry that reads each version."""
    reads: dict[Version, int] = {}
    for index, gradient in attempt.gradients:
        for version in (gradient.read, *gradient.reads):
            reads[version] = index
    return reads


def _returns(attempt: Attempt) -> set[int]:
    """Return the entries after which the state is one that the run goes back to later; -1: the beginning."""
    found: set[int] = set()
    last: dict[int, int] = {attempt.step: -1}
    for index, entry in enumerate(attempt.entries):
        if isinstance(entry, RolledBack):
            found.add(last.get(entry.version.number, -1))
        if not isinstance(entry, Gradient):
            last[entry.version.number] = index
    return found
