"""A learner's step, counts and figures, by hand on a model of one weight."""

from __future__ import annotations

import random

import by_hand
import numpy as np
import pytest
import runs
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dist_train import optimizers
from dist_train.core.learner import Learner, Workplace, updates_left
from dist_train.core.seeds import generator_states
from dist_train.core.state import Counted, State
from dist_train.core.step import Numerics
from dist_train.couplings import Started
from dist_train.couplings.allreduce import AllReduce
from dist_train.errors import TrainingError
from dist_train.exchange.collective import Alone
from dist_train.plan import make_plan
from dist_train.rules.sampling import Position, Run, advance, draw, parts_of
from dist_train.rules.schedule import Scheduled
from dist_train.rules.straggler import StepTimes
from dist_train.task import Rows, Task

CPU = torch.device("cpu")
SIZE = 6


class MeanOfProducts(Task):
    """The loss is the mean of weight times input: its gradient is the mean of the inputs 0 to 5."""

    def __init__(self, factor: float = 1.0) -> None:
        self.seen: list[list[float]] = []
        self.factor = factor

    def model(self):
        model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Dropout(0.5), nn.BatchNorm1d(1))
        nn.init.constant_(model[0].weight, 2.0)
        return model

    def train_data(self):
        return Rows(torch.arange(float(SIZE)).reshape(-1, 1))

    def validation_data(self):
        return Rows(torch.tensor([[1.0], [2.0], [6.0]]))

    def loss(self, model, batch):
        self.seen.append(batch[0].flatten().tolist())
        predictions = batch[0] * model.get_parameter("0.weight") * self.factor
        return predictions.mean(), predictions


class Noisy(MeanOfProducts):
    """Calls the model, whose dropout draws and whose batch norm moves."""

    def loss(self, model, batch):
        predictions = model(batch[0])
        return predictions.mean(), predictions


class WithPeer:
    """A group of two in which the other worker's figures are given beforehand."""

    workers = 2

    def __init__(self, *figures: float) -> None:
        self.figures = figures

    def gather(self, values):
        return torch.stack([values, torch.tensor(self.figures, dtype=values.dtype)])


class Wrapping:
    """A coupling that notes what it is asked."""

    writes = True

    def __init__(self) -> None:
        self.asked = []

    def start(self, model):
        self.asked.append(("start", model))
        return Started(Wrapper(model), lambda: None)

    def objective(self, loss, predictions, batch, share):
        self.asked.append(("objective", share))
        return loss * share

    def update(self, apply):
        self.asked.append(("update", None))
        apply()

    def observe(self, metrics):
        self.asked.append(("observe", metrics))


class Wrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def get_parameter(self, name):
        return self.module.get_parameter(name)


def learner_of(
    task=None, coupling=None, workers=1, collective=None, counted=None, phase=None, number=0, **sections
):
    sections = {"train": {"steps": 3, "batch_size": 4}, "optimizer": {"name": "sgd", "lr": 0.5}} | sections
    sections["optimizer"] |= {"momentum": 0}
    config, task = runs.config_of(**sections), task or MeanOfProducts()
    model = task.model()
    state = State(model, optimizers.build(model, config.optimizer), CPU, counted or Counted())
    at = Workplace(0, workers, Numerics(CPU), collective or Alone(), phase or (lambda *_: None), number)
    learner = Learner(config, task, state, coupling or AllReduce(config.parallel, 0, 1), at)
    learner.begin(make_plan(config, workers, SIZE))
    return learner


def weight_of(learner) -> float:
    return learner.state.model[0].weight.item()


def test_updates_follow_the_shuffle_and_are_counted():
    task = MeanOfProducts()
    learner = learner_of(task)
    counts = []
    for _ in range(3):
        learner.step()
        counted = learner.state.counted
        counts.append((counted.updates, counted.samples, counted.position))
    assert counts == [(1, 4, Position(0, 4)), (2, 6, Position(1, 0)), (3, 10, Position(1, 4))]
    first, second = by_hand.order(5, 0, SIZE), by_hand.order(5, 1, SIZE)
    assert task.seen == [first[:4].tolist(), first[4:].tolist(), second[:4].tolist()]


def test_an_update_moves_the_weight_by_rate_times_the_mean_gradient():
    task = MeanOfProducts()
    learner = learner_of(task)
    learner.step()
    assert weight_of(learner) == pytest.approx(2 - 0.5 * sum(task.seen[0]) / 4)


