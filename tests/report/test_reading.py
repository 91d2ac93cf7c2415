"""Tests of reading records that a run is still writing, or could not finish."""

from __future__ import annotations

import gc
from pathlib import Path

from dist_train.report.reading import Reader, without_collector


def test_damaged_lines_are_counted_and_left_out(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_bytes(b'{"a": 1}\nnothing\n[1]\n\xff\xfe\n{"a": 2}\n')
    reader = Reader(file)
    assert list(reader.each()) == [{"a": 1}, {"a": 2}]
    assert reader.damaged == 3


def test_a_last_line_that_is_half_written_is_no_damage(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_bytes(b'{"a": 1}\n{"a": ')
    reader = Reader(file)
    assert list(reader.each()) == [{"a": 1}]
    assert reader.damaged == 0


def test_no_file_has_no_records(tmp_path: Path) -> None:
    assert list(Reader(tmp_path / "none").each()) == []


def test_what_is_not_wanted_is_not_even_read(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_bytes(b'nothing\n{"a": 1}\n')
    reader = Reader(file)
    assert list(reader.each(lambda line: line != b"nothing\n")) == [{"a": 1}]
    assert reader.damaged == 0


def test_the_collector_is_as_it_was_afterwards() -> None:
    assert gc.isenabled()
    with without_collector():
        assert not gc.isenabled()
    assert gc.isenabled()
