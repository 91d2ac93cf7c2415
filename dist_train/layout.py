"""The names of what lies in a run directory; other programs rely on them."""

from __future__ import annotations

import re
from pathlib import Path

CONFIG = "config.yaml"
ENVIRONMENT = "env.json"
METRICS = "metrics.jsonl"
# Metrics of steps that a resumed run made again.
DISCARDED = "logs/discarded_metrics.jsonl"
EVENTS = "events.jsonl"
SUMMARY = "summary.json"
WEIGHTS = "model.safetensors"
TENSORBOARD = "tb"
LOGS = "logs"
CHECKPOINTS = "checkpoints"
CRASH = "crash"
LOCK = "run.lock"
# Snapshots that replicas show one another.
BOARD = "board"


_REPLICA = re.compile(r"replica_(\d+)")


def replica_folder(number: int) -> str:
    """Return where one of several replicas has a run directory of its own."""
    return f"replica_{number}"


def is_anothers(checkpoint: Path, replica: int) -> bool:
    """Say whether a replica that goes on from ``checkpoint`` begins as a copy of another model.

    Replica 0 never does: it may go on from what was trained alone.
    """
    return replica > 0 and checkpoint.absolute().parents[1].name != replica_folder(replica)


def replica_folders(run_dir: Path) -> dict[int, Path]:
    """Return the folders of several replicas that are there, by number, in order."""
    found = {
        int(match[1]): folder
        for folder in run_dir.iterdir()
        if (match := _REPLICA.fullmatch(folder.name)) and folder.is_dir()
    }
    return dict(sorted(found.items()))
