"""Training goes on while a checkpoint is written, and what is written is what was there at the call."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import HashStore

from dist_train.core import failpoint
from dist_train.core.checkpoint import Facts, Part, load_part
from dist_train.core.commit import Committer, Draft, Outcome
from dist_train.core.saver import Saver
from dist_train.exchange.ballot import StoreBallot

FACTS = Facts(0, "hash")


@pytest.fixture(autouse=True)
def _no_strike_is_left() -> Iterator[None]:
    yield
    failpoint.strike = None


def savers(directory: Path, workers: int, events: list[dict[str, Any]]) -> list[Saver]:
    store = HashStore()
    ballots = [StoreBallot(store, "a", rank, workers, 20.0, 20.0) for rank in range(workers)]
    return [
        Saver(Committer(directory, rank, workers, "a", ballots[rank], (9, None)), events.append)
        for rank in range(workers)
    ]


def weight_of(directory: Path, step: int) -> float:
    return float(load_part(directory / f"step_{step:08d}", "state").tensors["weight"].unique().item())


class Gate:
    """Holds the background at the first file until it is opened."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        failpoint.strike = self._strike

    def _strike(self, name: str) -> None:
        if name == "file opened":
            self.reached.set()
            assert self.open.wait(20)


def test_training_may_change_its_tensors_while_they_are_being_written(tmp_path):
    gate, weight, values = Gate(), torch.ones(100), {"updates": [1]}
    [saver] = savers(tmp_path, 1, [])
    with closing(saver):
        saver.save(1, FACTS, {"state": Part({"weight": weight}, values)})
        assert gate.reached.wait(20)
        assert saver.wait(timeout_s=0) is None
        weight.fill_(99.0)
        values["updates"].append(99)
        gate.open.set()
        outcome = saver.wait()
    assert outcome is not None
    assert outcome.path == tmp_path / "step_00000001"
    assert weight_of(tmp_path, 1) == 1.0
    assert load_part(outcome.path, "state").values == {"updates": [1]}


def test_a_second_save_waits_for_the_first_and_both_are_right(tmp_path):
    gate, weight, events = Gate(), torch.ones(100), []
    [saver] = savers(tmp_path, 1, events)
    with closing(saver):
        saver.save(1, FACTS, {"state": Part({"weight": weight})})
        assert gate.reached.wait(20)
        weight.fill_(2.0)
        second = threading.Thread(target=saver.save, args=(2, FACTS, {"state": Part({"weight": weight})}))
        second.start()
        gate.open.set()
        second.join()
        saver.wait()
    assert [event["step"] for event in events] == [1, 2]
    assert (weight_of(tmp_path, 1), weight_of(tmp_path, 2)) == (1.0, 2.0)
    assert saver.stall_s == pytest.approx(sum(event["stall_s"] for event in events), abs=1e-3)


def test_closing_waits_for_the_last_save(tmp_path):
    events: list[dict[str, Any]] = []
    [saver] = savers(tmp_path, 1, events)
    saver.save(1, FACTS, {"state": Part({"weight": torch.ones(100_000)})})
    saver.close()
    assert [event["event"] for event in events] == ["checkpoint"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("checkpoint-rank")]


def test_workers_in_threads_commit_together_again_and_again(tmp_path):
    events: list[dict[str, Any]] = []
    team = savers(tmp_path, 3, events)
    for step in (1, 2, 3):
        for rank, saver in enumerate(team):
            own = {f"rank_{rank:05d}": Part({"x": torch.full((5,), float(step))})}
            shared = {"state": Part({"weight": torch.full((5,), float(step))})} if rank == 0 else {}
            saver.save(step, FACTS, own | shared)
    for saver in team:
        saver.close()
    assert sorted((event["event"], event["step"]) for event in events) == [
        ("checkpoint", step) for step in (1, 2, 3) for _ in team
    ]
    assert weight_of(tmp_path, 3) == 3.0
    assert not list(tmp_path.glob(".*"))


def test_a_failure_is_an_event_and_the_next_save_succeeds(tmp_path):
    events: list[dict[str, Any]] = []
    [saver] = savers(tmp_path, 1, events)
    bad = Part({"weight": torch.tensor([1.0, torch.nan])}, finite=frozenset({"weight"}))
    with closing(saver):
        saver.save(1, FACTS, {"state": bad})
        saver.save(2, FACTS, {"state": Part({"weight": torch.ones(2)})}, wait=True)
    assert (
        events[0].items()
        >= {
            "event": "checkpoint_failed",
            "step": 1,
            "reason": "rank 0: non-finite values in weight",
        }.items()
    )
    assert events[1].items() >= {"event": "checkpoint", "step": 2}.items()


def test_a_failing_copy_is_a_vote_against(tmp_path):
    class Uncopyable:
        def __deepcopy__(self, memo: object) -> None:
            raise MemoryError("no room for the copy")

    events: list[dict[str, Any]] = []
    [saver] = savers(tmp_path, 1, events)
    with closing(saver):
        saver.save(1, FACTS, {"state": Part({}, {"x": Uncopyable()})}, wait=True)
    assert events[0]["reason"] == "rank 0: no room for the copy"


class Recorder:
    """Stands for a Committer and keeps what it was given."""

    rank = 0

    def __init__(self) -> None:
        self.addresses: list[int] = []

    def commit(self, draft: Draft) -> Outcome:
        self.addresses.append(draft.parts["state"].tensors["weight"].data_ptr())
        return Outcome(draft.step, reason="recorded")


def test_every_save_uses_the_same_memory():
    recorder = Recorder()
    with closing(Saver(recorder, lambda event: None)) as saver:
        for step in range(3):
            saver.save(step, FACTS, {"state": Part({"weight": torch.ones(1000)})})
    assert len(recorder.addresses) == 3
    assert len(set(recorder.addresses)) == 1


def test_an_interruption_in_the_background_reaches_training(tmp_path):
    class Stop(BaseException):
        pass

    def strike(name: str) -> None:
        raise Stop

    [saver] = savers(tmp_path, 1, [])
    failpoint.strike = strike
    with closing(saver):
        saver.save(1, FACTS, {"state": Part({"weight": torch.ones(2)})})
        with pytest.raises(Stop):
            saver.wait()
