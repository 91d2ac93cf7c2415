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
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dist_train.config.schema import Codistill
from dist_train.core.checkpoint import Part
from dist_train.core.desk import GONE, NONE, UNREADABLE, WELL, Desk, seated, went
from dist_train.core.poster import Poster
from dist_train.core.staging import Side
from dist_train.core.state import unique_tensors
from dist_train.errors import TrainingError
from dist_train.exchange.board import Board
from dist_train.exchange.collective import Collective
from dist_train.rules.attendance import Attendance
from dist_train.rules.teacher_script import Script
from dist_train.rules.teaching import looks_every, passes, posts, teaches, weight_at

_LOOK_AGAIN_S = 0.02

# What models predict of a batch: scores (..., classes) of each, without gradients.
Predict = Callable[[Sequence[nn.Module], Any], list[Tensor]]
# A post that is being read.
Reading = Future[dict[str, Tensor]]


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

    ``stops_at`` says whether all workers are known to stop at a boundary or before; other replicas are waited
    for in the context ``waiting``.
    """

    script: Script
    patience_s: float = 300.0
    stops_at: Callable[[int], bool] = lambda boundary: False
    waiting: Callable[[], AbstractContextManager[None]] = nullcontext

    def until_posted(self, posting: Future[None], updates: int) -> None:
        """Wait for a post, as any may be needed, unless all workers stop."""
        with self.waiting():
            while not posting.done() and not self.stops_at(updates):
                wait([posting], _LOOK_AGAIN_S)


@dataclass(frozen=True)
class _Sight:
    """What the leading worker saw on the board: each replica's ``newest`` post, and those that it read."""

    newest: Mapping[int, int] = field(default_factory=dict)
    read: Mapping[int, Reading] = field(default_factory=dict)


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
        patience = None if follows is None else follows.until_posted
        self._poster = Poster(among.replica, board, background, lambda event: self.on_event(event), patience)
        # Before the burn-in is over nobody teaches.
        self._desks = {teacher: Desk(terms.burn_in) for teacher in among.teachers}
        self._attendance = Attendance()
        self._looking: Future[_Sight] | None = None
        self._could_look = True
        self._own_newest = NONE
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
                self._poster.post(model, updates)

    def predictions(self, scores: Tensor, batch: Any, updates: int) -> Sequence[Tensor]:
        del scores
        teachers = self.in_force(updates)
        foreseen, self._foreseen = self._foreseen, None
        if self._side is not None and foreseen is not None:
            self._side.before_compute()
            if foreseen.batch is batch and foreseen.teachers == teachers:
                return foreseen.predictions
        return self._predict([model for _, model in teachers], batch)

    def _foresee(self, batch: Any) -> None:
        """Begin to predict a batch for the update after the one in the making, if that is to be taught."""
        assert self._side is not None
        terms = self._terms
        if weight_at(self._updates + 1, terms.weight, terms.burn_in, terms.ramp) == 0:
            return
        teachers = self.in_force(self._updates + 1)
        with self._side.after_compute():
            predicted = self._predict([model for _, model in teachers], batch)
        self._foreseen = _Foreseen(batch, teachers, predicted)

    def in_force(self, updates: int) -> list[tuple[int, nn.Module]]:
        """Return the models to agree with in the update after ``updates``, each after its version."""
        desks = [desk for desk in self._desks.values() if self._is_young(desk, updates)]
        return [(desk.version, desk.model) for desk in desks if desk.model is not None]

    def _is_young(self, desk: Desk, updates: int) -> bool:
        return teaches(desk.taken_up, updates, self._terms.max_age_in_force)

    def after(self, updates: int) -> None:
        before, self._updates, interval = self._updates, updates, self._terms.interval
        among = self._among
        # Before the burn-in is over it has nothing to teach.
        ripe = among.leads and updates >= self._terms.burn_in
        newest = max(self._own_newest, self._terms.burn_in, self._began)
        if ripe and posts(before, updates, interval, among.turn, newest):
            self._poster.post(self._model, updates)
        if self._follows is not None:
            for name, version in self._follows.script.after(updates):
                self._follow(updates, name, version)
        elif passes(before, updates, looks_every(interval)):
            self._look(updates)
        self._tell_who_teaches(updates)

    # -- looking ---------------------------------------------------------------------------------------

    def _look(self, updates: int) -> None:
        """Change over to what all workers have loaded; agree on what to load next."""
        if not self._desks:
            return
        seen = self._seen(updates)
        newest = {name: seen.newest[name] for name in seen.read}
        own = [(newest.get(name, NONE), desk.loaded, desk.went) for name, desk in self._desks.items()]
        device = next(self._model.parameters()).device
        rows = self._collective.gather(torch.tensor(own, dtype=torch.int64, device=device).reshape(-1))
        said = rows.reshape(self._collective.workers, len(own), 3).tolist()
        for place, (name, desk) in enumerate(self._desks.items()):
            candidate = said[0][place][0]
            if desk.wanted > desk.version and all(row[place][1] == desk.wanted for row in said):
                self._change_over(updates, name, desk)
            elif any(row[place][2] != WELL for row in said):
                if any(row[place][2] == UNREADABLE for row in said):
                    self._tell_unreadable(updates, name, desk)
                desk.wanted, desk.loading = desk.version, None
            if desk.wanted == desk.version and candidate > desk.version:
                desk.wanted = candidate
                read = seen.read.get(name)
                desk.loading = read or self._background.submit(self._board.read, name, candidate)
        if self._among.leads and self._looking is None:
            free = {name: desk.version for name, desk in self._desks.items() if desk.wanted == desk.version}
            self._looking = self._background.submit(self._look_and_read, free)

    def _follow(self, updates: int, name: int, version: int) -> None:
        """Change over as it is written; unless all stop before it can be, which leaves it to ``restore``."""
        assert self._follows is not None
        with self._follows.waiting():
            tensors = self._awaited(updates, name, version)
        if tensors is not None:
            self._seat(self._desks[name], version, tensors, updates)
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
                time.sleep(_LOOK_AGAIN_S)

    def _seen(self, updates: int) -> _Sight:
        """What the leading worker last saw on the board."""
        if self._looking is None or not self._looking.done():
            return _Sight()
        looked, self._looking = self._looking, None
        error, could = looked.exception(), self._could_look
        self._could_look = error is None
        if error is not None:
            if could:
                text = (
                    f"board: cannot be looked at ({type(error).__name__}: {error}); teachers stay as they are"
                )
                self.on_event({"event": "board_unreadable", "step": updates, "warning": text})
            return _Sight()
        seen = looked.result()
        self._own_newest = seen.newest.get(self._among.replica, self._own_newest)
        return seen

    def _look_and_read(self, known: Mapping[int, int]) -> _Sight:
        """Read what is newer than what is ``known`` at once: it may make room for newer posts at any time."""
        newest = self._scan()
        newer = [name for name, version in known.items() if newest.get(name, NONE) > version]
        read = {name: self._read(name, newest[name]) for name in newer}
        return _Sight(newest, {name: each for name, each in read.items() if went(each) != GONE})

    def _read(self, name: int, version: int) -> Reading:
        reading: Reading = Future()
        try:
            reading.set_result(self._board.read(name, version))
        except Exception as error:
            reading.set_exception(error)
        return reading

    def _scan(self) -> dict[int, int]:
        found = {name: self._board.newest(name) for name in (self._among.replica, *self._desks)}
        return {name: version for name, version in found.items() if version is not None}

    def _change_over(self, updates: int, name: int, desk: Desk) -> None:
        assert desk.loading is not None
        self._seat(desk, desk.wanted, desk.loading.result(), updates)
        desk.loading = None
        self.on_event({"event": "teacher", "step": updates, "replica": name, "version": desk.version})

    def _seat(self, desk: Desk, version: int, tensors: Mapping[str, Tensor], updates: int) -> None:
        if self._side is not None:
            # It may still be predicting with what is overwritten now.
            self._side.before_compute()
        desk.model = seated(desk.model, self._model, tensors)
        desk.version = desk.wanted = version
        desk.taken_up = updates

    def _tell_unreadable(self, updates: int, name: int, desk: Desk) -> None:
        """Say of a post, once, that it cannot be read: it is tried again until there is a newer one."""
        if desk.told_of == desk.wanted:
            return
        desk.told_of = desk.wanted
        why = desk.error if desk.went == UNREADABLE else "another worker of the group cannot read it"
        self._tell_of_post(updates, name, desk.wanted, f"post {desk.wanted} of replica {name}: {why}")

    def _tell_of_post(self, updates: int, name: int, version: int, text: str) -> None:
        event = {"event": "teacher_unreadable", "step": updates, "replica": name, "version": version}
        self.on_event({**event, "warning": text})

    def _tell_who_teaches(self, updates: int) -> None:
        gone, back = self._attendance.now(self._who_is_gone(updates))
        for name in gone:
            desk = self._desks[name]
            text = (
                f"{'nothing' if desk.model is None else 'nothing newer'} of replica {name} could be taken up "
                f"for {updates - desk.taken_up} updates (codistill.max_age): training goes on without it "
                "until it posts again"
            )
            self.on_event({"event": "teacher_gone", "step": updates, "replica": name, "warning": text})
        for name in back:
            self.on_event({"event": "teacher_back", "step": updates, "replica": name})

    def _who_is_gone(self, updates: int) -> list[int]:
        return [name for name, desk in self._desks.items() if not self._is_young(desk, updates)]

    # -- figures and checkpoints -----------------------------------------------------------------------

    @property
    def versions(self) -> dict[int, int]:
        """The version of each teacher that is in force, by replica."""
        return {name: desk.version for name, desk in self._desks.items() if desk.model is not None}

    def teaching(self, updates: int) -> dict[int, int]:
        """The version of each teacher that teaches in the update after ``updates``, by replica."""
        gone = self._who_is_gone(updates)
        return {name: version for name, version in self.versions.items() if name not in gone}

    @property
    def gone(self) -> tuple[int, ...]:
        """The replicas that training goes on without, as was told last."""
        return tuple(sorted(self._attendance.absent))

    def take_newest(self, updates: int) -> None:
        """Take up at once what is on the board, before the first update; all workers of a group together."""
        found = self._scan() if self._among.leads else {}
        chosen = json.loads(self._collective.tell(json.dumps(found).encode()))
        for name, desk in self._desks.items():
            if (version := chosen.get(str(name))) is not None:
                self._take(updates, name, desk, version)

    def _take(self, updates: int, name: int, desk: Desk, version: int) -> None:
        """Take up a version, if all workers of the group can read it."""
        tensors = None
        try:
            tensors = self._board.read(name, version)
        except TrainingError as error:
            self._tell_of_post(updates, name, version, str(error))
        readable = self._collective.gather(torch.tensor([float(tensors is not None)]))
        if tensors is not None and bool(readable.all()):
            self._seat(desk, version, tensors, updates)

    def part(self) -> Part:
        """Return the teachers for a checkpoint, with their versions and when they were taken up.

        Who follows an earlier run has its own last post on the board by then.
        """
        self._poster.make_sure(self._updates)
        tensors = {
            f"{name}.{key}": tensor
            for name, desk in self._desks.items()
            if desk.model is not None
            for key, tensor in unique_tensors(desk.model).items()
        }
        seats = {name: [self._desks[name].version, self._desks[name].taken_up] for name in self.versions}
        return Part(tensors, {str(name): seat for name, seat in seats.items()})

    def restore(self, part: Part) -> None:
        """Take the teachers of a checkpoint; one that no longer teaches is left out. Call it after begin."""
        for text, seat in part.values.items():
            desk, prefix = self._desks.get(int(text)), f"{text}."
            if desk is None:
                continue
            saved = {
                key.removeprefix(prefix): tensor
                for key, tensor in part.tensors.items()
                if key.startswith(prefix)
            }
            # Not every checkpoint says when a teacher was taken up.
            version, taken_up = seat if isinstance(seat, list) else (seat, self._updates)
            self._seat(desk, int(version), saved, int(taken_up))
        if self._follows is not None:
            for name, version in self._follows.script.in_force(self._updates).items():
                if self._desks[name].version != version:
                    self._follow(self._updates, name, version)
        # Whom it goes on without was told of before the checkpoint.
        self._attendance.now(self._who_is_gone(self._updates))

    def settle(self) -> None:
        """Wait for the last post, and tell if it failed or is not done in time."""
        self._poster.settle()

    def close(self) -> None:
        self.settle()
        self._background.shutdown(wait=False, cancel_futures=True)
