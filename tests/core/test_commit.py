"""Whatever dies or fails wherever it may, a checkpoint is there to resume from and the next save succeeds."""

from __future__ import annotations

import errno
import math
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.distributed import HashStore

from dist_train.core import commit, failpoint
from dist_train.core.checkpoint import Facts, Part, load_part, newest, rank_part, summaries, verify
from dist_train.core.commit import Committer, Draft, Outcome, clean
from dist_train.exchange.ballot import StoreBallot

RANKS = (1, 0)
Strike = Callable[[str], None]


class Crash(BaseException):
    """The end of a process: nothing that catches errors may catch it."""


@pytest.fixture(autouse=True)
def _no_strike_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # A simulated crash loses nothing that was written, so waiting for the disk would prove nothing.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(shutil, "rmtree", remove_file_by_file)
    yield
    failpoint.strike = None


REAL_RMTREE = shutil.rmtree


def remove_file_by_file(path: Path, ignore_errors: bool) -> None:
    """Remove a folder as ``shutil.rmtree`` does, with a failpoint after each file."""
    for file in sorted(path.iterdir()):
        file.unlink()
        failpoint.failpoint("removed one file")
    path.rmdir()


def parts(rank: int, tag: float) -> dict[str, Part]:
    own = {rank_part(rank): Part({"buffer": torch.full((7,), tag)}, {"tag": tag})}
    shared = Part({"weight": torch.full((1000,), tag)}, {"tag": tag}, frozenset({"weight"}))
    return own | ({"state": shared} if rank == 0 else {})


class Run:
    """Two ranks of one attempt, driven by hand in one thread: nobody waits for anybody who is alive."""

    def __init__(self, directory: Path, attempt: str, keep_last: int = 2) -> None:
        self.directory = directory
        store = HashStore()
        ballots = {rank: StoreBallot(store, attempt, rank, 2, 0.01, 0.01) for rank in RANKS}
        self.ranks = {
            rank: Committer(directory, rank, 2, attempt, ballots[rank], (keep_last, None)) for rank in RANKS
        }
        self.turn = 0

    def save(self, step: int, tag: float, change: Callable[[int, Draft], Draft] | None = None) -> Outcome:
        """Save at all ranks. A rank that crashes takes no further part; then Crash is raised."""
        self.turn += 1
        drafts = {r: Draft(self.turn, step, Facts(step, "hash"), parts(r, tag)) for r in RANKS}
        if change is not None:
            drafts = {rank: change(rank, draft) for rank, draft in drafts.items()}
        crash = None
        try:
            self.ranks[1].write_and_vote(drafts[1])
        except Crash as error:
            crash, failpoint.strike = error, None
        self.ranks[0].write_and_vote(drafts[0])
        outcome = self.ranks[0].decide(drafts[0])
        if crash is not None:
            raise crash
        assert self.ranks[1].hear(drafts[1]).path == outcome.path
        return outcome


def loaded(path: Path) -> tuple[int, float]:
    """Return step and tag of a checkpoint, after asserting that all its parts are of one save."""
    manifest = verify(path)
    tags = set()
    for name, tensor in (("state", "weight"), ("rank_00000", "buffer"), ("rank_00001", "buffer")):
        part = load_part(path, name)
        tags |= {part.values["tag"], *part.tensors[tensor].tolist()}
    assert len(tags) == 1
    return manifest.step, tags.pop()


def resumable(directory: Path) -> tuple[int, float]:
    found, _ = newest(directory)
    assert found is not None
    return loaded(found.path)


def temporaries(directory: Path) -> list[str]:
    return [entry.name for entry in directory.iterdir() if entry.name.startswith(".")]


# Each scene: which step is saved over steps 1 and 2 (tag 1 and 2), and what each rank's draft becomes.
def good(rank: int, draft: Draft) -> Draft:
    return draft


def refused(rank: int, draft: Draft) -> Draft:
    return draft if rank == 0 else Draft(draft.turn, draft.step, draft.facts, {}, failure="no memory")


SCENES = {
    "new step": (3, good),
    "same step again": (2, good),
    "same step again over a damaged one": (2, good),
    "vote against": (3, refused),
}


def stage(directory: Path, scene: str = "") -> Run:
    run = Run(directory, "first")
    run.save(1, 1.0)
    run.save(2, 2.0)
    if "damaged" in scene:
        shutil.copytree(directory / "step_00000002", directory / ".old-step_00000002")
        (directory / "step_00000002" / "state.json").unlink()
    return run


def names_of_points(directory: Path, scene: str) -> list[str]:
    step, change = SCENES[scene]
    run = stage(directory, scene)
    names: list[str] = []
    failpoint.strike = names.append
    run.save(step, 9.0, change)
    failpoint.strike = None
    return names


