"""What the processes of a server run tell each other beside gradients: who is there, how it goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_train.config import Config
from dist_train.rules.liveness import Beat
from dist_train.runtime.ray_cluster import Actor
from dist_train.runtime.remote import Process
from dist_train.watch.figures import Length

if TYPE_CHECKING:
    # Loads torch, which the conductor does without.
    from dist_train.exchange.segments import Address


@dataclass(frozen=True)
class Order:
    """What the coordinator is to run: one attempt of a run, with ``workers`` workers."""

    config: Config
    run_dir: Path
    resume: str
    attempt: int
    workers: int
    started_by: str
    device: str
    # Which of several models.
    replica: int = 0
    # The members whose bundle lies on the server's node.
    near: tuple[int, ...] = ()
    # By which the run's directory is known on every machine.
    word: str = ""


@dataclass(frozen=True)
class Assignment:
    """Which worker of which member a process is: ``rank`` among all workers, ``group_rank`` in its group."""

    config: Config
    run_dir: Path
    workers: int
    rank: int
    member: int
    incarnation: int
    group_rank: int
    coordinator: Actor
    replica: int = 0
    word: str = ""


@dataclass(frozen=True)
class Ended:
    """How a worker ended: its exit status and, if it failed, where, and the error's kind and words."""

    status: int
    step: int = 0
    phase: str = "starting"
    kind: str = ""
    error: str = ""


@dataclass(frozen=True)
class Copy:
    """One process that holds shard ``shard``; its successor has another ``serial``."""

    shard: int
    serial: int
    actor: Actor


@dataclass(frozen=True)
class Hello:
    """A member's process introduces itself; ``memory`` is None when it runs on another node."""

    member: int
    incarnation: int
    process: Process
    train_size: int
    validation_size: int
    parameters: str
    memory: Address | None
    threads: int


@dataclass(frozen=True)
class Sources:
    """Where the parameters are to be read: by shard, its part, its memory, and the actor that serves it.

    ``edition`` rises when one of them is replaced; ``hazards`` are the members that have one, in their order.
    """

    edition: int
    node: str
    parts: tuple[range, ...]
    memory: tuple[Address, ...]
    actors: tuple[Any, ...]
    held: Address
    hazards: tuple[int, ...] = ()


@dataclass(frozen=True)
class Pulse:
    """A process's beat, its times as ages in seconds: clocks of two machines have nothing in common."""

    beat: Beat
    phase_age: float
    process: Process
    incarnation: int


@dataclass(frozen=True)
class Want:
    """What the coordinator asks of the conductor: a new process for a member, or for a shard.

    ``incarnation`` is that of the member's process, or the serial number of the shard's.
    """

    kind: str
    number: int
    incarnation: int
    why: str


@dataclass(frozen=True)
class News:
    """What happened since the last time: things to show, things to do, and how it ended if it has.

    ``number`` is to be named when the next news are asked for: until then these may have been lost.
    """

    number: int = 0
    length: Length | None = None
    shown: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    wants: list[Want] = field(default_factory=list)
    status: int | None = None
    error: str | None = None
