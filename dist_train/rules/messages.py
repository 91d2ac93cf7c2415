"""What the members of a parameter server and its coordinator tell each other: plain data, safe to repeat.

A *member* is one group of workers, the unit that computes gradients, fails, and is replaced. Its
*incarnation* counts its replacements, and its *sequence* its pushes, so that a message which comes twice, or
comes from a process that was replaced, is known for what it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from dist_train.rules.schedule import Scheduled


class Version(NamedTuple):
    """How many updates the parameters have received, in the ``era`` that a loss of updates began."""

    era: int
    number: int


FIRST = Version(0, 0)


@dataclass(frozen=True)
class Lease:
    """A piece of work: ``count`` places of an epoch's permutation from ``offset`` on. ``number`` names it."""

    number: int
    epoch: int
    offset: int
    count: int


@dataclass(frozen=True)
class Work:
    """A lease to compute a gradient of, with what each step is made with that the member makes itself."""

    lease: Lease
    own: tuple[Scheduled, ...] = ()


@dataclass(frozen=True)
class ValidationPart:
    """Part ``part`` of ``parts`` of the validation set, to be measured with the held version ``step``."""

    job: int
    step: int
    part: int
    parts: int


@dataclass(frozen=True)
class Push:
    """The announcement of a gradient that lies ready in the member's buffer ``buffer``.

    ``version`` is what it was computed from; ``loss`` is summed over its ``samples``; ``finite`` says that
    neither holds NaN or infinity; ``seconds`` are the member's own, by phase.
    """

    member: int
    incarnation: int
    sequence: int
    lease: int
    version: Version
    samples: int
    loss: float
    finite: bool = True
    buffer: int = 0
    # All versions that the member read since the push before, in order.
    reads: tuple[Version, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    memory_mb: float = 0.0
    gradient_norm: float | None = None
    # Of a group: the workers, by their rank in it, whose loss is not finite.
    not_finite: tuple[int, ...] = ()
    # With local steps: where the member's own state lies, and the numbers that belong to it.
    deposit: int | None = None
    scalars: Mapping[str, float] = field(default_factory=dict)
    # Of a codistilled replica: how far it was from those that taught it, which they were (replica, version),
    # and the replicas that training goes on without.
    agreement: float | None = None
    teachers: tuple[tuple[int, int], ...] = ()
    without: tuple[int, ...] = ()


@dataclass(frozen=True)
class Measured:
    """A part of a validation, measured: each figure's sum over the part's ``samples``."""

    member: int
    incarnation: int
    sequence: int
    job: int
    part: int
    sums: Mapping[str, float]
    samples: float


Outcome = Literal["welcome", "counted", "dropped", "refused", "void", "ended"]


@dataclass(frozen=True)
class Reply:
    """What became of a push, and what to do next.

    ``counted``: it is in, or will be in the next update. ``dropped``: it came late. ``refused``: not finite.
    ``void``: its lease was withdrawn by a loss of updates, or training is over. ``ended``: another process
    has taken this member's place. Read at least ``version`` before going on; ``forget`` the leases held so
    far.
    """

    outcome: Outcome
    version: Version
    work: tuple[Work, ...] = ()
    validation: ValidationPart | None = None
    stop: bool = False
    forget: bool = False
