"""Votes of all ranks on a checkpoint, through torch.distributed's store.

The store moves bytes and blocks nobody but the thread that waits: no collective is involved, so the vote may
go on in the background of training. Its in-process twin is the same class over a ``HashStore``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed import DistError, DistStoreError

from dist_train.errors import TrainingError


class BallotError(TrainingError):
    """A vote did not come to an end: somebody is absent, or the store is gone."""


class StoreBallot:
    """One rank's side of the votes; see ``dist_train.core.commit.Ballot`` for the verbs.

    Rank 0 waits ``vote_limit_s`` for the votes after it has written its own files. The others wait
    ``outcome_limit_s`` for the outcome: rank 0 writes the shared part, and may be long.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        rank: int,
        workers: int,
        vote_limit_s: float = 60.0,
        outcome_limit_s: float = 1800.0,
    ) -> None:
        # A connection of its own: a wait on a shared one would keep other threads from the store.
        self._store = PrefixStore(prefix, store.clone())  # type: ignore[attr-defined]  # torch's stubs lack it
        self._rank = rank
        self._workers = workers
        self._vote_limit_s = vote_limit_s
        self._outcome_limit_s = outcome_limit_s

    def cast(self, turn: int, vote: Mapping[str, Any]) -> None:
        self._set(_vote_key(turn, self._rank), vote)

    def collect(self, turn: int) -> list[Mapping[str, Any]]:
        """Raises BallotError naming the ranks that have not voted in time."""
        keys = [_vote_key(turn, rank) for rank in range(self._workers)]
        absent = self._wait(keys, self._vote_limit_s)
        if absent:
            raise BallotError(f"no vote from ranks {absent} within {self._vote_limit_s:g} s")
        votes = [self._get(key) for key in keys]
        # Whoever votes in this turn has heard the last outcome; a vote that came too late is there as well.
        earlier = [_outcome_key(turn - 1), *(_vote_key(turn - 1, rank) for rank in range(self._workers))]
        for key in keys + earlier:
            self._store.delete_key(key)
        return votes

    def announce(self, turn: int, outcome: Mapping[str, Any]) -> None:
        self._set(_outcome_key(turn), outcome)

    def hear(self, turn: int) -> Mapping[str, Any]:
        """Raises BallotError when rank 0 has not announced the outcome in time."""
        if self._wait([_outcome_key(turn)], self._outcome_limit_s):
            raise BallotError(f"no outcome from rank 0 within {self._outcome_limit_s:g} s")
        return self._get(_outcome_key(turn))

    def _set(self, key: str, value: Mapping[str, Any]) -> None:
        try:
            self._store.set(key, json.dumps(value))
        except DistError as error:
            raise BallotError(f"the store does not answer: {error}") from None

    def _get(self, key: str) -> Mapping[str, Any]:
        value: Mapping[str, Any] = json.loads(self._store.get(key))
        return value

    def _wait(self, keys: list[str], limit_s: float) -> list[int]:
        """Wait for all keys; return the positions of those that are missing when the time is up."""
        try:
            self._store.wait(keys, timedelta(seconds=limit_s))
            return []
        except DistStoreError:
            return [index for index, key in enumerate(keys) if not self._store.check([key])]
        except DistError as error:
            raise BallotError(f"the store does not answer: {error}") from None


def _vote_key(turn: int, rank: int) -> str:
    return f"{turn}/vote/{rank}"


def _outcome_key(turn: int) -> str:
    return f"{turn}/outcome"
