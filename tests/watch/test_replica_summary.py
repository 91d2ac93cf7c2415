"""Tests of what a run of several replicas comes to: the lines of all of them, in the order of steps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dist_train.config import load_config
from dist_train.errors import DONE
from dist_train.watch.replica_summary import in_order, sum_up

Line = dict[str, Any]


def line(step: int, kind: str = "train", replica: int = 0, **further: Any) -> Line:
    return {"kind": kind, "step": step, "replica": replica, **further}


def gathered(directory: Path, *replicas: list[Line]) -> list[Line]:
    config = load_config(
        {
            "name": "several",
            "task": "digits",
            "parallel": {"workers": 1, "replicas": len(replicas)},
            "train": {"steps": 9, "batch_size": 8},
            "optimizer": {"name": "sgd", "lr": 0.1},
        }
    )
    for number, lines in enumerate(replicas):
        folder = directory / f"replica_{number}"
        folder.mkdir()
        (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    sum_up(config, directory, DONE, 1.0, 0)
    return [json.loads(each) for each in (directory / "metrics.jsonl").read_text().splitlines()]


def test_lines_of_all_replicas_are_merged_in_the_order_of_steps(tmp_path: Path) -> None:
    first = [line(10), line(10, "val"), line(30)]
    second = [line(10, replica=1), line(20, replica=1), line(30, replica=1)]
    found = gathered(tmp_path, first, second)
    assert [(each["step"], each["kind"], each["replica"]) for each in found] == [
        (10, "train", 0),
        (10, "train", 1),
        (10, "val", 0),
        (20, "train", 1),
        (30, "train", 0),
        (30, "train", 1),
    ]


def test_a_validation_that_comes_after_later_steps_finds_its_place(tmp_path: Path) -> None:
    found = gathered(tmp_path, [line(10), line(20), line(10, "val"), line(30)])
    assert [(each["step"], each["kind"]) for each in found] == [
        (10, "train"),
        (10, "val"),
        (20, "train"),
        (30, "train"),
    ]


def test_lines_of_one_place_stay_in_their_order(tmp_path: Path) -> None:
    found = gathered(tmp_path, [line(10, loss=2.0), line(10, loss=1.0)])
    assert [each["loss"] for each in found] == [2.0, 1.0]


def test_a_replica_without_records_and_lines_that_are_none_are_left_out(tmp_path: Path) -> None:
    assert gathered(tmp_path, [], [line(10)]) == [line(10)]


def test_few_lines_are_held_at_a_time() -> None:
    taken = 0

    def lines() -> Iterator[Line]:
        nonlocal taken
        for step in range(10_000):
            taken += 1
            yield line(step)

    for number, found in enumerate(in_order(lines(), ahead=50)):
        assert found["step"] == number
        assert taken <= number + 51