def at(count: int, error: BaseException) -> Strike:
    """Strike at the point number ``count`` and never again."""
    reached = iter(range(1_000_000))

    def strike(name: str) -> None:
        if next(reached) == count:
            raise error

    return strike


@pytest.mark.parametrize("scene", SCENES)
def test_after_a_crash_at_any_point_the_run_resumes_and_saves_again(tmp_path, scene):
    step, change = SCENES[scene]
    names = names_of_points(tmp_path / "names", scene)
    assert len(names) > 15
    for count in range(len(names)):
        directory = tmp_path / str(count)
        run = stage(directory, scene)
        failpoint.strike = at(count, Crash())
        with pytest.raises(Crash):
            run.save(step, 9.0, change)
        failpoint.strike = None

        before_cleaning = resumable(directory)
        assert before_cleaning in {(2, 2.0), (step, 9.0)}
        if "renamed" in names[:count]:
            assert before_cleaning == (step, 9.0)
        clean(directory)
        assert resumable(directory) == before_cleaning
        if "damaged" not in scene:
            assert temporaries(directory) == []
            assert [summary.problem for summary in summaries(directory) if summary.problem] == []
        again = Run(directory, "second")
        assert again.save(step, 10.0).path is not None
        assert resumable(directory) == (step, 10.0)
        assert temporaries(directory) == []
        REAL_RMTREE(directory)


@pytest.mark.parametrize("scene", SCENES)
def test_after_an_error_at_any_effect_training_goes_on_and_saves_again(tmp_path, scene):
    step, change = SCENES[scene]
    names = names_of_points(tmp_path / "names", scene)
    effects = [count for count, name in enumerate(names) if name not in OUTSIDE_EFFECTS]
    assert len(effects) > 6
    for count in effects:
        directory = tmp_path / str(count)
        run = stage(directory, scene)
        failpoint.strike = at(count, OSError(errno.ENOSPC, "No space left on device"))
        outcome = run.save(step, 9.0, change)
        failpoint.strike = None
        if outcome.path is None:
            assert outcome.reason is not None
            assert "No space left" in outcome.reason or change is refused
            assert "damaged" in scene or temporaries(directory) == []
        assert resumable(directory) == ((2, 2.0) if outcome.path is None else (step, 9.0))
        assert run.save(step, 10.0).path is not None
        assert resumable(directory) == (step, 10.0)
        REAL_RMTREE(directory)


# Points that stand between effects, where the system raises nothing.
OUTSIDE_EFFECTS = {
    "before vote",
    "after vote",
    "renamed",
    "follow-up",
    "abandoned",
    "removed",
    "removed one file",
}


def test_two_ranks_commit_one_checkpoint_and_old_ones_are_pruned(tmp_path):
    run = stage(tmp_path)
    outcome = run.save(3, 3.0)
    assert outcome.path == tmp_path / "step_00000003"
    assert outcome.pruned == (1,)
    assert outcome.problems == ()
    assert outcome.size == verify(outcome.path).size > 4000
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["latest", "step_00000002", "step_00000003"]


def test_everything_is_durable_before_the_rename_that_depends_on_it(tmp_path, monkeypatch):
    log: list[tuple[str, str]] = []
    real_rename = os.rename

    def sync(descriptor: int) -> None:
        log.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))

    def rename(source: Path, target: Path) -> None:
        log.append(("rename", Path(target).name))
        real_rename(source, target)

    run = Run(tmp_path / "checkpoints", "a")
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", rename)
    run.save(3, 3.0)
    draft = ".tmp-step_00000003-a"
    assert log == [
        ("sync", "rank_00001.safetensors"),
        ("sync", "rank_00001.json"),
        ("sync", draft),
        ("sync", "rank_00000.safetensors"),
        ("sync", "rank_00000.json"),
        ("sync", "state.safetensors"),
        ("sync", "state.json"),
        ("sync", draft),
        ("sync", "manifest.json"),
        ("sync", draft),
        ("rename", "step_00000003"),
        ("sync", "checkpoints"),
        ("sync", ".tmp-latest"),
        ("rename", "latest"),
        ("sync", "checkpoints"),
    ]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_parameters_are_never_committed(tmp_path, bad):
    outcome = stage(tmp_path).save(3, bad)
    assert (outcome.path, outcome.reason) == (None, "rank 0: non-finite values in weight")
    assert resumable(tmp_path) == (2, 2.0)


def test_an_absent_rank_is_named_and_costs_only_this_checkpoint(tmp_path):
    run = stage(tmp_path)
    draft = Draft(9, 3, Facts(3, "hash"), parts(0, 3.0))
    run.ranks[0].write_and_vote(draft)
    outcome = run.ranks[0].decide(draft)
    assert outcome.reason == "no vote from ranks [1] within 0.01 s"
    assert temporaries(tmp_path) == []


