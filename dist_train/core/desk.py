"""What a worker has of one teacher: a frozen copy in force, and perhaps a newer one on its way."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from copy import deepcopy
from dataclasses import dataclass

from torch import Tensor, nn

from dist_train.core.state import load_tensors, unique_tensors
from dist_train.exchange.board import PostGone

NONE = -1
# How reading a post went.
WELL, GONE, UNREADABLE = range(3)


@dataclass
class Desk:
    """What a worker has of one teacher: the ``version`` in force, the one that is ``wanted`` next.

    ``taken_up`` says after how many updates of the student's: where there was none yet, since when one is
    waited for.
    """

    taken_up: int
    version: int = NONE
    wanted: int = NONE
    model: nn.Module | None = None
    loading: Future[dict[str, Tensor]] | None = None
    # The last post of which was told that it cannot be read.
    told_of: int = NONE

    @property
    def loaded(self) -> int:
        """The version that this worker could change over to."""
        done = self.loading is not None and self.loading.done() and self.error is None
        return self.wanted if done else NONE

    @property
    def error(self) -> BaseException | None:
        """Why what is wanted cannot be read; None while that is not known."""
        return _error(self.loading)

    @property
    def went(self) -> int:
        return went(self.loading)


def went(reading: Future[dict[str, Tensor]] | None) -> int:
    """Say how reading a post went; well as long as nothing else is known."""
    error = _error(reading)
    if error is None:
        return WELL
    return GONE if isinstance(error, PostGone) else UNREADABLE


def _error(reading: Future[dict[str, Tensor]] | None) -> BaseException | None:
    return reading.exception() if reading is not None and reading.done() else None


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