def test_training_begins_at_the_position_of_the_state():
    task = MeanOfProducts()
    learner = learner_of(task, counted=Counted(3, 10, Position(1, 4)))
    learner.step()
    assert task.seen == [by_hand.order(5, 1, SIZE)[4:].tolist()]
    assert learner.state.counted == Counted(4, 12, Position(2, 0), seed=5, train_size=SIZE)


def test_training_begins_with_what_is_unfinished():
    task = MeanOfProducts()
    learner = learner_of(task, counted=Counted(3, 5, Position(1, 4), (Run(0, 1, 2), Run(0, 4, 1))))
    learner.step()
    assert task.seen == [by_hand.order(5, 0, SIZE)[[1, 2, 4]].tolist()]
    assert learner.state.counted == Counted(4, 8, Position(1, 4), seed=5, train_size=SIZE)


def test_how_many_workers_have_a_batch_of_the_next_update():
    train = {"steps": 9, "batch_size": 1, "accumulate": 2}
    whole = learner_of(train=train, workers=2)
    assert [whole.workers_with(batch) for batch in range(3)] == [2, 2, 0]
    # Two samples are left of the epoch for four workers, or three for two.
    rest = learner_of(train=train | {"accumulate": 1}, workers=4, counted=Counted(1, 4, Position(0, 4)))
    assert [rest.workers_with(batch) for batch in range(2)] == [2, 0]
    uneven = learner_of(train=train | {"batch_size": 2}, workers=2, counted=Counted(1, 4, Position(0, 3)))
    assert [uneven.workers_with(batch) for batch in range(3)] == [2, 1, 0]


def unfinished_learner(train, samples=5):
    counted = Counted(3, samples, Position(1, 0), (Run(0, 1, 5),))
    return learner_of(train=train | {"batch_size": 4}, counted=counted)


@pytest.mark.parametrize(
    ("train", "updates"),
    # Unfinished are an update of 4 samples and one of 1; then come 4 and 2 an epoch.
    [
        ({"epochs": 1}, 2),
        ({"epochs": 2}, 4),
        ({"steps": 3}, 0),
        ({"steps": 4}, 1),
        ({"steps": 6}, 3),
        ({"samples": 5}, 0),
        ({"samples": 9}, 1),
        ({"samples": 10}, 2),
        ({"samples": 15}, 4),
    ],
)
def test_training_is_not_finished_before_what_is_unfinished_unless_its_length_says_so(train, updates):
    learner = unfinished_learner(train)
    for _ in range(updates):
        assert not learner.finished
        learner.step()
    assert learner.finished


@settings(deadline=None, max_examples=60)
@given(
    train=st.one_of(
        st.fixed_dictionaries({"steps": st.integers(1, 30)}),
        st.fixed_dictionaries({"samples": st.integers(1, 60)}),
        st.fixed_dictionaries({"epochs": st.integers(1, 4)}),
    ),
    batch=st.integers(1, 8),
    offset=st.integers(0, SIZE - 1),
    waiting=st.lists(st.integers(1, SIZE), max_size=3),
)
def test_the_updates_left_are_those_that_follow(train, batch, offset, waiting):
    plan = make_plan(runs.config_of(train=train | {"batch_size": batch}), 1, SIZE)
    counted = Counted(0, 0, Position(0, offset), tuple(Run(0, 0, count) for count in waiting))
    foreseen, updates = updates_left(plan, counted), 0
    while updates_left(plan, counted):
        counted.samples += draw(counted.cursor, SIZE, batch, "keep").count
        counted.cursor = advance(counted.cursor, SIZE, batch, "keep")
        counted.updates += 1
        updates += 1
        assert updates_left(plan, counted) == foreseen - updates
    assert updates == foreseen
    reached = {"steps": counted.updates, "samples": counted.samples, "epochs": counted.position.epoch}
    assert all(reached[unit] >= length for unit, length in train.items())


def test_a_step_on_batches_from_elsewhere_leaves_the_counts_to_the_caller():
    task = MeanOfProducts()
    learner = learner_of(task)
    learner.step_on(iter([[torch.tensor([[3.0], [5.0]])]]), count=2, made_with=Scheduled(0.25))
    assert weight_of(learner) == pytest.approx(2 - 0.25 * 4)
    assert (learner.state.counted.updates, learner.state.counted.samples) == (0, 0)
    measured = learner.measure()
    assert (measured.samples, measured.loss) == (2, pytest.approx(2 * 4))


