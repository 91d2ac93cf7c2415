"""What events.jsonl says besides the course of training: faults, checkpoints, replaced workers, staleness."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from dist_train.report.history import FAILURES, RESTARTS, Event, number
from dist_train.rules.staleness import Staleness, over_windows

Kind = Literal["failure", "restart", "shard", "refused", "straggler", "stop", "warning"]
KINDS: tuple[Kind, ...] = get_args(Kind)

IN_WORDS: Mapping[Kind, str] = {
    "failure": "failure",
    "restart": "restart",
    "shard": "shard lost",
    "refused": "gradient refused",
    "straggler": "straggler named",
    "stop": "asked to stop",
    "warning": "warning",
}
_KIND_OF: Mapping[str, Kind] = {
    "failure": "failure",
    "hung": "failure",
    "replica_failure": "failure",
    "gave_up": "failure",
    "replica_gave_up": "failure",
    "restart": "restart",
    "replica_restart": "restart",
    "rolled_back": "shard",
    "shard_copy_lost": "shard",
    "refused": "refused",
    "straggler": "straggler",
    "signal": "stop",
}
# Of each kind as many are shown; the rest is counted.
MOST_SHOWN = 200
# A server writes a line for every gradient: those are read only while somebody waits for a successor's.
UPDATE = b'"event": "update"'
# Lines begin with the time of day and the event.
HEAD = 64
DROPPED, CHECK = b'"event": "dropped"', b'"event": "check"'


@dataclass(frozen=True)
class Fault:
    """Something that went wrong, or that interrupted the run, with ``text`` for a person.

    ``step`` is the step that it is said to have happened in, None where only the clock tells; ``worker``
    names the worker that it is about.
    """

    kind: Kind
    clock: float
    step: float | None
    text: str
    worker: str | None = None


@dataclass(frozen=True)
class Saved:
    """A checkpoint: when it was written, how long that took, and how long training stood still for it."""

    clock: float
    step: float
    seconds: float
    stall_s: float


@dataclass
class Happenings:
    """What the events of a run come to; ``add`` takes them in order.

    ``first_clock`` and ``last_clock`` are those of all events, 0 where none has a time.
    """

    starts: list[Event] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    counts: Counter[Kind] = field(default_factory=Counter)
    saved: list[Saved] = field(default_factory=list)
    lost_updates: float = 0.0
    replaced: list[tuple[int, float, float]] = field(default_factory=list)
    first_clock: float = 0.0
    last_clock: float = 0.0
    _histograms: list[Event] = field(default_factory=list)
    _awaited: dict[int, tuple[int, float]] = field(default_factory=dict)

    def wants(self, line: bytes) -> bool:
        """Whether a line is to be read at all: most of a server's are about gradients that did well."""
        head = line[:HEAD]
        if UPDATE in head:
            return bool(self._awaited)
        return DROPPED not in head and CHECK not in head

    def add(self, event: Event) -> None:
        """Take the next event; one that says less than it should counts for what it says."""
        kind, clock = event.get("event"), number(event.get("time"))
        self.last_clock = max(self.last_clock, clock)
        if clock > 0:
            self.first_clock = min(self.first_clock or clock, clock)
        if kind == "update":
            self._came_back(event)
        elif kind == "start":
            self._all_come_back(clock)
        elif kind == "checkpoint":
            figures = (number(event.get(name)) for name in ("time", "step", "seconds", "stall_s"))
            self.saved.append(Saved(*figures))
        elif kind == "staleness":
            self._histograms.append(event)
        if kind in ("start", *FAILURES, *RESTARTS):
            self.starts.append(event)
        if kind == "failure" and isinstance(event.get("member"), int):
            self._is_gone(event["member"], int(number(event.get("incarnation"))), clock)
        if kind == "rolled_back":
            self.lost_updates += number(event.get("lost_updates"))
        fault = fault_of(event, restarting=self._is_restarting())
        if fault is not None:
            self.counts[fault.kind] += 1
            if self.counts[fault.kind] <= MOST_SHOWN:
                self.faults.append(fault)

    def staleness(self) -> Staleness:
        """Return how stale the gradients of the whole run were."""
        return whole(self._histograms)

    def absent(self) -> list[tuple[int, float, float]]:
        """Return which members were gone, from when to when by the clock; to the end if none came back."""
        gone = [(member, clock, self.last_clock) for member, (_, clock) in self._awaited.items()]
        return [*self.replaced, *gone]

    def _is_restarting(self) -> bool:
        return len(self.starts) > 1 and self.starts[-2].get("event") in RESTARTS

    def _is_gone(self, member: int, incarnation: int, clock: float) -> None:
        # A successor that dies before its first gradient has not ended the absence.
        _, since = self._awaited.get(member, (incarnation, clock))
        self._awaited[member] = (incarnation, since)

    def _came_back(self, event: Event) -> None:
        for gradient in event.get("gradients") or ():
            member, incarnation = gradient.get("member"), gradient.get("incarnation")
            if member in self._awaited and number(incarnation) > self._awaited[member][0]:
                _, since = self._awaited.pop(member)
                self.replaced.append((member, since, number(event.get("time"))))

    def _all_come_back(self, clock: float) -> None:
        # All members start with the coordinator, and count their incarnations from 0 again.
        self.replaced += [(member, since, clock) for member, (_, since) in self._awaited.items()]
        self._awaited.clear()


def fault_of(event: Event, restarting: bool = False) -> Fault | None:
    """Make of an event the fault that it tells of; None where it tells of none.

    ``restarting`` says that the run has told already why it starts again.
    """
    name = str(event.get("event"))
    kind = _KIND_OF.get(name)
    if name == "start" and number(event.get("step")) and not restarting:
        kind = "restart"
    if kind is None and "warning" in event:
        kind = "warning"
    if kind is None:
        return None
    step = event.get("step", event.get("from_step"))
    worker = event.get("rank", event.get("member"))
    return Fault(
        kind=kind,
        clock=number(event.get("time")),
        step=number(step) if isinstance(step, int | float) and step > 0 else None,
        text=_text(name, event),
        worker=None if worker is None else str(worker),
    )


def whole(histograms: Iterable[Event]) -> Staleness:
    """Add up the histograms between validations; one that cannot be read is left out."""
    return over_windows(_windows(histograms))


def _windows(histograms: Iterable[Event]) -> Iterator[tuple[float, float, Staleness]]:
    for event in histograms:
        try:
            staleness = Staleness.from_json(event["gradients"])
        except (AttributeError, KeyError, TypeError, ValueError):
            continue
        yield number(event.get("since_step")), number(event.get("step")), staleness


def _text(name: str, event: Event) -> str:
    who = _who(event)
    match name:
        case "failure":
            phase = f" in phase {event['phase']}" if event.get("phase") else ""
            return f"{who} failed{phase}: {event.get('error', 'no reason is known')}"
        case "replica_failure":
            return f"replica {event.get('replica')} failed: {event.get('error')}"
        case "restart":
            return f"restart from step {event.get('from_step')}: {event.get('reason')}"
        case "replica_restart":
            return f"replica {event.get('replica')} starts again from step {event.get('from_step')}"
        case "start":
            return f"resumed from step {event.get('step')} with {event.get('workers')} workers"
        case "signal":
            return f"stopped by {event.get('signal')}"
    return str(event.get("warning") or event.get("reason") or event.get("note") or name)


def _who(event: Event) -> str:
    rank = event.get("rank", event.get("member"))
    return "a process" if rank is None else f"worker {rank}"
