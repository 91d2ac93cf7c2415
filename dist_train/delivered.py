"""What a run has left in its directory: configuration, weights of each replica, its changes of teachers."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from dist_train.config import Config, differences, load_config
from dist_train.errors import ConfigError
from dist_train.layout import CONFIG, EVENTS, WEIGHTS, replica_folder, replica_folders
from dist_train.rules.teacher_script import Script
from dist_train.watch.records import read

# With other settings the posts that are named would never be made, or nobody would have such a teacher.
_ALIKE = (
    "parallel.mode",
    "parallel.replicas",
    "codistill.burn_in",
    "codistill.interval",
    "codistill.exchange",
    "codistill.topology",
)


@dataclass(frozen=True)
class Delivered:
    """A run that is done: in order, a file of weights for each replica, and the name of each.

    Of a run's checkpoints they are their folders instead (evaluate/snapshots.py).
    """

    run_dir: Path
    config: Config
    weights: tuple[Path, ...]
    names: tuple[str, ...]


def find(run_dir: Path) -> Delivered:
    """Find what a run delivered; raises ConfigError where there is no run or where weights are missing."""
    config = config_of(run_dir)
    weights = _weights(run_dir, config)
    for path in weights:
        if not path.is_file():
            raise ConfigError(
                f"{run_dir}: no {path.relative_to(run_dir)}, so the run is not done; train it to its end: "
                f"dist-train run {run_dir / CONFIG} --run-dir {run_dir}"
            )
    names = tuple(replica_folder(number) for number in range(len(weights)))
    return Delivered(run_dir, config, weights, names)


def config_of(run_dir: Path) -> Config:
    """Read the configuration of a run; raises ConfigError where there is no run."""
    file = run_dir / CONFIG
    if not file.is_file():
        raise ConfigError(f"{run_dir}: no run directory, as {CONFIG} is missing; give the directory of a run")
    return load_config(file)


def find_teachers(config: Config) -> tuple[Delivered, ...]:
    """Find the runs that teach, none without a section distill; raises ConfigError naming all that cannot."""
    found: list[Delivered] = []
    problems: list[str] = []
    for name in config.distill.teachers if config.distill is not None else ():
        try:
            found.append(find(Path(name)))
        except ConfigError as error:
            problems += as_teacher(error).problems
    if problems:
        raise ConfigError(problems)
    return tuple(found)


def as_teacher(error: ConfigError) -> ConfigError:
    """Say of what is wrong with a run that it is a teacher."""
    return ConfigError([f"distill.teachers: {problem}" for problem in error.problems])


def refuse_other_task(first: Delivered, second: Delivered) -> None:
    """Raise ConfigError unless both runs were trained on one task."""
    here, there = second.config.task, first.config.task
    # The same file of the user's own may be written in two ways.
    if os.path.normpath(here) != os.path.normpath(there):
        raise ConfigError(
            f"{second.run_dir}: its task is {here}, and that of {first.run_dir} is {there}; two runs are "
            "compared on one task: evaluate these each by itself"
        )


def unfollowable(config: Config) -> list[str]:
    """Say what keeps a run from following the one that its ``codistill.schedule`` names."""
    if config.codistill is None or config.codistill.schedule is None:
        return []
    run_dir = Path(config.codistill.schedule)
    where = f"codistill.schedule: {run_dir}"
    if not (run_dir / CONFIG).exists():
        return [f"{where}: no {CONFIG} there; give the directory of a run of several replicas"]
    try:
        earlier = load_config(run_dir / CONFIG)
    except ConfigError as error:
        return [f"{where}: {problem}" for problem in error.problems]
    if earlier.codistill is None:
        return [f"{where}: its replicas taught nobody; give the directory of a run with codistill"]
    found = [
        f"{where}: {key} is {old} there and not {new}; follow a run of the same"
        for key, old, new in differences(earlier, config)
        if key in _ALIKE
    ]
    files = [run_dir / replica_folder(number) / EVENTS for number in range(config.parallel.replicas)]
    missing = [file for file in files if not file.exists()]
    return found or [f"{where}: {file} is not there" for file in missing[:1]]


def script_of(run_dir: Path, replica: int, teachers: Collection[int]) -> Script:
    """Read when a replica changed its ``teachers`` in a run; ConfigError where that cannot be followed."""
    file = run_dir / replica_folder(replica) / EVENTS
    if not file.exists():
        raise ConfigError(f"codistill.schedule: {file} is not there; give the directory of a run of replicas")
    script = Script.of(read(file))
    if strangers := script.teachers - set(teachers):
        names = ", ".join(map(str, sorted(strangers)))
        raise ConfigError(
            f"codistill.schedule: in {file} replica {replica} learns from {names}, and here it does not; "
            "follow a run with the same parallel.replicas and codistill.topology"
        )
    return script


def _weights(run_dir: Path, config: Config) -> tuple[Path, ...]:
    """Name the files that there should be: one, or one in the folder of each replica."""
    there = replica_folders(run_dir)
    replicas = max([config.parallel.replicas, *(number + 1 for number in there)])
    if replicas == 1 and not there:
        return (run_dir / WEIGHTS,)
    return tuple(run_dir / replica_folder(number) / WEIGHTS for number in range(replicas))
