"""What is in a checkpoint folder is what was put there, or the damage is named."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed import HashStore

from dist_train.core.checkpoint import (
    DamagedCheckpoint,
    Facts,
    Manifest,
    Part,
    load_part,
    newest,
    rank_part,
    summaries,
    verify,
)
from dist_train.core.commit import Committer, Draft
from dist_train.exchange.ballot import StoreBallot

FILES = ["manifest.json", "state.safetensors", "state.json", "rank_00000.safetensors", "rank_00000.json"]


def save(directory: Path, step: int) -> Path:
    state = Part({"weight": torch.full((10,), float(step)), "größe/☃": torch.ones(())}, {"updates": step})
    parts = {"state": state, rank_part(0): Part({"rng": torch.arange(8, dtype=torch.uint8)}, {})}
    committer = Committer(directory, 0, 1, "a", StoreBallot(HashStore(), "c", 0, 1), (10, None))
    outcome = committer.commit(Draft(1, step, Facts(step * 32, "c0ffee"), parts))
    assert outcome.path is not None
    assert outcome.path.name == f"step_{step:08d}"
    return outcome.path


def flip_one_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_checkpoint_holds_what_was_saved_and_nothing_else(tmp_path):
    path = save(tmp_path, 7)
    assert sorted(file.name for file in path.iterdir()) == sorted(FILES)
    manifest = verify(path)
    assert (manifest.step, manifest.workers, manifest.attempt) == (7, 1, "a")
    assert manifest.facts == Facts(224, "c0ffee", torch.__version__)
    part = load_part(path, "state")
    assert torch.equal(part.tensors["weight"], torch.full((10,), 7.0))
    assert part.tensors["größe/☃"].shape == ()
    assert part.values == {"updates": 7}


def test_latest_names_the_folder(tmp_path):
    save(tmp_path, 7)
    save(tmp_path, 8)
    assert (tmp_path / "latest").read_text().strip() == "step_00000008"


@pytest.mark.parametrize("file", FILES[1:])
def test_a_flipped_bit_is_found_and_named(tmp_path, file):
    path = save(tmp_path, 7)
    if (path / file).stat().st_size == 2:  # the empty object
        (path / file).write_text("[]")
    else:
        flip_one_bit(path / file)
    with pytest.raises(DamagedCheckpoint, match="content has changed") as caught:
        verify(path)
    assert caught.value.file == file


@pytest.mark.parametrize("file", FILES)
def test_a_truncated_file_is_found_and_named(tmp_path, file):
    path = save(tmp_path, 7)
    os.truncate(path / file, (path / file).stat().st_size - 1)
    with pytest.raises(DamagedCheckpoint) as caught:
        verify(path)
    assert caught.value.file == file


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_found_and_named(tmp_path, file):
    path = save(tmp_path, 7)
    (path / file).unlink()
    with pytest.raises(DamagedCheckpoint, match="is missing") as caught:
        verify(path)
    assert caught.value.file == file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw | {"format": 99}, "format 99 is not the one this version reads"),
        (
            lambda raw: raw | {"files": {"../../etc/passwd": {"size": 1, "sha256": ""}}},
            "outside the checkpoint",
        ),
        (lambda raw: {"format": 1}, "is not a manifest"),
        (lambda raw: [], "is not a manifest"),
    ],
)
def test_a_foreign_manifest_is_refused(tmp_path, change, message):
    path = save(tmp_path, 7)
    raw = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(change(raw)))
    with pytest.raises(DamagedCheckpoint, match=message):
        verify(path)


def test_a_manifest_survives_its_encoding(tmp_path):
    manifest = verify(save(tmp_path, 7))
    assert Manifest.decode(manifest.encode()) == manifest


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_a_planted_pickle_is_never_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "checkpoints", 7)
    for name in ("state.pt", ".metadata", "state.pkl"):
        (path / name).write_bytes(pickle.dumps(Bomb()))
    opened: list[str] = []
    # An audit hook cannot be removed again: it goes silent with the list.
    watching = [True]
    sys.addaudithook(
        lambda event, args: opened.append(str(args[0])) if watching and event == "open" else None
    )
    found, _ = newest(tmp_path / "checkpoints")
    load_part(path, "state")
    watching.clear()
    assert found is not None
    assert any(name.endswith("state.json") for name in opened)
    assert not [name for name in opened if name.endswith((".pt", ".metadata", ".pkl"))]
    assert not Path("exploded").exists()


def test_a_pickle_in_place_of_a_file_is_damage(tmp_path):
    path = save(tmp_path, 7)
    (path / "state.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DamagedCheckpoint, match=r"state\.safetensors: has \d+ bytes"):
        load_part(path, "state")


def test_the_newest_that_verifies_is_found_and_what_was_passed_over_is_told(tmp_path):
    for step in (5, 6, 7, 8):
        save(tmp_path, step)
    flip_one_bit(tmp_path / "step_00000008" / "state.safetensors")
    (tmp_path / "step_00000007" / "manifest.json").unlink()
    found, rejected = newest(tmp_path)
    assert found is not None
    assert (found.path.name, found.manifest.step) == ("step_00000006", 6)
    assert [(r.path.name, r.reason) for r in rejected] == [
        ("step_00000008", "state.safetensors: its content has changed since it was written"),
        ("step_00000007", "manifest.json: is missing: the checkpoint was never committed"),
    ]


def test_without_checkpoints_there_is_no_newest(tmp_path):
    assert newest(tmp_path / "absent") == (None, [])
    (tmp_path / "step_7").mkdir()
    (tmp_path / "notes.txt").touch()
    assert newest(tmp_path) == (None, [])


def test_a_checkpoint_moved_aside_counts_while_its_successor_is_not_whole(tmp_path):
    path = save(tmp_path, 7)
    path.rename(tmp_path / ".old-step_00000007")
    found, rejected = newest(tmp_path)
    assert found is not None
    assert (found.manifest.step, rejected) == (7, [])


def test_an_absent_part_is_refused_with_the_number_of_workers(tmp_path):
    path = save(tmp_path, 7)
    with pytest.raises(
        DamagedCheckpoint, match=r"rank_00003\.json: is not part of it \(written by 1 workers"
    ):
        load_part(path, rank_part(3))


def test_summaries_tell_the_whole_from_the_damaged(tmp_path):
    sizes = [sum(file.stat().st_size for file in save(tmp_path, step).iterdir()) for step in (5, 6)]
    flip_one_bit(tmp_path / "step_00000006" / "state.safetensors")
    good, bad = summaries(tmp_path)
    assert (good.step, good.samples, good.size, good.problem) == (5, 160, sizes[0], None)
    assert (bad.step, bad.samples, bad.size) == (6, None, sizes[1])
    assert bad.problem is not None
    assert bad.problem.startswith("state.safetensors")


def test_an_error_survives_the_way_between_processes(tmp_path):
    error = DamagedCheckpoint(tmp_path, "state.json", "is missing")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
