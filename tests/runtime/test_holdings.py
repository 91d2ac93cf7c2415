"""What the coordinator holds: the memory that outlives shards, and the state that checkpoints are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import server_runs
import torch
from safetensors.torch import load_file

from dist_train.exchange.areas import areas, held
from dist_train.exchange.segments import Segment
from dist_train.rules.referee import Start
from dist_train.rules.sampling import Position, Run
from dist_train.runtime.holdings import Holdings, Kept

MOMENTUM = {"name": "sgd", "lr": 0.1, "momentum": 0.9}


def holdings(norm: str = "none", **sections: Any) -> Holdings:
    """Make the holdings of two members."""
    parallel = {"mode": "async", "workers": 2} | sections.pop("parallel", {})
    config = server_runs.config_of(
        parallel=parallel, optimizer=MOMENTUM, task_options={"norm": norm}, **sections
    )
    return Holdings(config, 2, None)


def after(updates: int) -> Kept:
    return Kept(Start(updates, 4 * updates, Position(0, 4 * updates), ()), {}, {"ledger": updates}, ())


class TestTheAreas:
    def test_the_one_to_be_written_next_is_the_older(self) -> None:
        held = holdings()
        held.keep(0, after(3))
        held.keep(1, after(5))
        assert held.next_area() == 0

    def test_the_one_being_written_counts_no_more(self) -> None:
        held = holdings()
        held.keep(0, after(3))
        assert held.newest() == (0, after(3))
        assert held.next_area() == 1
        held.keep(1, after(5))
        assert held.next_area() == 0
        assert held.newest() == (1, after(5))

    def test_one_that_is_being_saved_is_not_written(self) -> None:
        held = holdings()
        held.keep(0, after(3))
        held.keep(1, after(5))
        held.saving = 1
        assert held.has_room
        assert held.next_area() == 0

    def test_the_newest_is_not_written_while_the_other_is_being_saved(self) -> None:
        held = holdings()
        assert held.has_room
        held.keep(0, after(3))
        held.saving = 0
        assert held.has_room
        held.keep(1, after(5))
        assert not held.has_room
        held.saving = None
        assert held.has_room
        assert held.next_area() == 0
        assert held.newest() == (1, after(5))

    def test_before_anything_is_kept_there_is_no_newest(self) -> None:
        assert holdings().newest() is None


class TestTheBlueprints:
    @pytest.mark.parametrize("shards", [1, 3])
    def test_cut_all_of_the_parameters_once(self, shards: int) -> None:
        held = holdings()
        prints = held.blueprints(shards, threads=1)
        assert [each.number for each in prints] == list(range(shards))
        covered = [element for each in prints for element in each.part]
        assert covered == list(range(held.server.layout.size))

    @pytest.mark.parametrize("deterministic", [True, False])
    def test_have_checksums_made_of_deterministic_runs(self, deterministic: bool) -> None:
        train = {"steps": 4, "batch_size": 4, "deterministic": deterministic}
        (blueprint,) = holdings(train=train).blueprints(1, threads=1)
        assert blueprint.checks is deterministic

    def test_lead_to_the_memory_that_training_begins_from(self) -> None:
        held = holdings()
        area, _ = held.begin(Start(0, 0, Position(0, 0), ()))
        (blueprint,) = held.blueprints(1, threads=1)
        there = areas(Segment.open(blueprint.areas), blueprint.vectors, blueprint.area_count)[area]
        for name, own in held.server.layout.views(there.parameters).items():
            assert torch.equal(own, dict(held.server.state.model.named_parameters())[name])


class TestWhatIsTaken:
    def test_brings_its_counts_along(self) -> None:
        held = holdings()
        held.begin(Start(0, 0, Position(0, 0), ()))
        start = Start(5, 20, Position(0, 24), (Run(0, 4, 4),), owes_validation=True)
        held.keep(0, Kept(start, {}, {"ledger": "its"}, held.statistics(), rate=0.25, batch=8))
        held.take(0)
        counted = held.counted
        assert (counted.updates, counted.samples, counted.position) == (5, 20, Position(0, 24))
        assert (counted.unfinished, counted.owes_validation) == ((Run(0, 4, 4),), True)
        assert (held.server.state.chosen.rate, held.server.state.chosen.batch) == (0.25, 8)
        assert held.server.counts == {"ledger": "its"}

    def test_is_what_is_delivered(self, tmp_path: Path) -> None:
        held = holdings()
        held.begin(Start(0, 0, Position(0, 0), ()))
        (blueprint,) = held.blueprints(1, threads=1)
        memory = Segment.open(blueprint.areas)
        areas(memory, blueprint.vectors, blueprint.area_count)[0].parameters.fill_(3.0)
        held.take(0)
        held.write_weights(tmp_path / "model.safetensors")
        assert all(tensor.eq(3.0).all() for tensor in load_file(tmp_path / "model.safetensors").values())


class TestTheBuffers:
    def test_of_which_a_copy_is_given(self) -> None:
        held = holdings("batch")
        before = held.statistics()
        held.server.statistics[1].fill_(9.0)
        assert not before[1].eq(9.0).any()

    def test_are_held_for_a_validation_as_the_mean_over_members(self) -> None:
        held_by = holdings("batch")
        (blueprint,) = held_by.blueprints(1, threads=1)
        for member, value in enumerate((1.0, 3.0)):
            held_by.server.statistics[member].fill_(value)
        held_by.hold_statistics()
        _, values = held(
            Segment.open(blueprint.held), held_by.server.layout.size, held_by.server.statistics_size
        )
        assert torch.equal(values, held_by.server.mean_statistics())
        assert values.eq(2.0).any()
        assert torch.equal(torch.from_numpy(held_by.held_values()[1]), values)
