"""One of several models: how it learns from the others."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dist_train.config import Config
from dist_train.config.schema import Codistill
from dist_train.core.checkpoint import TEACHERS, Part, load_part, read_manifest
from dist_train.core.folder_board import FolderBoard
from dist_train.core.lessons import Lessons
from dist_train.core.peers import Peers
from dist_train.core.staging import SideStream
from dist_train.core.state import State
from dist_train.core.step import outputs_of
from dist_train.core.teachers import Among, Following, PostedTeachers, Predict
from dist_train.couplings import Coupling
from dist_train.couplings.codistillation import Codistillation, Progress
from dist_train.delivered import script_of
from dist_train.exchange.collective import Collective
from dist_train.exchange.server import Figures, Turn
from dist_train.layout import BOARD
from dist_train.rules.teaching import replica_seed, teachers_of
from dist_train.runtime.line import Line
from dist_train.runtime.place import relay_address
from dist_train.runtime.relay import Seat
from dist_train.student import Student
from dist_train.task import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Post:
    """Where a worker stands: its replica's ``number`` and run directory, its group, and its place in it.

    ``turn`` counts the groups of its replica before its own, ``rank`` the workers of the group before it.
    ``life`` is another one at each start. ``stops_at`` says whether all workers are known to stop at a
    boundary or before.
    """

    number: int
    run_dir: Path
    collective: Collective
    rank: int = 0
    turn: int = 0
    life: str = ""
    stops_at: Callable[[int], bool] = lambda boundary: False


class Replica:
    """What a worker has to do with other replicas, nothing where there is no section codistill; and what it
    learns, as a ``student``, from runs that are done."""

    def __init__(self, config: Config, post: Post, device: torch.device) -> None:
        self.number = post.number
        self.seed = replica_seed(config.seed, post.number)
        self._config = config
        self._post = post
        self._device = device
        self._lessons = Lessons(device)
        self.student = Student(config, post.collective)
        self._posted: PostedTeachers | None = None
        self._said: Peers | None = None
        self._line: Line | None = None
        self._workers_with: Callable[[int], int] = lambda batch: post.collective.workers
        self._waiting: Callable[[], AbstractContextManager[None]] = nullcontext

    def at_work(
        self, workers_with: Callable[[int], int], waiting: Callable[[], AbstractContextManager[None]]
    ) -> None:
        """Say how many workers of the group have a batch of that number in the next update, and in which
        context this one waits for other replicas."""
        self._workers_with, self._waiting = workers_with, waiting

    def coupled(self, inside: Coupling, task: Task, progress: Progress) -> Coupling:
        """Add what is learnt from teachers to what couples the workers of this replica."""
        terms, outputs = self._config.codistill, outputs_of(task, self._device)
        if terms is not None:
            teachers = self._peers(terms) if terms.by_prediction else self._from_the_board(terms, outputs.by)
            inside = Codistillation(inside, terms, teachers, outputs.of, progress, self._lessons)
        # Outermost: it weighs the task's loss alone, and not the agreement with other replicas.
        return self.student.coupled(inside, task, self._device)

    def _from_the_board(self, terms: Codistill, predict: Predict) -> PostedTeachers:
        post, parallel = self._post, self._config.parallel
        self._posted = PostedTeachers(
            Among(self.number, self._teachers(terms), leads=post.rank == 0, turn=post.turn),
            terms,
            FolderBoard(post.run_dir.parent / BOARD, terms.keep_posts),
            predict,
            post.collective,
            # One thread for a post, one for reading: what waits for a post may be gone when its turn comes.
            ThreadPoolExecutor(2, thread_name_prefix="board"),
            None if terms.schedule is None else self._following(terms, Path(terms.schedule)),
            # Leases come one by one: what comes after them is not known.
            SideStream(self._device) if self._device.type == "cuda" and not parallel.has_server else None,
        )
        self._posted.on_event = _log
        return self._posted

    def _following(self, terms: Codistill, run_dir: Path) -> Following:
        post, script = self._post, script_of(run_dir, self.number, self._teachers(terms))
        patience_s = self._config.parallel.timeout_s
        return Following(script, patience_s, post.stops_at, lambda: self._waiting())

    def _peers(self, terms: Codistill) -> Peers:
        line, post = Line(relay_address()), self._post
        seat = Seat(self.number, post.rank, post.life, self._teachers(terms))
        self._line = line
        self._said = Peers(
            seat.teachers,
            lambda place, workers, scores: line.ask("swap", seat, place, workers, scores),
            lambda batch: self._workers_with(batch),
            lambda: self._waiting(),
        )
        self._said.on_event = _log
        return self._said

    def _teachers(self, terms: Codistill) -> tuple[int, ...]:
        return teachers_of(self.number, self._config.parallel.replicas, terms.topology)

    def on_event(self, tell: Callable[[dict[str, Any]], None]) -> None:
        """Have changes of teachers told to ``tell``, and not to the log."""
        for teachers in (self._posted, self._said):
            if teachers is not None:
                teachers.on_event = tell

    # -- figures ---------------------------------------------------------------------------------------

    def figures(self, updates: int) -> dict[str, float]:
        """Return what a line of metrics says of teachers; asked of all workers at once."""
        soft = self.student.figures()
        if self._config.codistill is None:
            return soft
        agreement = self._lessons.of_all(self._post.collective)
        if agreement is None:
            return soft
        versions = {} if self._posted is None else self._posted.teaching(updates)
        age = {"teacher_age": float(updates - min(versions.values()))} if versions else {}
        return {**soft, "agreement": agreement, **age}

    def with_lessons(self, figures: Figures, updates: int) -> Figures:
        """Add what a member of a parameter server has learnt in the gradient that it computed after
        ``updates``, and from whom."""
        if self._posted is None:
            return figures
        versions, without = tuple(self._posted.teaching(updates).items()), self._posted.gone
        return replace(figures, agreement=self._lessons.own(), teachers=versions, without=without)

    # -- beginning and end -----------------------------------------------------------------------------

    def restore(self, checkpoint: Path) -> None:
        """Take the teachers that a checkpoint kept, once the model is started; it may have none."""
        if self._posted is not None and f"{TEACHERS}.json" in read_manifest(checkpoint).files:
            self._posted.restore(load_part(checkpoint, TEACHERS))

    def take_newest(self, updates: int) -> None:
        """Take the teachers that are on the board, once the model is started."""
        if self._posted is not None:
            self._posted.take_newest(updates)

    def part(self) -> dict[str, Part]:
        """Return what a checkpoint keeps of the teachers, by the part's name."""
        return {} if self._posted is None else {TEACHERS: self._posted.part()}

    def settle(self) -> None:
        """Finish what is under way in the background, and tell how it went."""
        if self._posted is not None:
            self._posted.settle()

    def close(self) -> None:
        # Whoever is told of events may have ended before.
        self.on_event(_log)
        if self._posted is not None:
            self._posted.close()
        if self._line is not None:
            self._line.close()


def by_count(state: State) -> Progress:
    """Say how far a worker is that counts its updates once it has made them."""
    return Progress(lambda: state.counted.updates, lambda: state.counted.updates + 1)


def by_version(turn: Turn) -> Progress:
    """Say how far a member of a parameter server is: by what it read, and between two gradients only."""
    begun = turn.version.number

    def before() -> int:
        nonlocal begun
        if turn.part == 0:
            begun = turn.version.number
        return begun

    return Progress(before, lambda: turn.version.number if turn.is_last else begun)


def _log(event: dict[str, Any]) -> None:
    if "warning" in event:
        log.warning("%s", event["warning"])
    else:
        log.info("%s", event)
