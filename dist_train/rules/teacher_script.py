"""When a replica of an earlier run changed its teachers: to be followed by another run, or by a replay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass(frozen=True)
class Script:
    """By update, the teachers that are changed after it: their replica and the version taken up."""

    changes: Mapping[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)

    def after(self, updates: int) -> tuple[tuple[int, int], ...]:
        return self.changes.get(updates, ())

    def in_force(self, updates: int) -> dict[int, int]:
        """Return the version of each teacher after ``updates``, by replica."""
        made = sorted(at for at in self.changes if at <= updates)
        return {replica: version for at in made for replica, version in self.changes[at]}

    @property
    def teachers(self) -> set[int]:
        return {replica for changes in self.changes.values() for replica, _ in changes}

    @classmethod
    def of(cls, events: Iterable[Mapping[str, Any]]) -> Self:
        """Take the changes from a run's events; what a resumed run made again counts as it was made last."""
        changes: dict[int, tuple[tuple[int, int], ...]] = {}
        for event in events:
            step = int(event.get("step", 0))
            if event.get("event") == "start":
                changes = {at: each for at, each in changes.items() if at <= step}
            elif event.get("event") == "teacher":
                changes[step] = (*changes.get(step, ()), (int(event["replica"]), int(event["version"])))
        return cls(changes)
