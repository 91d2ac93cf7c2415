"""The teachers of a replica: frozen copies of other replicas, kept up to date from a board in the background.

All workers of a replica take up the same version after the same update, so that they minimise one objective;
a step never waits for the board. The leading worker says which version is wanted, each loads it meanwhile,
and once all have it they change over together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dist_train.config.schema import Codistill
from dist_train.core.checkpoint import Part
from dist_train.core.state import load_tensors, unique_tensors
from dist_train.core.tensor_files import snapshot
from dist_train.errors import TrainingError
from dist_train.exchange.board import Board
from dist_train.exchange.collective import Collective
from dist_train.rules.teaching import looks_at, posts_at

NONE = -1


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
    """Which replica this is, and which ones teach it; ``leads``: this worker posts and says what to load."""

    replica: int
    teachers: tuple[int, ...]
    leads: bool


class PostedTeachers:
    """``background`` does what a step must not wait for."""

    def __init__(
        self,
        among: Among,
        terms: Codistill,
        board: Board,
        collective: Collective,
        background: Executor,
    ) -> None:
        self._among = among
        self._terms = terms
        self._board = board
        self._collective = collective
        self._background = background
        # Where changes are told of.
        self.on_event: Callable[[dict[str, Any]], None] = lambda event: None
        self._desks = {teacher: _Desk() for teacher in among.teachers}
        self._newest: Future[dict[int, int]] | None = None
        self._posting: Future[None] | None = None
        self._copy: dict[str, Tensor] = {}
        self._sum = torch.zeros((), dtype=torch.float64)
        self._taught = 0

    def begin(self, model: nn.Module) -> None:
        self._model = model
        self._sum = self._sum.to(next(model.parameters()).device)

    def in_force(self, updates: int) -> Sequence[nn.Module]:
        found = []
        for desk in self._desks.values():
            if desk.model is not None and updates - desk.version <= self._terms.max_age_in_force:
                found.append(desk.model)
        return found

    def agreed(self, loss: Tensor, share: float) -> None:
        self._sum += loss.double() * share

    def after(self, updates: int, taught: bool) -> None:
        self._taught += taught
        if self._among.leads and posts_at(updates, self._terms.interval):
            self._post(updates)
        if looks_at(updates, self._terms.interval):
            self._look(updates)
        self._tell_who_is_gone(updates)

    # -- posting ---------------------------------------------------------------------------------------

    def _post(self, updates: int) -> None:
        if self._posting is not None:
            if not self._posting.done():
                self.on_event({"event": "post_skipped", "step": updates, "reason": "the last is under way"})
                return
            if (error := self._posting.exception()) is not None:
                self.on_event({"event": "post_failed", "step": updates, "warning": f"board: {error}"})
        self._copy = snapshot(unique_tensors(self._model), self._copy)
        self._posting = self._background.submit(self._board.post, self._among.replica, updates, self._copy)

    # -- looking ---------------------------------------------------------------------------------------

    def _look(self, updates: int) -> None:
        """Change over to what all workers have loaded; agree on what to load next."""
        newest = self._seen()
        own = [(newest.get(name, NONE), desk.loaded, int(desk.failed)) for name, desk in self._desks.items()]
        said_by_me = torch.tensor(own, dtype=torch.int64, device=self._sum.device)
        rows = self._collective.gather(said_by_me.reshape(-1))
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
        if self._among.leads and self._newest is None:
            self._newest = self._background.submit(self._scan)

    def _seen(self) -> dict[int, int]:
        """What the leading worker last found on the board."""
        if self._newest is None or not self._newest.done():
            return {}
        found, self._newest = self._newest, None
        return {} if found.exception() is not None else found.result()

    def _scan(self) -> dict[int, int]:
        found = {name: self._board.newest(name) for name in self._desks}
        return {name: version for name, version in found.items() if version is not None}

    def _change_over(self, updates: int, name: int, desk: _Desk) -> None:
        assert desk.loading is not None
        if desk.model is None:
            desk.model = frozen_copy(self._model)
        load_tensors(unique_tensors(desk.model), desk.loading.result())
        desk.version, desk.loading = desk.wanted, None
        self.on_event({"event": "teacher", "step": updates, "replica": name, "version": desk.version})

    def _tell_who_is_gone(self, updates: int) -> None:
        for name, desk in self._desks.items():
            gone = desk.model is not None and updates - desk.version > self._terms.max_age_in_force
            if gone and not desk.gone:
                text = (
                    f"replica {name} has posted nothing for {updates - desk.version} updates "
                    "(codistill.max_age): training goes on without it until it does"
                )
                self.on_event({"event": "teacher_gone", "step": updates, "replica": name, "warning": text})
            desk.gone = gone

    # -- figures and checkpoints -----------------------------------------------------------------------

    def measure(self, updates: int) -> dict[str, float]:
        """Return mean agreement since the last call, and the age of the oldest teacher; on all workers."""
        total = float(self._collective.gather(self._sum.reshape(1)).sum())
        taught, self._taught = self._taught, 0
        self._sum.zero_()
        if not taught:
            return {}
        ages = [updates - desk.version for desk in self._desks.values() if desk.model is not None]
        return {"agreement": total / taught, "teacher_age": float(max(ages))}

    def part(self) -> Part:
        """Return the teachers for a checkpoint, with their versions."""
        desks = {name: desk for name, desk in self._desks.items() if desk.model is not None}
        tensors = {
            f"{name}.{key}": tensor
            for name, desk in desks.items()
            if desk.model is not None
            for key, tensor in unique_tensors(desk.model).items()
        }
        return Part(tensors, {str(name): desk.version for name, desk in desks.items()})

    def restore(self, part: Part) -> None:
        """Take the teachers of a checkpoint; one that no longer teaches is left out. Call it after begin."""
        for text, version in part.values.items():
            desk, prefix = self._desks.get(int(text)), f"{text}."
            if desk is None:
                continue
            saved = {key: tensor for key, tensor in part.tensors.items() if key.startswith(prefix)}
            desk.model = frozen_copy(self._model)
            load_tensors(
                unique_tensors(desk.model), {key.removeprefix(prefix): each for key, each in saved.items()}
            )
            desk.version = desk.wanted = int(version)

    def close(self) -> None:
        """Finish posting; raises TrainingError where the last snapshot could not be put up."""
        self._background.shutdown(cancel_futures=False)
        if self._posting is not None and (error := self._posting.exception()) is not None:
            raise TrainingError(f"board: {error}")


def frozen_copy(model: nn.Module) -> nn.Module:
    """Return a copy that predicts, by its running statistics, and never learns."""
    gradients = [parameter.grad for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = None
    copy = deepcopy(model).eval()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient
    return copy.requires_grad_(False)
