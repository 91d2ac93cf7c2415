"""Tests of a group that acts as one member: one worker speaks, all hear and read the same."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import runs
import server_group
import server_runs
import torch

from dist_train.exchange.group import GroupServer, decoded
from dist_train.exchange.segments import Segment
from dist_train.exchange.server import MemberMemory
from dist_train.rules.messages import Lease, Measured, Push, Reply, ValidationPart, Version, Work
from dist_train.rules.schedule import Scheduled

REPLIES = [
    Reply(
        "counted",
        Version(1, 7),
        (
            Work(Lease(3, 0, 40, 8), (Scheduled(0.1, 0.9), Scheduled(0.05, None, 0.5))),
            Work(Lease(4, 1, 0, 2)),
        ),
    ),
    Reply("welcome", Version(0, 0), validation=ValidationPart(2, 100, 0, 3)),
    Reply("ended", Version(0, 3), stop=True),
    Reply("void", Version(2, 3), forget=True),
]


@pytest.mark.parametrize("reply", REPLIES)
def test_a_reply_is_the_same_after_it_was_told(reply):
    assert decoded(json.loads(json.dumps(asdict(reply)))) == reply


class Scripted:
    """A collective of two workers as one of them sees it: the other's part is written down."""

    workers = 2

    def __init__(self, others, said=()):
        self.others = list(others)
        self.told = []
        # What the leader says, where this worker does not lead.
        self.said = list(said)

    def sum(self, values):
        return values + self.others.pop(0)

    def gather(self, values):
        return torch.stack([values, self.others.pop(0)])

    def tell(self, said):
        self.told.append(said)
        return self.said.pop(0) if self.said else said


class Words:
    """The leader's own way to the server, which notes what is said."""

    def __init__(self):
        self.memory = MemberMemory(Segment.create(MemberMemory.bytes(16, 1)), 16, 1)
        self.said = []
        self.reads = 0

    def push(self, push):
        self.said.append(push)
        return REPLIES[0]

    measured = push

    def read_exactly(self, version, into):
        return False

    def read(self, at_least, into):
        self.reads += 1
        return Version(0, at_least.number + self.reads)


PUSH = Push(0, 0, 1, 5, Version(0, 2), 8, loss=1.5)


# What the other worker says of its share: whether it is finite, its loss, its agreement with teachers.
SOUND = torch.tensor([1.0, 2.5, 0.25], dtype=torch.float64)


@pytest.mark.parametrize("finite", [True, False])
def test_a_gradient_is_finite_if_every_share_of_it_is(finite):
    words = Words()
    other = torch.tensor([float(finite), 2.5, 0.0], dtype=torch.float64)
    assert GroupServer(words, Scripted([torch.tensor([2.0]), other]), leads=True).push(PUSH) == REPLIES[0]
    (said,) = words.said
    assert (said.finite, said.loss, said.samples, said.not_finite) == (finite, 4.0, 8, ())


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_the_worker_whose_loss_is_not_finite_is_told(loss):
    words = Words()
    other = torch.tensor([0.0, loss, 0.0], dtype=torch.float64)
    GroupServer(words, Scripted([torch.tensor([2.0]), other]), leads=True).push(PUSH)
    (said,) = words.said
    assert (said.finite, said.not_finite) == (False, (1,))


def test_the_agreement_with_teachers_is_the_mean_over_the_workers():
    words = Words()
    server = GroupServer(words, Scripted([torch.tensor([2.0]), SOUND]), leads=True)
    server.push(replace(PUSH, agreement=0.5, teachers=((1, 40),)))
    (said,) = words.said
    assert (said.agreement, said.teachers) == (0.375, ((1, 40),))


def test_the_buffers_handed_in_are_the_workers_mean():
    words = Words()
    server = GroupServer(words, Scripted([torch.tensor([2.0]), SOUND]), leads=True)
    server.memory.statistics.fill_(4.0)
    server.push(PUSH)
    assert words.memory.statistics.item() == 3.0


def test_what_a_worker_writes_of_its_buffers_is_its_own_until_the_mean_is_made():
    words = Words()
    words.memory.statistics.fill_(7.0)
    workers = [GroupServer(words, Scripted([torch.tensor([2.0]), SOUND]), leads) for leads in (False, True)]
    for number, server in enumerate(workers):
        server.memory.statistics.fill_(number)
        assert server.memory.gradients[0].data_ptr() == words.memory.gradients[0].data_ptr()
    assert [server.memory.statistics.item() for server in workers] == [0, 1]
    assert words.memory.statistics.item() == 7.0


