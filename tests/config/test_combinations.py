"""Settings that cannot go together are refused by name, each with what to write instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from dist_train.config import Config, load_config
from dist_train.config.combinations import contradictions
from dist_train.errors import ConfigError

BASE: dict[str, Any] = {
    "name": "x",
    "task": "t",
    "train": {"epochs": 1, "batch_size": 2},
    "optimizer": {"name": "sgd", "lr": 1},
}


def refusals(parallel: dict[str, Any], **sections: Any) -> list[str]:
    try:
        load_config({**BASE, "parallel": parallel, **sections})
    except ConfigError as error:
        return [line.removeprefix("config: ") for line in error.problems]
    return []


ASYNC = {"mode": "async", "workers": 6}
BACKUP = {"mode": "backup", "workers": 6}
BOUNDED = {"mode": "bounded", "workers": 6, "max_staleness": 3}
SYNCHRONOUS = {**BOUNDED, "max_staleness": 0}
LOCAL = {**SYNCHRONOUS, "local_steps": 5}

ALLOWED: list[dict[str, Any]] = [
    {"mode": "sync", "workers": 6},
    # How a server would run does not matter in mode sync.
    {"mode": "sync", "server": {"shards": 2, "copies": 2}, "cluster": {"worker_cpus": 2}},
    ASYNC,
    BOUNDED,
    SYNCHRONOUS,
    {**BACKUP, "backups": 5},
    {**BACKUP, "backups": "auto"},
    {**BACKUP, "workers": 2, "backups": "auto"},
    {**BACKUP, "group_size": 3, "backups": 1},
    {**ASYNC, "group_size": 6},
    {**ASYNC, "aggregate": 6},
    {**ASYNC, "group_size": 3, "aggregate": 2},
    {**ASYNC, "damping": "inverse"},
    {**BOUNDED, "damping": "inverse"},
    {**BOUNDED, "damping": "delay_compensated"},
    {**ASYNC, "fetch_every": 3, "push_every": 5},
    {**ASYNC, "push_every": 5, "aggregate": 2},
    LOCAL,
    {**LOCAL, "outer": "nesterov"},
    {**SYNCHRONOUS, "outer": "average"},
    {**BACKUP, "backups": 1, "local_steps": 5},
    {**ASYNC, "local_steps": 5, "damping": "inverse"},
    {**ASYNC, "local_steps": 10, "outer": "elastic"},
    {**ASYNC, "group_size": 2, "compression": "bf16", "sync_batch_norm": True},
    # Not counted yet, so nothing can be said.
    {"mode": "backup", "backups": 99},
    {"mode": "async", "group_size": 99},
]


@pytest.mark.parametrize("parallel", ALLOWED)
def test_what_goes_together_is_accepted(parallel: dict[str, Any]) -> None:
    assert refusals(parallel) == []


# The section, and the lines that follow from it; "parallel." stands before each of them.
REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    (
        {"mode": "sync", "group_size": 2},
        ["group_size: in mode sync all workers are one group; set it to 1, or choose another parallel.mode"],
    ),
    (
        {**ASYNC, "backups": 1},
        ["backups: mode async has no backup workers; set it to 0, or parallel.mode to backup"],
    ),
    (
        {**BOUNDED, "backups": "auto"},
        ["backups: mode bounded has no backup workers; set it to 0, or parallel.mode to backup"],
    ),
    (
        {**ASYNC, "max_staleness": 0},
        ["max_staleness: mode async has no bound; set it to null, or parallel.mode to bounded"],
    ),
    (
        {"mode": "bounded"},
        [
            "max_staleness: missing; mode bounded needs a whole number of at least 0:"
            " 3 to 10 are usual, 0 is synchronous"
        ],
    ),
    (
        {"mode": "sync", "workers": 2, "cluster": {"address": "auto"}},
        [
            "cluster.address: mode sync does not run on Ray; start it with torchrun or srun, or set "
            "parallel.mode to async, bounded or backup; null, and no --address, is this machine alone"
        ],
    ),
    (
        {**BOUNDED, "aggregate": 2},
        ["aggregate: only mode async has it, and this is mode bounded; set it to 1"],
    ),
    # Of the workers' number.
    (
        {**ASYNC, "group_size": 4},
        ["group_size: 6 workers cannot be cut into groups of 4; make parallel.workers a multiple of 4"],
    ),
    (
        {**ASYNC, "group_size": 12},
        ["group_size: 6 workers cannot be cut into groups of 12; make parallel.workers a multiple of 12"],
    ),
    (
        {**BACKUP, "backups": 6},
        ["backups: 6 of 6 groups leave none whose gradients count; give at most 5"],
    ),
    (
        {**BACKUP, "group_size": 3, "backups": 2},
        ["backups: 2 of 2 groups leave none whose gradients count; give at most 1"],
    ),
    (
        {**BACKUP, "workers": 1, "backups": "auto"},
        [
            "backups: a single group leaves none to choose backups from; give at least 2 parallel.workers, "
            "or set it to 0"
        ],
    ),
    (
        {**BACKUP, "group_size": 6, "backups": "auto"},
        [
            "backups: a single group leaves none to choose backups from; give at least 12 parallel.workers, "
            "or set it to 0"
        ],
    ),
    (
        {**ASYNC, "aggregate": 7},
        [
            "aggregate: an update of 7 gradients waits for more than the 6 groups send;"
            " give at most 6, or use train.accumulate"
        ],
    ),
    # Damping.
    (
        {"mode": "sync", "damping": "inverse"},
        ["damping: in mode sync every gradient is fresh, its staleness always 0; set it to none"],
    ),
    (
        {**BACKUP, "damping": "inverse"},
        ["damping: in mode backup every gradient is fresh, its staleness always 0; set it to none"],
    ),
    (
        {**SYNCHRONOUS, "damping": "delay_compensated"},
        [
            "damping: in mode bounded with max_staleness 0 every gradient is fresh, its staleness always 0;"
            " set it to none"
        ],
    ),
    (
        {**ASYNC, "local_steps": 2, "damping": "delay_compensated"},
        [
            "damping: delay_compensated corrects gradients, and local steps send none;"
            " set it to none or inverse"
        ],
    ),
    # Downpour.
    (
        {**BOUNDED, "fetch_every": 2},
        [
            "fetch_every: only mode async has it, and this is mode bounded; set it to 1, and use"
            " parallel.local_steps or train.accumulate to exchange less often"
        ],
    ),
    (
        {"mode": "sync", "push_every": 2},
        [
            "push_every: only mode async has it, and this is mode sync; set it to 1, and use"
            " parallel.local_steps or train.accumulate to exchange less often"
        ],
    ),
    (
        {**ASYNC, "push_every": 2, "local_steps": 2},
        ["push_every: with local steps a group reads and sends once in parallel.local_steps; set it to 1"],
    ),
    (
        {**ASYNC, "fetch_every": 2, "damping": "inverse"},
        [
            "fetch_every: damping inverse needs each gradient computed from one version and sent on its own;"
            " set it to 1, or parallel.damping to none"
        ],
    ),
    # Local steps.
    (
        {"mode": "sync", "local_steps": 2},
        [
            "local_steps: mode sync has no local steps; set parallel.mode to bounded and"
            " parallel.max_staleness to 0"
        ],
    ),
    (
        {"mode": "sync", "outer": "nesterov"},
        ["outer: mode sync has no local steps; set parallel.mode to bounded and parallel.max_staleness to 0"],
    ),
    (
        {**LOCAL, "outer": "elastic"},
        [
            "outer: elastic moves the centre for one group at a time, but this is mode bounded;"
            " set parallel.mode to async"
        ],
    ),
    (
        {**ASYNC, "outer": "elastic", "aggregate": 2, "damping": "inverse"},
        [
            "aggregate: elastic moves the centre by the whole of each group's move; set it to 1",
            "damping: elastic moves a group and the centre equally far, which damping would undo;"
            " set it to none",
        ],
    ),
    # What needs an all-reduce.
    (
        {**ASYNC, "compression": "bf16", "sync_batch_norm": True, "find_unused_parameters": True},
        [
            "compression: groups of one worker have no all-reduce; set it to none,"
            " or parallel.group_size above 1",
            "sync_batch_norm: groups of one worker have no all-reduce; set it to false,"
            " or parallel.group_size above 1",
            "find_unused_parameters: groups of one worker have no all-reduce; set it to false,"
            " or parallel.group_size above 1",
        ],
    ),
]


@pytest.mark.parametrize(("parallel", "expected"), REFUSED)
def test_what_does_not_is_named(parallel: dict[str, Any], expected: list[str]) -> None:
    assert refusals(parallel) == [f"parallel.{line}" for line in expected]


def test_a_server_cannot_begin_a_momentum_later() -> None:
    moving = {"decay": {"kind": "one_cycle", "momentum": [0.85, 0.95]}}
    still = {"name": "sgd", "lr": 1, "momentum": 0}
    for optimizer in (still | {"momentum": 0.9}, {"name": "adam", "lr": 1}, {"name": "adagrad", "lr": 1}):
        assert refusals(ASYNC, optimizer=optimizer, schedule=moving) == []
    assert refusals({"mode": "sync"}, optimizer=still, schedule=moving) == []
    assert refusals(ASYNC, optimizer=still, schedule=moving) == [
        "optimizer.momentum: schedule.decay.momentum moves the momentum of an optimizer without; "
        "set it above 0"
    ]


def test_batch_norm_is_recomputed_in_mode_sync_alone() -> None:
    validation = {"batch_norm_batches": 4}
    assert refusals({"mode": "sync"}, validation=validation) == []
    assert refusals(ASYNC, validation=validation) == [
        "validation.batch_norm_batches: mode async validates with the mean of the groups' running averages;"
        " set it to 0"
    ]


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_worker_that_is_slowed_exists(mode: str) -> None:
    parallel = {"mode": mode, "workers": 2}
    assert refusals(parallel, faults={"slow": {1: 5}}) == []
    assert refusals(parallel, faults={"slow": {1: 5, 2: 5}}) == [
        "faults.slow[2]: there is no worker 2: the workers are 0 to 1"
    ]
    assert refusals(parallel | {"replicas": 2}, faults={"slow": {2: 5, 3: 5}}) == []


def test_all_of_it_is_told_at_once_and_where_it_is_written(read: Callable[..., Config]) -> None:
    text = (
        "name: x\n"
        "task: t\n"
        "parallel:\n"
        "  mode: backup\n"
        "  workers: 4\n"
        "  max_staleness: 1\n"
        "  backups: 4\n"
        "train: {epochs: 1}\n"
        "optimizer: {name: sgd, lr: 1}\n"
    )
    with pytest.raises(ConfigError) as caught:
        read(text, "parallel.aggregate=2")
    assert [line.rpartition(": ")[0] for line in caught.value.problems] == [
        "x.yaml:1:1",
        "x.yaml:6:3: parallel.max_staleness",
        "x.yaml:7:3: parallel.backups",
        'override "parallel.aggregate=2": parallel.aggregate',
    ]


def test_a_cluster_in_mode_sync_is_refused_where_it_is_written(read: Callable[..., Config]) -> None:
    text = (
        "name: x\n"
        "task: t\n"
        "parallel:\n"
        "  cluster:\n"
        "    address: auto\n"
        "train: {epochs: 1, batch_size: 2}\n"
        "optimizer: {name: sgd, lr: 1}\n"
    )
    with pytest.raises(ConfigError, match=r"^x\.yaml:5:5: parallel\.cluster\.address: mode sync does not"):
        read(text)


def test_a_config_that_is_made_without_reading_is_checked_too() -> None:
    with pytest.raises(ValidationError, match=r"parallel\.backups: 6 of 6 groups"):
        Config.model_validate({**BASE, "parallel": {**BACKUP, "backups": 6}})


def test_workers_that_are_counted_later_can_be_asked_about_again() -> None:
    config = load_config({**BASE, "parallel": {"mode": "backup", "backups": 1}})
    assert contradictions(config) == []
    counted = config.model_copy(update={"parallel": config.parallel.model_copy(update={"workers": 1})})
    ((path, text),) = contradictions(counted)
    assert path == ("parallel", "backups")
    assert text.endswith("give at most 0")
