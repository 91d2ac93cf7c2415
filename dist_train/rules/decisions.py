"""What a referee decides, as data: for shards to obey, for members to hear, for the records to keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dist_train.rules.admission import Contribution
from dist_train.rules.messages import Outcome, Push, Reply, Version
from dist_train.rules.sampling import Position, Run
from dist_train.rules.schedule import Scheduled

# What a member waited for last: gradients of others, the shards, slower members, or something to do.
Waiting = Literal["quorum", "server", "bound", "work"]


@dataclass(frozen=True)
class Take:
    """Add ``scale`` times a gradient to the update in the making, a mean by weight.

    ``alone``: it will be the only one.
    """

    push: Push
    weight: float
    scale: float
    alone: bool


@dataclass(frozen=True)
class Step:
    """Apply what was taken: this is update ``version``, of ``samples`` samples."""

    version: Version
    made_with: Scheduled
    contributions: tuple[Contribution, ...]
    samples: int


@dataclass(frozen=True)
class Milestone:
    """What is due right after an update. ``position``, ``unfinished``: where its data stands."""

    version: Version
    samples: int
    position: Position
    unfinished: tuple[Run, ...]
    log: bool = False
    hold: bool = False
    save: bool = False
    snapshot: bool = False
    # Whether a validation was due by then and had not come to its end.
    owes_validation: bool = False


@dataclass(frozen=True)
class Answer:
    member: int
    incarnation: int
    sequence: int
    reply: Reply
    waited_for: Waiting


@dataclass(frozen=True)
class Returned:
    """Samples that go back to be drawn again: a lease whose gradient did not count, and why."""

    member: int
    incarnation: int
    outcome: Outcome
    version: Version
    read: Version | None
    run: Run


@dataclass(frozen=True)
class Validated:
    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Replace:
    member: int
    incarnation: int
    why: str


@dataclass(frozen=True)
class Fail:
    why: str


Action = Take | Step | Milestone | Answer | Returned | Validated | Replace | Fail
