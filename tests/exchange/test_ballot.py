"""Votes through a store: HashStore in process, TCPStore over a socket."""

from __future__ import annotations

from datetime import timedelta

import pytest
from torch.distributed import HashStore, PrefixStore, TCPStore

from dist_train.core.commit import Ballot
from dist_train.exchange.ballot import BallotError, StoreBallot


@pytest.fixture(params=["hash", "tcp"])
def store(request):
    if request.param == "hash":
        return HashStore()
    return TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=5), wait_for_workers=False)


def ballots(store, workers: int, limit_s: float = 5.0) -> list[Ballot]:
    return [StoreBallot(store, "checkpoint", rank, workers, limit_s, limit_s) for rank in range(workers)]


def test_votes_are_collected_in_the_order_of_ranks_and_the_outcome_reaches_all(store):
    zero, one, two = ballots(store, 3)
    two.cast(1, {"ok": True, "files": {"größe": [1, "ab"]}})
    zero.cast(1, {"ok": True})
    one.cast(1, {"ok": False, "error": "disk full"})
    assert [vote.get("error") for vote in zero.collect(1)] == [None, "disk full", None]
    zero.announce(1, {"committed": False, "reason": "rank 1"})
    assert one.hear(1) == two.hear(1) == {"committed": False, "reason": "rank 1"}


def test_absent_ranks_are_named(store):
    zero, _, two, _ = ballots(store, 4, limit_s=0.05)
    zero.cast(1, {"ok": True})
    two.cast(1, {"ok": True})
    with pytest.raises(BallotError, match=r"no vote from ranks \[1, 3\] within 0.05 s"):
        zero.collect(1)


def test_a_missing_outcome_is_an_error(store):
    _, one = ballots(store, 2, limit_s=0.05)
    with pytest.raises(BallotError, match=r"no outcome from rank 0 within 0\.05 s"):
        one.hear(1)


def test_a_vote_that_came_too_late_counts_in_no_other_turn(store):
    zero, one = ballots(store, 2, limit_s=0.05)
    zero.cast(1, {"ok": True})
    with pytest.raises(BallotError):
        zero.collect(1)
    one.cast(1, {"ok": True, "late": True})
    zero.cast(2, {"ok": True})
    with pytest.raises(BallotError, match=r"\[1\]"):
        zero.collect(2)


def test_no_keys_are_left_behind_but_the_last_outcome():
    store = HashStore()
    zero, one = ballots(store, 2)
    for turn in (1, 2, 3):
        one.cast(turn, {})
        zero.cast(turn, {})
        zero.collect(turn)
        zero.announce(turn, {"turn": turn})
        one.hear(turn)
    inside = PrefixStore("checkpoint", store)
    keys = [f"{turn}/{kind}" for turn in (1, 2, 3) for kind in ("vote/0", "vote/1", "outcome")]
    assert [key for key in keys if inside.check([key])] == ["3/outcome"]


def test_the_key_of_a_late_vote_is_removed_in_the_next_turn():
    store = HashStore()
    zero, one = ballots(store, 2, limit_s=0.05)
    zero.cast(1, {})
    with pytest.raises(BallotError):
        zero.collect(1)
    for turn in (1, 2):
        one.cast(turn, {})
    zero.cast(2, {})
    zero.collect(2)
    inside = PrefixStore("checkpoint", store)
    assert not any(inside.check([f"{turn}/vote/{rank}"]) for turn in (1, 2) for rank in (0, 1))


def test_a_store_that_is_gone_is_an_error_of_the_ballot():
    server = TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=1), wait_for_workers=False)
    client = TCPStore("127.0.0.1", server.port, None, False, timedelta(seconds=1), wait_for_workers=False)
    _, one = ballots(client, 2)
    del server
    with pytest.raises(BallotError, match="the store does not answer"):
        one.hear(1)
