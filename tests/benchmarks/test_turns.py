"""Jobs that take turns: one computes, the others wait."""

import os
import sys
from itertools import groupby

import pytest

from benchmarks.machine import environment
from benchmarks.turns import Contestant, Stage, Turn

WORKER = """
import sys, time
from benchmarks.turns import Turn

turn = Turn()
with open(sys.argv[1], "a", buffering=1) as steps:
    while True:
        turn.step_begins()
        print(time.monotonic(), sys.argv[2], file=steps)
"""


def contestant(name, steps):
    return Contestant(name, [sys.executable, "-c", WORKER, str(steps), name], workers=1)


def test_only_one_contestant_steps_at_a_time_and_each_makes_the_steps_it_is_given(tmp_path):
    log = tmp_path / "steps"
    with Stage([contestant("a", log), contestant("b", log)], tmp_path, environment()) as stage:
        seconds = stage.rounds(number=3, steps=4, warmup=2)
    in_time = sorted(log.read_text().splitlines(), key=lambda line: float(line.split()[0]))
    turns = [(name, len(list(steps))) for name, steps in groupby(line.split()[1] for line in in_time)]
    # Whoever begins changes from round to round.
    assert turns == [("a", 2), ("b", 2), ("a", 4), ("b", 8), ("a", 8), ("b", 4)]
    assert [len(seconds[name]) for name in "ab"] == [3, 3]
    assert all(s > 0 for s in seconds["a"] + seconds["b"])


def test_nothing_is_left_of_a_contestant_after_the_stage(tmp_path):
    with Stage([contestant("a", tmp_path / "steps")], tmp_path, environment()) as stage:
        pid = stage.jobs[0].pids[0]
        assert stage.jobs[0].turn(1) > 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_contestant_that_does_not_start_says_why(tmp_path):
    broken = Contestant("broken", [sys.executable, "-c", "raise SystemExit('no torch here')"])
    with pytest.raises(RuntimeError, match="no torch here"), Stage([broken], tmp_path, environment()):
        pass


def test_without_a_stage_every_step_passes():
    turn = Turn()
    for _ in range(3):
        turn.step_begins()