def test_leases_are_trained_on_in_as_many_steps_as_were_asked_for():
    task = MeanOfProducts()
    learner = learner_of(task)
    leases, batches = learner.leased()
    lease = Run(1, 1, 5)
    leases.feed(lease, steps=2)
    for part in parts_of(lease, 2):
        learner.step_on(batches, part.count, Scheduled(0.5))
    order = by_hand.order(5, 1, SIZE)
    assert task.seen == [order[1:4].tolist(), order[4:6].tolist()]
    weight = 2 - 0.5 * sum(task.seen[0]) / 3 - 0.5 * sum(task.seen[1]) / 2
    assert weight_of(learner) == pytest.approx(weight)


@pytest.mark.parametrize(
    ("train", "updates"), [({"steps": 3}, 3), ({"epochs": 2}, 4), ({"samples": 10}, 3), ({"epochs": 0.5}, 1)]
)
def test_training_is_finished_when_its_length_is_reached(train, updates):
    learner = learner_of(train=train | {"batch_size": 4})
    for _ in range(updates):
        assert not learner.finished
        learner.step()
    assert learner.finished


def test_the_rate_is_that_of_the_samples_and_not_of_the_updates():
    warmup = {"kind": "gradual", "samples": 12, "start_lr": 0}
    learner = learner_of(schedule={"warmup": warmup}, train={"steps": 9, "batch_size": 4})
    rates, used = [], []
    for _ in range(5):
        rates.append(learner.rate)
        learner.step()
        used.append(learner.state.optimizer.param_groups[0]["lr"])
    # Updates of 4, 2, 4, 2 samples.
    assert rates == pytest.approx([0.5 * samples / 12 for samples in (0, 4, 6, 10, 12)])
    assert used == rates


def test_momentum_follows_its_schedule():
    decay = {"kind": "one_cycle", "momentum": [0.5, 0.75], "triangle": 1.0}
    learner = learner_of(schedule={"decay": decay}, train={"samples": 12, "batch_size": 4})
    seen = []
    for _ in range(4):
        learner.step()
        seen.append(learner.state.optimizer.param_groups[0]["momentum"])
    # The lowest in the middle, after 6 of 12 samples.
    assert seen == pytest.approx([0.75, 0.75 - 0.25 * 4 / 6, 0.5, 0.75 - 0.25 * 2 / 6])


def test_the_loss_is_the_mean_over_the_samples_of_uneven_updates():
    task = MeanOfProducts()
    # A rate too small to move the weight.
    learner = learner_of(task, optimizer={"name": "sgd", "lr": 1e-12})
    learner.step()
    learner.step()
    measured = learner.measure()
    assert measured.samples == SIZE
    assert measured.loss == pytest.approx(2 * (0 + 1 + 2 + 3 + 4 + 5) / 6)
    assert len(measured.times) == 1
    assert measured.memory_mb > 1


