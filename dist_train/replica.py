"""One of several models: how it learns from the others."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dist_train.config import Config
from dist_train.core.checkpoint import TEACHERS, Part, load_part, read_manifest
from dist_train.core.folder_board import FolderBoard
from dist_train.core.state import State
from dist_train.core.step import outputs_of
from dist_train.core.teachers import Among, PostedTeachers
from dist_train.couplings import Coupling
from dist_train.couplings.codistillation import Codistillation
from dist_train.exchange.collective import Collective
from dist_train.layout import BOARD
from dist_train.rules.teaching import replica_seed, teachers_of
from dist_train.student import Student
from dist_train.task import Task


class Replica:
    """What a worker has to do with other replicas, nothing where there is no section codistill; and what it
    learns, as a ``student``, from runs that are done."""

    def __init__(
        self, config: Config, number: int, run_dir: Path, collective: Collective, leads: bool
    ) -> None:
        self.number = number
        self.seed = replica_seed(config.seed, number)
        self.student = Student(config, collective)
        self.teachers: PostedTeachers | None = None
        self._terms = config.codistill
        if self._terms is None:
            return
        others = teachers_of(number, config.parallel.replicas, self._terms.topology)
        board = FolderBoard(run_dir.parent / BOARD)
        # One thread: a post and what is read for the next change follow one another.
        background = ThreadPoolExecutor(1, thread_name_prefix="board")
        among = Among(number, others, leads)
        self.teachers = PostedTeachers(among, self._terms, board, collective, background)

    def coupled(self, inside: Coupling, task: Task, state: State) -> Coupling:
        """Add what is learnt from teachers to what couples the workers of this replica."""
        if self._terms is not None and self.teachers is not None:
            terms, teachers, outputs = self._terms, self.teachers, outputs_of(task)
            inside = Codistillation(inside, terms, teachers, outputs, lambda: state.counted.updates)
        # Outermost: it weighs the task's loss alone, and not the agreement with other replicas.
        return self.student.coupled(inside, task, state)

    def on_event(self, tell: Callable[[dict[str, Any]], None]) -> None:
        """Have changes of teachers told to ``tell``."""
        if self.teachers is not None:
            self.teachers.on_event = tell

    def figures(self, updates: int) -> dict[str, float]:
        """Return what a line of metrics says of teachers; asked of all workers at once."""
        agreed = {} if self.teachers is None else self.teachers.measure(updates)
        return self.student.figures() | agreed

    def restore(self, checkpoint: Path) -> None:
        """Take the teachers that a checkpoint kept, once the model is started; it may have none."""
        if self.teachers is not None and f"{TEACHERS}.json" in read_manifest(checkpoint).files:
            self.teachers.restore(load_part(checkpoint, TEACHERS))

    def part(self) -> dict[str, Part]:
        """Return what a checkpoint keeps of the teachers, by the part's name."""
        return {} if self.teachers is None else {TEACHERS: self.teachers.part()}

    def close(self) -> None:
        """Finish what is under way in the background."""
        if self.teachers is not None:
            self.teachers.close()
