"""A parameter-server run as events.jsonl tells it: its attempts, with gradients and updates in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dist_train.errors import ConfigError
from dist_train.rules.messages import Outcome, Version
from dist_train.rules.sampling import Run
from dist_train.rules.schedule import Scheduled

# A member's process: (member, incarnation).
Who = tuple[int, int]
# A gradient: whose it is, and its sequence.
Key = tuple[Who, int]

# Settings that no gradient and no update depends on, as the log has the rates.
_HARMLESS = (
    "name",
    "checkpoint.",
    "data.loaders",
    "data.prefetch",
    "faults.",
    "logging.",
    "recovery.",
    "schedule.",
    "train.epochs",
    "train.samples",
    "train.steps",
    "validation.",
)


@dataclass(frozen=True)
class Gradient:
    """A gradient that was pushed. ``read``: what it was computed from; ``loss``: summed over its samples.

    ``reads`` are all versions that its member read since the push before, in order.
    """

    who: Who
    sequence: int
    read: Version
    lease: Run
    loss: float
    own: tuple[Scheduled, ...]
    outcome: Outcome
    reads: tuple[Version, ...]
    # What its member was told, where that is another outcome than the one it had.
    told: Outcome | None = None
    # Of a codistilled replica: the version of each teacher, by its replica.
    teachers: Mapping[int, int] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        return self.who, self.sequence

    def __str__(self) -> str:
        lease = self.lease
        return (
            f"worker {self.who[0]}'s gradient of epoch {lease.epoch}, places {lease.offset} to "
            f"{lease.offset + lease.count - 1}, from version {self.read.number}"
        )


@dataclass(frozen=True)
class Update:
    version: Version
    made_with: Scheduled
    gradients: tuple[Gradient, ...]


@dataclass(frozen=True)
class RolledBack:
    """Updates were lost with a shard: ``version`` is the first of a new era, and its number an old one's."""

    version: Version


Entry = Update | Gradient | RolledBack


@dataclass
class Attempt:
    """One start of the server, from update ``step``; ``origin`` is the checkpoint it began from, if any.

    ``changed`` names a setting that differs from that of the attempt before, ``checks`` are the shards'
    checksums after an update, ``withdrawn`` the gradients whose update was lost before their member heard.
    """

    step: int
    origin: str | None
    workers: int
    shards: int
    threads: int
    seed: int
    train_size: int
    replica: int = 0
    changed: str | None = None
    entries: list[Entry] = field(default_factory=list)
    checks: dict[Version, list[int]] = field(default_factory=dict)
    withdrawn: set[Key] = field(default_factory=set)

    @property
    def gradients(self) -> Iterator[tuple[int, Gradient]]:
        """Every gradient with the index of its entry."""
        for index, entry in enumerate(self.entries):
            match entry:
                case Update():
                    yield from ((index, gradient) for gradient in entry.gradients)
                case Gradient():
                    yield index, entry

    def heard(self, gradient: Gradient) -> Outcome:
        """What the member was told of its gradient."""
        return "void" if gradient.key in self.withdrawn else gradient.told or gradient.outcome

    @property
    def last_step(self) -> int:
        """The update that the attempt ends with."""
        updates = [entry.version.number for entry in self.entries if not isinstance(entry, Gradient)]
        return updates[-1] if updates else self.step

    def until(self, step: int) -> Attempt | None:
        """Return this attempt up to the last time that it came to update ``step``; None if it never did."""
        ends = [
            index + 1
            for index, entry in enumerate(self.entries)
            if not isinstance(entry, Gradient) and entry.version.number == step
        ]
        if not ends and step != self.step:
            return None
        return replace(self, entries=self.entries[: ends[-1] if ends else 0])


def attempts(events: Iterable[Mapping[str, Any]]) -> list[Attempt]:
    """Read the events of a run; raises ConfigError for an event that is not as the server writes it."""
    found: list[Attempt] = []
    changed: str | None = None
    for number, event in enumerate(events, start=1):
        try:
            kind = event["event"]
            if kind == "server_start":
                found.append(_attempt(event, changed))
                changed = None
            elif kind == "configuration_changed":
                changed = _change(str(event["note"])) or changed
            elif found:
                _add(found[-1], kind, event)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ConfigError(
                f"events.jsonl, line {number}: not as a server writes it ({type(error).__name__}: {error})"
            ) from None
    return found


def without_undone(found: list[Attempt]) -> list[Attempt]:
    """Leave out of each attempt what a later one, that began earlier in training, has made undone.

    Raises ConfigError where an attempt began at an update that the log does not hold.
    """
    kept: list[Attempt] = []
    for attempt in found:
        if attempt.step == 0:
            kept.clear()
        while kept and attempt.step <= kept[-1].step:
            kept.pop()
        if kept:
            before = kept[-1].until(attempt.step)
            if before is None:
                raise ConfigError(
                    f"events.jsonl: the run went on from update {attempt.step}, which the log does not hold"
                )
            kept[-1] = before
        kept.append(attempt)
    return kept


def _change(note: str) -> str | None:
    key = note.split(" ", 1)[0]
    return None if key.startswith(_HARMLESS) else key


def _attempt(event: Mapping[str, Any], changed: str | None) -> Attempt:
    names = ("step", "origin", "workers", "shards", "threads", "seed", "train_size")
    replica = event.get("replica", 0)
    return Attempt(**{name: event[name] for name in names}, replica=replica, changed=changed)


def _add(attempt: Attempt, kind: str, event: Mapping[str, Any]) -> None:
    match kind:
        case "update":
            gradients = tuple(_gradient(each, "counted") for each in event["gradients"])
            version = Version(event["era"], event["step"])
            made = Scheduled(event["rate"], event["momentum"], event["weight_decay"])
            attempt.entries.append(Update(version, made, gradients))
        case "rolled_back":
            attempt.entries.append(RolledBack(Version(event["era"], event["step"])))
        case "check":
            attempt.checks[Version(_era(attempt), event["step"])] = event["crc32"]
        case "dropped" | "refused" if "sequence" in event:
            attempt.entries.append(_gradient(event, kind))
        case "void":
            _add_void(attempt, _gradient(event, kind))


def _add_void(attempt: Attempt, gradient: Gradient) -> None:
    if any(gradient.key == known.key for _, known in attempt.gradients):
        attempt.withdrawn.add(gradient.key)
    else:
        attempt.entries.append(gradient)


def _era(attempt: Attempt) -> int:
    eras = (entry.version.era for entry in reversed(attempt.entries) if not isinstance(entry, Gradient))
    return next(eras, 0)


def _gradient(event: Mapping[str, Any], outcome: Outcome) -> Gradient:
    return Gradient(
        who=(event["member"], event["incarnation"]),
        sequence=event["sequence"],
        read=Version(*event["read"]),
        lease=Run(*event["lease"]),
        # NaN and infinity are written as words.
        loss=float(event["loss"]),
        own=tuple(Scheduled(*each) for each in event.get("own", ())),
        outcome=outcome,
        told=event.get("told"),
        # Written where it is anything but this one.
        reads=tuple(Version(*each) for each in event.get("reads", [event["read"]])),
        teachers=dict(event.get("teachers", ())),
    )
