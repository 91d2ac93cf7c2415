"""Validation sets in step: what counts as the same samples, and that nothing else is let through."""

from __future__ import annotations

import multiprocessing
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_train.delivered import find
from dist_train.errors import ConfigError
from dist_train.evaluate.batches import alike, each_batch
from dist_train.evaluate.subject import prepare

Make = Callable[..., Path]
Pair = namedtuple("Pair", "x y")
ONES, NANS = torch.ones(2), torch.full((2,), torch.nan)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (ONES, ONES.clone(), True),
        (ONES, torch.ones(1), False),
        (ONES, torch.ones(2, dtype=torch.int64), False),
        (ONES, 2 * ONES, False),
        (NANS, NANS.clone(), True),
        (NANS, ONES, False),
        ((ONES, [ONES]), (ONES, [ONES]), True),
        ((ONES, [ONES]), (ONES, [2 * ONES]), False),
        ((ONES,), (ONES, ONES), False),
        ({"x": ONES}, {"x": ONES}, True),
        ({"x": ONES}, {"y": ONES}, False),
        (Pair(ONES, "a"), Pair(ONES, "a"), True),
        (Pair(ONES, "a"), Pair(ONES, "b"), False),
        (ONES, None, False),
    ],
)
def test_alike_is_all_the_way_down(first: Any, second: Any, expected: bool) -> None:
    assert alike(first, second) is expected


def seen(*run_dirs: Path) -> tuple[list[list[list[int]]], list[int]]:
    """Return the rows of every batch of each run, and the batches' sizes."""
    rows: list[list[list[int]]] = []
    sizes: list[int] = []

    def do(batches: Any, size: int) -> None:
        rows.append([batch[0].tolist() for batch in batches])
        sizes.append(size)

    each_batch([prepare(find(run_dir)) for run_dir in run_dirs], do)
    return rows, sizes


def test_one_run_is_seen_in_batches_of_its_own(done: Make) -> None:
    run_dir = done("run", 1, validation={"batch_size": 2})
    assert seen(run_dir) == ([[[0, 1]], [[2, 3]], [[4]]], [2, 2, 1])


def test_two_runs_are_seen_in_batches_of_the_smaller(done: Make) -> None:
    first, second = done("first", 1, validation={"batch_size": 4}), done("second", 2)
    assert seen(first, second) == ([[[0, 1, 2, 3]] * 2, [[4]] * 2], [4, 1])


def test_sets_of_other_sizes_are_refused(done: Make) -> None:
    first, second = done("first", 1), done("second", 1, task_options={"size": 4})
    with pytest.raises(ConfigError, match=r"second: 4 validation samples, and .*first has 5"):
        seen(first, second)


def test_other_samples_are_refused_by_their_place(done: Make) -> None:
    settings = {"task_options": {"drawn": True}, "validation": {"batch_size": 4}}
    first, second = done("first", 1, seed=0, **settings), done("second", 1, seed=1, **settings)
    with pytest.raises(ConfigError, match=r"second: validation samples 1 to 4 are not those of .*first;"):
        seen(first, second)


def test_sets_drawn_from_one_seed_are_the_same_samples(done: Make) -> None:
    settings = {"task_options": {"drawn": True}, "seed": 3}
    (rows,), _ = seen(done("first", 1, **settings), done("second", 2, **settings))
    torch.manual_seed(3)
    assert rows == [torch.randperm(5).tolist()] * 2


def test_after_a_refusal_no_loading_process_is_left(done: Make) -> None:
    run_dir = done("run", 1, data={"loaders": 1}, validation={"batch_size": 1})

    def refuse(batches: Any, size: int) -> None:
        raise ConfigError("no more")

    with pytest.raises(ConfigError, match="no more"):
        each_batch([prepare(find(run_dir))], refuse)
    assert multiprocessing.active_children() == []
