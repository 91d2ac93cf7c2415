"""Members that compute on the server's own memory train as those do that copy it, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import server_runs
import torch
from torch import Tensor

from dist_train.errors import TrainingError
from dist_train.exchange.baton import in_step, one_by_one, seeded
from dist_train.exchange.hazards import Protector
from dist_train.exchange.published import PublishedWriter
from dist_train.exchange.segments import Segment
from dist_train.exchange.slots import published_bytes, slot_count
from dist_train.exchange.twin import Seat
from dist_train.rules.messages import Version

MEMBERS = 3


@dataclass
class InPlace:
    """A shard's published memory, and how each member's seat reads where it lies."""

    vectors: list[Tensor] = field(default_factory=list)

    def slots(self, size: int) -> PublishedWriter:
        shape = size, slot_count(MEMBERS), MEMBERS
        self.size = size
        self.segment = Segment.create(published_bytes(*shape))
        return PublishedWriter(self.segment, *shape)

    def seated(self, seat: Seat) -> Seat:
        vectors = self.vectors
        protector = Protector(self.segment, self.size, MEMBERS, seat.member)

        class Near(type(seat)):
            reads_in_place = True

            def read_in_place(self, at_least: Version) -> tuple[Version, Tensor]:
                version, vector = protector.newest(at_least, 0.0)
                vectors.append(vector)
                return version, vector

        seat.__class__ = Near
        return seat


class Run(server_runs.Run):
    place: InPlace

    def body(self, seat: Seat) -> None:
        super().body(self.place.seated(seat))


@pytest.fixture
def trained():
    made = []

    def train(parallel, in_place, schedule, **sections):
        config = server_runs.config_of(
            parallel={"workers": MEMBERS} | parallel,
            validation={"every_steps": 3},
            train={"steps": 9, "batch_size": 4},
            **sections,
        )
        place = InPlace()
        run = (Run if in_place else server_runs.Run)(config, slots=place.slots)
        run.place = place
        made.append(run)
        return run.go(schedule)

    yield train
    for run in made:
        run.close()
        run.place.segment.close()


def told(run):
    """Return all that a run came to."""
    pushes = [each.push for step in run.steps for each in step.contributions]
    measured = [(each.step, dict(each.metrics)) for each in run.validated]
    return [(each.member, each.loss, each.version, each.reads) for each in pushes], measured


@pytest.mark.parametrize(
    "parallel",
    [
        {"mode": "async"},
        {"mode": "async", "push_every": 2},
        {"mode": "backup", "backups": 1},
        {"mode": "bounded", "max_staleness": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("schedule", [in_step, one_by_one, lambda: seeded(3)], ids=["together", "one", "any"])
def test_it_changes_nothing(trained, parallel, schedule):
    copied, placed = (trained(parallel, in_place, schedule()) for in_place in (False, True))
    assert len(placed.place.vectors) > 5
    assert len({vector.data_ptr() for vector in placed.place.vectors}) > 1
    assert told(placed) == told(copied)
    for name, tensor in placed.weights().items():
        assert torch.equal(tensor, copied.weights()[name]), name


class Scaling(server_runs.Single):
    """Its loss halves a parameter, always or from the second time on."""

    times, first = 0, 0

    def loss(self, model, batch):
        if self.times >= self.first:
            with torch.no_grad():
                next(model.parameters()).mul_(0.5)
        self.times += 1
        return super().loss(model, batch)


class LateScaling(Scaling):
    first = 1


def test_a_task_that_writes_to_parameters_gets_copies(trained):
    copied, placed = (
        trained({"mode": "async"}, in_place, in_step(), task=f"{__file__}:Scaling")
        for in_place in (False, True)
    )
    assert not placed.place.vectors
    assert told(placed) == told(copied)


def test_a_task_that_begins_to_write_is_told_of_it(trained):
    with pytest.raises(TrainingError, match="was written to while a gradient was computed"):
        trained({"mode": "async"}, True, in_step(), task=f"{__file__}:LateScaling")
