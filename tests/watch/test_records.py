"""Tests of the records of a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_train.errors import TrainingError
from dist_train.watch.records import (
    JsonLines,
    StepTimes,
    TrainLine,
    ValLine,
    WorkerFigures,
    read,
    to_json,
    trim,
)

TIMES = StepTimes(data=0.001, forward=0.002, backward=0.003, communication=0.004, update=0.005)


def train_line(**changes: Any) -> TrainLine:
    figures: dict[str, Any] = {
        "step": 10,
        "samples": 640,
        "epoch": 0.5,
        "wall_s": 2.0,
        "loss": 2.25,
        "lr": 0.1,
        "samples_per_s": 1000.0,
        "samples_per_s_per_worker": 500.0,
        "data_wait": 0.25,
        "times": TIMES,
        "memory_mb": 300.0,
    }
    return TrainLine(**{**figures, **changes})


def steps(path: Path) -> list[int]:
    return [record["step"] for record in read(path)]


def refuse_constants(name: str) -> None:
    raise AssertionError(f"{name} is not standard JSON")


def test_a_training_line_holds_what_the_contract_names() -> None:
    assert train_line().record() == {
        "kind": "train",
        "step": 10,
        "samples": 640,
        "epoch": 0.5,
        "wall_s": 2.0,
        "loss": 2.25,
        "lr": 0.1,
        "samples_per_s": 1000.0,
        "samples_per_s_per_worker": 500.0,
        "data_wait": 0.25,
        "times": {
            "data": 0.001,
            "forward": 0.002,
            "backward": 0.003,
            "communication": 0.004,
            "update": 0.005,
            "waiting": 0.0,
        },
        "memory_mb": 300.0,
        "replica": 0,
    }


def test_a_training_line_adds_what_was_measured_and_what_the_mode_adds() -> None:
    record = train_line(grad_norm=1.5, slowest_rank=0, replica=1, extras={"staleness": 2.0}).record()
    assert (record["grad_norm"], record["slowest_rank"], record["replica"]) == (1.5, 0, 1)
    assert record["staleness"] == 2.0
    assert "extras" not in record


def test_a_training_line_of_a_server_holds_each_workers_figures() -> None:
    worker = WorkerFigures(name="6-7", samples_per_s=80.0, staleness=1.5, dropped=2, waiting=0.25)
    (found,) = json.loads(to_json(train_line(workers=(worker,)).record()))["workers"]
    assert found == {"name": "6-7", "samples_per_s": 80.0, "staleness": 1.5, "dropped": 2, "waiting": 0.25}


def test_a_validation_line_has_the_metrics_beside_the_loss() -> None:
    line = ValLine(
        step=4, samples=256, epoch=1.0, wall_s=2.0, loss=0.5, metrics={"accuracy": 0.75}, seconds=0.125
    )
    assert line.record() == {
        "kind": "val",
        "step": 4,
        "samples": 256,
        "epoch": 1.0,
        "wall_s": 2.0,
        "loss": 0.5,
        "accuracy": 0.75,
        "seconds": 0.125,
        "replica": 0,
    }


def test_a_metric_never_overwrites_a_key_of_the_line() -> None:
    line = ValLine(
        step=4, samples=1, epoch=1.0, wall_s=2.0, loss=0.5, metrics={"loss": 9.0, "step": 8.0}, seconds=0.1
    )
    record = line.record()
    assert (record["loss"], record["step"]) == (0.5, 4)
    assert (record["task_loss"], record["task_step"]) == (9.0, 8.0)


def test_the_phases_of_a_step_add_up() -> None:
    assert TIMES.total == pytest.approx(0.015)


floats = st.floats(allow_nan=True, allow_infinity=True)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.text(max_size=5), floats | st.lists(floats, max_size=3) | st.text(), max_size=4))
def test_every_line_is_standard_json_and_every_float_reads_back(record: dict[str, Any]) -> None:
    text = to_json(record)
    assert "\n" not in text
    back = json.loads(text, parse_constant=refuse_constants)
    assert back.keys() == record.keys()
    for name, value in record.items():
        for before, after in zip(
            *(x if isinstance(x, list) else [x] for x in (value, back[name])), strict=True
        ):
            if isinstance(before, float):
                assert float(after) == before or (math.isnan(float(after)) and math.isnan(before))
            else:
                assert after == before


@pytest.mark.parametrize(
    ("value", "text"),
    [(math.nan, '"NaN"'), (math.inf, '"Infinity"'), (-math.inf, '"-Infinity"'), (1e-3, "0.001")],
)
def test_a_float_that_json_lacks_is_named(value: float, text: str) -> None:
    assert to_json({"times": {"data": [value]}}) == f'{{"times": {{"data": [{text}]}}}}'


def test_a_line_is_in_the_file_when_write_returns(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with JsonLines(path) as lines:
        for step in range(3):
            lines.write({"step": step})
            assert path.read_bytes().endswith(b'{"step": %d}\n' % step)


def test_an_existing_file_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in range(3):
        with JsonLines(path) as lines:
            lines.write({"step": step})
    assert steps(path) == [0, 1, 2]


def test_a_file_torn_at_any_byte_loses_its_torn_line_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = b'{"step": 0}\n{"step": 1, "note": "\xc3\xa4"}\n{"step": 2}\n'
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        survivors = list(range(whole[:size].count(b"\n")))
        assert steps(path) == survivors
        with JsonLines(path) as lines:
            lines.write({"step": 9})
        assert steps(path) == [*survivors, 9]


def test_a_torn_line_longer_than_a_block_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n' + b"x" * 200_000)
    JsonLines(path).close()
    assert path.read_bytes() == b'{"step": 0}\n'


def test_a_broken_line_inside_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n[1]\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: not a JSON object"):
        list(read(path))


def test_a_full_disk_names_the_file() -> None:
    lines = JsonLines(Path("/dev/full"))
    with pytest.raises(TrainingError, match="/dev/full: cannot be written"):
        lines.write({"step": 0})
    lines.close()


def write_lines(path: Path, numbers: list[int]) -> None:
    path.write_text("".join(f'{{"step": {number}}}\n' for number in numbers))


@settings(deadline=None, max_examples=30)
@given(numbers=st.lists(st.integers(0, 20), max_size=12), limit=st.integers(0, 20))
def test_trimming_parts_the_lines_and_keeps_their_order(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int], limit: int
) -> None:
    folder = tmp_path_factory.mktemp("trim")
    path, aside = folder / "metrics.jsonl", folder / "aside.jsonl"
    write_lines(path, numbers)
    write_lines(aside, [77])
    moved = trim(path, lambda record: record["step"] <= limit, aside)
    late = [number for number in numbers if number > limit]
    assert steps(path) == [number for number in numbers if number <= limit]
    assert steps(aside) == [77, *late]
    assert moved == len(late)
    assert sorted(folder.iterdir()) == [aside, path]


def test_trimming_where_there_is_nothing_to_move_touches_nothing(tmp_path: Path) -> None:
    path, aside = tmp_path / "metrics.jsonl", tmp_path / "aside.jsonl"
    assert trim(path, lambda record: False, aside) == 0
    write_lines(path, [1, 2])
    before = path.stat().st_ino
    assert trim(path, lambda record: True, aside) == 0
    assert path.stat().st_ino == before
    assert not aside.exists()


def test_trimming_moves_unreadable_lines_and_cuts_torn_ones(tmp_path: Path) -> None:
    path, aside = tmp_path / "metrics.jsonl", tmp_path / "aside.jsonl"
    path.write_bytes(b'{"step": 0}\n\x00\x00\n{"step": 1}\n{"st')
    aside.write_bytes(b'{"step": 7}\n{"torn')
    assert trim(path, lambda record: True, aside) == 1
    assert path.read_bytes() == b'{"step": 0}\n{"step": 1}\n'
    assert aside.read_bytes() == b'{"step": 7}\n\x00\x00\n'


def test_a_trim_that_fails_half_way_leaves_the_file_whole(tmp_path: Path) -> None:
    path, aside = tmp_path / "metrics.jsonl", tmp_path / "aside.jsonl"
    write_lines(path, [0, 1, 2])
    calls = 0

    def keep(record: dict[str, Any]) -> bool:
        nonlocal calls
        calls += 1
        if calls > 4:
            raise KeyboardInterrupt
        return bool(record["step"] < 1)

    with pytest.raises(KeyboardInterrupt):
        trim(path, keep, aside)
    assert steps(path) == [0, 1, 2]
    assert sorted(tmp_path.iterdir()) == [aside, path]
