"""From a request to running workers, and from a process to one of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_train.config import Config, load_config
from dist_train.errors import FAILED, INTERRUPTED, REFUSED, ConfigError, TrainingError
from dist_train.layout import CHECKPOINTS, CONFIG, SUMMARY
from dist_train.runtime import children
from dist_train.runtime import run_dir as directories
from dist_train.runtime.launcher import Job, launch
from dist_train.runtime.opening import (
    kept_records,
    newest_step,
    open_run_directory,
    refuse_impossible,
    refuse_missing_origin,
    refuse_other_launcher,
    restore_records,
    starts_replicas,
    with_workers,
    write_down,
)
from dist_train.runtime.place import find_place, find_replica
from dist_train.watch.aftermath import write_failure, write_interruption
from dist_train.watch.summary import read_summary

VERIFIED = "verified"


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    config: Path | Mapping[str, Any]
    overrides: tuple[str, ...] = ()
    run_dir: Path | None = None
    resume: str = "auto"


def run_request(request: Request) -> int:
    """Train as asked and return the exit status: as one worker if this process is one, else start them."""
    place = find_place()
    source = request.config
    config = load_config(source if isinstance(source, Path) else dict(source), request.overrides)
    if place is not None:
        refuse_other_launcher(config, place.started_by)
        from dist_train.runtime.worker_process import be_worker

        return be_worker(with_workers(config, place.workers), place, request.run_dir, request.resume)
    if (replica := find_replica()) is not None:
        children.die_with_launcher(replica[1])
    status, _ = launch_locally(config, request.run_dir, request.resume)
    return status


def train(config: Config, run_dir: Path | str | None = None, resume: str = "auto") -> dict[str, Any]:
    """Train with local workers and return the summary (as in ``summary.json``).

    Raises ConfigError when the configuration is refused, and in a process that is itself a worker of
    torchrun or srun; TrainingError when training fails. An interrupted run returns its summary.
    """
    directory = None if run_dir is None else Path(run_dir)
    if find_place() is not None:
        raise ConfigError(
            "train() starts workers itself; under torchrun or srun use: -m dist_train run CONFIG.yaml"
        )
    status, used = launch_locally(config, directory, resume)
    summary = read_summary(used / SUMMARY)
    if status == REFUSED:
        raise ConfigError("a worker refused the configuration; its message is above")
    if status == FAILED:
        raise TrainingError(str(summary.get("error", f"training failed; see {used}")))
    return summary


def launch_locally(config: Config, directory: Path | None, resume: str) -> tuple[int, Path]:
    """Start this machine's workers, watch them to the end; return the exit status and the run directory."""
    config = refuse_impossible(config, os.environ)
    refuse_missing_origin(resume, config.parallel.replicas if starts_replicas(config) else 1)
    directory = directory or directories.create(Path("runs"), config.name)
    with directories.Lock(directory, tell):
        before = kept_records(directory)
        for note in open_run_directory(config, directory, resume, os.environ):
            tell(note)
        tell(f"starting {_crew_of(config)}; run directory: {directory}")
        said: list[str] = []

        def say(line: str) -> None:
            said.append(line)
            tell(line)

        status = _launch(config, directory, resume, say)
        if status == REFUSED:
            restore_records(directory, before)
        if not starts_replicas(config):
            _sum_up(config, directory, status, "; ".join(said))
        if status == FAILED:
            tell(f"failed; run directory: {directory}")
    return status, directory


def _crew_of(config: Config) -> str:
    workers, replicas = config.parallel.workers, config.parallel.replicas
    text = f"{workers} worker{'s' if workers != 1 else ''}"
    return f"{replicas} replicas of {text}" if starts_replicas(config) else text


def _launch(config: Config, directory: Path, resume: str, say: Callable[[str], None]) -> int:
    def on_event(event: dict[str, Any]) -> None:
        write_down(directory, event)

    if starts_replicas(config):
        from dist_train.runtime.replicas import launch_replicas

        return launch_replicas(config, directory, resume, os.environ, say, on_event)
    if config.parallel.has_server:
        # Ray is for those who use it.
        from dist_train.runtime.server_launch import launch_server

        return launch_server(config, directory, resume, os.environ, say, on_event)
    job = Job(
        argv=_worker_command(directory, resume),
        workers=int(config.parallel.workers),
        run_dir=directory,
        recovery=config.recovery,
        first_step_of=lambda: newest_step(directory),
        patient=find_replica() is not None,
    )
    return launch(job, say, on_event)


def _sum_up(config: Config, directory: Path, status: int, error: str) -> None:
    """See to it that a run that was begun has a summary, however it ended."""
    try:
        if status == FAILED:
            write_failure(config, directory, error)
        elif status == INTERRUPTED:
            write_interruption(config, directory)
    except OSError as refusal:
        tell(f"{directory}: the summary cannot be written ({refusal.strerror})")


def tell(line: str) -> None:
    """Say something to the person, apart from what the program prints as its output."""
    print(f"dist-train: {line}", file=sys.stderr, flush=True)


def _worker_command(directory: Path, resume: str) -> list[str]:
    config = str(directory / CONFIG)
    return [
        sys.executable,
        "-m",
        "dist_train",
        "run",
        config,
        "--run-dir",
        str(directory),
        "--resume",
        resume,
    ]


def dry_run_text(request: Request) -> str:
    """Return the resolved configuration and its arithmetic; nothing is started."""
    from dist_train.runtime.dry_run import describe

    source = request.config
    config = load_config(source if isinstance(source, Path) else dict(source), request.overrides)
    place = find_place()
    if place is None:
        return describe(refuse_impossible(config, os.environ))
    refuse_other_launcher(config, place.started_by)
    return describe(with_workers(config, place.workers))


def checkpoint_lines(directory: Path) -> list[str]:
    """Describe the checkpoints of a run, one line each; raises ConfigError where there are none."""
    from dist_train.core.checkpoint import summaries

    found = summaries(directory / CHECKPOINTS)
    if not found:
        raise ConfigError(f"{directory}: no checkpoints; give a run directory")
    return [
        f"{each.path}  step {each.step:,}  {'?' if each.samples is None else f'{each.samples:,}'} samples  "
        f"{each.size / 2**20:.1f} MB  {each.problem or VERIFIED}"
        for each in found
    ]
