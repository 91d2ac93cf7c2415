"""A member through its door: what it trains on, validates, hands in, and how it comes and goes."""

from __future__ import annotations

from collections import Counter

import pytest
import server_runs
import single_by_hand as hand
import torch
import torch.nn.functional as F
import toys
from torch import nn

from dist_train.core.flat import Layout
from dist_train.errors import TrainingError
from dist_train.exchange.baton import in_step, one_by_one, script, seeded
from dist_train.exchange.server import ALL
from dist_train.member import _share
from dist_train.rules.decisions import Replace, Returned

STILL = {"name": "sgd", "lr": 1e-30, "momentum": 0.0}
BATCH_NORM = {"norm": "batch", "size": 48}
NOISY = {"task": f"{toys.__file__}:Noisy", "task_options": {"size": 46}}


class Poisoned(server_runs.Single):
    """The inputs of its sample 7 are no numbers."""

    def train_data(self):
        points = super().train_data()
        points.inputs[7] = float("nan")
        return points


@pytest.fixture
def run():
    with server_runs.running() as make:
        yield make


def places(found):
    """Return every (epoch, place) trained on."""
    dealt = {}
    for action in found.twin.decisions:
        for work in getattr(getattr(action, "reply", None), "work", ()):
            dealt[work.lease.number] = work.lease
    leases = [dealt[each.push.lease] for step in found.steps for each in step.contributions]
    return Counter((each.epoch, each.offset + place) for each in leases for place in range(each.count))


def two_epochs(size=50):
    return dict.fromkeys(((epoch, place) for epoch in (0, 1) for place in range(size)), 1)