def test_a_part_of_a_validation_is_the_sum_over_the_workers():
    words = Words()
    measured = Measured(0, 0, 4, 1, 0, {"loss": 3.0, "accuracy": 2.0}, 5.0)
    # Sums travel in the order of their names: accuracy, loss, then the samples.
    GroupServer(words, Scripted([torch.tensor([1.0, 2.0, 4.0])]), leads=True).measured(measured)
    (said,) = words.said
    assert (said.sums, said.samples) == ({"accuracy": 3.0, "loss": 5.0}, 9.0)


def test_all_read_again_until_nobody_came_too_late():
    words, collective = Words(), Scripted([torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor([0.0])])
    assert GroupServer(words, collective, leads=True).read(Version(0, 4), torch.empty(3)) == Version(0, 7)
    assert words.reads == 3


def test_where_somebody_is_always_too_late_the_leader_tells_what_it_has_read():
    words, collective = Words(), Scripted([torch.tensor([1.0])] * 3)
    into = torch.tensor([1.0, 2.0, 3.0])
    assert GroupServer(words, collective, leads=True).read(Version(0, 4), into) == Version(0, 7)
    assert into.tolist() == [1.0, 2.0, 3.0]
    told = Scripted([torch.tensor([0.0])] * 3, [b"[0, 5]", b"[0, 6]", b"[0, 7]", into.numpy().tobytes()])
    other = torch.zeros(3)
    assert GroupServer(Words(), told, leads=False).read(Version(0, 4), other) == Version(0, 7)
    assert other.tolist() == into.tolist()


@pytest.mark.processes
class TestTwoWorkers:
    MODES = ({"mode": "async"}, {"mode": "bounded", "max_staleness": 0}, {"mode": "backup"})

    def config(self, mode, **sections):
        parallel = {"workers": 2, "group_size": 2} | mode
        train = sections.pop("train", {"steps": 9, "batch_size": 4})
        return server_runs.config_of(parallel=parallel, train=train, **sections)

    @pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode["mode"])
    @pytest.mark.parametrize("name", ["sgd", "adam"])
    def test_one_group_is_synchronous_training(self, group, mode, name):
        optimizer = {"name": name, "lr": 0.01, "weight_decay": 0.02}
        config = self.config(mode, optimizer=optimizer)
        sync = runs.config_of(train={"steps": 9, "batch_size": 4}, optimizer=optimizer)
        expected = group(2).run(runs.train, sync, server_runs.Single(), 9)[0]
        found = group(2).run(server_group.train, config)[0]
        for key, tensor in expected["weights"].items():
            assert torch.equal(found["weights"][key], tensor), key
        assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5)
        assert set(found["outcomes"]) <= {"welcome", "counted"}

    def test_a_group_with_local_steps_is_synchronous_training(self, group):
        optimizer, train = {"name": "adamw", "lr": 0.01}, {"steps": 2, "batch_size": 4}
        config = self.config({"mode": "async", "local_steps": 3}, optimizer=optimizer, train=train)
        sync = runs.config_of(train={"steps": 6, "batch_size": 4}, optimizer=optimizer)
        expected = group(2).run(runs.train, sync, server_runs.Single(), 6)[0]["weights"]
        found = group(2).run(server_group.train, config)[0]["weights"]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)

    def test_a_group_validates_as_one_worker_does(self, group):
        together = group(2).run(server_group.train, self.config({"mode": "async"}))[0]
        with server_runs.running() as make:
            # As many samples in each update.
            alone = make({"mode": "async"}, 9, train={"batch_size": 8}).go()
        (metrics,) = together["metrics"]
        (validated,) = alone.validated
        assert metrics == pytest.approx(dict(validated.metrics), rel=1e-4)

    def test_the_workers_own_buffers_are_handed_in_as_their_mean(self, group):
        options = {"norm": "batch", "size": 48}
        found = group(2).run(server_group.train, self.config({"mode": "async"}, task_options=options))[0]
        sync = runs.config_of(train={"steps": 9, "batch_size": 4})
        both = group(2).run(runs.train, sync, server_runs.Single(**options), 9)
        means = [result["weights"]["1.running_mean"] for result in both]
        assert not torch.equal(*means)
        torch.testing.assert_close(found["weights"]["1.running_mean"], (means[0] + means[1]) / 2)
