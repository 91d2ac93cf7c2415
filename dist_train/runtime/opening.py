"""Before a run starts: what cannot work is refused, and the run directory is laid out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist_train import tasks
from dist_train.config import Config, differences, dump_config, load_config
from dist_train.errors import ConfigError
from dist_train.runtime import run_dir as layout
from dist_train.watch.logbook import stamped
from dist_train.watch.records import JsonLines, read
from dist_train.watch.summary import Summary, write_summary


def with_workers(config: Config, workers: int) -> Config:
    """Return the configuration with the number of workers that was actually started."""
    parallel = config.parallel.model_copy(update={"workers": workers})
    return config.model_copy(update={"parallel": parallel})


def refuse_impossible(config: Config, variables: Mapping[str, str]) -> Config:
    """Return the configuration with its workers, all of them on this machine, counted.

    Raises ConfigError naming all that cannot work.
    """
    problems = tasks.check(config)
    gpus = 0 if config.parallel.device == "cpu" else layout.gpu_count(variables)
    wanted = config.parallel.workers
    if config.parallel.device == "cuda" and gpus == 0:
        problems.append("parallel.device: cuda, but this machine shows no GPU; set it to cpu or auto")
    elif gpus and wanted != "auto" and wanted > gpus:
        problems.append(
            f"parallel.workers: {wanted} workers but {gpus} GPUs; start at most one worker per GPU, or set "
            "parallel.device to cpu"
        )
    if problems:
        raise ConfigError(problems)
    return with_workers(config, max(1, gpus) if wanted == "auto" else wanted)


def open_run_directory(
    config: Config, directory: Path, resume: str, variables: Mapping[str, str]
) -> list[str]:
    """Lay out the directory and write down configuration and environment; return notes on what changed.

    Raises ConfigError where that would overwrite saved work. The caller holds the directory's lock.
    """
    if resume == "none" and newest_step(directory):
        raise ConfigError(
            f"--resume none: {directory} holds checkpoints; give another --run-dir, or --resume auto"
        )
    if resume not in ("auto", "none") and not Path(resume).exists():
        raise ConfigError(
            f"--resume {resume}: no such file or directory; give auto, none, or the path of a run"
        )
    file = directory / layout.CONFIG
    changes = differences(load_config(file), config) if file.exists() and newest_step(directory) else []
    layout.write_atomically(file, dump_config(config))
    described = json.dumps(layout.environment(variables), indent=2)
    layout.write_atomically(directory / layout.ENVIRONMENT, described + "\n")
    notes = [f"{key} changed from {old} to {new} since this run was saved" for key, old, new in changes]
    for note in notes:
        write_down(directory, {"event": "configuration_changed", "note": note})
    return notes


def newest_step(directory: Path) -> int:
    """Return the step of the newest checkpoint by name, 0 without one."""
    folder = directory / layout.CHECKPOINTS
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return max((int(match[1]) for name in names if (match := re.fullmatch(r"step_(\d+)", name))), default=0)


def write_down(directory: Path, event: Mapping[str, Any]) -> None:
    """Append one event to the run's events."""
    with JsonLines(directory / layout.EVENTS) as events:
        events.write(stamped(event))


def read_summary(directory: Path) -> dict[str, Any]:
    """Read summary.json; empty when there is none."""
    try:
        summary: dict[str, Any] = json.loads((directory / layout.SUMMARY).read_text())
    except (OSError, ValueError):
        return {}
    return summary


def write_failure(config: Config, directory: Path, error: str) -> None:
    """Write the summary of a failed run from the records that it left."""
    path = directory / layout.METRICS
    records = list(read(path)) if path.exists() else []
    last = records[-1] if records else {}
    restarts = sum(1 for event in _events(directory) if event.get("event") == "restart")
    validations = [record for record in records if record.get("kind") == "val"]
    known = ("kind", "step", "samples", "epoch", "wall_s", "seconds", "replica")
    rates = [record["samples_per_s"] for record in records if "samples_per_s" in record]
    val = validations[-1] if validations else {}
    summary = Summary(
        status="failed",
        mode=config.parallel.mode,
        workers=int(config.parallel.workers),
        replicas=config.parallel.replicas,
        steps=int(last.get("step", 0)),
        samples=int(last.get("samples", 0)),
        wall_s=float(last.get("wall_s", 0.0)),
        samples_per_s=float(rates[-1]) if rates else 0.0,
        restarts=restarts,
        val={key: value for key, value in val.items() if key not in known},
        run_dir=str(directory),
        error=error,
    )
    write_summary(directory / layout.SUMMARY, summary.record())


def _events(directory: Path) -> list[dict[str, Any]]:
    path = directory / layout.EVENTS
    return list(read(path)) if path.exists() else []
