"""A run's checkpoints in place of what it delivered: one model at several times (Huang et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dist_train.core.checkpoint import folder_name, steps_in, verify
from dist_train.delivered import Delivered, config_of
from dist_train.errors import ConfigError, TrainingError
from dist_train.layout import CHECKPOINTS, replica_folder, replica_folders


def find_checkpoints(run_dir: Path, steps: Sequence[int]) -> Delivered:
    """Find the checkpoints of a run after these ``steps``, each verified against its checksums.

    Raises ConfigError where there is no run of one model, and where a checkpoint is missing or damaged.
    """
    config = config_of(run_dir)
    if replica_folders(run_dir):
        raise ConfigError(
            f"{run_dir}: several replicas; give the directory of one, {run_dir / replica_folder(0)}"
        )
    there = steps_in(run_dir / CHECKPOINTS)
    if absent := [step for step in steps if step not in there]:
        raise ConfigError(
            f"{run_dir}: no checkpoint of step {absent[0]}; there are {', '.join(map(str, there)) or 'none'} "
            "(checkpoint.keep_every_steps keeps them)"
        )
    folders = tuple(run_dir / CHECKPOINTS / folder_name(step) for step in steps)
    for folder in folders:
        try:
            verify(folder)
        except TrainingError as error:
            raise ConfigError(str(error)) from error
    return Delivered(run_dir, config, folders, tuple(folder.name for folder in folders))
