"""Tests of what keeps a run from following the changes of teachers of another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dist_train.config import Config, load_config
from dist_train.errors import ConfigError
from dist_train.followed import script_of, unfollowable

Make = Callable[..., Path]


def follower(run_dir: Path, replicas: int = 2, **terms: Any) -> Config:
    parallel = {"workers": 2, "device": "cpu", "replicas": replicas}
    codistill = {"schedule": str(run_dir), "keep_posts": "all", "interval": 4, **terms}
    given = {"name": "again", "task": "digits", "optimizer": {"name": "sgd", "lr": 0.1}}
    train = {"epochs": 1, "batch_size": 100}
    return load_config({**given, "train": train, "parallel": parallel, "codistill": codistill})


@pytest.fixture
def followed(configured: Make) -> Callable[..., Path]:
    """Make the directory of a run of replicas, with the teachers that each changed."""

    def make(*changes: tuple[int, int, int], replicas: int = 2, **terms: Any) -> Path:
        parallel = {"workers": 2, "device": "cpu", "replicas": replicas}
        run_dir = configured("first", parallel=parallel, codistill={"interval": 4, **terms})
        for number in range(replicas):
            folder = run_dir / f"replica_{number}"
            folder.mkdir()
            lines = [
                {"event": "teacher", "step": step, "replica": replica, "version": version}
                for step, replica, version in changes
            ]
            (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return run_dir

    return make


def test_a_run_like_it_can_be_followed(followed: Make) -> None:
    run_dir = followed((12, 1, 8))
    assert unfollowable(follower(run_dir)) == []
    assert script_of(run_dir, 0, (1,)).changes == {12: ((1, 8),)}


def test_who_follows_nobody_has_no_problem(followed: Make) -> None:
    assert unfollowable(load_config(followed() / "config.yaml")) == []


@pytest.mark.parametrize(
    ("earlier", "now", "what"),
    [
        ({"replicas": 3}, {}, "parallel.replicas is 3 there and not 2"),
        (
            {"replicas": 4, "topology": "ring"},
            {"replicas": 4},
            "codistill.topology is ring there and not all",
        ),
        ({}, {"interval": 5}, "codistill.interval is 4 there and not 5"),
        ({}, {"burn_in": 5}, "codistill.burn_in is 0 there and not 5"),
        (
            {"exchange": "prediction", "data": "same"},
            {"data": "same"},
            "codistill.exchange is prediction there and not checkpoint",
        ),
    ],
)
def test_one_of_another_kind_is_refused_by_name(
    followed: Make, earlier: dict[str, Any], now: dict[str, Any], what: str
) -> None:
    run_dir = followed(**earlier)
    assert unfollowable(follower(run_dir, **now)) == [
        f"codistill.schedule: {run_dir}: {what}; follow a run of the same"
    ]


def test_one_whose_replicas_taught_nobody_is_refused(configured: Make) -> None:
    run_dir = configured("first", parallel={"workers": 2, "device": "cpu", "replicas": 2})
    (problem,) = unfollowable(follower(run_dir))
    assert problem.startswith(f"codistill.schedule: {run_dir}: its replicas taught nobody; ")


def test_one_that_is_not_there_or_has_no_events_is_refused(followed: Make, tmp_path: Path) -> None:
    (problem,) = unfollowable(follower(tmp_path / "none"))
    assert problem.endswith("no config.yaml there; give the directory of a run of several replicas")
    run_dir = followed()
    (run_dir / "replica_1" / "events.jsonl").unlink()
    (problem,) = unfollowable(follower(run_dir))
    assert problem.endswith("replica_1/events.jsonl is not there")


def test_a_configuration_that_cannot_be_read_is_refused(followed: Make) -> None:
    run_dir = followed()
    (run_dir / "config.yaml").write_text("nonsense: 1\n")
    problems = unfollowable(follower(run_dir))
    assert problems
    assert all(problem.startswith(f"codistill.schedule: {run_dir}: ") for problem in problems)


def test_teachers_that_a_replica_does_not_have_are_named(followed: Make) -> None:
    run_dir = followed((12, 1, 8), (16, 2, 8))
    with pytest.raises(
        ConfigError, match=r"replica 0 learns from 2, and here it does not; follow a run with"
    ):
        script_of(run_dir, 0, (1,))
    with pytest.raises(ConfigError, match=r"replica_5/events.jsonl is not there"):
        script_of(run_dir, 5, (1,))
