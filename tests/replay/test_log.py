"""What the log says a run did: its attempts without what was undone, every gradient in its place."""

from __future__ import annotations

from typing import Any

import pytest

from dist_train.errors import ConfigError
from dist_train.replay.log import Attempt, Gradient, RolledBack, Update, attempts, without_undone
from dist_train.rules.messages import Version

GRADIENT: dict[str, Any] = {
    "member": 1,
    "incarnation": 0,
    "sequence": 1,
    "read": [0, 0],
    "lease": [0, 8, 4],
    "loss": 2.5,
}


def start(step: int = 0, origin: str | None = None) -> dict[str, Any]:
    counts = {"workers": 2, "shards": 1, "threads": 1, "seed": 0, "train_size": 50}
    return {"event": "server_start", "step": step, "origin": origin, **counts}


def update(step: int, era: int = 0, **gradient: Any) -> dict[str, Any]:
    made = GRADIENT | {"sequence": step} | gradient
    made_with = {"rate": 0.1, "momentum": None, "weight_decay": None}
    return {"event": "update", "step": step, "era": era, **made_with, "gradients": [made]}


def steps(attempt: Attempt) -> list[int]:
    return [entry.version.number for entry in attempt.entries if isinstance(entry, Update)]


def one(*events: dict[str, Any]) -> Attempt:
    (found,) = attempts([start(), *events])
    return found


class TestAttempts:
    def test_hold_updates_and_uncounted_gradients_in_the_order_of_the_log(self) -> None:
        late = {"event": "dropped", "step": 1, "era": 0, **GRADIENT, "sequence": 2}
        found = one(update(1), late, update(2), {"event": "rolled_back", "step": 1, "era": 1})
        kinds = [type(entry) for entry in found.entries]
        assert kinds == [Update, Gradient, Update, RolledBack]
        assert [(index, gradient.outcome) for index, gradient in found.gradients] == [
            (0, "counted"),
            (1, "dropped"),
            (2, "counted"),
        ]

    def test_leases_that_went_back_without_a_gradient_are_no_entries(self) -> None:
        assert one({"event": "requeued", "member": 1, "lease": [0, 8, 4]}).entries == []

    def test_a_loss_that_is_no_number_is_read(self) -> None:
        found = one({"event": "refused", "step": 0, "era": 0, **GRADIENT, "loss": "NaN"})
        ((_, gradient),) = found.gradients
        assert gradient.loss != gradient.loss

    def test_checksums_are_those_of_their_era(self) -> None:
        check = {"event": "check", "step": 1, "crc32": [5]}
        back = {"event": "rolled_back", "step": 0, "era": 1}
        found = one(update(1), check, back, update(1, era=1), check | {"crc32": [6]})
        assert found.checks == {Version(0, 1): [5], Version(1, 1): [6]}

    def test_a_member_that_heard_of_a_lost_update_is_told_so(self) -> None:
        back = {"event": "rolled_back", "step": 0, "era": 1}
        found = one(update(1), back, {"event": "void", "step": 0, "era": 1, **GRADIENT})
        ((index, gradient),) = found.gradients
        assert (index, found.heard(gradient)) == (0, "void")

    def test_a_void_gradient_that_was_in_no_update_is_an_entry(self) -> None:
        found = one(update(1), {"event": "void", "step": 0, "era": 1, **GRADIENT, "sequence": 2})
        assert [gradient.outcome for _, gradient in found.gradients] == ["counted", "void"]

    def test_where_it_has_no_reads_there_was_one(self) -> None:
        found = one(update(1), update(2, reads=[]), update(3, reads=[[0, 1], [0, 2]]))
        assert [gradient.reads for _, gradient in found.gradients] == [
            (Version(0, 0),),
            (),
            (Version(0, 1), Version(0, 2)),
        ]

    @pytest.mark.parametrize(
        ("note", "changed"),
        [
            ("optimizer.lr changed from 1 to 2 since this run was saved", "optimizer.lr"),
            ("train.epochs changed from 1 to 2 since this run was saved", None),
        ],
    )
    def test_they_know_of_a_changed_setting_that_matters(self, note: str, changed: str | None) -> None:
        found = attempts([start(), {"event": "configuration_changed", "note": note}, start(3)])
        assert [attempt.changed for attempt in found] == [None, changed]

    def test_an_event_of_another_form_is_named_by_its_line(self) -> None:
        with pytest.raises(ConfigError, match=r"line 2: .*KeyError: 'rate'"):
            one({"event": "update", "step": 1, "era": 0, "gradients": []})


class TestWithoutWhatWasUndone:
    def test_a_start_from_a_checkpoint_undoes_what_came_after_it(self) -> None:
        first, second = without_undone(
            attempts([start(), update(1), update(2), update(3), start(2, "step_2"), update(3)])
        )
        assert (steps(first), steps(second)) == ([1, 2], [3])

    def test_a_start_from_the_beginning_undoes_all(self) -> None:
        (only,) = without_undone(attempts([start(), update(1), start(), update(1), update(2)]))
        assert steps(only) == [1, 2]

    def test_a_start_before_the_last_one_undoes_that_too(self) -> None:
        found = without_undone(
            attempts([start(), update(1), update(2), start(2, "b"), update(3), start(1, "a"), update(2)])
        )
        assert [steps(attempt) for attempt in found] == [[1], [2]]

    def test_an_update_that_was_lost_and_made_again_is_kept_with_all_that_led_to_it(self) -> None:
        back = {"event": "rolled_back", "step": 0, "era": 1}
        first, _ = without_undone(
            attempts([start(), update(1), back, update(1, era=1), update(2, era=1), start(1, "a")])
        )
        assert steps(first) == [1, 1]

    def test_a_start_at_an_update_that_is_not_in_the_log_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="went on from update 5, which the log does not hold"):
            without_undone(attempts([start(), update(1), start(5, "a")]))
