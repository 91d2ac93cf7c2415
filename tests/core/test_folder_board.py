"""Tests of the board as a folder: what a reader sees of a post that is under way, old, or damaged."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_train.core import folder_board
from dist_train.core.folder_board import FolderBoard
from dist_train.errors import TrainingError
from dist_train.exchange.board import KEPT, PostGone


@pytest.fixture
def board(tmp_path: Path) -> FolderBoard:
    (tmp_path / "board").mkdir()
    return FolderBoard(tmp_path / "board")


def file_of(tmp_path: Path, version: int) -> Path:
    (found,) = (tmp_path / "board" / "replica_0").glob(f"{version:012d}*.safetensors")
    return found


def test_the_newest_post_wins_and_is_read_whole(board: FolderBoard) -> None:
    assert board.newest(0) is None
    for version in (50, 100):
        board.post(0, version, {"w": torch.full((3,), float(version)), "n": torch.tensor(version)})
    assert board.newest(0) == 100
    found = board.read(0, 100)
    assert (found["w"].tolist(), int(found["n"])) == ([100.0] * 3, 100)


def test_a_post_under_way_is_none_yet(board: FolderBoard, tmp_path: Path) -> None:
    board.post(0, 50, {"w": torch.zeros(1)})
    (tmp_path / "board" / "replica_0" / "000000000100.1.safetensors").write_bytes(b"half")
    assert board.newest(0) == 50


def test_a_damaged_post_is_refused_by_name(board: FolderBoard, tmp_path: Path) -> None:
    board.post(0, 50, {"w": torch.zeros(1000)})
    content = bytearray(file_of(tmp_path, 50).read_bytes())
    content[-1] ^= 1
    file_of(tmp_path, 50).write_bytes(content)
    with pytest.raises(TrainingError, match=r"000000000050.*safetensors: not the snapshot that replica 0"):
        board.read(0, 50)


def test_a_post_that_was_taken_down_is_refused_by_name(board: FolderBoard, tmp_path: Path) -> None:
    for version in range(KEPT + 1):
        board.post(0, version, {})
    assert list((tmp_path / "board" / "replica_0").glob("000000000000*")) == []
    with pytest.raises(
        PostGone, match=r"000000000000.safetensors: cannot be read, as it is not there any more"
    ):
        board.read(0, 0)


@pytest.mark.parametrize("step", ["file_digest", "read_tensors"])
def test_one_that_is_taken_down_while_it_is_read_is_gone_and_not_damaged(
    board: FolderBoard, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    board.post(0, 0, {"w": torch.zeros(1)})
    where = folder_board.hashlib if step == "file_digest" else folder_board
    go_on = getattr(where, step)

    def late(*given: Any) -> Any:
        for version in range(1, KEPT + 1):
            board.post(0, version, {})
        return go_on(*given)

    monkeypatch.setattr(where, step, late)
    with pytest.raises(PostGone):
        board.read(0, 0)


def test_one_whose_content_alone_is_missing_is_damaged(board: FolderBoard, tmp_path: Path) -> None:
    board.post(0, 50, {"w": torch.zeros(1)})
    file_of(tmp_path, 50).unlink()
    with pytest.raises(TrainingError, match=r"cannot be read \(FileNotFoundError") as raised:
        board.read(0, 50)
    assert not isinstance(raised.value, PostGone)


def test_a_replica_that_went_back_posts_the_same_version_again(board: FolderBoard) -> None:
    board.post(0, 50, {"w": torch.zeros(1)})
    board.begin(0, 40)
    board.post(0, 50, {"w": torch.ones(1)})
    assert board.read(0, 50)["w"].tolist() == [1]


def test_all_posts_stay_where_that_is_asked_for(tmp_path: Path) -> None:
    board = FolderBoard(tmp_path, keep="all")
    for version in range(1, 10):
        board.post(0, version, {"w": torch.full((1,), float(version))})
    assert [float(board.read(0, version)["w"]) for version in range(1, 10)] == [*range(1, 10)]


def test_a_post_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, tensors: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dist_train.core.folder_board.write_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        FolderBoard(tmp_path).post(0, 1, {"w": torch.zeros(1)})
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == []


def test_a_machine_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no such folder on .*; give --run-dir a place on a file system"):
        FolderBoard(tmp_path / "elsewhere")


def test_one_that_begins_again_takes_down_what_is_undone_and_what_a_kill_has_left(board: FolderBoard) -> None:
    for version in (50, 100):
        board.post(0, version, {"w": torch.full((1,), float(version))})
    place = board._place(0)
    (place / ".150.abcd.draft").write_bytes(b"half")
    (place / "000000000150.abcd.safetensors").write_bytes(b"no note")
    board.begin(0, 60)
    assert board.newest(0) == 50
    assert len(list(place.iterdir())) == 2
    assert float(board.read(0, 50)["w"]) == 50


def test_the_first_of_two_posts_of_one_version_is_the_one(board: FolderBoard) -> None:
    for value in (1.0, 2.0):
        board.post(0, 50, {"w": torch.full((1,), value)})
    assert float(board.read(0, 50)["w"]) == 1.0
    assert len(list(board._place(0).iterdir())) == 2


@pytest.mark.parametrize("answer", [errno.EPERM, errno.ENOTSUP])
def test_a_file_system_without_hard_links_will_do(
    board: FolderBoard, monkeypatch: pytest.MonkeyPatch, answer: int
) -> None:
    def refused(note: Path, target: Path) -> None:
        raise OSError(answer, "no links here")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    board.post(0, 50, {"w": torch.ones(1)})
    assert board.read(0, 50)["w"].tolist() == [1]
    assert len(list(board._place(0).iterdir())) == 2
