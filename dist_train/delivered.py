"""What a run delivered, found in its directory: its configuration, and the weights of each replica."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dist_train.config import Config, load_config
from dist_train.errors import ConfigError
from dist_train.layout import CONFIG, WEIGHTS, replica_folder, replica_folders


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


def _weights(run_dir: Path, config: Config) -> tuple[Path, ...]:
    """Name the files that there should be: one, or one in the folder of each replica."""
    there = replica_folders(run_dir)
    replicas = max([config.parallel.replicas, *(number + 1 for number in there)])
    if replicas == 1 and not there:
        return (run_dir / WEIGHTS,)
    return tuple(run_dir / replica_folder(number) / WEIGHTS for number in range(replicas))
