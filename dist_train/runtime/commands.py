"""What the coordinator has the shards do: numbered batches of commands, each obeyed by all shards alike."""

from __future__ import annotations

from dataclasses import dataclass

from dist_train.exchange.segments import Address
from dist_train.rules.schedule import Scheduled


@dataclass(frozen=True)
class Attach:
    """Open the memory in which a member's process hands in its gradients."""

    member: int
    incarnation: int
    memory: Address
    statistics: int


@dataclass(frozen=True)
class TakeGradient:
    """Add ``scale`` times a gradient to the coming step; it lies in its member's memory."""

    member: int
    incarnation: int
    buffer: int
    weight: float
    scale: float
    alone: bool


@dataclass(frozen=True)
class Apply:
    """Take the step to version ``number``."""

    number: int
    made_with: Scheduled


@dataclass(frozen=True)
class Hold:
    """Copy the newest version to the memory held for a validation."""


@dataclass(frozen=True)
class Lend:
    """Keep a copy of the newest version, however many follow it, for a member on another node to fetch."""

    member: int


@dataclass(frozen=True)
class TakeBack:
    """Keep no copy for a member any longer."""

    member: int


@dataclass(frozen=True)
class Snapshot:
    """Copy the whole state to area ``area`` of the coordinator's memory."""

    area: int


@dataclass(frozen=True)
class Load:
    """Begin (again) from area ``area``, as version ``number`` of era ``era``."""

    area: int
    era: int
    number: int
    scalars: dict[str, float]


Command = Attach | TakeGradient | Apply | Hold | Lend | TakeBack | Snapshot | Load


@dataclass(frozen=True)
class Done:
    """What a batch of commands left behind: the optimizer's scalars, a checksum where one was asked for."""

    index: int
    scalars: dict[str, float]
    checksum: int | None = None