def test_figures_are_brought_together_from_all_workers():
    # The other one's loss summed over samples, five times, and its memory.
    collective = WithPeer(30.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1e9)
    task = MeanOfProducts()
    train = {"steps": 3, "batch_size": 2}
    learner = learner_of(task, Wrapping(), workers=2, collective=collective, train=train)
    learner.step()
    (own,) = task.seen
    measured = learner.measure()
    assert len(own) == 2
    assert measured.samples == 4
    assert measured.loss == pytest.approx((2 * sum(own) + 30) / 4)
    other = measured.times[1]
    assert other == StepTimes(0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    assert measured.memory_mb == 1e9


def test_a_measurement_begins_anew_where_the_last_one_ended():
    learner = learner_of()
    assert not learner.has_unmeasured_steps
    learner.step()
    assert learner.has_unmeasured_steps
    learner.measure()
    assert not learner.has_unmeasured_steps
    learner.step()
    again = learner.measure()
    assert again.samples == 2
    assert again.loss == pytest.approx(weight_before_last(learner) * sum(learner.task.seen[-1]) / 2)


def weight_before_last(learner) -> float:
    first = learner.task.seen[0]
    return 2 - 0.5 * sum(first) / len(first)


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_loss_that_is_no_finite_number_is_an_error_that_says_what_to_do(factor):
    learner = learner_of(MeanOfProducts(factor))
    learner.step()
    with pytest.raises(TrainingError, match=r"loss is (nan|inf) by step 1; lower optimizer\.lr.* checkpoint"):
        learner.measure()


def test_another_workers_loss_that_is_no_number_is_an_error_here_too():
    collective = WithPeer(float("nan"), 0, 0, 0, 0, 0, 0, 0)
    learner = learner_of(coupling=Wrapping(), workers=2, collective=collective)
    learner.step()
    with pytest.raises(TrainingError, match="the loss is nan"):
        learner.measure()


def test_the_gradients_norm_is_measured_where_it_is_clipped():
    task = MeanOfProducts()
    learner = learner_of(task, train={"steps": 3, "batch_size": 4, "clip_norm": 0.1})
    learner.step()
    assert learner.measure().gradient_norm == pytest.approx(sum(task.seen[0]) / 4)
    assert weight_of(learner) == pytest.approx(2 - 0.5 * 0.1, rel=1e-5)


def test_the_coupling_wraps_the_model_once_and_stands_between_the_halves():
    coupling = Wrapping()
    learner = learner_of(coupling=coupling)
    learner.state.model.eval()
    learner.begin(learner.plan)
    assert coupling.asked[-1] == ("start", learner.state.model)
    assert learner.state.model.training
    del coupling.asked[:]
    learner.step()
    assert coupling.asked == [("objective", 1.0), ("update", None)]
    metrics = learner.validate()
    assert coupling.asked[-1] == ("observe", metrics)


def test_validation_returns_the_mean_and_says_what_it_does():
    phases = []
    learner = learner_of(phase=lambda name, step: phases.append((name, step)))
    learner.step()
    assert phases == [("data", 1), ("forward", 1), ("backward", 1), ("update", 1)]
    assert learner.validate() == pytest.approx({"loss": weight_of(learner) * 3})
    assert set(phases[4:]) == {("validating", 1)}


def test_waiting_for_other_replicas_interrupts_the_phase_and_is_measured_apart():
    phases = []

    class Waiting(Wrapping):
        def objective(self, loss, predictions, batch, share):
            with learner.waiting():
                phases.append("waits")
            return super().objective(loss, predictions, batch, share)

    learner = learner_of(coupling=Waiting(), phase=lambda name, step: phases.append(name))
    learner.step()
    assert phases == ["data", "forward", "waiting", "waits", "forward", "backward", "update"]
    (times,) = learner.measure().times
    assert times.waiting > 0


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_the_parts_of_a_validation_add_up_without_asking_any_other_worker(parts):
    phases = []
    # A group of two whose other worker is never asked.
    learner = learner_of(
        coupling=Wrapping(),
        workers=2,
        collective=WithPeer(),
        phase=lambda name, step: phases.append((name, step)),
    )
    found = [learner.validate_part(part, parts) for part in range(parts)]
    assert sum(samples for _, samples in found) == 3
    assert sum(sums["loss"] for sums, _ in found) == pytest.approx(2 * (1 + 2 + 6))
    assert [samples for _, samples in found] == [len(range(part, 3, parts)) for part in range(parts)]
    assert set(phases) == {("validating", 0)}
    assert learner.state.model.training


def test_a_part_of_a_validation_can_be_given_up():
    learner = learner_of()
    assert learner.validate_part(0, 2, lambda: False) is None
    assert learner.state.model.training


def everything(learner):
    tensors, values = generator_states(CPU)
    model = {name: tensor.tolist() for name, tensor in learner.state.model.state_dict().items()}
    return model, {name: state.tolist() for name, state in tensors.items()}, values


@pytest.mark.parametrize("batch_norm_batches", [0, 2])
def test_validation_gives_back_modes_statistics_and_generators(batch_norm_batches):
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    learner = learner_of(Noisy(), validation={"batch_norm_batches": batch_norm_batches})
    learner.step()
    before = everything(learner)
    learner.validate()
    assert everything(learner) == before
    assert all(module.training for module in learner.state.model.modules())


def test_what_is_delivered_has_recomputed_statistics():
    learner = learner_of(Noisy(), validation={"batch_norm_batches": 1})
    norm = learner.state.model[2]
    with learner.delivered_model():
        assert norm.running_mean.item() != 0
    assert norm.running_mean.item() == 0


def test_a_worker_that_is_to_be_slow_sleeps_between_the_halves_of_every_step():
    slept = []
    learner = learner_of(faults={"step_s": 0.25, "slow": {0: 1.0}}, number=1)
    learner._faults._sleep = lambda seconds: slept.append((seconds, weight_of(learner)))
    before = weight_of(learner)
    learner.step()
    assert slept == [(0.25, before)]
    assert weight_of(learner) != before


@pytest.mark.parametrize(("number", "is_slow"), [(0, False), (1, True)])
def test_workers_are_slowed_by_their_number_in_the_run(number, is_slow):
    learner = learner_of(faults={"slow": {1: 2.0}}, number=number)
    assert (learner._faults is not None) == is_slow
