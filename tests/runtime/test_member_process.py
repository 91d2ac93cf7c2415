"""A member's process as an object of this one: how it ends, and what it says then."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dist_train.errors import DONE, FAILED, REFUSED, ConfigError, Mismatch
from dist_train.rules.liveness import Beat
from dist_train.runtime import member_process
from dist_train.runtime import run_dir as directories
from dist_train.runtime.letters import Assignment, Ended
from dist_train.runtime.member_process import MemberProcess
from dist_train.runtime.place import Place


class PlainHeart:
    """Says that its process is in the backward pass of step 7."""

    def __init__(self, *who: Any) -> None:
        self.who = who
        self.closed = 0
        self.pulse = SimpleNamespace(beat=lambda rank: Beat(rank, 7, "backward", 0.0, 0.0))

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(autouse=True)
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member_process, "redirect_output", lambda path: None)
    monkeypatch.setattr(member_process, "leave_interrupts_to_the_conductor", lambda: None)
    monkeypatch.setattr(member_process.children, "dump_stacks_on_request", lambda: None)
    monkeypatch.setattr(member_process, "node_address", lambda: "127.0.0.1")
    monkeypatch.setattr(member_process, "Heart", PlainHeart)


class Trainee(MemberProcess):
    """Worker 3, the second of its group; all it does is fail with ``error``, if there is one."""

    def __init__(
        self, run_dir: Path, error: BaseException | None = None, word: str = "", incarnation: int = 5
    ) -> None:
        config: Any = SimpleNamespace(parallel=SimpleNamespace(group_size=2))
        coordinator: Any = None
        super().__init__(Assignment(config, run_dir, 4, 3, 1, incarnation, 1, coordinator, word=word))
        self.error = error
        self.places: list[Place] = []

    @property
    def heart(self) -> PlainHeart:
        return cast(PlainHeart, self._heart)

    def _serve(self, place: Place) -> None:
        self.places.append(place)
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        assert self._listener is not None
        self._listener.close()


def run(process: MemberProcess, meeting: tuple[str, int] | None = None) -> Ended:
    return asyncio.run(process.run(meeting))


def test_its_heart_has_its_number_among_all_workers_and_its_incarnation(tmp_path: Path) -> None:
    assert Trainee(tmp_path).heart.who[1:] == ("worker", 3, 5)


class TestItsEnd:
    def test_leaves_no_report_when_all_went_well(self, tmp_path: Path) -> None:
        assert run(Trainee(tmp_path)) == Ended(DONE)
        assert not directories.crash_file(tmp_path, 3).exists()

    @pytest.mark.parametrize("error", [ValueError("too large"), SystemExit("too large")])
    def test_by_an_error_says_which_and_where(self, tmp_path: Path, error: BaseException) -> None:
        kind = type(error).__name__
        assert run(Trainee(tmp_path, error)) == Ended(FAILED, 7, "backward", kind, f"{kind}: too large")

    def test_by_an_error_leaves_a_report(self, tmp_path: Path) -> None:
        run(Trainee(tmp_path, ValueError("too large")))
        report = json.loads(directories.crash_file(tmp_path, 3).read_text())
        assert (report["error"], report["phase"], report["step"]) == ("ValueError: too large", "backward", 7)

    # When a successor comes, the others train already: it alone has failed.
    @pytest.mark.parametrize(("incarnation", "status"), [(0, REFUSED), (1, FAILED)])
    @pytest.mark.parametrize("error", [ConfigError("no such layer"), Mismatch("no such layer")])
    def test_by_a_refusal_is_told_in_the_words_for_the_user(
        self, tmp_path: Path, error: Exception, incarnation: int, status: int
    ) -> None:
        ended = run(Trainee(tmp_path, error, incarnation=incarnation))
        assert (ended.status, ended.error) == (status, "no such layer")

    @pytest.mark.parametrize("error", [None, ValueError("too large")])
    def test_is_the_end_of_its_heart(self, tmp_path: Path, error: Exception | None) -> None:
        process = Trainee(tmp_path, error)
        run(process)
        assert process.heart.closed == 1


def test_it_trains_once_however_often_it_is_asked_to(tmp_path: Path) -> None:
    process = Trainee(tmp_path)

    async def asked_twice() -> list[Ended]:
        return await asyncio.gather(process.run(None), process.run(None))

    assert asyncio.run(asked_twice()) == [Ended(DONE), Ended(DONE)]
    assert len(process.places) == 1


class TestAGroupMeets:
    def test_at_one_port_however_often_it_is_asked_for(self, tmp_path: Path) -> None:
        process = Trainee(tmp_path)
        meeting = process.meeting_point()
        assert process.meeting_point() == meeting
        with socket.create_connection(meeting, timeout=5):
            pass
        process.close()

    def test_where_its_first_worker_listens(self, tmp_path: Path) -> None:
        process = Trainee(tmp_path)
        meeting = process.meeting_point()
        run(process, meeting)
        (place,) = process.places
        assert (place.master_address, place.master_port) == meeting
        assert place.listen_fd is not None
        with socket.socket(fileno=place.listen_fd) as listener:
            assert listener.getsockname() == meeting
        process.close()

    def test_with_each_worker_at_its_rank_in_the_group(self, tmp_path: Path) -> None:
        process = Trainee(tmp_path)
        run(process, ("10.0.0.7", 4321))
        (place,) = process.places
        assert (place.rank, place.workers, place.attempt, place.listen_fd) == (1, 2, 5, None)


class TestOnAMachineWithAnotherRunDirectory:
    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(directories, "SEEN_AFTER_S", 0.0)

    @pytest.mark.parametrize(("incarnation", "status"), [(0, REFUSED), (1, FAILED)])
    def test_it_refuses_the_run_or_as_a_successor_fails_alone(
        self, tmp_path: Path, incarnation: int, status: int
    ) -> None:
        process = Trainee(tmp_path / "run", word="left elsewhere", incarnation=incarnation)
        ended = run(process)
        assert ended.status == status
        assert "give a --run-dir on storage that all machines of the cluster share" in ended.error
        assert process.places == []
        assert process.heart.closed == 1
        assert list(tmp_path.iterdir()) == []
