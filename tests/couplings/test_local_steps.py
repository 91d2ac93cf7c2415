"""Local steps, against the papers' algorithms written out by hand, round after round."""

from __future__ import annotations

from types import SimpleNamespace

import by_hand
import pytest
import server_runs
import single_by_hand as hand
import torch
import toys

from dist_train.couplings.local_steps import LocalSteps
from dist_train.exchange.baton import one_by_one
from dist_train.exchange.server import ALL, Turn
from dist_train.rules.decisions import Returned
from dist_train.rules.messages import FIRST, Lease, Reply, Work

CLOSE = {"rtol": 1e-4, "atol": 1e-6}
RATE, STEPS = 0.1, 2
TOGETHER = {"mode": "bounded", "max_staleness": 0, "local_steps": STEPS}


@pytest.fixture
def run():
    with server_runs.running() as make:
        yield make


def assert_close(found, expected):
    torch.testing.assert_close(found.weights(), expected, **CLOSE)


class Inner:
    """A member's own optimizer, whose state it keeps from round to round."""

    def __init__(self, update, rate):
        self.update, self.rate = update, rate
        self.slots, self.steps = {name: {} for name in hand.first_weights()}, 0

    def __call__(self, weights, pieces):
        for rows in pieces:
            self.steps += 1
            made = hand.gradient(weights, rows)
            weights = {
                name: self.update(p, made[name], self.slots[name], self.rate, 0.0, self.steps)
                for name, p in weights.items()
            }
        return weights


def plain(p, g, slots, rate, decay, t):
    return p - rate * g


def mean(*operands):
    return sum(operands) / len(operands)


class TestLocalSGD:
    """Stich 2018: the mean of the members' parameters, every few steps."""

    @pytest.mark.parametrize("members", [1, 2, 3])
    def test_the_server_has_the_mean_of_the_members(self, run, members):
        chosen = {"name": "sgd", "lr": RATE, "momentum": 0.0}
        found = run(TOGETHER | {"workers": members}, steps=2, optimizer=chosen).go()
        weights, pieces = hand.first_weights(), hand.pieces(2 * members * STEPS, 4)
        for _ in range(2):
            # A lease is a run of places: each member's steps take consecutive pieces.
            ends = []
            for _ in range(members):
                own, pieces = pieces[:STEPS], pieces[STEPS:]
                ends.append(Inner(plain, RATE)(weights, own))
            weights = hand.combined(mean, *ends)
        assert_close(found, weights)


class TestDiLoCo:
    """Douillard et al. 2023, algorithm 1, with Nesterov's momentum in torch's form."""

    def test_two_members_for_three_rounds(self, run):
        outer = {"kind": "nesterov", "lr": 0.7, "momentum": 0.9}
        chosen = {"name": "adamw", "lr": 0.01, "weight_decay": 0.0}
        found = run(TOGETHER | {"workers": 2, "outer": outer}, steps=3, optimizer=chosen).go()
        weights, pieces = hand.first_weights(), hand.pieces(12, 4)
        members = [Inner(by_hand.adamw, 0.01) for _ in range(2)]
        velocity = hand.combined(torch.zeros_like, weights)
        for number in range(3):
            own = [pieces[4 * number : 4 * number + 2], pieces[4 * number + 2 : 4 * number + 4]]
            ends = [member(weights, each) for member, each in zip(members, own, strict=True)]
            delta = hand.combined(lambda w, a, b: w - (a + b) / 2, weights, *ends)
            velocity = hand.combined(lambda v, d: 0.9 * v + d, velocity, delta)
            weights = hand.combined(lambda w, v, d: w - 0.7 * (d + 0.9 * v), weights, velocity, delta)
        assert_close(found, weights)

    def test_a_rate_that_decays_is_the_members_own_and_never_the_server_s(self, run):
        schedule = {"decay": {"kind": "cosine"}}
        found = run(TOGETHER | {"workers": 2, "outer": {"kind": "nesterov"}}, steps=4, schedule=schedule).go()
        assert [step.made_with.rate for step in found.steps] == [0.7] * 4
        rates = [
            own.rate
            for action in found.twin.decisions
            for work in getattr(getattr(action, "reply", None), "work", ())
            for own in work.own
        ]
        assert len(set(rates)) > 4
        assert rates[0] == 0.1


