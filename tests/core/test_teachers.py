"""Tests of a replica's teachers: taken from a board in the background, changed on all workers at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dist_train.config.schema import Codistill
from dist_train.core.checkpoint import Part
from dist_train.core.teachers import Among, Following, PostedTeachers
from dist_train.errors import TrainingError
from dist_train.exchange.board import MemoryBoard, PostGone
from dist_train.exchange.collective import Alone
from dist_train.rules.teacher_script import Script


class AtOnce(Executor):
    """Does what it is given before it answers."""

    def submit(self, work: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(work(*given, **named))
        except Exception as error:
            done.set_exception(error)
        return done


class ByHand(AtOnce):
    """Does nothing until it is told to."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, work: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, lambda: work(*given, **named)))
        return future

    def go_on(self) -> None:
        waiting, self.waiting = self.waiting, []
        for future, work in waiting:
            future.set_result(work())


class Beside:
    """A group of two in which the other worker says what it is told to say."""

    workers = 2

    def __init__(self) -> None:
        self.other: Callable[[list[int]], list[int]] = list

    def sum(self, values: Tensor) -> Tensor:
        return 2 * values

    def gather(self, values: Tensor) -> Tensor:
        return torch.stack([values, torch.tensor(self.other(values.tolist()), dtype=values.dtype)])

    def tell(self, said: bytes) -> bytes:
        return said

    def barrier(self) -> None: ...


FIRST_OF_TWO = Among(0, (1,), leads=True)


def model(weight: float = 0.0) -> nn.Module:
    made = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    made[0].weight.data.fill_(weight)
    return made


def tensors(weight: float, mean: float = 0.0) -> dict[str, Tensor]:
    made = model(weight)
    made[1].running_mean.fill_(mean)  # type: ignore[operator, union-attr]
    return {name: tensor.clone() for name, tensor in made.state_dict().items()}


def asked(models: Sequence[nn.Module], batch: Tensor) -> list[Tensor]:
    return [each(batch) for each in models]


