"""Tests of a display at a distance."""

from __future__ import annotations

import inspect
import io
import pickle
from dataclasses import replace

import pytest

from dist_train.watch.display import Display, PlainDisplay, SilentDisplay
from dist_train.watch.figures import Length
from dist_train.watch.forwarded import VERBS, ForwardedDisplay, replay_onto
from dist_train.watch.records import StepTimes, TrainLine, ValLine

TRAIN = TrainLine(
    step=10,
    samples=640,
    epoch=0.4,
    wall_s=2.0,
    loss=2.1,
    lr=0.1,
    samples_per_s=320.0,
    samples_per_s_per_worker=160.0,
    data_wait=0.0,
    times=StepTimes(data=0.1, forward=0.1, backward=0.1, communication=0.1, update=0.1),
    memory_mb=300.0,
)
VAL = ValLine(step=10, samples=640, epoch=0.4, wall_s=2.0, loss=0.25, metrics={}, seconds=0.3)
SUMMARY = {
    "status": "done",
    "mode": "async",
    "workers": 2,
    "steps": 10,
    "samples": 640,
    "wall_s": 20.0,
    "samples_per_s": 320.0,
    "restarts": 0,
}


def show_everything(display: Display) -> None:
    display.start({"run": "digits"})
    display.train(TRAIN)
    display.validation(VAL)
    display.note("saved")
    display.warning("slow")
    display.finish(SUMMARY, "dist-train run ...")
    display.close()


def plain() -> tuple[PlainDisplay, io.StringIO]:
    stream = io.StringIO()
    return PlainDisplay(Length(steps=10, samples=640, epochs=1), stream, every_s=0.0), stream


def test_what_is_said_elsewhere_is_shown_as_if_it_were_said_here() -> None:
    (here, seen), (there, expected), forwarded = plain(), plain(), ForwardedDisplay()
    show_everything(there)
    show_everything(forwarded)
    # Ray carries the items from one process to the other.
    replay_onto(here, pickle.loads(pickle.dumps(forwarded.taken())))
    assert seen.getvalue() == expected.getvalue()


def test_what_was_taken_is_not_said_again() -> None:
    display = ForwardedDisplay()
    display.note("one")
    assert display.taken() == [("note", ("one",))]
    display.note("two")
    assert display.taken() == [("note", ("two",))]
    assert display.taken() == []


def test_of_training_lines_in_a_row_only_the_newest_is_kept() -> None:
    display = ForwardedDisplay()
    for step in (1, 2):
        display.train(replace(TRAIN, step=step))
    display.note("in between")
    for step in (3, 4):
        display.train(replace(TRAIN, step=step))
    said = [(verb, getattr(arguments[0], "step", None)) for verb, arguments in display.taken()]
    assert said == [("train", 2), ("note", None), ("train", 4)]


def test_what_is_said_does_not_change_afterwards() -> None:
    display, facts = ForwardedDisplay(), {"run": "digits"}
    display.start(facts)
    facts["run"] = "other"
    assert display.taken() == [("start", ({"run": "digits"},))]


@pytest.mark.parametrize("verb", ["_print", "__init__", "reboot", ""])
def test_only_the_verbs_of_a_display_are_carried_out(verb: str) -> None:
    with pytest.raises(ValueError, match="is nothing that a display does"):
        replay_onto(SilentDisplay(), [(verb, ())])


def test_a_forwarded_display_has_the_verbs_of_every_display() -> None:
    assert {name for name in vars(Display) if not name.startswith("_")} == VERBS
    for verb in sorted(VERBS):
        mine, every = getattr(ForwardedDisplay, verb), getattr(Display, verb)
        assert inspect.signature(mine) == inspect.signature(every)
