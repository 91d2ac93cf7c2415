"""The names of what lies in a run directory; other programs rely on them."""

from __future__ import annotations

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


def replica_folder(number: int) -> str:
    """Return where one of several replicas has a run directory of its own."""
    return f"replica_{number}"