class TestTraining:
    @pytest.mark.parametrize(
        "parallel",
        [
            {"mode": "async", "workers": 3},
            {"mode": "async", "workers": 4, "aggregate": 2},
            {"mode": "bounded", "workers": 3, "max_staleness": 1},
            {"mode": "bounded", "workers": 3, "max_staleness": 0},
            {"mode": "backup", "workers": 3, "backups": 1},
            {"mode": "async", "workers": 2, "fetch_every": 2, "push_every": 2},
            {"mode": "async", "workers": 2, "local_steps": 2, "outer": {"kind": "elastic"}},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("schedule", [in_step, one_by_one, lambda: seeded(7)])
    def test_every_sample_of_every_epoch_is_trained_once(self, run, parallel, schedule):
        found = run(parallel, train={"steps": None, "epochs": 2}).go(schedule())
        assert places(found) == two_epochs()

    def test_the_loss_pushed_is_the_sum_over_the_lease_s_samples(self, run):
        found = run({"mode": "async"}, optimizer=STILL, train={"accumulate": 3}, steps=2).go()
        network = hand.model()
        losses = [each.push.loss for step in found.steps for each in step.contributions]
        expected = [12 * hand.mean_loss(network, rows).item() for rows in hand.pieces(2, 12)]
        assert losses == pytest.approx(expected, rel=1e-5)

    def test_a_gradient_is_a_function_of_parameters_and_lease_whoever_computes_it(self, run):
        # With parameters that stand still, two members in any order push the losses that one would.
        def losses(members, schedule):
            found = run({"mode": "async", "workers": members}, 8, optimizer=STILL, **NOISY).go(schedule)
            pushes = [each.push for step in found.steps for each in step.contributions]
            return {push.lease: push.loss for push in pushes}

        alone = losses(1, in_step())
        assert losses(2, in_step()) == alone
        assert losses(2, one_by_one()) == alone

    @pytest.mark.processes
    def test_loading_processes_change_nothing(self, run):
        plain, ahead = (
            run({"mode": "async"}, 6, data=data, **NOISY).go() for data in ({}, {"loaders": 1, "prefetch": 2})
        )
        expected = plain.weights()
        for name, tensor in ahead.weights().items():
            assert torch.equal(tensor, expected[name]), name

    def test_gradients_that_are_no_numbers_are_refused_and_their_samples_dealt_again(self, run):
        found = run({"mode": "async", "workers": 2}, 40, task=f"{__file__}:Poisoned")
        with pytest.raises(TrainingError, match="in the order of epoch 0 gave a gradient with NaN"):
            found.go(in_step())
        refused = [each.run for each in found.twin.decisions if isinstance(each, Returned)]
        assert len(refused) > 2
        for each in refused:
            order = hand.by_hand.order(hand.SEED, each.epoch, hand.SIZE)
            assert 7 in order[each.offset :][: each.count]
        # Nobody is replaced for what is wrong with the data.
        assert not [each for each in found.twin.decisions if isinstance(each, Replace)]
        assert all(torch.isfinite(tensor).all() for tensor in found.weights().values())


class TestBatchNorm:
    """Each member keeps the running statistics of its own batches; their mean is validated and delivered."""

    def test_members_have_their_own_and_their_mean_is_delivered(self, run):
        parallel = {"mode": "bounded", "workers": 2, "max_staleness": 0}
        found = run(parallel, 3, optimizer=STILL, task_options=BATCH_NORM).go(in_step())
        weights = found.weights()
        data, order = toys.Points(48, 1, torch.float32), hand.by_hand.order(hand.SEED, 0, 48)
        expected = []
        for member in range(2):
            mean = torch.zeros(8)
            for update in range(3):
                rows = order[8 * update + 4 * member :][:4]
                batch = data.inputs[rows] @ weights["0.weight"].T + weights["0.bias"]
                mean = 0.9 * mean + 0.1 * batch.mean(0)
            expected.append(mean)
        assert not torch.allclose(*expected)
        torch.testing.assert_close(weights["1.running_mean"], (expected[0] + expected[1]) / 2)
        assert weights["1.num_batches_tracked"] == 3

    def test_the_mean_is_what_validations_use(self, run):
        parallel = {"mode": "bounded", "workers": 2, "max_staleness": 0}
        found = run(parallel, 5, task_options=BATCH_NORM).go()
        network = toys.Plain(norm="batch").model().float().eval()
        network.load_state_dict(found.weights())
        data = toys.Points(17, 2, torch.float32)
        (validated,) = found.validated
        with torch.no_grad():
            predictions = network(data.inputs)
        loss = F.cross_entropy(predictions, data.classes)
        right = (predictions.argmax(1) == data.classes).float().mean()
        assert validated.metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert validated.metrics["accuracy"] == pytest.approx(right.item())

    @pytest.mark.parametrize("outer", [None, {"kind": "average"}, {"kind": "elastic"}])
    def test_with_one_member_validations_are_invisible_bit_for_bit(self, run, outer):
        never, often = (
            run({"mode": "async", "outer": outer}, 6, validation={"every_steps": every}, **NOISY).go()
            for every in (server_runs.NEVER, 1)
        )
        assert len(often.validated) == 6
        expected = never.weights()
        for name, tensor in often.weights().items():
            assert torch.equal(tensor, expected[name]), name


class TestComingAndGoing:
    def test_what_a_killed_member_had_in_hand_is_trained_by_others(self, run):
        found = run({"mode": "async", "workers": 3}, train={"steps": None, "epochs": 2}).go_to(4)
        found.twin.kill(1)
        assert places(found.go()) == two_epochs()

    def test_a_successor_takes_the_place_and_the_buffers(self, run):
        parallel = {"mode": "bounded", "workers": 2, "max_staleness": 0}
        whole = run(parallel, 6, **NOISY).go()
        found = run(parallel, 6, **NOISY).go_to(3)
        found.twin.kill(1)
        found.seat(1)
        # It comes before the other pushes: nobody waits for a member that is gone.
        assert found.go(script([1, 1], in_step())).steps[-1].version.number == 6
        expected = whole.weights()
        for name, tensor in found.weights().items():
            assert torch.equal(tensor, expected[name]), name

    def test_a_member_whose_leases_are_withdrawn_begins_with_those_dealt_anew(self, run):
        parallel = {"mode": "async", "workers": 2, "server": {"snapshot_every": 3}}
        found = run(parallel, train={"steps": None, "epochs": 2}).go_to(7, one_by_one())
        start, state = found.snapshots[-1]
        found.load(start, state)
        found.twin.roll_back(start)
        lost = [step for step in found.steps if step.version.number > start.updates]
        found.go(one_by_one())
        found.twin.decisions = [each for each in found.twin.decisions if each not in lost]
        assert places(found) == two_epochs()

    def test_a_stop_ends_all_members_where_they_are(self, run):
        found = run({"mode": "async", "workers": 3}, 100).go_to(5, script([0, 1, 2] * 4, in_step()))
        found.twin.stop()
        found.go()
        assert found.twin.referee.stopped
        assert len(found.steps) == 5


class TestShares:
    """The gradient of a group is handed in by all its workers, each a share."""

    def layout(self):
        from dist_train.config.schema import SGD

        network = nn.Sequential(*(nn.Linear(5 * width, 7) for width in range(1, 6)))
        return Layout.of(network, SGD(lr=0.1))

    @pytest.mark.parametrize("workers", [1, 2, 3, 10, 12])
    def test_they_cover_the_vector_once(self, workers):
        layout = self.layout()
        shares = [_share(layout, rank, workers) for rank in range(workers)]
        parameters = [each for share in shares for each in layout.parameters[share.parameters]]
        assert parameters == list(layout.parameters)
        elements = torch.zeros(layout.size)
        for share in shares:
            elements[share.elements] += 1
        assert (elements == 1).all()

    def test_a_parameter_lies_in_the_elements_of_its_share(self):
        layout = self.layout()
        for rank in range(3):
            share = _share(layout, rank, 3)
            for placed in layout.parameters[share.parameters]:
                assert share.elements.start <= placed.start < placed.stop <= share.elements.stop

    def test_a_worker_alone_hands_in_everything(self):
        assert _share(self.layout(), 0, 1) is ALL
