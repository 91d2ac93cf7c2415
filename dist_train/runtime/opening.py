"""Before a run starts: what cannot work is refused, and the run directory is laid out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist_train import layout, tasks
from dist_train.config import Config, differences, dump_config, load_config
from dist_train.config.combinations import NOT_ON_RAY, contradictions, lines
from dist_train.config.schema import Parallel
from dist_train.delivered import find_teachers, unfollowable
from dist_train.errors import ConfigError
from dist_train.runtime.place import find_replica
from dist_train.runtime.run_dir import environment, gpu_count, write_atomically
from dist_train.watch.logbook import stamped
from dist_train.watch.records import JsonLines

_UNCOUNTED = (
    "parallel.workers: auto counts this machine's GPUs, but the workers run in the Ray cluster; "
    "give their number"
)


def with_workers(config: Config, workers: int) -> Config:
    """Return the configuration with the number of workers that was actually started."""
    parallel = config.parallel.model_copy(update={"workers": workers})
    return config.model_copy(update={"parallel": parallel})


def refuse_impossible(config: Config, variables: Mapping[str, str]) -> Config:
    """Return the configuration with its workers counted: those of this machine, unless it joins a cluster.

    Raises ConfigError naming all that cannot work.
    """
    problems, parallel = tasks.check(config), config.parallel
    elsewhere = parallel.cluster.address is not None
    gpus = 0 if parallel.device == "cpu" else gpu_count(variables)
    # A process that starts one of them sees that one's GPUs alone.
    replicas = parallel.replicas if find_replica(variables) is None else 1
    if elsewhere and parallel.workers == "auto":
        problems.append(_UNCOUNTED)
    elif not elsewhere:
        problems += _beyond_this_machine(parallel, gpus, replicas)
    alone = max(1, gpus // replicas)
    counted = with_workers(config, alone if parallel.workers == "auto" else parallel.workers)
    if parallel.workers == "auto":
        problems += lines(contradictions(counted))
    problems += unfollowable(config)
    try:
        find_teachers(config)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return counted


def refuse_unsendable(config: Config) -> None:
    """Raise ConfigError naming all that would be refused on any Ray cluster.

    Its machines say for themselves whether they have the data and the user's own code.
    """
    problems = tasks.check_names(config)
    if not config.parallel.has_server:
        problems.append(f"parallel.mode: {NOT_ON_RAY}")
    elif config.parallel.workers == "auto":
        problems.append(_UNCOUNTED)
    if problems:
        raise ConfigError(problems)


def _beyond_this_machine(parallel: Parallel, gpus: int, replicas: int) -> list[str]:
    problems, wanted = [], parallel.workers
    if parallel.device == "cuda" and gpus == 0:
        problems.append("parallel.device: cuda, but this machine shows no GPU; set it to cpu or auto")
    if parallel.sync_batch_norm and gpus == 0:
        problems.append(
            "parallel.sync_batch_norm: torch offers it on GPUs only, and this run has none; set it to false"
        )
    if gpus and wanted != "auto" and wanted * replicas > gpus:
        of = f" of each of {replicas} replicas" if replicas > 1 else ""
        problems.append(
            f"parallel.workers: {wanted} workers{of} but {gpus} GPUs; start at most one worker per GPU, or "
            "set parallel.device to cpu"
        )
    return problems


def refuse_other_launcher(config: Config, started_by: str) -> None:
    """Raise ConfigError where torchrun or srun started workers for a mode that starts them itself."""
    if starts_replicas(config):
        raise ConfigError(
            f"parallel.replicas: several replicas are started by dist-train run, but {started_by} started "
            "this process as a worker; run the command once, by itself"
        )
    if config.parallel.has_server:
        raise ConfigError(
            f"parallel.mode: {config.parallel.mode} starts its workers itself, through Ray, but {started_by} "
            "started this process as one of them; run the command once, by itself"
        )


def starts_replicas(config: Config) -> bool:
    """Say whether this process starts several replicas, and not one of them."""
    return config.parallel.replicas > 1 and find_replica() is None


def refuse_missing_origin(resume: str, replicas: int = 1) -> None:
    """Raise ConfigError when ``resume`` is a path where there is nothing, or too few replicas."""
    if resume in ("auto", "none"):
        return
    if not Path(resume).exists():
        raise ConfigError(f"--resume {resume}: no such directory; give auto, none, or the path of a run")
    there = layout.replica_folders(Path(resume)) if Path(resume).is_dir() else {}
    if there and replicas > 1 and set(range(replicas)) - set(there):
        raise ConfigError(
            f"--resume {resume}: a run of {len(there)} replicas, where {replicas} are to go on; set "
            f"parallel.replicas to {len(there)}, or give {resume}/{layout.replica_folder(0)} to begin all "
            "of them as copies of that one"
        )


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
    refuse_missing_origin(resume)
    _refuse_teaching_itself(config, directory)
    file = directory / layout.CONFIG
    changes = differences(load_config(file), config) if file.exists() and newest_step(directory) else []
    write_atomically(file, dump_config(config))
    described = json.dumps(environment(variables), indent=2)
    write_atomically(directory / layout.ENVIRONMENT, described + "\n")
    # What a summary says is true until the run goes on.
    (directory / layout.SUMMARY).unlink(missing_ok=True)
    notes = [f"{key} changed from {old} to {new} since this run was saved" for key, old, new in changes]
    for note in notes:
        write_down(directory, {"event": "configuration_changed", "note": note})
    return notes


def _refuse_teaching_itself(config: Config, directory: Path) -> None:
    for teacher in config.distill.teachers if config.distill is not None else ():
        if Path(teacher).resolve() == directory.resolve():
            raise ConfigError(
                f"distill.teachers: {teacher} is the student's own run directory; give another --run-dir"
            )


Records = dict[str, bytes]


def kept_records(directory: Path) -> Records:
    """Keep what a refused resume must leave as it found it."""
    files = (directory / name for name in (layout.CONFIG, layout.SUMMARY))
    return {file.name: file.read_bytes() for file in files if file.exists()}


def restore_records(directory: Path, records: Records) -> None:
    """Put back what ``kept_records`` kept."""
    for name, content in records.items():
        (directory / name).write_bytes(content)


def newest_step(directory: Path) -> int:
    """Return the step of the newest checkpoint by name, 0 without one."""
    folder = directory / layout.CHECKPOINTS
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return max((int(match[1]) for name in names if (match := re.fullmatch(r"step_(\d+)", name))), default=0)


def write_down(directory: Path, event: Mapping[str, Any]) -> None:
    """Append one event to the run's events."""
    with JsonLines(directory / layout.EVENTS) as events:
        events.write(stamped(event))
