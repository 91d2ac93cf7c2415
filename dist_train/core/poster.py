"""What a replica shows the others of itself: now and then a snapshot, put on the board in the background."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, wait
from typing import Any

from torch import Tensor, nn

from dist_train.core.state import unique_tensors
from dist_train.core.tensor_files import non_finite, snapshot
from dist_train.errors import TrainingError
from dist_train.exchange.board import Board

# What the last post gets in the end: a file system that hangs must not keep a worker from ending.
SETTLE_S = 10.0

# Waits for a post that is under way, unless all workers are to stop after so many updates.
Patience = Callable[[Future[None], int], None]


class Poster:
    """Posts ``replica`` on the board, and tells ``on_event`` of posts that are left out or failed.

    With ``patience`` a post is waited for before the next; without, one that falls due meanwhile is left out.
    """

    def __init__(
        self,
        replica: int,
        board: Board,
        background: Executor,
        on_event: Callable[[dict[str, Any]], None],
        patience: Patience | None = None,
    ) -> None:
        self._replica = replica
        self._board = board
        self._background = background
        self._patience = patience
        self._on_event = on_event
        self._posting: Future[None] | None = None
        self._posted_at = self._updates = -1
        self._copy: dict[str, Tensor] = {}

    def post(self, model: nn.Module, updates: int) -> None:
        self._updates = updates
        if self._posting is not None:
            if not self._is_done(self._posting, updates):
                self._on_event({"event": "post_skipped", "step": updates, "reason": "the last is under way"})
                return
            self._tell_failure(self._posting.exception())
        self._posted_at = updates
        self._copy = snapshot(unique_tensors(model), self._copy)
        self._posting = self._background.submit(self._put_up, updates, self._copy)

    def _is_done(self, posting: Future[None], updates: int) -> bool:
        if self._patience is not None and not posting.done():
            self._patience(posting, updates)
        return posting.done()

    def _put_up(self, updates: int, tensors: Mapping[str, Tensor]) -> None:
        """Post, unless it would make others predict NaN."""
        if bad := non_finite(tensors):
            raise TrainingError(f"update {updates}: {bad[0]} holds NaN or infinity, so nothing is posted")
        self._board.post(self._replica, updates, tensors)

    def _tell_failure(self, error: BaseException | None) -> None:
        if error is not None:
            text = f"board: post {self._posted_at} was not written: {error}"
            self._on_event({"event": "post_failed", "step": self._updates, "warning": text})

    def make_sure(self, updates: int) -> None:
        """With patience, wait for the last post before ``updates`` are saved: a start from there, after a
        sudden end, would not post it again."""
        posting = self._posting
        if self._patience is not None and posting is not None and not self._is_done(posting, updates):
            wait([posting], SETTLE_S)

    def settle(self) -> None:
        """Wait for the last post, and tell if it failed or is not done in time."""
        posting, self._posting = self._posting, None
        if posting is None:
            return
        try:
            error = posting.exception(SETTLE_S)
        except TimeoutError:
            error = TrainingError(f"not done within {SETTLE_S:g} s; training ends without it")
        self._tell_failure(error)
