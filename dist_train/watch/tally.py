"""What has become of a run's gradients: the counts that the server modes add to summary.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

from dist_train.rules.staleness import Staleness

# What a worker may wait for: other workers' gradients of the same update, the server to publish it, slower
# workers whom the bound lets nobody leave further behind, something to do, or its samples to be loaded.
Cause = Literal["quorum", "server", "bound", "work", "data"]
CAUSES: tuple[Cause, ...] = get_args(Cause)
COUNTS = ("computed", "applied", "dropped", "refused", "requeued", "lost_updates")


@dataclass
class Tally:
    """Counts of what happened since the run began; a checkpoint carries them on.

    ``computed`` gradients were pushed, each once; of them ``applied`` went into an update, ``dropped`` came
    too late for theirs, and ``refused`` held NaN or infinity. ``requeued`` leases went back to be dealt
    again, for these or other reasons. ``lost_updates`` were applied and lost again with a shard; what they
    held stays counted as applied. ``waiting`` is in seconds, summed over the workers, by cause.
    """

    computed: int = 0
    applied: int = 0
    dropped: int = 0
    refused: int = 0
    requeued: int = 0
    lost_updates: int = 0
    waiting: dict[Cause, float] = field(default_factory=lambda: dict.fromkeys(CAUSES, 0.0))
    staleness: Staleness = field(default_factory=Staleness)

    @property
    def counts(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in COUNTS}

    def record(self) -> dict[str, Any]:
        """Return the keys of summary.json."""
        return {
            "gradients": {
                name: getattr(self, name) for name in ("computed", "applied", "dropped", "refused")
            },
            "staleness": self.staleness.summary(),
            "requeued": self.requeued,
            "lost_updates": self.lost_updates,
            "waiting": {cause: round(seconds, 3) for cause, seconds in self.waiting.items()},
        }

    def to_state(self) -> dict[str, Any]:
        """Return all of it as JSON's types, for a checkpoint."""
        return {**self.counts, "waiting": dict(self.waiting), "staleness": self.staleness.to_json()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Read what ``to_state`` returned."""
        return cls(
            **{name: state[name] for name in COUNTS},
            waiting={cause: state["waiting"][cause] for cause in CAUSES},
            staleness=Staleness.from_json(state["staleness"]),
        )
