"""The teachers of a replay: the very snapshots that other replicas posted, as the log names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dist_train.config import Config
from dist_train.core.desk import seated
from dist_train.core.folder_board import FolderBoard
from dist_train.core.lessons import Lessons
from dist_train.core.step import outputs_of
from dist_train.couplings import Coupling
from dist_train.couplings.codistillation import Codistillation, Progress
from dist_train.errors import ConfigError, TrainingError
from dist_train.layout import BOARD
from dist_train.task import Task

# Gives a replica's post of a version.
Posts = Callable[[int, int], Mapping[str, Tensor]]


def posts_of(config: Config, run_dir: Path) -> Posts | None:
    """Return where the posts of a codistilled run are read; None where replicas taught nobody.

    What it returns raises ConfigError for a post that is there no more.
    """
    if config.codistill is None:
        return None
    board = FolderBoard(run_dir.absolute().parent / BOARD)

    def read(replica: int, version: int) -> Mapping[str, Tensor]:
        try:
            return board.read(replica, version)
        except TrainingError as error:
            raise ConfigError(
                f"{error}; a replay needs all posts: set codistill.keep_posts to all before the run"
            ) from error

    return read


class RecordedTeachers:
    """``versions`` are those that taught the gradient that is computed next, by replica."""

    foresee = None

    def __init__(self, config: Config, posts: Posts, task: Task) -> None:
        assert config.codistill is not None
        self.versions: Mapping[int, int] = {}
        self._terms = config.codistill
        self._posts = posts
        self._outputs = outputs_of(task, torch.device("cpu"))
        self._models: dict[int, tuple[int, nn.Module]] = {}

    def coupled(self, inside: Coupling, progress: Progress) -> Coupling:
        """Add what is learnt from them to what couples a worker."""
        record = Lessons(torch.device("cpu"))
        return Codistillation(inside, self._terms, self, self._outputs.of, progress, record)

    def begin(self, model: nn.Module, updates: int) -> None:
        del updates
        self._model = model

    def predictions(self, scores: Tensor, batch: Any, updates: int) -> Sequence[Tensor]:
        del scores, updates
        in_force = [self._seated(replica, version) for replica, version in self.versions.items()]
        return self._outputs.by(in_force, batch)

    def after(self, updates: int) -> None:
        del updates

    def _seated(self, replica: int, version: int) -> nn.Module:
        known, model = self._models.get(replica, (None, None))
        if model is None or known != version:
            model = seated(model, self._model, self._posts(replica, version))
            self._models[replica] = version, model
        return model
