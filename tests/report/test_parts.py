"""Tests of metrics read in parts: every line once and in order, wherever the file is cut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dist_train.report import parts
from dist_train.report.parts import blocks
from dist_train.report.reading import Reader
from tests.report.conftest import MakeRun, train


def steps(path: Path) -> list[float]:
    columns = [block.by_kind["train"] for block in blocks(path) if block.by_kind]
    return [float(step) for training in columns for step in training.column("step")]


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_wherever_a_file_is_cut_each_line_is_read_once(tmp_path: Path, size: int) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text("".join(json.dumps({"n": "x" * number}) + "\n" for number in range(12)))
    whole = file.stat().st_size
    found = [
        record for start in range(0, whole, size) for record in Reader(file).between(start, start + size)
    ]
    assert found == [{"n": "x" * number} for number in range(12)]


def test_blocks_tell_the_last_line_and_what_was_damaged(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "BLOCK", 2)
    file = make_run(metrics=[train(step, step) for step in range(1, 6)]) / "metrics.jsonl"
    with file.open("a") as end:
        end.write('nonsense\n{"kind": "other"}\n')
    found = list(blocks(file))
    assert [block.last["step"] for block in found] == [2, 4, 5]
    assert [block.damaged for block in found] == [0, 0, 2]


def test_no_file_has_no_lines(tmp_path: Path) -> None:
    assert all(not block.by_kind for block in blocks(tmp_path / "none"))


@pytest.fixture
def large(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that counts as large, of some parts."""
    file = make_run(metrics=[train(step, step / 10) for step in range(1, 201)]) / "metrics.jsonl"
    monkeypatch.setattr(parts, "LARGE", 1)
    monkeypatch.setattr(parts, "PART", file.stat().st_size // 7)
    monkeypatch.setattr(parts.os, "sched_getaffinity", lambda pid: {0, 1})
    return file


@pytest.mark.processes
def test_several_processes_read_a_large_file_in_its_order(large: Path) -> None:
    assert steps(large) == list(range(1, 201))


@pytest.mark.parametrize("lost", range(3))
def test_without_further_processes_it_is_read_all_the_same(
    large: Path, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    class Fails:
        """Does the first parts, as a pool does whose processes are killed later."""

        done = 0

        def __init__(self, *given: object) -> None: ...

        def __enter__(self) -> Fails:
            return self

        def __exit__(self, *error: object) -> None: ...

        def submit(self, part: object, *given: object) -> parts.Future[list[parts.Block]]:
            future: parts.Future[list[parts.Block]] = parts.Future()
            self.done += 1
            if self.done > lost:
                future.set_exception(parts.BrokenProcessPool())
            else:
                future.set_result(parts._part(*given))  # type: ignore[arg-type]
            return future

    monkeypatch.setattr(parts, "ProcessPoolExecutor", Fails)
    assert steps(large) == list(range(1, 201))
