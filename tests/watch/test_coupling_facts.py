"""Tests of a parameter server's settings as a person reads them."""

from __future__ import annotations

from typing import Any

import pytest

from dist_train.config import load_config
from dist_train.plan import make_plan
from dist_train.watch.coupling_facts import coupling_facts, replica_facts, student_facts


def of_models(**sections: Any) -> dict[str, str]:
    """The rows of several models: replicas, teachers."""
    given = {"name": "models", "task": "digits", "train": {"steps": 1, "batch_size": 1}}
    config = load_config({**given, "optimizer": {"name": "sgd", "lr": 0.1}, **sections})
    return replica_facts(config) | student_facts(config)


def spelt_out(workers: int = 5, **parallel: Any) -> dict[str, str]:
    train = {"epochs": 1} if "global_batch" in parallel else {"epochs": 1, "batch_size": 32}
    config = load_config(
        {
            "name": "coupled",
            "task": "digits",
            "parallel": {"workers": workers, **parallel},
            "train": train,
            "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.0},
        }
    )
    return coupling_facts(config, make_plan(config, workers, 1437))


def test_a_synchronous_run_has_none() -> None:
    assert spelt_out(mode="sync") == {}


def test_of_backup_workers() -> None:
    assert spelt_out(mode="backup", backups=1) == {
        "groups": "5 groups of 1 worker",
        "gradient": "32 samples = 1 worker x 32 x 1 accumulated",
        "update": "the first 4 of 5 gradients (N = 4, b = 1); "
        "late ones are dropped, and their samples dealt again",
        "staleness": "always 0",
    }


def test_of_backup_workers_to_be_chosen() -> None:
    assert spelt_out(mode="backup", backups="auto")["update"] == (
        "all 5 groups, until the number of backups is chosen from how long theirs take"
    )


def test_of_groups_that_act_as_one() -> None:
    facts = spelt_out(workers=6, mode="async", group_size=2)
    assert facts["groups"] == "3 groups of 2 workers"
    assert facts["gradient"] == "64 samples = 2 workers x 32 x 1 accumulated"
    assert facts["update"] == "each gradient on arrival"
    assert facts["staleness"] == "about 2 among even groups, without a bound"


def test_of_a_bound() -> None:
    facts = spelt_out(workers=3, mode="bounded", max_staleness=2)
    # Of each of the two others: from 2 behind to 3 ahead of the reader's clock, 5 gradients.
    assert facts["staleness"] == (
        "about 2 among even groups, at most 10: no group begins when more than 2 gradients ahead of another"
    )
    assert spelt_out(mode="bounded", max_staleness=0)["update"] == "one gradient from each of 5 groups"


def test_of_softsync() -> None:
    facts = spelt_out(mode="async", aggregate=2)
    assert facts["update"] == "any 2 gradients, in the order of arrival"
    assert facts["staleness"].startswith("about 2 among")


@pytest.mark.parametrize(
    ("damping", "text"),
    [
        ("inverse", "rate of a gradient / its staleness"),
        ({"kind": "delay_compensated"}, "delay compensated, adaptive, strength 2, decay 0.95"),
        (
            {"kind": "delay_compensated", "variant": "constant", "strength": 0.5},
            "delay compensated, constant, strength 0.5",
        ),
    ],
)
def test_of_damping(damping: Any, text: str) -> None:
    assert spelt_out(mode="async", damping=damping)["damping"] == text


def test_of_fetching_and_pushing_more_rarely() -> None:
    facts = spelt_out(mode="async", fetch_every=4, push_every=4)
    assert facts["gradient"] == "128 samples = 1 worker x 32 x 1 accumulated x 4 before each push"
    assert facts["fetching"] == "parameters are read every 4 batches"


@pytest.mark.parametrize(
    ("outer", "text"),
    [
        (None, "average: the mean of the groups' parameters"),
        ({"kind": "nesterov"}, "nesterov (lr 0.7, momentum 0.9) on the mean of the groups' moves"),
        # 0.9 / 3 groups.
        ({"kind": "elastic"}, "elastic: a group and the centre each move 0.3 of the way to each other"),
    ],
)
def test_of_local_steps_and_what_the_server_makes_of_them(outer: Any, text: str) -> None:
    facts = spelt_out(workers=3, mode="async", local_steps=10, outer=outer)
    assert facts["gradient"].endswith("x 10 local steps")
    assert facts["outer optimizer"] == text


def test_of_a_global_batch() -> None:
    facts = spelt_out(mode="backup", backups=1, global_batch=128)
    assert facts["gradient"] == "32 samples = 128 / 4 gradients of an update"


def test_one_model_without_teachers_has_none() -> None:
    assert of_models() == {}


@pytest.mark.parametrize(("bootstrap", "more"), [(False, ""), (True, ", each trains on a bootstrap sample")])
def test_of_an_ensemble(bootstrap: bool, more: str) -> None:
    facts = of_models(parallel={"replicas": 3, "workers": 1}, data={"bootstrap": bootstrap})
    assert facts == {"replicas": f"3 of 1 worker each, not coupled: an ensemble{more}"}


@pytest.mark.parametrize(("loss", "text"), [("kl", "kl, temperature 4"), ("squared_error", "squared_error")])
def test_of_a_student(loss: str, text: str) -> None:
    distill = {"teachers": ["runs/a", "runs/b"], "soft_weight": 0.75, "temperature": 4, "loss": loss}
    assert of_models(distill=distill) == {
        "student of": "runs/a, runs/b",
        "distillation": f"0.25 x the task's loss + 0.75 x agreement ({text})",
    }
