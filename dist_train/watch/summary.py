"""summary.json: what became of a run, in one object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from dist_train.watch.atomic import replacing
from dist_train.watch.records import to_json

Status = Literal["done", "interrupted", "failed"]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The end of a run; the keys of summary.json are its fields.

    ``wall_s`` counts this run's seconds and ``samples_per_s`` its training samples over the seconds spent
    training; ``val`` holds the last validation (``loss`` and the task's metrics) and ``best`` the one of
    lowest loss, with its ``step``; ``model`` is the file of the final weights; ``extras`` are the further
    keys of a mode, such as ``staleness``.
    """

    status: Status
    mode: str
    workers: int
    replicas: int
    steps: int
    samples: int
    wall_s: float
    samples_per_s: float
    restarts: int
    val: Mapping[str, float]
    run_dir: str
    best: Mapping[str, float] | None = None
    model: str | None = None
    error: str | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Make the object; an optional part that is missing is left out."""
        own = {key: value for key, value in asdict(self).items() if value is not None and key != "extras"}
        return own | dict(self.extras)


def read_summary(path: Path) -> dict[str, Any]:
    """Read a summary; empty when there is none, or none that can be read."""
    try:
        summary: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return summary


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Replace ``path`` whole and durably; NaN becomes a string, as in the records of a run."""
    with replacing(path) as file:
        file.write(to_json(summary, indent=2).encode() + b"\n")
