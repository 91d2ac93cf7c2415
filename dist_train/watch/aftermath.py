"""The summary of a run whose workers could write none, from the records that they left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from dist_train.config.schema import Config
from dist_train.layout import EVENTS, METRICS, SUMMARY
from dist_train.rules.staleness import Staleness, over_windows
from dist_train.watch.records import lines_of, parse
from dist_train.watch.summary import Summary, write_summary

# Keys of a validation line that are no measure.
OF_THE_LINE = ("kind", "step", "samples", "epoch", "wall_s", "seconds", "replica")


def write_failure(config: Config, directory: Path, error: str) -> None:
    """Write summary.json with the status ``failed``; damaged lines among the records are left out."""
    write_summary(directory / SUMMARY, _summary(config, directory, "failed", error).record())


def write_interruption(config: Config, directory: Path) -> None:
    """Write summary.json with the status ``interrupted``, unless the workers have written one."""
    if not (directory / SUMMARY).exists():
        directory.mkdir(parents=True, exist_ok=True)
        write_summary(directory / SUMMARY, _summary(config, directory, "interrupted").record())


def _summary(
    config: Config, directory: Path, status: Literal["interrupted", "failed"], error: str | None = None
) -> Summary:
    records = list(readable(directory / METRICS))
    last = records[-1] if records else {}
    rates = [record["samples_per_s"] for record in records if "samples_per_s" in record]
    validations = [record for record in records if record.get("kind") == "val"]
    # A server writes a line for every update, which would fill the memory.
    events = [
        event for event in readable(directory / EVENTS) if event.get("event") in ("restart", "staleness")
    ]
    restarts = [event for event in events if event["event"] == "restart"]
    return Summary(
        status=status,
        mode=config.parallel.mode,
        workers=int(config.parallel.workers),
        replicas=config.parallel.replicas,
        steps=int(last.get("step", 0)),
        samples=int(last.get("samples", 0)),
        wall_s=float(last.get("wall_s", 0.0)),
        samples_per_s=float(rates[-1]) if rates else 0.0,
        restarts=len(restarts),
        val=measures(validations[-1]) if validations else {},
        run_dir=str(directory),
        error=error,
        extras=of_the_server(records, events) if config.parallel.has_server else {},
    )


def measures(line: dict[str, Any]) -> dict[str, float]:
    """Return the loss and the metrics of a validation line."""
    return {name: value for name, value in line.items() if name not in OF_THE_LINE}


def of_the_server(records: list[dict[str, Any]], events: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what is known of the gradients: their counts by the last line, their staleness by the events."""
    lines = [record for record in records if record.get("kind") == "train"]
    last = lines[-1] if lines else {}
    staleness = over_windows(
        (event["since_step"], event["step"], Staleness.from_json(event["gradients"]))
        for event in events
        if event["event"] == "staleness"
    )
    fates = {fate: int(last.get(fate, 0)) for fate in ("computed", "applied", "dropped", "refused")}
    return {"gradients": fates, "staleness": staleness.summary()}


def readable(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines that are JSON objects; none when there is no file."""
    if path.exists():
        yield from (record for line in lines_of(path) if (record := parse(line)) is not None)
