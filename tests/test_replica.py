"""Tests of what a worker has to do with other replicas: what it closes, and what it says of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dist_train import tasks
from dist_train.config import load_config
from dist_train.core.folder_board import FolderBoard
from dist_train.couplings.allreduce import AllReduce
from dist_train.exchange.collective import Alone
from dist_train.exchange.server import Figures
from dist_train.replica import Post, Progress, Replica
from dist_train.runtime.line import Line
from dist_train.runtime.place import relay_variables
from dist_train.runtime.relay import RelayThread, Waits

CPU = torch.device("cpu")


def made(tmp_path: Path, **codistill: Any) -> Replica:
    """Replica 0 of two, of which this process is the only worker, with a model of its own."""
    config = load_config(
        {
            "name": "two",
            "task": "digits",
            "parallel": {"workers": 1, "replicas": 2, "device": "cpu"},
            "train": {"steps": 1, "batch_size": 8},
            "optimizer": {"name": "sgd", "lr": 0.1},
            "codistill": {"data": "same", **codistill},
        }
    )
    (tmp_path / "board").mkdir()
    replica = Replica(config, Post(0, tmp_path / "replica_0", Alone()), CPU)
    task = tasks.make(config)
    coupling = replica.coupled(AllReduce(config.parallel, 0, 1), task, Progress(lambda: 0, lambda: 1))
    coupling.start(nn.Linear(2, 2))
    return replica


def test_the_line_to_the_relay_is_closed_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    relay = RelayThread(2, 1, Waits(1000.0, 1000.0, 1000.0))
    for name, value in relay_variables(relay.address).items():
        monkeypatch.setitem(os.environ, name, value)
    closed: list[Line] = []
    close = Line.close
    monkeypatch.setattr(Line, "close", lambda line: (closed.append(line), close(line)))
    replica = made(tmp_path, exchange="prediction")
    assert closed == []
    replica.close()
    assert len(closed) == 1
    assert relay.close()


def test_the_lag_told_is_that_of_teachers_that_teach(tmp_path: Path) -> None:
    replica = made(tmp_path, topology="all", max_age=10)
    board = FolderBoard(tmp_path / "board")
    board.post(1, 4, dict(nn.Linear(2, 2).state_dict()))
    replica.take_newest(5)

    def told(updates: int) -> dict[str, float]:
        replica._lessons.agreed(torch.tensor(0.5), 1.0)
        return replica.figures(updates)

    assert told(15) == {"agreement": 0.5, "teacher_age": 11.0}
    assert told(16) == {"agreement": 0.5}
    replica.close()


def test_a_gradient_names_those_that_taught_it_and_those_it_goes_on_without(tmp_path: Path) -> None:
    replica = made(tmp_path, topology="all", max_age=10)
    FolderBoard(tmp_path / "board").post(1, 4, dict(nn.Linear(2, 2).state_dict()))
    replica.take_newest(5)
    assert replica._posted is not None
    told = []
    for updates in (15, 16):
        replica._posted.after(updates)
        told.append(replica.with_lessons(Figures(), updates))
    assert [(each.teachers, each.without) for each in told] == [(((1, 4),), ()), ((), (1,))]
    replica.close()
