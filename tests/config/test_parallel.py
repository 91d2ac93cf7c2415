"""What the settings of the coupling mean where they are left out."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from dist_train.config.parallel import (
    AverageOuter,
    Cluster,
    DelayCompensated,
    ElasticOuter,
    NesterovOuter,
    NoDamping,
    Parallel,
    Server,
)


def test_gradients_are_applied_as_they_are_unless_told_otherwise() -> None:
    found = Parallel(mode="async")
    assert (found.aggregate, found.fetch_every, found.push_every, found.group_size) == (1, 1, 1, 1)
    assert found.damping == NoDamping()
    assert found.outer_in_force is None


def test_diloco_has_the_constants_of_its_paper() -> None:
    # Douillard et al. 2023, section 2 and table 5.
    assert (NesterovOuter().lr, NesterovOuter().momentum) == (0.7, 0.9)


class TestDelayCompensation:
    def test_is_adaptive_with_the_constants_for_cifar_10(self) -> None:
        found = DelayCompensated()
        assert (found.variant, found.strength_in_force, found.decay) == ("adaptive", 2.0, 0.95)

    def test_has_a_strength_for_each_variant(self) -> None:
        assert DelayCompensated(variant="constant").strength_in_force == 0.04

    def test_can_be_of_strength_0(self) -> None:
        assert DelayCompensated(strength=0.0).strength_in_force == 0.0


class TestLocalSteps:
    def test_are_averaged_if_nothing_else_is_said(self) -> None:
        assert Parallel(mode="async", local_steps=2).outer_in_force == AverageOuter()

    def test_may_be_a_single_one(self) -> None:
        assert Parallel(mode="async", outer=AverageOuter()).outer_in_force == AverageOuter()

    def test_go_to_the_optimizer_that_is_named(self) -> None:
        given = Parallel(mode="async", local_steps=2, outer=ElasticOuter())
        assert given.outer_in_force == ElasticOuter()


@pytest.mark.parametrize(
    ("mode", "bound", "fresh"),
    [
        ("sync", None, True),
        ("backup", None, True),
        ("bounded", 0, True),
        ("bounded", 1, False),
        ("async", None, False),
    ],
)
def test_gradients_are_always_fresh_where_everybody_waits_for_the_update(
    mode: Any, bound: int | None, fresh: bool
) -> None:
    assert Parallel(mode=mode, max_staleness=bound).always_fresh == fresh


def test_every_mode_but_sync_has_a_server() -> None:
    modes: list[Any] = ["sync", "backup", "async", "bounded"]
    assert [Parallel(mode=mode).has_server for mode in modes] == [False, True, True, True]


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (DelayCompensated, {"strength": -1}),
        (DelayCompensated, {"decay": 1}),
        (NesterovOuter, {"lr": 0}),
        (NesterovOuter, {"momentum": 1}),
        (ElasticOuter, {"moving_rate": 0}),
        (ElasticOuter, {"moving_rate": 1}),
        (Server, {"shards": 0}),
        (Server, {"copies": 3}),
        (Server, {"copies": True}),
        (Server, {"snapshot_every": 0}),
        (Cluster, {"address": ""}),
        (Cluster, {"worker_cpus": 0}),
        (Cluster, {"wait_s": 0}),
        (Parallel, {"backups": -1}),
        (Parallel, {"max_staleness": -1}),
        (Parallel, {"aggregate": 0}),
        (Parallel, {"local_steps": 0}),
    ],
)
def test_a_value_out_of_bounds_is_refused(section: type[Any], values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        section.model_validate(values)
