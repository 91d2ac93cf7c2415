"""Tests of the beginning of a run as a person sees it, and of what a resumed run knows of its past."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dist_train.config import Config, load_config
from dist_train.core.keeper import Origin
from dist_train.core.state import Counted
from dist_train.plan import make_plan
from dist_train.rules.sampling import Position
from dist_train.watch.course import Earlier
from dist_train.watch.figures import Length
from dist_train.watch.forwarded import ForwardedDisplay
from dist_train.watch.logbook import METRICS, NoLogbook
from dist_train.watch.opening import (
    Scene,
    announce,
    arithmetic,
    earlier,
    length_of,
    open_logbook,
    start_facts,
)
from dist_train.watch.records import JsonLines

SCENE = Scene("CPU", 4810, "launcher", 0)


def configured(**sections: dict[str, Any]) -> Config:
    given = {
        "name": "opening",
        "task": "digits",
        "train": {"epochs": 10, "batch_size": 32},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "schedule": {"base_batch": 32, "warmup": {"kind": "gradual", "epochs": 5}},
        **sections,
    }
    return load_config(given, ())


def spelt_out(workers: int = 2, train_size: int = 1437, **sections: dict[str, Any]) -> dict[str, str]:
    config = configured(**sections)
    return arithmetic(config, make_plan(config, workers, train_size))


class Book(NoLogbook):
    def __init__(self) -> None:
        self.facts: Mapping[str, str] = {}
        self.events: list[Mapping[str, Any]] = []

    def start(self, facts: Mapping[str, str]) -> None:
        self.facts = facts

    def event(self, event: Mapping[str, Any]) -> None:
        self.events.append(event)


class TestArithmetic:
    def test_of_a_plain_run(self) -> None:
        # 1437 samples in updates of 64: 22 full ones and one of 29.
        assert spelt_out() == {
            "global batch": "64 = 2 workers x 32 x 1 accumulated",
            "epoch": "1,437 samples = 23 steps of 64, the last one shorter",
            "training": "230 steps = 14,370 samples = 10 epochs",
            "learning rate": "0.2 = 0.1 x 64/32 (linear scaling)",
            "warmup": "gradual from 0.1 to 0.2 in 115 steps = 7,185 samples",
            "decay": "constant",
            "last learning rate": "0.2",
        }

    def test_of_dropped_batches(self) -> None:
        facts = spelt_out(train={"epochs": 2, "batch_size": 32, "last_batch": "drop"})
        assert facts["epoch"] == "1,437 samples = 22 steps of 64, the last one left out"
        assert facts["training"] == "44 steps = 2,816 samples = 2 epochs"

    def test_of_accumulation_and_of_a_global_batch(self) -> None:
        accumulated = spelt_out(train={"epochs": 1, "batch_size": 8, "accumulate": 4})
        assert accumulated["global batch"] == "64 = 2 workers x 8 x 4 accumulated"
        fixed = spelt_out(train={"epochs": 1}, parallel={"global_batch": 48})
        assert fixed["global batch"] == "48 (parallel.global_batch) = 2 workers x 24 x 1 accumulated"

    @pytest.mark.parametrize(
        ("schedule", "text"),
        [
            ({"base_batch": 16, "scaling": "sqrt"}, "0.2 = 0.1 x sqrt(64/16) (sqrt scaling)"),
            ({"base_batch": 16, "scaling": "none"}, "0.1 (not scaled)"),
            ({}, "0.1 (not scaled)"),
        ],
    )
    def test_of_each_scaling_rule(self, schedule: dict[str, Any], text: str) -> None:
        assert spelt_out(schedule=schedule)["learning rate"] == text

    def test_of_a_parameter_server(self) -> None:
        facts = spelt_out(workers=5, parallel={"mode": "backup", "backups": 1})
        # The rate and the steps follow the 4 gradients that count.
        assert facts["global batch"] == "128 = 4 gradients of 32 samples"
        assert facts["epoch"] == "1,437 samples = 12 steps of 128, the last one shorter"
        assert facts["learning rate"] == "0.4 = 0.1 x 128/32 (linear scaling)"
        assert facts["staleness"] == "always 0"

    def test_of_local_steps_the_rate_is_that_of_a_members_own_steps(self) -> None:
        facts = spelt_out(workers=2, parallel={"mode": "async", "local_steps": 10})
        assert facts["learning rate"] == "0.1 = 0.1 x 32/32 (linear scaling)"

    def test_a_warmup_with_nothing_to_climb_says_so(self) -> None:
        schedule = {"scaling": "none", "warmup": {"kind": "gradual", "epochs": 1}}
        assert spelt_out(schedule=schedule)["warmup"].endswith("; not used, since the rate does not rise")

    def test_the_last_rate_is_that_of_the_last_update(self) -> None:
        # Two updates of 64 with half a cosine over 128 samples: the second starts half way down.
        facts = spelt_out(
            train_size=128, train={"epochs": 1, "batch_size": 32}, schedule={"decay": {"kind": "cosine"}}
        )
        assert facts["last learning rate"] == "0.05"
        assert facts["decay"] == "cosine (min lr 0)"


class TestAnnouncement:
    def announced(
        self, scene: Scene = SCENE, origin: Origin | None = None, rescaled: str | None = None
    ) -> Book:
        book, config = Book(), configured()
        plan = make_plan(config, 2, 1437)
        counted = Counted(46, 2874, Position(2, 0))
        announce(book, config, plan, scene, Path("runs/x"), counted, origin or Origin(None), rescaled)
        return book

    def test_opens_with_what_is_trained_where(self) -> None:
        facts = self.announced().facts
        assert facts["run"] == "opening"
        assert facts["model"] == "the task's own, 4,810 parameters"
        assert facts["workers"] == "2 workers on CPU, fp32, sync"
        assert facts["run directory"] == "runs/x"

    def test_one_worker_is_singular(self) -> None:
        config = configured()
        assert start_facts(config, make_plan(config, 1, 9), SCENE, Path("x"))["workers"].startswith(
            "1 worker on"
        )

    def test_a_restart_does_not_repeat_it(self) -> None:
        assert self.announced(Scene("CPU", 1, "launcher", 1)).facts == {}

    def test_every_start_is_an_event(self) -> None:
        (start,) = self.announced().events
        assert start == {
            "event": "start",
            "step": 46,
            "samples": 2874,
            "workers": 2,
            "started_by": "launcher",
            "attempt": 0,
        }

    def test_a_resumed_start_says_from_where_and_what_it_passed_over(self) -> None:
        origin = Origin(Path("runs/x/checkpoints/step_00000046"), ("step_00000092: truncated",))
        rejected, start, rescaled = self.announced(origin=origin, rescaled="global batch 64 -> 32").events
        assert rejected["warning"] == "passed over a damaged checkpoint: step_00000092: truncated"
        assert start["note"].startswith(
            "resumed from runs/x/checkpoints/step_00000046: step 46, 2,874 samples"
        )
        assert rescaled["note"] == "global batch 64 -> 32"


class TestBook:
    def test_is_shown_where_it_is_told_to(self, tmp_path: Path) -> None:
        config = configured(logging={"tensorboard": False})
        display = ForwardedDisplay()
        plan = make_plan(config, 2, 1437)
        book = open_logbook(config, plan, tmp_path, 0, 0, Counted(), display)
        book.event({"event": "any", "note": "shown"})
        book.close()
        assert display.taken() == [("note", ("shown",)), ("close", ())]

    def test_the_length_counts_what_is_made_and_what_is_left(self) -> None:
        plan = make_plan(configured(), 2, 1437)
        # 23 updates an epoch, 10 epochs.
        assert length_of(plan, Counted()) == Length(230, 14370, 10.0)
        resumed = Counted(updates=20, samples=1280, position=Position(0, 1280))
        assert length_of(plan, resumed).steps == 230


class TestEarlier:
    def written(self, run_dir: Path, *lines: dict[str, Any]) -> Path:
        with JsonLines(run_dir / METRICS) as metrics:
            for line in lines:
                metrics.write(line)
        return run_dir

    def test_a_new_run_has_nothing_behind_it(self, tmp_path: Path) -> None:
        assert earlier(tmp_path, 0) == Earlier()
        assert earlier(tmp_path, 5) == Earlier()

    def test_time_and_best_come_from_the_lines_up_to_the_step(self, tmp_path: Path) -> None:
        line = {"kind": "val", "samples": 1, "epoch": 1.0, "seconds": 0.1, "replica": 0}
        run = self.written(
            tmp_path,
            {"kind": "train", "step": 10, "wall_s": 4.0, "loss": 0.01},
            {**line, "step": 10, "wall_s": 5.0, "loss": 0.5, "accuracy": 0.8},
            {**line, "step": 20, "wall_s": 9.0, "loss": float("nan"), "accuracy": 0.1},
            {**line, "step": 30, "wall_s": 13.0, "loss": 0.25, "accuracy": 0.9},
        )
        assert earlier(run, 20) == Earlier(9.0, {"step": 10, "loss": 0.5, "accuracy": 0.8})
        assert earlier(run, 30).best == {"step": 30, "loss": 0.25, "accuracy": 0.9}

    def test_without_a_usable_validation_there_is_no_best(self, tmp_path: Path) -> None:
        run = self.written(tmp_path, {"kind": "val", "step": 1, "wall_s": 1.0, "loss": float("nan")})
        assert earlier(run, 1) == Earlier(1.0, None)