def test_a_rank_on_another_disk_is_told_to_share_it(tmp_path):
    run = stage(tmp_path / "here")
    run.ranks[1].directory = tmp_path / "there"
    outcome = run.save(3, 3.0, change=good)
    assert outcome.reason == (
        "rank 1's file rank_00001.safetensors is not visible from rank 0: "
        "is the run directory on a shared file system?"
    )


def test_a_file_that_lost_its_end_on_the_way_is_refused(tmp_path):
    run = stage(tmp_path)
    draft = Draft(9, 3, Facts(3, "hash"), parts(1, 3.0))
    run.ranks[1].write_and_vote(draft)
    os.truncate(tmp_path / ".tmp-step_00000003-first" / "rank_00001.safetensors", 5)
    own = Draft(9, 3, Facts(3, "hash"), parts(0, 3.0))
    run.ranks[0].write_and_vote(own)
    reason = run.ranks[0].decide(own).reason
    assert reason is not None
    assert "rank 1's file rank_00001.safetensors has 5 bytes instead of" in reason


def test_two_ranks_may_not_write_one_file(tmp_path):
    def same(rank: int, draft: Draft) -> Draft:
        return Draft(draft.turn, draft.step, draft.facts, parts(0, 3.0))

    outcome = stage(tmp_path).save(3, 3.0, change=same)
    assert outcome.reason == "rank 1 wrote rank_00000.safetensors, which another rank wrote too"


def test_a_limit_on_file_size_is_a_failed_checkpoint_and_no_more(tmp_path):
    run = stage(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
    try:
        outcome = run.save(3, 3.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert outcome.reason == f"rank 0: {tmp_path}/.tmp-step_00000003-first/state.safetensors: File too large"
    assert temporaries(tmp_path) == []
    assert run.save(3, 3.0).path is not None


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    run = stage(tmp_path)
    monkeypatch.setattr(
        commit.os, "statvfs", lambda path: os.statvfs_result((1, 1, 9, 9, 9, 9, 9, 9, 0, 255))
    )
    outcome = run.save(3, 3.0)
    assert outcome.reason is not None
    assert "rank 0: " in outcome.reason
    assert f"{tmp_path}: 0.0 MB needed, 0.0 MB free" in outcome.reason


def test_values_that_json_cannot_hold_are_refused(tmp_path):
    def odd(rank: int, draft: Draft) -> Draft:
        return Draft(draft.turn, draft.step, draft.facts, {rank_part(rank): Part({}, {"x": {1, 2}})})

    reason = stage(tmp_path).save(3, 3.0, change=odd).reason
    assert reason is not None
    assert "set is not JSON serializable" in reason


def test_damaged_checkpoints_do_not_count_as_kept_and_later_ones_are_left_alone(tmp_path):
    run = Run(tmp_path, "first", keep_last=9)
    for step in (1, 2, 3, 8):
        run.save(step, float(step))
    (tmp_path / "step_00000003" / "state.json").write_text("{}")
    resumed = Run(tmp_path, "second", keep_last=2)
    outcome = resumed.save(4, 4.0)
    assert outcome.pruned == (1,)
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.is_dir()) == [
        "step_00000002",
        "step_00000003",
        "step_00000004",
        "step_00000008",
    ]


def test_the_newest_is_never_pruned(tmp_path, monkeypatch):
    run = stage(tmp_path)
    monkeypatch.setattr(commit, "to_prune", lambda steps, *rule: list(steps))
    outcome = run.save(3, 3.0)
    assert outcome.pruned == (1, 2)
    assert resumable(tmp_path) == (3, 3.0)


def test_cleaning_keeps_the_predecessor_of_a_damaged_checkpoint(tmp_path):
    stage(tmp_path)
    shutil.copytree(tmp_path / "step_00000002", tmp_path / ".old-step_00000002")
    (tmp_path / "step_00000002" / "state.json").unlink()
    clean(tmp_path)
    assert resumable(tmp_path) == (2, 2.0)
    assert Run(tmp_path, "second").save(2, 9.0).path is not None
    assert resumable(tmp_path) == (2, 9.0)
    assert temporaries(tmp_path) == []


def test_cleaning_an_absent_directory_does_nothing(tmp_path):
    clean(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_what_fails_after_the_commit_is_reported_and_the_checkpoint_stands(tmp_path, monkeypatch):
    run = stage(tmp_path)

    def refuse(*_: object) -> list[int]:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(commit, "to_prune", refuse)
    outcome = run.save(3, 3.0)
    assert outcome.path is not None
    assert outcome.problems == ("Input/output error",)
    assert resumable(tmp_path) == (3, 3.0)
