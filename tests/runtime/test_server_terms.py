"""Tests of the terms of a run: what each mode's settings make of them."""

from __future__ import annotations

from typing import Any

import pytest

from dist_train.config import Config
from dist_train.plan import make_plan
from dist_train.rules.admission import Rule
from dist_train.rules.messages import Lease
from dist_train.rules.terms import Terms
from dist_train.runtime.server_terms import terms_of

SGD = {"name": "sgd", "lr": 0.1}


def terms(parallel: dict[str, Any], **sections: Any) -> Terms:
    """Return the terms of four members with batches of 4, of 50 samples."""
    tree = {
        "name": "run",
        "task": "digits",
        "train": {"steps": 10, "batch_size": 4},
        "optimizer": SGD,
    } | sections
    config = Config.model_validate({"parallel": {"workers": 4} | parallel, **tree})
    return terms_of(config, make_plan(config, 4, 50), members=4)


class TestRule:
    @pytest.mark.parametrize(
        ("parallel", "rule", "in_step"),
        [
            ({"mode": "backup", "backups": 1}, Rule(3, drop_late=True), False),
            ({"mode": "backup", "backups": 0}, Rule(4, drop_late=True), True),
            ({"mode": "bounded", "max_staleness": 2}, Rule(1, bound=2), False),
            ({"mode": "bounded", "max_staleness": 0}, Rule(4), True),
            ({"mode": "async"}, Rule(1), False),
            ({"mode": "async", "aggregate": 4}, Rule(4, read_own=False), False),
        ],
        ids=str,
    )
    def test_each_mode_is_settings_of_one_rule(
        self, parallel: dict[str, Any], rule: Rule, in_step: bool
    ) -> None:
        found = terms(parallel)
        assert found.rule == rule
        assert found.deck.in_step == in_step
        assert (found.deck.parts, found.deck.batch) == (rule.quorum, 4 * rule.quorum)


class TestDamping:
    @pytest.mark.parametrize(
        ("optimizer", "local", "normalises"),
        [
            (SGD, {}, False),
            ({"name": "adam", "lr": 0.1}, {}, True),
            ({"name": "lars", "lr": 0.1}, {}, True),
            # With local steps the server's optimizer is another: SGD.
            ({"name": "adam", "lr": 0.1}, {"local_steps": 2}, False),
        ],
        ids=str,
    )
    def test_is_on_the_rate_where_the_server_s_optimizer_loses_a_gradient_s_size(
        self, optimizer: dict[str, Any], local: dict[str, Any], normalises: bool
    ) -> None:
        found = terms({"mode": "async", "damping": {"kind": "inverse"}} | local, optimizer=optimizer)
        assert (found.inverse, found.normalises) == (True, normalises)


class TestOwnSteps:
    @pytest.mark.parametrize(
        ("parallel", "samples", "rates"),
        [
            ({}, 4, []),
            ({"fetch_every": 3}, 4, [0.1]),
            ({"fetch_every": 3, "aggregate": 2}, 4, [0.05]),
            ({"push_every": 2}, 8, [0.05, 0.05]),
            ({"fetch_every": 2, "push_every": 2, "aggregate": 2}, 8, [0.025, 0.025]),
            ({"fetch_every": 2, "push_every": 2}, 3, [0.1 * 2 / 3, 0.1 / 3]),
            ({"local_steps": 2}, 8, [0.1, 0.1]),
            ({"outer": {"kind": "elastic"}}, 4, [0.1]),
        ],
        ids=str,
    )
    def test_a_step_of_one_s_own_is_what_the_server_will_make_of_it_or_with_local_steps_a_whole_one(
        self, parallel: dict[str, Any], samples: int, rates: list[float]
    ) -> None:
        found = terms({"mode": "async"} | parallel, schedule={"scaling": "none"})
        work = found.work(Lease(1, 0, 0, samples), 0)
        assert [own.rate for own in work.own] == pytest.approx(rates)

    def test_the_server_s_rate_is_the_schedule_s_or_the_outer_optimizer_s(self) -> None:
        assert terms({"mode": "async"}).outer_rate is None
        assert terms({"mode": "async", "local_steps": 2}).outer_rate == 1.0
        assert terms({"mode": "async", "outer": {"kind": "nesterov"}}).outer_rate == 0.7


class TestSnapshots:
    @pytest.mark.parametrize("copies", [1, 2])
    def test_they_are_taken_whether_or_not_shards_have_copies(self, copies: int) -> None:
        found = terms({"mode": "async", "server": {"copies": copies, "snapshot_every": 7}})
        assert found.snapshot_every == 7
