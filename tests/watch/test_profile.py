"""Tests of the profiler's traces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_train.config.schema import Profile
from dist_train.watch.profile import NoProfiler, open_profiler


def marked_steps(profile: Profile, directory: Path, steps: int) -> set[str]:
    """Train for so many steps, each under its own name, and return the names in the trace."""
    profiler = open_profiler(profile, directory, rank=0)
    profiler.start()
    for step in range(steps):
        with torch.profiler.record_function(f"marked {step}"):
            torch.ones(8, 8) @ torch.ones(8, 8)
        profiler.step()
    profiler.stop()
    profiler.stop()
    trace: dict[str, Any] = json.loads((directory / "profile" / "rank_00000.json").read_text())
    return {event["name"] for event in trace["traceEvents"] if event["name"].startswith("marked")}


def test_the_trace_holds_the_active_steps_alone(tmp_path: Path) -> None:
    assert marked_steps(Profile(wait=1, warmup=1, active=2), tmp_path, steps=7) == {"marked 2", "marked 3"}


def test_a_run_that_ends_early_keeps_what_was_recorded(tmp_path: Path) -> None:
    assert marked_steps(Profile(wait=0, warmup=1, active=9), tmp_path, steps=3) == {"marked 1", "marked 2"}


def test_each_rank_has_its_own_trace(tmp_path: Path) -> None:
    profiler = open_profiler(Profile(wait=0, warmup=1, active=1), tmp_path, rank=12)
    profiler.start()
    for _ in range(2):
        profiler.step()
    assert [path.name for path in (tmp_path / "profile").iterdir()] == ["rank_00012.json"]


def test_after_the_trace_the_profiler_is_gone(tmp_path: Path) -> None:
    profiler = open_profiler(Profile(wait=0, warmup=1, active=1), tmp_path, rank=0)
    profiler.start()
    profiler.step()
    profiler.step()
    with torch.profiler.profile() as observer:
        profiler.step()
        torch.ones(1)
    assert not [event.name for event in observer.events() or () if "ProfilerStep" in event.name]


def test_without_a_configuration_nothing_is_profiled(tmp_path: Path) -> None:
    profiler = open_profiler(None, tmp_path, rank=0)
    assert isinstance(profiler, NoProfiler)
    profiler.start()
    profiler.step()
    profiler.stop()
    assert not torch.autograd._profiler_enabled()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("steps", [0, 1])
def test_a_run_that_ends_before_recording_writes_no_trace(tmp_path: Path, steps: int) -> None:
    profiler = open_profiler(Profile(wait=2, warmup=1, active=1), tmp_path, rank=0)
    profiler.start()
    for _ in range(steps):
        profiler.step()
    profiler.stop()
    assert list(tmp_path.iterdir()) == []
