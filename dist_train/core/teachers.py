"""The teachers of a replica: frozen copies of other replicas, kept up to date from a board in the background.

All workers of a group take up the same version after the same update, so that they minimise one objective; a
step never waits for the board. The leading worker says which version is wanted, each loads it meanwhile, and
once all have it they change over together.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, wait
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dist_train.config.schema import Codistill
from dist_train.core.checkpoint import Part
from dist_train.core.staging import Side
from dist_train.core.state import load_tensors, unique_tensors
from dist_train.core.tensor_files import non_finite, snapshot
from dist_train.errors import TrainingError
from dist_train.exchange.board import Board
from dist_train.exchange.collective import Collective
from dist_train.rules.teacher_script import Script
from dist_train.rules.teaching import looks_every, passes, posts, teaches, weight_at

NONE = -1
_LOOK_AGAIN_S = 0.02
# What the last post gets in the end: a file system that hangs must not keep a worker from ending.
SETTLE_S = 10.0

# What a model predicts of a batch: scores (..., classes).
Predict = Callable[[nn.Module, Any], Tensor]
# What there is on the board, by replica.
Found = Mapping[int, int]


@dataclass
class _Desk:
    """What a worker has of one teacher: the ``version`` in force, the one that is ``wanted`` next."""

    version: int = NONE
    wanted: int = NONE
    model: nn.Module | None = None
    loading: Future[dict[str, Tensor]] | None = None
    gone: bool = False

    @property
    def loaded(self) -> int:
        """The version that this worker could change over to."""
        done = self.loading is not None and self.loading.done() and self.loading.exception() is None
        return self.wanted if done else NONE

    @property
    def failed(self) -> bool:
        return self.loading is not None and self.loading.done() and self.loading.exception() is not None


@dataclass(frozen=True)
class Among:
    """Which replica this is, and which ones teach it; ``leads``: this worker posts and says what to load.

    ``turn`` counts the groups of the replica that post before this one.
    """

    replica: int
    teachers: tuple[int, ...]
    leads: bool
    turn: int = 0


@dataclass(frozen=True)
class Following:
    """What an earlier run did, and how long a post may be still to come, in seconds.

    ``stops_at`` says whether all workers are known to stop at a boundary or before; ``waiting`` is told the
    update after which this one waits.
    """

    script: Script
    patience_s: float = 300.0
    stops_at: Callable[[int], bool] = lambda boundary: False
    waiting: Callable[[int], None] = lambda updates: None


@dataclass(frozen=True)
class _Foreseen:
    """What ``teachers`` (versions and models) predict of a batch that is yet to be learnt from."""

    batch: Any
    teachers: list[tuple[int, nn.Module]]
    predictions: list[Tensor]


class PostedTeachers:
    """``background`` does what a step must not wait for.

    Who ``follows`` an earlier run changes teachers when that did. On the ``side``, if there is one, teachers
    predict the batch that comes next (Murai et al. 2020, in whose program it is the mode "overlap").
    """

    def __init__(
        self,
        among: Among,
        terms: Codistill,
        board: Board,
        predict: Predict,
        collective: Collective,
        background: Executor,
        follows: Following | None = None,
        side: Side | None = None,
    ) -> None:
        self._follows = follows
        self._side = side
        self.foresee = None if side is None else self._foresee
        self._foreseen: _Foreseen | None = None
        self._among = among
        self._terms = terms
        self._board = board
        self._predict = predict
        self._collective = collective
        self._background = background
        # Where changes are told of.
        self.on_event: Callable[[dict[str, Any]], None] = lambda event: None
        self._desks = {teacher: _Desk() for teacher in among.teachers}
        self._scanning: Future[Found] | None = None
        self._own_newest = NONE
        self._posting: Future[None] | None = None
        self._posted_at = NONE
        self._copy: dict[str, Tensor] = {}
        self._updates = self._began = 0

    def begin(self, model: nn.Module, updates: int) -> None:
        self._model = model
        self._updates = self._began = updates
        among = self._among
        if among.leads and among.turn == 0:
            self._board.begin(among.replica, updates)
            # Stopped or killed after a checkpoint, it may not have posted yet what others are to take up.
            owes = self._follows is not None and max(1, self._terms.burn_in) <= updates
            if owes and updates % self._terms.interval == 0 and self._board.newest(among.replica) != updates:
                self._post(updates)

    def predictions(self, scores: Tensor, batch: Any, updates: int) -> Sequence[Tensor]:
        del scores
        teachers = self.in_force(updates)
        foreseen, self._foreseen = self._foreseen, None
        if self._side is not None and foreseen is not None:
            self._side.before_compute()
            if foreseen.batch is batch and foreseen.teachers == teachers:
                return foreseen.predictions
        with torch.no_grad():
            return [self._predict(model, batch) for _, model in teachers]

    def _foresee(self, batch: Any) -> None:
        """Begin to predict a batch for the update after the one in the making, if that is to be taught."""
        assert self._side is not None
        terms = self._terms
        if weight_at(self._updates + 1, terms.weight, terms.burn_in, terms.ramp) == 0:
            return
        teachers = self.in_force(self._updates + 1)
        with torch.no_grad(), self._side.after_compute():
            predicted = [self._predict(model, batch) for _, model in teachers]
        self._foreseen = _Foreseen(batch, teachers, predicted)

    def in_force(self, updates: int) -> list[tuple[int, nn.Module]]:
        """Return the models to agree with in the update after ``updates``, each after its version."""
        found = [(desk.version, desk.model) for desk in self._desks.values() if desk.model is not None]
        return [(version, model) for version, model in found if self._is_young(version, updates)]

    def _is_young(self, version: int, updates: int) -> bool:
        return teaches(version, updates, self._terms.max_age_in_force)

    def after(self, updates: int) -> None:
        before, self._updates, interval = self._updates, updates, self._terms.interval
        among = self._among
        # Before the burn-in is over it has nothing to teach.
        ripe = among.leads and updates >= self._terms.burn_in
        newest = max(self._own_newest, self._terms.burn_in, self._began)
        if ripe and posts(before, updates, interval, among.turn, newest):
            self._post(updates)
        if self._follows is not None:
            for name, version in self._follows.script.after(updates):
                self._follow(updates, name, version)
        elif passes(before, updates, looks_every(interval)):
            self._look(updates)
        self._tell_who_is_gone(updates)

    # -- posting ---------------------------------------------------------------------------------------

    def _post(self, updates: int) -> None:
        if self._posting is not None:
            if not self._done_with(self._posting, updates):
                self.on_event({"event": "post_skipped", "step": updates, "reason": "the last is under way"})
                return
            self._tell_failed_post(self._posting.exception())
        self._posted_at = updates
        self._copy = snapshot(unique_tensors(self._model), self._copy)
        self._posting = self._background.submit(self._put_up, updates, self._copy)

    def _done_with(self, posting: Future[None], updates: int) -> bool:
        """Say whether a post is done: who follows waits for it, as any may be needed, unless all stop."""
        follows = self._follows
        while follows is not None and not posting.done() and not follows.stops_at(updates):
            follows.waiting(updates)
            wait([posting], _LOOK_AGAIN_S)
        return posting.done()

    def _put_up(self, updates: int, tensors: Mapping[str, Tensor]) -> None:
        """Post, unless it would make others predict NaN."""
        if bad := non_finite(tensors):
            raise TrainingError(f"update {updates}: {bad[0]} holds NaN or infinity, so nothing is posted")
        self._board.post(self._among.replica, updates, tensors)

    def _tell_failed_post(self, error: BaseException | None) -> None:
        if error is not None:
            text = f"board: post {self._posted_at} was not written: {error}"
            self.on_event({"event": "post_failed", "step": self._updates, "warning": text})

    # -- looking ---------------------------------------------------------------------------------------

    def _look(self, updates: int) -> None:
        """Change over to what all workers have loaded; agree on what to load next."""
        if not self._desks:
            return
        newest = self._seen()
        own = [(newest.get(name, NONE), desk.loaded, int(desk.failed)) for name, desk in self._desks.items()]
        device = next(self._model.parameters()).device
        rows = self._collective.gather(torch.tensor(own, dtype=torch.int64, device=device).reshape(-1))
        said = rows.reshape(self._collective.workers, len(own), 3).tolist()
        for place, (name, desk) in enumerate(self._desks.items()):
            candidate = said[0][place][0]
            if desk.wanted > desk.version and all(row[place][1] == desk.wanted for row in said):
                self._change_over(updates, name, desk)
            elif any(row[place][2] for row in said):
                desk.wanted, desk.loading = desk.version, None
            if desk.wanted == desk.version and candidate > desk.version:
                desk.wanted = candidate
                desk.loading = self._background.submit(self._board.read, name, candidate)
        if self._among.leads and self._scanning is None:
            self._scanning = self._background.submit(self._scan)

    def _follow(self, updates: int, name: int, version: int) -> None:
        """Change over as it is written; unless all stop before it can be, which leaves it to ``restore``."""
        tensors = self._awaited(updates, name, version)
        if tensors is not None:
            self._seat(self._desks[name], version, tensors)
            self.on_event({"event": "teacher", "step": updates, "replica": name, "version": version})

    def _awaited(self, updates: int, name: int, version: int) -> dict[str, Tensor] | None:
        """Wait for a post, however long it is still to come; None when all stop meanwhile."""
        assert self._follows is not None
        patience_s = self._follows.patience_s
        deadline = time.monotonic() + patience_s
        while True:
            try:
                return self._board.read(name, version)
            except TrainingError as error:
                if self._follows.stops_at(updates):
                    return None
                if time.monotonic() > deadline:
                    waited = f"codistill.schedule: waited {patience_s:g} s (parallel.timeout_s)"
                    raise TrainingError(f"{waited} for post {version} of replica {name}") from error
                self._follows.waiting(updates)
                time.sleep(_LOOK_AGAIN_S)

    def _seen(self) -> Found:
        """What the leading worker last found on the board."""
        if self._scanning is None or not self._scanning.done():
            return {}
        scanned, self._scanning = self._scanning, None
        found = {} if scanned.exception() is not None else scanned.result()
        self._own_newest = found.get(self._among.replica, self._own_newest)
        return found

    def _scan(self) -> Found:
        found = {name: self._board.newest(name) for name in (self._among.replica, *self._desks)}
        return {name: version for name, version in found.items() if version is not None}

    def _change_over(self, updates: int, name: int, desk: _Desk) -> None:
        assert desk.loading is not None
        self._seat(desk, desk.wanted, desk.loading.result())
        desk.loading = None
        self.on_event({"event": "teacher", "step": updates, "replica": name, "version": desk.version})

    def _seat(self, desk: _Desk, version: int, tensors: Mapping[str, Tensor]) -> None:
        if self._side is not None:
            # It may still be predicting with what is overwritten now.
            self._side.before_compute()
        desk.model = seated(desk.model, self._model, tensors)
        desk.version = desk.wanted = version

    def _tell_who_is_gone(self, updates: int) -> None:
        for name, desk in self._desks.items():
            gone = desk.model is not None and not self._is_young(desk.version, updates)
            if gone and not desk.gone:
                text = (
                    f"replica {name} has posted nothing for {updates - desk.version} updates "
                    "(codistill.max_age): training goes on without it until it does"
                )
                self.on_event({"event": "teacher_gone", "step": updates, "replica": name, "warning": text})
            desk.gone = gone

    # -- figures and checkpoints -----------------------------------------------------------------------

    @property
    def versions(self) -> dict[int, int]:
        """The version of each teacher that is in force, by replica."""
        return {name: desk.version for name, desk in self._desks.items() if desk.model is not None}

    def teaching(self, updates: int) -> dict[int, int]:
        """The version of each teacher that teaches in the update after ``updates``, by replica."""
        return {name: version for name, version in self.versions.items() if self._is_young(version, updates)}

    def take_newest(self, updates: int) -> None:
        """Take up at once what is on the board, before the first update; all workers of a group together."""
        found = self._scan() if self._among.leads else {}
        chosen = json.loads(self._collective.tell(json.dumps(found).encode()))
        for name, desk in self._desks.items():
            if (version := chosen.get(str(name))) is not None:
                self._take(updates, name, desk, version)

    def _take(self, updates: int, name: int, desk: _Desk, version: int) -> None:
        """Take up a version, if all workers of the group can read it."""
        tensors = None
        try:
            tensors = self._board.read(name, version)
        except TrainingError as error:
            self.on_event({"event": "teacher_unreadable", "step": updates, "warning": str(error)})
        readable = self._collective.gather(torch.tensor([float(tensors is not None)]))
        if tensors is not None and bool(readable.all()):
            self._seat(desk, version, tensors)

    def part(self) -> Part:
        """Return the teachers for a checkpoint, with their versions."""
        tensors = {
            f"{name}.{key}": tensor
            for name, desk in self._desks.items()
            if desk.model is not None
            for key, tensor in unique_tensors(desk.model).items()
        }
        return Part(tensors, {str(name): version for name, version in self.versions.items()})

    def restore(self, part: Part) -> None:
        """Take the teachers of a checkpoint; one that no longer teaches is left out. Call it after begin."""
        for text, version in part.values.items():
            desk, prefix = self._desks.get(int(text)), f"{text}."
            if desk is None:
                continue
            saved = {
                key.removeprefix(prefix): tensor
                for key, tensor in part.tensors.items()
                if key.startswith(prefix)
            }
            self._seat(desk, int(version), saved)
        if self._follows is not None:
            for name, version in self._follows.script.in_force(self._updates).items():
                if self._desks[name].version != version:
                    self._follow(self._updates, name, version)

    def settle(self) -> None:
        """Wait for the last post, and tell if it failed or is not done in time."""
        posting, self._posting = self._posting, None
        if posting is None:
            return
        try:
            error = posting.exception(SETTLE_S)
        except TimeoutError:
            error = TrainingError(f"not done within {SETTLE_S:g} s; training ends without it")
        self._tell_failed_post(error)

    def close(self) -> None:
        self.settle()
        self._background.shutdown(wait=False, cancel_futures=True)


def seated(teacher: nn.Module | None, student: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Give a teacher, made like the student where there is none yet, what another replica has posted."""
    made = frozen_copy(student) if teacher is None else teacher
    load_tensors(unique_tensors(made), tensors)
    return made


def frozen_copy(model: nn.Module) -> nn.Module:
    """Return a copy that predicts, by its running statistics, and never learns."""
    gradients = [parameter.grad for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = None
    copy = deepcopy(model).eval()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient
    return copy.requires_grad_(False)
