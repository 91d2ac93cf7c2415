"""Tests of the arithmetic of a run: by hand, and against a simulation of its updates."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_train.config import Config, load_config
from dist_train.config.schema import Span
from dist_train.errors import ConfigError
from dist_train.plan import Plan, group_count, groups, make_plan, samples_per_update
from dist_train.rules import schedule as rules
from dist_train.rules.sampling import Cursor, Position, advance, draw


def configured(**sections: dict[str, Any]) -> Config:
    given = {
        "name": "plan",
        "task": "digits",
        "train": {"epochs": 10, "batch_size": 8},
        "optimizer": {"name": "sgd", "lr": 0.1},
        **sections,
    }
    return load_config(given, ())


def planned(workers: int = 4, train_size: int = 100, **sections: dict[str, Any]) -> Plan:
    return make_plan(configured(**sections), workers, train_size)


class TestBatch:
    def test_each_worker_contributes_its_batch_times_the_accumulation(self) -> None:
        config = configured(train={"epochs": 1, "batch_size": 8, "accumulate": 3})
        assert samples_per_update(config.parallel, config.train, workers=4) == 96

    @pytest.mark.parametrize("workers", [1, 3, 8])
    def test_a_global_batch_stays_whatever_the_number_of_workers(self, workers: int) -> None:
        config = configured(parallel={"global_batch": 48}, train={"epochs": 1, "accumulate": 2})
        assert samples_per_update(config.parallel, config.train, workers) == 48


def server(mode: str, **settings: Any) -> dict[str, Any]:
    return {"mode": mode, **settings}


# Six workers with 8 samples a batch, accumulated twice: 16 samples of each worker.
# The settings; the groups, the gradients in an update, the samples in a gradient and in a step at the rate.
MODES: list[tuple[dict[str, Any], tuple[int, int, int, int]]] = [
    (server("sync"), (1, 1, 96, 96)),
    (server("backup"), (6, 6, 16, 96)),
    # N = 4 count, not N + b = 6 (Chen et al. 2016).
    (server("backup", backups=2), (6, 4, 16, 64)),
    (server("backup", backups="auto"), (6, 6, 16, 96)),
    (server("backup", backups=1, group_size=2), (3, 2, 32, 64)),
    (server("bounded", max_staleness=0), (6, 6, 16, 96)),
    (server("bounded", max_staleness=3), (6, 1, 16, 16)),
    (server("async"), (6, 1, 16, 16)),
    (server("async", group_size=3), (2, 1, 48, 48)),
    (server("async", group_size=6), (1, 1, 96, 96)),
    (server("async", aggregate=3), (6, 3, 16, 48)),
    # Downpour sends the mean gradient of five batches; reading seldom changes no number of samples.
    (server("async", push_every=5), (6, 1, 80, 80)),
    (server("async", fetch_every=5), (6, 1, 16, 16)),
    # DiLoCo: an update holds everybody's steps, and the rate is that of one of them.
    (server("bounded", max_staleness=0, local_steps=10), (6, 6, 160, 16)),
    (server("bounded", max_staleness=0, local_steps=10, group_size=2), (3, 3, 320, 32)),
    (server("async", local_steps=10, outer="elastic"), (6, 1, 160, 16)),
    (server("bounded", max_staleness=0, outer="average"), (6, 6, 16, 16)),
]


class TestModes:
    @pytest.mark.parametrize(("parallel", "expected"), MODES)
    def test_say_what_an_update_takes(
        self, parallel: dict[str, Any], expected: tuple[int, int, int, int]
    ) -> None:
        config = configured(parallel=parallel, train={"epochs": 1, "batch_size": 8, "accumulate": 2})
        plan = make_plan(config, workers=6, train_size=1000)
        groups = group_count(config.parallel, 6)
        assert (groups, plan.quorum, plan.samples_per_gradient, plan.scaling_batch) == expected
        assert plan.samples_per_update == plan.quorum * plan.samples_per_gradient

    @pytest.mark.parametrize(("parallel", "expected"), MODES)
    def test_scale_the_rate_by_the_samples_of_a_step_at_it(
        self, parallel: dict[str, Any], expected: tuple[int, int, int, int]
    ) -> None:
        train = {"epochs": 1, "batch_size": 8, "accumulate": 2}
        plan = planned(6, 1000, parallel=parallel, train=train, schedule={"base_batch": 16})
        assert plan.schedule.peak == pytest.approx(0.1 * expected[3] / 16)

    def test_backups_to_be_chosen_count_once_they_are(self) -> None:
        config = configured(parallel=server("backup", backups="auto"))
        chosen = make_plan(config, workers=6, train_size=1000, backups=2)
        assert (chosen.quorum, chosen.samples_per_update, chosen.scaling_batch) == (4, 32, 32)

    def test_backups_that_are_chosen_anew_replace_those_configured(self) -> None:
        config = configured(parallel=server("backup", backups=3))
        assert make_plan(config, workers=6, train_size=1000, backups=1).quorum == 5

    def test_a_global_batch_is_cut_into_the_gradients_that_count(self) -> None:
        parallel = server("backup", backups=2, global_batch=50)
        plan = planned(6, 1000, parallel=parallel, train={"epochs": 1}, schedule={"base_batch": 25})
        # 50 samples in four leases: 13, 13, 12, 12.
        assert (plan.quorum, plan.samples_per_gradient, plan.samples_per_update) == (4, 13, 50)
        assert plan.schedule.peak == pytest.approx(0.2)

    def test_a_global_batch_of_local_steps_is_cut_into_those_too(self) -> None:
        parallel = server("bounded", max_staleness=0, local_steps=5, global_batch=120)
        plan = planned(6, 1000, parallel=parallel, train={"epochs": 1})
        assert (plan.samples_per_update, plan.samples_per_gradient, plan.scaling_batch) == (120, 20, 4)


class TestGroups:
    def test_are_everybody_in_mode_sync(self) -> None:
        assert groups(configured().parallel, 4) == [[0, 1, 2, 3]]

    def test_are_consecutive_workers_in_the_modes_with_a_server(self) -> None:
        assert groups(configured(parallel=server("async")).parallel, 3) == [[0], [1], [2]]
        mixed = configured(parallel=server("async", group_size=2)).parallel
        assert groups(mixed, 4) == [[0, 1], [2, 3]]


class TestLearningRate:
    # 4 workers x 8 samples are 32 samples, twice the base batch of 16.
    @pytest.mark.parametrize(
        ("scaling", "peak"), [("linear", 0.2), ("sqrt", 0.1 * math.sqrt(2)), ("none", 0.1)]
    )
    def test_follows_the_global_batch_by_the_scaling_rule(self, scaling: str, peak: float) -> None:
        plan = planned(schedule={"scaling": scaling, "base_batch": 16})
        assert plan.schedule.peak == pytest.approx(peak, rel=1e-12)

    def test_is_not_scaled_without_a_base_batch(self) -> None:
        assert planned().schedule.peak == 0.1

    def test_goyals_constants(self) -> None:
        plan = make_plan(
            configured(
                train={"epochs": 90, "batch_size": 32},
                schedule={
                    "base_batch": 256,
                    "warmup": {"kind": "gradual", "epochs": 5},
                    "decay": {"kind": "step", "milestones": [30, 60, 80]},
                },
            ),
            workers=256,
            train_size=1_281_167,
        )
        assert plan.samples_per_update == 8192
        assert plan.schedule.peak == pytest.approx(3.2)
        assert plan.schedule.warmup == rules.Warmup(5 * 1_281_167, 0.1, gradual=True)
        assert plan.schedule.decay == rules.Step(tuple(n * 1_281_167 for n in (30, 60, 80)), 0.1)
        assert plan.lengths.updates_per_epoch == 157  # 1,281,167 / 8,192 = 156.4


class TestWarmup:
    # 100 samples in updates of 32, the last of 4: four updates an epoch.
    @pytest.mark.parametrize(
        ("length", "samples"),
        [
            ({"epochs": 2}, 200),
            ({"epochs": 0.5}, 50),
            ({"samples": 70}, 70),
            ({"steps": 3}, 96),
            ({"steps": 4}, 100),
            ({"steps": 5}, 132),
        ],
    )
    def test_is_counted_in_samples_whatever_its_unit(self, length: dict[str, float], samples: int) -> None:
        warmup = planned(schedule={"warmup": {"kind": "gradual", **length}}).schedule.warmup
        assert warmup is not None
        assert warmup.samples == samples

    def test_starts_from_the_base_rate_or_where_told(self) -> None:
        constant = planned(schedule={"warmup": {"kind": "constant", "epochs": 1}}).schedule.warmup
        told = planned(schedule={"warmup": {"kind": "gradual", "epochs": 1, "start_lr": 0.0}}).schedule.warmup
        assert constant == rules.Warmup(100, 0.1, gradual=False)
        assert told == rules.Warmup(100, 0.0, gradual=True)

    def test_can_be_left_out(self) -> None:
        assert planned(schedule={"warmup": {"kind": "none"}}).schedule.warmup is None


class TestDecay:
    @pytest.mark.parametrize(
        ("decay", "expected"),
        [
            ({"kind": "constant"}, rules.Constant()),
            ({"kind": "step", "milestones": [3, 6.5], "gamma": 0.5}, rules.Step((300, 650), 0.5)),
            ({"kind": "cosine", "min_lr": 0.01}, rules.Cosine(0.01)),
            ({"kind": "cosine_restarts", "cycles": 4}, rules.Restarts(250, 1, 0)),
            ({"kind": "cosine_restarts", "first_epochs": 2, "factor": 3}, rules.Restarts(200, 3, 0)),
            ({"kind": "one_cycle"}, rules.OneCycle(0.9, 10, 100, None)),
        ],
    )
    def test_is_counted_in_samples(self, decay: dict[str, Any], expected: rules.Decay) -> None:
        assert planned(schedule={"decay": decay}).schedule.decay == expected

    def test_equal_cycles_share_what_the_warmup_leaves(self) -> None:
        schedule = {
            "base_batch": 16,
            "warmup": {"kind": "gradual", "epochs": 2},
            "decay": {"kind": "cosine_restarts", "cycles": 4},
        }
        assert planned(schedule=schedule).schedule.decay == rules.Restarts(200, 1, 0)

    @pytest.mark.parametrize("decay", [{"kind": "cosine"}, {"kind": "cosine_restarts", "cycles": 2}])
    def test_may_not_end_above_the_peak(self, decay: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=r"schedule.decay.min_lr: 0.3 is above .* after scaling, 0.2"):
            planned(schedule={"base_batch": 16, "decay": {**decay, "min_lr": 0.3}})


class TestLength:
    # 100 samples in updates of 32: with "keep" 4 an epoch and with "drop" 3, which take 96 samples.
    @pytest.mark.parametrize(
        ("last_batch", "length", "updates", "samples"),
        [
            ("keep", {"epochs": 2}, 8, 200),
            ("keep", {"epochs": 1.5}, 6, 150),
            ("keep", {"steps": 6}, 6, 164),
            ("keep", {"samples": 132}, 5, 132),
            ("keep", {"samples": 133}, 6, 133),
            ("keep", {"samples": 1}, 1, 1),
            ("drop", {"epochs": 2}, 6, 192),
            ("drop", {"epochs": 0.5}, 2, 48),
            ("drop", {"steps": 4}, 4, 128),
            ("drop", {"samples": 97}, 4, 97),
        ],
    )
    def test_in_updates_and_in_samples(
        self, last_batch: str, length: dict[str, float], updates: int, samples: int
    ) -> None:
        plan = planned(train={**length, "batch_size": 8, "last_batch": last_batch})
        assert plan.total_updates == updates
        assert plan.schedule.total == samples

    def test_an_epoch_that_another_batch_began_ends_where_no_batch_is_left(self) -> None:
        # 7 of 8 samples are the goal; after the first, one update of 4 leaves too few for another.
        train = {"epochs": 0.875, "last_batch": "drop"}
        plan = planned(1, 8, parallel={"global_batch": 4}, train=train)
        assert plan.updates_left(1, 1, Position(0, 1)) == 1

    def test_is_one_update_at_least(self) -> None:
        assert planned(train={"epochs": 1e-6, "batch_size": 8}).total_updates == 1

    def test_spans_convert_to_samples_by_the_same_rule(self) -> None:
        assert planned().samples_in(Span(steps=9)) == 232


class TestRefusals:
    def test_an_empty_training_set(self) -> None:
        with pytest.raises(ConfigError, match="task digits: the training set is empty"):
            planned(train_size=0)

    def test_a_global_batch_smaller_than_the_number_of_workers(self) -> None:
        with pytest.raises(ConfigError, match=r"parallel.global_batch: 3 samples .* give at least 4"):
            planned(parallel={"global_batch": 3}, train={"epochs": 1})

    def test_a_global_batch_smaller_than_what_an_update_is_cut_into(self) -> None:
        parallel = server("bounded", max_staleness=0, group_size=2, local_steps=5)
        for batch in (29, 30):
            given = configured(parallel={**parallel, "global_batch": batch}, train={"epochs": 1})
            if batch == 30:
                make_plan(given, workers=6, train_size=100)
                continue
            with pytest.raises(ConfigError, match=r"3 for an update x 2 workers .* x 5 steps; .* least 30"):
                make_plan(given, workers=6, train_size=100)

    # Groups of two workers; an update of one gradient of 32 samples is 4 passes of 8 for each worker.
    @pytest.mark.parametrize(
        ("train_size", "last_batch", "refused"),
        [(64, "keep", False), (66, "keep", False), (65, "keep", True), (65, "drop", False)],
    )
    def test_batch_norm_over_a_group_whose_workers_would_not_meet(
        self, train_size: int, last_batch: str, refused: bool
    ) -> None:
        parallel = server("async", group_size=2, sync_batch_norm=True)
        train = {"epochs": 1, "batch_size": 8, "accumulate": 2, "last_batch": last_batch}
        if not refused:
            planned(4, train_size, parallel=parallel, train=train)
            return
        with pytest.raises(ConfigError, match=r"parallel.sync_batch_norm: .* different numbers of passes"):
            planned(4, train_size, parallel=parallel, train=train)

    def test_batch_norm_over_a_group_that_does_not_meet_in_each_local_step(self) -> None:
        # The last update of 68 has 2 samples for each group: one in each of two steps, for one worker.
        parallel = server("bounded", max_staleness=0, group_size=2, local_steps=2, sync_batch_norm=True)
        planned(4, 72, parallel=parallel)
        with pytest.raises(ConfigError, match=r"parallel.sync_batch_norm: .* different numbers of passes"):
            planned(4, 68, parallel=parallel)

    def test_dropping_the_only_batch(self) -> None:
        with pytest.raises(ConfigError, match=r"train.last_batch: .* takes 32 .* has 31"):
            planned(train_size=31, train={"epochs": 1, "batch_size": 8, "last_batch": "drop"})
        planned(train_size=31, train={"epochs": 1, "batch_size": 8, "last_batch": "keep"})


@st.composite
def runs(generate: st.DrawFn) -> tuple[Plan, Literal["keep", "drop"]]:
    batch = generate(st.integers(1, 9))
    last_batch: Literal["keep", "drop"] = generate(st.sampled_from(["keep", "drop"]))
    size = generate(st.integers(batch if last_batch == "drop" else 1, 30))
    length = generate(
        st.one_of(
            st.fixed_dictionaries({"steps": st.integers(1, 40)}),
            st.fixed_dictionaries({"samples": st.integers(1, 100)}),
            st.fixed_dictionaries({"epochs": st.integers(1, 6) | st.floats(0.05, 6)}),
        )
    )
    train = {**length, "last_batch": last_batch}
    return planned(1, size, parallel={"global_batch": batch}, train=train), last_batch


@settings(deadline=None, max_examples=60)
@given(run=runs(), start=st.integers(0, 29))
def test_the_updates_left_are_those_that_a_simulation_makes(
    run: tuple[Plan, Literal["keep", "drop"]], start: int
) -> None:
    """From any position, one that an earlier run with another batch has left included."""
    plan, last_batch = run
    size, batch = plan.train_size, plan.samples_per_update
    updates, samples, cursor = 0, start % size, Cursor(Position(0, start % size))
    foreseen = plan.updates_left(updates, samples, cursor.position)
    while not over(plan, updates, samples, cursor.position):
        assert not plan.finished(updates, samples, cursor.position)
        samples += draw(cursor, size, batch, last_batch).count
        cursor = advance(cursor, size, batch, last_batch)
        updates += 1
        assert plan.updates_left(updates, samples, cursor.position) == foreseen - updates
    assert updates == foreseen
    assert plan.finished(updates, samples, cursor.position)


def over(plan: Plan, updates: int, samples: int, position: Position) -> bool:
    """The end of training as the configuration words it."""
    if plan.length.steps is not None:
        return updates >= plan.length.steps
    if plan.length.samples is not None:
        return samples >= plan.length.samples
    size, batch = plan.train_size, plan.samples_per_update
    dropped = size % batch if plan.lengths.last_batch == "drop" else 0
    if size - position.offset < (batch if dropped or plan.lengths.last_batch == "drop" else 1):
        position = Position(position.epoch + 1, 0)
    assert plan.length.epochs is not None
    goal = max(1, round(plan.length.epochs * (size - dropped)))
    return (position.epoch, position.offset) >= divmod(goal, size - dropped)