def teachers(
    board: MemoryBoard,
    terms: Codistill | None = None,
    among: Among = FIRST_OF_TWO,
    **other: Any,
) -> tuple[PostedTeachers, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    parts = {"collective": Alone(), "background": AtOnce()} | other
    made = PostedTeachers(among, terms or Codistill(interval=1), board, asked, **parts)
    made.on_event = events.append
    made.begin(model(), 0)
    return made, events


def weights(found: PostedTeachers, updates: int) -> list[float]:
    return [float(each[0].weight) for _, each in found.in_force(updates)]  # type: ignore[index]


def run(found: PostedTeachers, first: int, last: int) -> None:
    for updates in range(first, last + 1):
        found.after(updates)


class TestTakingUp:
    def test_nobody_teaches_before_the_first_post(self) -> None:
        found, events = teachers(MemoryBoard())
        run(found, 1, 10)
        assert (weights(found, 10), events) == ([], [])

    def test_a_post_is_taken_up_a_few_updates_later(self) -> None:
        board = MemoryBoard()
        found, events = teachers(board)
        board.post(1, 4, tensors(5.0))
        run(found, 1, 3)
        assert weights(found, 3) == [5.0]
        assert events == [{"event": "teacher", "step": 3, "replica": 1, "version": 4}]

    def test_the_newest_post_wins(self) -> None:
        board = MemoryBoard()
        found, _ = teachers(board)
        board.post(1, 4, tensors(5.0))
        run(found, 1, 3)
        board.post(1, 5, tensors(6.0))
        board.post(1, 6, tensors(7.0))
        run(found, 4, 6)
        assert weights(found, 6) == [7.0]

    def test_its_running_statistics_come_with_it_and_stay_as_they_are(self) -> None:
        board = MemoryBoard()
        found, _ = teachers(board)
        board.post(1, 4, tensors(1.0, mean=3.0))
        run(found, 1, 3)
        ((_, teacher),) = found.in_force(3)
        # (2 - 3) / sqrt(1 + 1e-5), whatever else is in the batch.
        assert float(teacher(torch.tensor([[2.0], [7.0]]))[0]) == pytest.approx(-1, abs=1e-4)
        assert float(teacher[1].running_mean) == 3.0  # type: ignore[index]

    def test_it_never_learns(self) -> None:
        board = MemoryBoard()
        found, _ = teachers(board)
        board.post(1, 4, tensors(1.0))
        run(found, 1, 3)
        ((_, teacher),) = found.in_force(3)
        assert not any(parameter.requires_grad for parameter in teacher.parameters())

    def test_a_step_does_not_wait_for_the_board(self) -> None:
        board, background = MemoryBoard(), ByHand()
        found, _ = teachers(board, background=background)
        board.post(1, 4, tensors(5.0))
        run(found, 1, 20)
        assert weights(found, 20) == []
        background.go_on()
        run(found, 21, 21)
        background.go_on()
        run(found, 22, 22)
        assert weights(found, 22) == [5.0]

    def test_what_cannot_be_read_is_left_for_what_comes_next(self) -> None:
        class Damaged(MemoryBoard):
            def read(self, replica: int, version: int) -> dict[str, Tensor]:
                return super().read(replica, version if version > 4 else -1)

        board = Damaged()
        found, _ = teachers(board)
        board.post(1, 4, tensors(5.0))
        run(found, 1, 5)
        assert weights(found, 5) == []
        board.post(1, 8, tensors(8.0))
        run(found, 6, 9)
        assert weights(found, 9) == [8.0]

    def test_what_cannot_be_read_is_told_of_once(self) -> None:
        class Damaged(MemoryBoard):
            def read(self, replica: int, version: int) -> dict[str, Tensor]:
                raise TrainingError("not the snapshot")

        board = Damaged()
        found, events = teachers(board)
        for first, version in ((1, 4), (8, 9)):
            board.post(1, version, tensors(5.0))
            run(found, first, first + 6)
        told = [(event["event"], event["replica"], event["version"], event["warning"]) for event in events]
        assert told == [
            ("teacher_unreadable", 1, 4, "post 4 of replica 1: not the snapshot"),
            ("teacher_unreadable", 1, 9, "post 9 of replica 1: not the snapshot"),
        ]

    def test_what_has_made_room_for_newer_posts_is_no_loss_to_tell_of(self) -> None:
        class Late(MemoryBoard):
            def read(self, replica: int, version: int) -> dict[str, Tensor]:
                raise PostGone("not there any more")

        board = Late()
        found, events = teachers(board)
        board.post(1, 4, tensors(5.0))
        run(found, 1, 9)
        assert events == []

    def test_what_is_seen_is_read_before_newer_posts_take_its_place(self) -> None:
        """The other replica makes many updates in one of the student's, and posts after each."""
        board = MemoryBoard()
        found, events = teachers(board)
        for updates in range(1, 31):
            for other in range(10 * updates, 10 * updates + 10):
                board.post(1, other, tensors(float(other)))
            run(found, updates, updates)
        ages = [event["step"] * 10 - event["version"] for event in events]
        assert {event["event"] for event in events} == {"teacher"}
        assert (len(events), max(ages)) == (14, 11)

    def test_a_board_that_cannot_be_looked_at_is_told_of_once(self) -> None:
        class Closed(MemoryBoard):
            closed = True

            def newest(self, replica: int) -> int | None:
                if self.closed:
                    raise PermissionError(13, "Permission denied")
                return super().newest(replica)

        board = Closed()
        found, events = teachers(board)
        run(found, 1, 9)
        (told,) = events
        assert told["event"] == "board_unreadable"
        assert "Permission denied" in told["warning"]
        board.closed = False
        board.post(1, 4, tensors(5.0))
        run(found, 10, 15)
        assert weights(found, 15) == [5.0]

    def test_several_teach_in_the_order_of_their_numbers(self) -> None:
        board = MemoryBoard()
        found, _ = teachers(board, among=Among(1, (0, 2), leads=True))
        for replica in (2, 0):
            board.post(replica, 1, tensors(float(replica)))
        run(found, 1, 3)
        assert weights(found, 3) == [0.0, 2.0]


class TestTogether:
    def test_nobody_changes_before_all_workers_have_it(self) -> None:
        board, group = MemoryBoard(), Beside()
        found, _ = teachers(board, collective=group)
        board.post(1, 4, tensors(5.0))
        # The other one has nothing loaded yet: newest, loaded, failed.
        group.other = lambda own: [own[0], -1, 0]
        run(found, 1, 9)
        assert weights(found, 9) == []
        group.other = list
        run(found, 10, 10)
        assert weights(found, 10) == [5.0]

    def test_all_begin_with_what_the_leader_chose_or_none(self) -> None:
        for other, expected in ((1.0, [5.0]), (0.0, [])):
            board, group = MemoryBoard(), Beside()
            board.post(1, 4, tensors(5.0))
            found, _ = teachers(board, collective=group)
            group.other = lambda own, other=other: [other]  # type: ignore[misc]
            found.take_newest(3)
            assert weights(found, 3) == expected

    def test_what_one_cannot_read_all_give_up(self) -> None:
        board, group = MemoryBoard(), Beside()
        found, _ = teachers(board, collective=group)
        board.post(1, 4, tensors(5.0))
        group.other = lambda own: [own[0], -1, int(own[1] == 4)]
        run(found, 1, 5)
        group.other = list
        board.post(1, 8, tensors(8.0))
        run(found, 6, 9)
        assert weights(found, 9) == [8.0]

    def test_what_another_cannot_read_is_told_of(self) -> None:
        board, group = MemoryBoard(), Beside()
        found, events = teachers(board, collective=group)
        board.post(1, 4, tensors(5.0))
        group.other = lambda own: [own[0], -1, 2 * int(own[1] == 4)]
        run(found, 1, 9)
        (told,) = events
        assert told["warning"] == "post 4 of replica 1: another worker of the group cannot read it"

    def test_who_does_not_lead_goes_by_what_the_leader_says(self) -> None:
        board, group = MemoryBoard(), Beside()
        found, _ = teachers(board, collective=group, among=Among(0, (1,), leads=False))
        board.post(1, 4, tensors(5.0))
        run(found, 1, 9)
        assert weights(found, 9) == []


class TestPosting:
    def test_parameters_and_statistics_are_posted_once_an_interval(self) -> None:
        board = MemoryBoard()
        found, _ = teachers(board, Codistill(interval=3))
        run(found, 1, 7)
        assert board.newest(0) == 6
        assert set(board.read(0, 6)) == set(model().state_dict())

    def test_only_the_leading_worker_posts(self) -> None:
        board = MemoryBoard()
        found, _ = teachers(board, among=Among(0, (1,), leads=False))
        run(found, 1, 3)
        assert board.newest(0) is None

    def test_a_post_that_is_under_way_is_not_waited_for(self) -> None:
        background = ByHand()
        found, events = teachers(MemoryBoard(), background=background)
        run(found, 1, 2)
        assert [event["event"] for event in events] == ["post_skipped"]

    def test_nothing_is_posted_before_the_burn_in_is_over(self) -> None:
        board = MemoryBoard()
        found, _ = teachers(board, Codistill(interval=2, burn_in=5))
        run(found, 1, 5)
        assert board.newest(0) is None
        run(found, 6, 6)
        assert board.newest(0) == 6

    def test_a_later_group_posts_when_those_before_it_have_left_one_out(self) -> None:
        board = MemoryBoard()
        found, _ = teachers(board, Codistill(interval=2), among=Among(0, (1,), leads=True, turn=1))
        board.post(0, 2, tensors(1.0))
        run(found, 1, 5)
        assert board.newest(0) == 2
        run(found, 6, 6)
        assert board.newest(0) == 6

    def test_versions_that_are_skipped_do_not_hide_that_a_post_is_due(self) -> None:
        board = MemoryBoard()
        found, _ = teachers(board, Codistill(interval=5))
        for updates in (3, 7, 9, 11):
            found.after(updates)
        assert board.newest(0) == 11

    def test_a_failure_of_the_last_post_is_told_of_in_the_end(self) -> None:
        class Full(MemoryBoard):
            def post(self, replica: int, version: int, tensors: Any) -> None:
                raise OSError(28, "No space left on device")

        found, events = teachers(Full())
        run(found, 1, 1)
        found.settle()
        assert [event["event"] for event in events] == ["post_failed"]

    def test_a_post_that_takes_too_long_in_the_end_is_told_of(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dist_train.core.poster.SETTLE_S", 0.0)
        found, events = teachers(MemoryBoard(), background=ByHand())
        run(found, 1, 1)
        found.close()
        found.close()
        (event,) = events
        assert (event["event"], event["step"]) == ("post_failed", 1)
        assert event["warning"] == (
            "board: post 1 was not written: not done within 0 s; training ends without it"
        )

    def test_what_is_not_finite_is_told_of_and_not_posted(self) -> None:
        board = MemoryBoard()
        found, events = teachers(board)
        found._model[0].weight.data.fill_(float("nan"))  # type: ignore[index, union-attr]
        run(found, 1, 1)
        found.settle()
        assert board.newest(0) is None
        assert "0.weight holds NaN or infinity" in events[0]["warning"]

    def test_a_board_that_refuses_is_told_of_and_tried_again(self) -> None:
        class Full(MemoryBoard):
            def post(self, replica: int, version: int, tensors: Any) -> None:
                if version == 1:
                    raise OSError(28, "No space left on device")
                super().post(replica, version, tensors)

        board = Full()
        found, events = teachers(board)
        run(found, 1, 2)
        assert events[0]["event"] == "post_failed"
        assert "No space left" in events[0]["warning"]
        assert board.newest(0) == 2


class TestAge:
    def test_who_has_been_silent_for_too_long_is_left_out_and_named_once(self) -> None:
        board = MemoryBoard()
        found, events = teachers(board, Codistill(interval=1, max_age=10))
        board.post(1, 1, tensors(5.0))
        run(found, 1, 13)
        assert weights(found, 13) == [5.0]
        run(found, 14, 20)
        assert weights(found, 20) == []
        (gone,) = (event for event in events if event["event"] == "teacher_gone")
        assert gone["step"] == 14
        assert gone["warning"] == (
            "nothing newer of replica 1 could be taken up for 11 updates (codistill.max_age): training goes "
            "on without it until it posts again"
        )

    def test_it_teaches_again_once_it_posts_again(self) -> None:
        board = MemoryBoard()
        found, events = teachers(board, Codistill(interval=1, max_age=10))
        board.post(1, 1, tensors(5.0))
        run(found, 1, 15)
        board.post(1, 14, tensors(6.0))
        run(found, 16, 18)
        assert weights(found, 18) == [6.0]
        assert [(event["event"], event["step"]) for event in events[-2:]] == [
            ("teacher", 18),
            ("teacher_back", 18),
        ]

    @pytest.mark.parametrize("pace", [1 / 3, 3])
    def test_one_that_posts_every_interval_teaches_for_good_however_slow_or_fast_it_is(
        self, pace: float
    ) -> None:
        board = MemoryBoard()
        found, events = teachers(board, Codistill(interval=10, max_age=100))
        for updates in range(1, 1000):
            other = int(updates * pace)
            if other and other % 10 == 0:
                board.post(1, other, tensors(float(other)))
            run(found, updates, updates)
            assert updates < 40 or weights(found, updates)
        assert "teacher_gone" not in [event["event"] for event in events]

    def test_one_that_goes_back_teaches_on_by_its_last_post_until_that_is_too_old(self) -> None:
        board = MemoryBoard()
        found, events = teachers(board, Codistill(interval=1, max_age=10))
        board.post(1, 500, tensors(5.0))
        run(found, 1, 5)
        board.begin(1, 400)
        for updates in range(6, 20):
            board.post(1, 400 + updates, tensors(6.0))
            run(found, updates, updates)
        assert [event["step"] for event in events if event["event"] == "teacher_gone"] == [14]

    def test_one_that_never_posts_is_named_once_the_burn_in_and_that_time_are_over(self) -> None:
        found, events = teachers(MemoryBoard(), Codistill(interval=1, burn_in=5, max_age=10))
        run(found, 1, 15)
        assert events == []
        run(found, 16, 30)
        (gone,) = events
        assert (gone["event"], gone["step"]) == ("teacher_gone", 16)
        assert gone["warning"].startswith("nothing of replica 1 could be taken up for 11 updates")

    def test_who_is_left_out_is_not_among_those_that_teach(self) -> None:
        board = MemoryBoard()
        found, _ = teachers(board, Codistill(interval=1, max_age=10), among=Among(0, (1, 2), leads=True))
        board.post(1, 1, tensors(5.0))
        board.post(2, 4, tensors(6.0))
        run(found, 1, 5)
        board.post(2, 8, tensors(7.0))
        run(found, 6, 14)
        assert [found.teaching(updates) for updates in (13, 14)] == [{1: 1, 2: 8}, {2: 8}]
        assert found.gone == (1,)
        # A checkpoint keeps it: the other one may go on where it was.
        assert found.versions == {1: 1, 2: 8}


class TestCheckpoints:
    def test_a_resumed_replica_has_the_teachers_that_it_had(self) -> None:
        board = MemoryBoard()
        found, _ = teachers(board)
        board.post(1, 4, tensors(5.0, mean=2.0))
        run(found, 1, 3)
        resumed, _ = teachers(MemoryBoard())
        resumed.restore(found.part())
        assert weights(resumed, 3) == [5.0]
        assert float(resumed.in_force(3)[0][1][1].running_mean) == 2.0  # type: ignore[index]

    @staticmethod
    def resumed_at(updates: int) -> tuple[PostedTeachers, list[dict[str, Any]]]:
        """Teachers as a checkpoint after ``updates`` had them, of which replica 1 posted version 4 alone."""
        board, terms = MemoryBoard(), Codistill(interval=1, max_age=10)
        found, _ = teachers(board, terms)
        board.post(1, 4, tensors(5.0))
        run(found, 1, updates)
        resumed, events = teachers(MemoryBoard(), terms)
        resumed.begin(model(), updates)
        resumed.restore(found.part())
        return resumed, events

    def test_it_goes_on_with_them_as_long_as_if_it_had_never_stopped(self) -> None:
        resumed, events = self.resumed_at(9)
        run(resumed, 10, 20)
        assert [event["step"] for event in events if event["event"] == "teacher_gone"] == [14]

    def test_whom_it_went_on_without_is_not_told_again(self) -> None:
        resumed, events = self.resumed_at(20)
        run(resumed, 21, 25)
        assert (events, resumed.gone) == ([], (1,))

    def test_one_of_which_a_checkpoint_only_says_the_version_counts_as_taken_up_there(self) -> None:
        board, terms = MemoryBoard(), Codistill(interval=1, max_age=10)
        found, _ = teachers(board, terms)
        board.post(1, 4, tensors(5.0))
        run(found, 1, 9)
        resumed, _ = teachers(MemoryBoard(), terms)
        resumed.begin(model(), 9)
        resumed.restore(Part(found.part().tensors, {"1": 4}))
        assert [weights(resumed, updates) for updates in (19, 20)] == [[5.0], []]

    def test_without_teachers_there_is_nothing_to_restore(self) -> None:
        found, _ = teachers(MemoryBoard())
        resumed, _ = teachers(MemoryBoard())
        resumed.restore(found.part())
        assert weights(resumed, 0) == []

    def test_one_that_begins_again_takes_what_is_on_the_board(self) -> None:
        board = MemoryBoard()
        board.post(1, 4, tensors(5.0))
        found, _ = teachers(board)
        found.take_newest(3)
        assert (weights(found, 3), found.versions) == ([5.0], {1: 4})

    def test_what_it_cannot_read_then_is_told_of(self) -> None:
        class Damaged(MemoryBoard):
            def read(self, replica: int, version: int) -> dict[str, Tensor]:
                raise TrainingError("damaged")

        board = Damaged()
        board.post(1, 4, tensors(5.0))
        found, events = teachers(board)
        found.take_newest(3)
        assert weights(found, 3) == []
        said = {"replica": 1, "version": 4, "warning": "damaged"}
        assert events == [{"event": "teacher_unreadable", "step": 3, **said}]


class TestScript:
    def test_changes_are_made_after_the_updates_that_are_written(self) -> None:
        board = MemoryBoard()
        script = Script({2: ((1, 4),), 5: ((1, 6),)})
        found, events = teachers(board, follows=Following(script))
        for version in (4, 6):
            board.post(1, version, tensors(float(version)))
        in_force = []
        for updates in range(1, 7):
            found.after(updates)
            in_force.append(weights(found, updates))
        assert in_force == [[], [4.0], [4.0], [4.0], [6.0], [6.0]]
        assert [(event["step"], event["version"]) for event in events] == [(2, 4), (5, 6)]

    def test_a_post_that_never_comes_is_named(self) -> None:
        found, _ = teachers(MemoryBoard(), follows=Following(Script({1: ((1, 4),)}), patience_s=0.0))
        with pytest.raises(TrainingError, match=r"waited 0 s \(parallel.timeout_s\) for post 4 of replica 1"):
            found.after(1)

    def test_one_that_stops_leaves_the_change_to_the_run_that_goes_on(self) -> None:
        board, script = MemoryBoard(), Script({1: ((1, 3),), 2: ((1, 4),)})
        board.post(1, 3, tensors(3.0))
        waited: list[int] = []
        # All stop while it waits.
        follows = Following(script, 1000.0, lambda boundary: waited.append(boundary) or len(waited) > 3)
        found, _ = teachers(board, follows=follows)
        run(found, 1, 2)
        assert (waited, weights(found, 2)) == ([2] * 4, [3.0])

        board.post(1, 4, tensors(4.0))
        resumed, events = teachers(board, follows=Following(script))
        resumed.begin(model(), 2)
        resumed.restore(found.part())
        assert weights(resumed, 2) == [4.0]
        assert events == [{"event": "teacher", "step": 2, "replica": 1, "version": 4}]

    def test_it_leaves_out_no_post_that_others_may_need(self) -> None:
        gate = threading.Event()

        class Slow(MemoryBoard):
            def post(self, replica: int, version: int, tensors: Any) -> None:
                gate.wait()
                super().post(replica, version, tensors)

        board = Slow()
        with ThreadPoolExecutor(1) as background:
            found, events = teachers(board, follows=Following(Script()), background=background)
            found.after(1)
            gate.set()
            found.after(2)
            found.settle()
        assert (board.newest(0), events) == (2, [])
        assert board.read(0, 1)

    def test_one_that_stops_does_not_wait_for_the_board_and_posts_when_it_goes_on(self) -> None:
        board, background, waited = MemoryBoard(), ByHand(), list[int]()
        follows = Following(Script(), stops_at=lambda boundary: waited.append(boundary) or len(waited) > 3)
        found, events = teachers(board, background=background, follows=follows)
        run(found, 1, 2)
        assert ([event["event"] for event in events], waited) == (["post_skipped"], [2] * 4)
        resumed, _ = teachers(board, follows=Following(Script()))
        resumed.begin(model(), 2)
        assert board.newest(0) == 2

    def test_a_checkpoint_waits_for_the_last_post_which_no_later_start_would_make_again(self) -> None:
        begun, gate = threading.Event(), threading.Event()

        class Slow(MemoryBoard):
            def post(self, replica: int, version: int, tensors: Any) -> None:
                begun.set()
                gate.wait()
                super().post(replica, version, tensors)

        board, waits = Slow(), list[str]()

        @contextmanager
        def waiting() -> Iterator[None]:
            waits.append("waits")
            gate.set()
            yield

        with ThreadPoolExecutor(1) as background:
            follows = Following(Script(), waiting=waiting)
            found, events = teachers(board, Codistill(interval=5), follows=follows, background=background)
            run(found, 1, 6)
            begun.wait()
            assert board.newest(0) is None
            found.part()
            assert (board.newest(0), waits, events) == (5, ["waits"], [])

    def test_nobody_else_waits_for_a_post_before_a_checkpoint(self) -> None:
        found, _ = teachers(MemoryBoard(), background=ByHand())
        run(found, 1, 1)
        assert found.part().tensors == {}

    def test_it_posts_what_it_had_saved_and_not_posted_when_it_was_killed(self) -> None:
        board = MemoryBoard()
        found, _ = teachers(board, Codistill(interval=2), follows=Following(Script()))
        for updates, newest in ((3, None), (4, 4)):
            found.begin(model(), updates)
            assert board.newest(0) == newest


class Side:
    """Stands in for a stream beside the computation: notes when one waits for the other."""

    def __init__(self) -> None:
        self.events: list[str] = []

    @contextmanager
    def after_compute(self) -> Iterator[None]:
        self.events.append("beside")
        yield

    def before_compute(self) -> None:
        self.events.append("meet")

    def wait(self) -> None: ...


class TestForesight:
    BATCH, ANOTHER = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0]])

    def taught(self) -> tuple[PostedTeachers, Side, MemoryBoard]:
        board, side = MemoryBoard(), Side()
        board.post(1, 4, tensors(5.0))
        found, _ = teachers(board, side=side)
        run(found, 1, 3)
        side.events.clear()
        return found, side, board

    def test_what_was_foreseen_is_not_computed_again(self) -> None:
        found, side, _ = self.taught()
        (expected,) = found.predictions(torch.zeros(2, 1), self.BATCH, 4)
        assert found.foresee is not None
        found.foresee(self.BATCH)
        ((_, teacher),) = found.in_force(4)
        teacher.forward = None  # type: ignore[method-assign, assignment]
        (predicted,) = found.predictions(torch.zeros(2, 1), self.BATCH, 4)
        assert predicted.equal(expected)
        assert side.events == ["beside", "meet"]

    def test_another_batch_is_predicted_when_it_comes(self) -> None:
        found, _, _ = self.taught()
        (expected,) = found.predictions(torch.zeros(2, 1), self.ANOTHER, 4)
        assert found.foresee is not None
        found.foresee(self.BATCH)
        (predicted,) = found.predictions(torch.zeros(2, 1), self.ANOTHER, 4)
        assert predicted.equal(expected)

    def test_a_newer_teacher_predicts_anew_and_changes_only_when_the_older_one_is_done(self) -> None:
        found, side, board = self.taught()
        assert found.foresee is not None
        found.foresee(self.BATCH)
        board.post(1, 6, tensors(7.0))
        run(found, 4, 6)
        assert side.events == ["beside", "meet"]
        (predicted,) = found.predictions(torch.zeros(2, 1), self.BATCH, 6)
        assert predicted[1] / predicted[0] == pytest.approx(2.0)
        assert float(predicted[0]) == pytest.approx(7.0, rel=1e-4)

    def test_nothing_is_computed_before_the_burn_in_is_over(self) -> None:
        board, side = MemoryBoard(), Side()
        board.post(1, 4, tensors(5.0))
        found, _ = teachers(board, Codistill(interval=1, burn_in=5), side=side)
        assert found.foresee is not None
        run(found, 1, 3)
        # For the update after 4: the next one after it is taught.
        for last, foreseen in ((3, []), (4, ["beside"])):
            run(found, last, last)
            side.events.clear()
            found.foresee(self.BATCH)
            assert side.events == foreseen

    def test_nor_without_weight(self) -> None:
        board, side = MemoryBoard(), Side()
        board.post(1, 4, tensors(5.0))
        found, _ = teachers(board, Codistill(interval=1, weight=0.0), side=side)
        run(found, 1, 3)
        side.events.clear()
        assert found.foresee is not None
        found.foresee(self.BATCH)
        assert side.events == []

    def test_without_a_side_nothing_is_foreseen(self) -> None:
        assert teachers(MemoryBoard())[0].foresee is None
