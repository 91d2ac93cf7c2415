"""Tests of the counts of gradients."""

from __future__ import annotations

import json

from dist_train.rules.staleness import Staleness
from dist_train.watch.tally import Tally

TALLY = Tally(
    computed=10,
    applied=6,
    dropped=2,
    refused=1,
    requeued=3,
    lost_updates=4,
    waiting={"quorum": 1.5, "server": 0.25, "bound": 0.0, "work": 0.0, "data": 2.00049},
    staleness=Staleness({0: 3, 2: 3}),
)


def test_the_record_has_the_keys_of_the_summary() -> None:
    assert TALLY.record() == {
        "gradients": {"computed": 10, "applied": 6, "dropped": 2, "refused": 1},
        "staleness": {"mean": 1.0, "p50": 0, "p99": 2, "max": 2},
        "requeued": 3,
        "lost_updates": 4,
        "waiting": {"quorum": 1.5, "server": 0.25, "bound": 0.0, "work": 0.0, "data": 2.0},
    }


def test_a_run_without_gradients_has_the_same_keys() -> None:
    assert Tally().record().keys() == TALLY.record().keys()
    assert set(Tally().record()["waiting"].values()) == {0.0}


def test_a_checkpoint_carries_every_count_on() -> None:
    assert Tally.from_state(json.loads(json.dumps(TALLY.to_state()))) == TALLY


def test_tallies_share_nothing() -> None:
    one, other = Tally(), Tally()
    one.waiting["bound"] += 1
    one.staleness.add(1)
    assert other == Tally()
