"""Tests of which directories are runs, what they are called, and what is read of broken ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from dist_train.errors import ConfigError
from dist_train.report.subjects import find, flat, labels
from tests.report.conftest import MakeRun


def test_every_directory_that_is_none_of_a_run_is_refused_by_name(tmp_path: Path, make_run: MakeRun) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as refused:
        find([make_run(), tmp_path / "other", tmp_path / "nowhere", tmp_path / "file"])
    other, nowhere, file = refused.value.problems
    assert other.startswith(f"{tmp_path / 'other'}: no run directory")
    assert nowhere.startswith(f"{tmp_path / 'nowhere'}: no such directory")
    assert file.startswith(f"{tmp_path / 'file'}: a file")


def test_settings_are_known_by_their_paths(make_run: MakeRun) -> None:
    (subject,) = find([make_run(summary={"status": "done"})])
    assert subject.settings == {"name": "tiny", "parallel.mode": "sync", "parallel.workers": 1}
    assert subject.summary == {"status": "done"}
    assert flat({"a": {"b": [1, 2], "c": {}}}) == {"a.b": [1, 2], "a.c": {}}


def test_files_that_were_cut_short_are_no_obstacle(make_run: MakeRun) -> None:
    directory = make_run(config="a: [1, ")
    (directory / "summary.json").write_text('{"status": "do')
    (subject,) = find([directory])
    assert subject.configuration == "a: [1, "
    assert (subject.settings, subject.summary) == ({}, {})


def test_a_run_with_only_metrics_is_a_run(make_run: MakeRun) -> None:
    directory = make_run()
    (directory / "config.yaml").unlink()
    assert find([directory])[0].configuration == ""


def test_replicas_are_parts_in_the_order_of_their_numbers(make_run: MakeRun) -> None:
    directory = make_run("pair")
    for number in (10, 2):
        (directory / f"replica_{number}").mkdir()
    (directory / "replica_x").mkdir()
    (subject,) = find([directory])
    assert [label for label, _ in subject.parts] == ["pair, replica 2", "pair, replica 10"]


def test_a_run_that_is_given_twice_counts_once(make_run: MakeRun) -> None:
    directory = make_run()
    assert len(find([directory, directory / ".." / directory.name])) == 1


def test_names_are_as_short_as_tells_them_apart() -> None:
    assert labels([Path("/runs/a/1")]) == ["1"]
    assert labels([Path("/runs/a/1"), Path("/runs/b/2")]) == ["1", "2"]
    assert labels([Path("/runs/a/1"), Path("/runs/b/1")]) == ["a/1", "b/1"]