class TestElasticAveraging:
    """Zhang, Choromanska and LeCun 2015, algorithm 1: the same move for a member and the centre."""

    ALPHA = 0.3

    def test_two_members_in_turn(self, run):
        outer = {"kind": "elastic", "moving_rate": self.ALPHA}
        parallel = {"mode": "async", "workers": 2, "local_steps": STEPS, "outer": outer}
        chosen = {"name": "sgd", "lr": RATE, "momentum": 0.0}
        found = run(parallel, steps=6, optimizer=chosen).go(one_by_one())
        centre, pieces = hand.first_weights(), hand.pieces(12, 4)
        members = [centre, centre]
        read = [centre, centre]
        for push in range(6):
            member = push % 2
            local = Inner(plain, RATE)(members[member], pieces[2 * push : 2 * push + 2])
            # A member computes right after it was answered: the other's move comes after its read.
            pull = hand.combined(lambda x, c: self.ALPHA * (x - c), local, read[member])
            members[member] = hand.combined(torch.sub, local, pull)
            centre = hand.combined(torch.add, centre, pull)
            read[member] = centre
        assert_close(found, centre)

    def test_one_member_goes_on_from_its_own_parameters(self, run):
        outer = {"kind": "elastic", "moving_rate": self.ALPHA}
        parallel = {"mode": "async", "workers": 1, "local_steps": 1, "outer": outer}
        chosen = {"name": "sgd", "lr": RATE, "momentum": 0.0}
        found = run(parallel, steps=5, optimizer=chosen).go()
        centre = local = hand.first_weights()
        for rows in hand.pieces(5, 4):
            local = Inner(plain, RATE)(local, [rows])
            pull = hand.combined(lambda x, c: self.ALPHA * (x - c), local, centre)
            local, centre = hand.combined(torch.sub, local, pull), hand.combined(torch.add, centre, pull)
        assert_close(found, centre)

    @pytest.mark.parametrize(
        ("outcome", "after"),
        [("counted", [0.75, 1.5]), ("dropped", [1.0, 2.0]), ("void", [1.0, 2.0]), ("refused", [0.0, 0.0])],
    )
    def test_a_member_moves_only_if_the_centre_does(self, outcome, after):
        member = OneMember(outcome)
        member.coupling.update(lambda: None)
        # A quarter of the way from (1, 2) to a centre at zero; who was refused goes on from there.
        assert member.parameters.tolist() == after
        assert member.pushed.tolist() == [-0.25, -0.5]

    def test_a_member_recovers_from_steps_that_were_not_finite(self, run):
        outer = {"kind": "elastic", "moving_rate": self.ALPHA}
        parallel = {"mode": "async", "workers": 1, "local_steps": 1, "outer": outer}
        chosen = {"name": "sgd", "lr": RATE, "momentum": 0.9}
        found = run(parallel, steps=5, optimizer=chosen, task=f"{__file__}:OncePoisoned").go()
        centre = local = hand.first_weights()
        velocity = hand.combined(torch.zeros_like, centre)
        for number, rows in enumerate(hand.pieces(5, 4)):
            if number == 2:
                # Refused, and computed again: from the centre, and without momentum.
                local, velocity = centre, hand.combined(torch.zeros_like, centre)
            made = hand.gradient(local, rows)
            velocity = hand.combined(lambda v, g: 0.9 * v + g, velocity, made)
            local = hand.combined(lambda w, v: w - RATE * v, local, velocity)
            pull = hand.combined(lambda x, c: self.ALPHA * (x - c), local, centre)
            local, centre = hand.combined(torch.sub, local, pull), hand.combined(torch.add, centre, pull)
        assert_close(found, centre)
        returned = [each for each in found.twin.decisions if isinstance(each, Returned)]
        assert [(each.outcome, each.run.offset) for each in returned] == [("refused", 8)]


class OneMember:
    """A member at (1, 2) of a server at zero, whose answer is known in advance; it is its own fake model."""

    reads_in_place = False

    def __init__(self, outcome):
        self.parameters, self.host = torch.tensor([1.0, 2.0]), torch.zeros(2)
        self.pushed = torch.zeros(2)
        self.memory = SimpleNamespace(
            gradients=[self.pushed, self.pushed], statistics=torch.empty(0), deposits=[]
        )
        self.outcome = outcome
        turn = Turn(0, 0)
        turn.work.append(Work(Lease(1, 0, 0, 4)))
        self.coupling = LocalSteps(None, self, self, turn, ALL, moving_rate=0.25)

    def read(self, at_least, into):
        into.zero_()
        return at_least

    def push(self, push):
        return Reply(self.outcome, FIRST)

    def statistics_into(self, out):
        pass

    def take_statistics(self, values):
        pass

    def collect(self):
        return self.parameters

    def arrived(self):
        self.parameters = self.host.clone()


class PoisonedPoints(toys.Points):
    """The inputs of sample ``poisoned`` are no numbers when they are fetched for the first time."""

    poisoned = int(hand.pieces(3, 4)[2][1])
    fetched = False

    def __getitem__(self, index):
        inputs, label = super().__getitem__(index)
        if index == self.poisoned and not self.fetched:
            self.fetched = True
            return inputs * float("nan"), label
        return inputs, label


class OncePoisoned(server_runs.Single):
    def train_data(self):
        return PoisonedPoints(hand.SIZE, 1, torch.float32)
