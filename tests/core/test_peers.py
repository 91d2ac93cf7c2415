"""Tests of teachers who train on the same batches, and of the promise that this is codistillation too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dist_train.config.schema import Codistill
from dist_train.core.lessons import Lessons
from dist_train.core.peers import Peers
from dist_train.core.teachers import Among, PostedTeachers
from dist_train.couplings import Apply, Started
from dist_train.couplings.codistillation import Codistillation, Progress
from dist_train.exchange.board import MemoryBoard
from dist_train.exchange.collective import Alone

CPU = torch.device("cpu")


class TestSwap:
    def test_scores_go_out_and_come_back_in_their_shape(self) -> None:
        asked: list[tuple[tuple[int, int], int, bytes]] = []

        def swap(place: tuple[int, int], workers: int, scores: bytes) -> Mapping[int, bytes]:
            asked.append((place, workers, scores))
            return {1: scores, 2: torch.full((2, 3), 7.0).numpy().tobytes()}

        own = torch.arange(6.0).view(2, 3)
        first, second = Peers((1, 2), swap).predictions(own.to(torch.bfloat16), None, 4)
        assert first.equal(own)
        assert second.equal(torch.full((2, 3), 7.0))
        assert asked == [((4, 0), 1, own.numpy().tobytes())]

    def test_the_batches_of_an_update_are_numbered(self) -> None:
        places: list[tuple[int, int]] = []
        peers = Peers((1,), lambda place, workers, scores: places.append(place) or {})
        for updates in (4, 4, 5, 6, 6):
            peers.predictions(torch.zeros(1, 2), None, updates)
        assert places == [(4, 0), (4, 1), (5, 0), (6, 0), (6, 1)]

    def test_it_is_told_how_many_workers_have_such_a_batch(self) -> None:
        asked: list[int] = []
        peers = Peers(
            (1,), lambda place, workers, scores: asked.append(workers) or {}, lambda batch: 3 - batch
        )
        for updates in (4, 4, 5):
            peers.predictions(torch.zeros(1, 2), None, updates)
        assert asked == [3, 2, 3]

    def test_one_that_has_come_apart_sends_nothing(self) -> None:
        sent: list[bytes] = []
        peers = Peers((1,), lambda place, workers, scores: sent.append(scores) or {})
        peers.predictions(torch.tensor([[1.0, float("nan")]]), None, 4)
        assert sent == [b""]

    def test_the_time_until_the_others_answer_is_waiting(self) -> None:
        events: list[str] = []

        @contextmanager
        def waiting() -> Iterator[None]:
            events.append("waits")
            yield
            events.append("goes on")

        def swap(place: Any, workers: int, scores: bytes) -> Mapping[int, bytes]:
            events.append("asks")
            return {}

        Peers((1,), swap, waiting=waiting).predictions(torch.zeros(1, 2), None, 4)
        assert events == ["waits", "asks", "goes on"]

    def test_who_teaches_no_more_and_who_does_again_is_told_once(self) -> None:
        there: list[set[int]] = [{1, 2}, {1}, {1}, set(), {1, 2}]
        said = torch.zeros(1, 2).numpy().tobytes()
        peers = Peers((1, 2), lambda place, workers, scores: dict.fromkeys(there[place[0]], said))
        events: list[dict[str, Any]] = []
        peers.on_event = events.append
        for updates in range(5):
            peers.predictions(torch.zeros(1, 2), None, updates)
        told = [(event["step"], event["event"], event["replica"], "warning" in event) for event in events]
        assert told == [
            (1, "teacher_gone", 2, True),
            (3, "teacher_gone", 1, True),
            (4, "teacher_back", 1, False),
            (4, "teacher_back", 2, False),
        ]


class Inside:
    writes = True

    def start(self, model: nn.Module) -> Started:
        return Started(model, nullcontext)

    def objective(self, loss: Tensor, predictions: Tensor, batch: Any, share: float) -> Tensor:
        return loss

    def update(self, apply: Apply) -> None:
        apply()

    def observe(self, metrics: Mapping[str, float]) -> None: ...


class Descent:
    """One step of plain descent."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = list(model.parameters())

    def __call__(self) -> None:
        with torch.no_grad():
            for parameter in self.parameters:
                assert parameter.grad is not None
                parameter -= 0.3 * parameter.grad
                parameter.grad = None

    def clip(self) -> None: ...

    def step(self) -> None: ...

    def clear(self) -> None: ...


class AtOnce(Executor):
    def submit(self, work: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work(*given, **named))
        return done


class Pupil:
    """A replica that is driven by hand."""

    def __init__(self, number: int) -> None:
        torch.manual_seed(number)
        self.model = nn.Linear(3, 4)
        self.updates = 0

    def couple(self, teachers: PostedTeachers | Peers) -> None:
        progress = Progress(lambda: self.updates, lambda: self.updates + 1)
        terms = Codistill(interval=1, data="same")
        self.coupling = Codistillation(Inside(), terms, teachers, lambda x: x, progress, Lessons(CPU))
        self.coupling.start(self.model)

    def step(self, batch: Tensor, labels: Tensor) -> None:
        predictions = self.model(batch)
        loss = nn.functional.cross_entropy(predictions, labels)
        self.coupling.objective(loss, predictions, batch, 1.0).backward()
        self.coupling.update(Descent(self.model))
        self.updates += 1


def asked(models: Sequence[nn.Module], batch: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [model(batch) for model in models]


def batches() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(3)
    return [(torch.randn(5, 3, generator=draw), torch.randint(4, (5,), generator=draw)) for _ in range(6)]


def test_with_a_snapshot_of_every_update_both_exchanges_are_the_same_training() -> None:
    by_prediction, by_snapshot = [Pupil(0), Pupil(1)], [Pupil(0), Pupil(1)]
    for own, other in ((0, 1), (1, 0)):
        teacher = by_prediction[other]

        def swap(place: Any, workers: int, scores: bytes, teacher: Pupil = teacher) -> Mapping[int, bytes]:
            return {0: teacher.says.numpy().tobytes()}  # type: ignore[attr-defined]

        by_prediction[own].couple(Peers((0,), swap))
    board, posted = MemoryBoard(), []
    for own, other in ((0, 1), (1, 0)):
        terms = Codistill(interval=1, data="same")
        among = Among(own, (other,), leads=True)
        teachers = PostedTeachers(among, terms, board, asked, Alone(), AtOnce())
        posted.append(teachers)
        by_snapshot[own].couple(teachers)
    for batch, labels in batches():
        # Both exchange what they are before the step.
        for pupil in by_prediction:
            pupil.says = pupil.model(batch).detach()  # type: ignore[attr-defined]
        for number, pupil in enumerate(by_snapshot):
            tensors = {name: each.detach().clone() for name, each in pupil.model.named_parameters()}
            board.post(number, pupil.updates, tensors)
        for teachers, pupil in zip(posted, by_snapshot, strict=True):
            teachers.take_newest(pupil.updates)
        for pupil in (*by_prediction, *by_snapshot):
            pupil.step(batch, labels)
    for one, another in zip(by_prediction, by_snapshot, strict=True):
        assert one.model.weight.equal(another.model.weight)
        assert one.model.bias.equal(another.model.bias)
