"""The board: the latest snapshot of each replica. The newest post wins, and nobody waits.

Here is the protocol, and the twin for replicas in one process; a folder is core/folder_board.py.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from dist_train.errors import TrainingError

# A reader may just have chosen the one before.
KEPT = 3


class PostGone(TrainingError):
    """A post is not there: it has made room for newer ones, or was taken down."""


class Board(Protocol):
    def begin(self, replica: int, updates: int) -> None:
        """Take down what a replica that begins after ``updates`` posted in a life that is undone."""

    def post(self, replica: int, version: int, tensors: Mapping[str, Tensor]) -> None:
        """Put up a snapshot: parameters and buffers, on the CPU; raises OSError where it cannot be kept.

        Where there is a post of this version, that stays: others may have learnt from it.
        """

    def newest(self, replica: int) -> int | None:
        """Return the version of a replica's newest post; None while it has none."""

    def read(self, replica: int, version: int) -> dict[str, Tensor]:
        """Return a post; raises PostGone when it is not there, TrainingError when it is not whole."""


class MemoryBoard:
    """The twin, for replicas in one process."""

    def __init__(self) -> None:
        self._posts: dict[int, dict[int, dict[str, Tensor]]] = {}
        self._lock = threading.Lock()

    def begin(self, replica: int, updates: int) -> None:
        with self._lock:
            posts = self._posts.get(replica, {})
            self._posts[replica] = {version: post for version, post in posts.items() if version <= updates}

    def post(self, replica: int, version: int, tensors: Mapping[str, Tensor]) -> None:
        with self._lock:
            posts = self._posts.setdefault(replica, {})
            posts.setdefault(version, {name: tensor.clone() for name, tensor in tensors.items()})
            for old in sorted(posts)[:-KEPT]:
                del posts[old]

    def newest(self, replica: int) -> int | None:
        with self._lock:
            return max(self._posts.get(replica, {}), default=None)

    def read(self, replica: int, version: int) -> dict[str, Tensor]:
        with self._lock:
            found = self._posts.get(replica, {}).get(version)
        if found is None:
            raise PostGone(f"replica {replica} has no post {version}")
        return dict(found)
