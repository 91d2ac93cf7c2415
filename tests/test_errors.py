"""Tests of the errors a user sees: they keep their words on the way between processes."""

from __future__ import annotations

import copy
import pickle

import pytest

from dist_train.errors import (
    DONE,
    FAILED,
    INTERRUPTED,
    REFUSED,
    BadSample,
    ConfigError,
    Mismatch,
    TrainingError,
)


def test_the_exit_statuses_are_those_that_scripts_rely_on() -> None:
    assert (DONE, FAILED, REFUSED, INTERRUPTED) == (0, 1, 2, 75)


def test_a_refusal_holds_one_line_for_each_problem() -> None:
    assert ConfigError("one").problems == ("one",)
    assert ConfigError(["one", "two"]).problems == ("one", "two")
    assert str(ConfigError(["one", "two"])) == "one\ntwo"


@pytest.mark.parametrize(
    "error",
    [ConfigError(["one", "two"]), BadSample("cat.jpg", "truncated"), Mismatch("rank 1"), TrainingError("no")],
)
def test_errors_survive_the_way_to_another_process(error: Exception) -> None:
    # A loader process sends its exceptions pickled.
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)


def test_a_bad_sample_names_itself_first() -> None:
    assert str(BadSample("cat.jpg", "truncated")) == "cat.jpg: truncated"
