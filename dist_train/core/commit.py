"""The commit of a checkpoint: all of it appears at once, or none of it, whatever dies in between.

Every rank writes its files into a temporary folder, makes them durable, and votes. Rank 0 collects the
votes, writes the manifest, and renames the folder: this rename is the commit. Then it moves the pointer
``latest``, announces the outcome, and prunes. Whatever goes wrong before the rename costs this checkpoint
and nothing else; what goes wrong after it is reported, and the checkpoint stands.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from dist_train.core.checkpoint import (
    ASIDE,
    MANIFEST,
    OWN,
    TEMPORARY,
    DamagedCheckpoint,
    Facts,
    Manifest,
    Part,
    folder_name,
    steps_in,
    verify,
)
from dist_train.core.failpoint import failpoint
from dist_train.core.tensor_files import FileRecord, non_finite, sync_folder, write_durably, write_tensors
from dist_train.rules.retention import to_prune

Message = Mapping[str, Any]


class Ballot(Protocol):
    """How the ranks of one checkpoint hear of each other; ``turn`` counts the checkpoints.

    Every verb raises an error that says who is absent, or that the medium is gone.
    """

    def cast(self, turn: int, vote: Message) -> None:
        """Give this rank's vote."""

    def collect(self, turn: int) -> list[Message]:
        """Wait for the votes of all ranks and return them in the order of ranks."""

    def announce(self, turn: int, outcome: Message) -> None:
        """Tell every rank the outcome."""

    def hear(self, turn: int) -> Message:
        """Wait for the outcome."""


@dataclass(frozen=True)
class Draft:
    """A checkpoint to be: this rank's parts by name, in memory that nobody else writes to.

    ``failure`` says why this rank has nothing to give; it then votes against.
    """

    turn: int
    step: int
    facts: Facts
    parts: Mapping[str, Part]
    failure: str | None = None


@dataclass(frozen=True)
class Outcome:
    """``path`` is the committed checkpoint, or None; ``reason`` says why there is none. ``problems`` are
    what went wrong after the commit."""

    step: int
    path: Path | None = None
    reason: str | None = None
    size: int = 0
    pruned: tuple[int, ...] = ()
    problems: tuple[str, ...] = ()


class NotCommitted(Exception):
    """The ranks have not agreed on this checkpoint; the message says which rank and why."""


def clean(directory: Path) -> None:
    """Clear up what a killed run left between two effects; for rank 0, before any worker of this run saves.

    No live run may own the directory: the run directory's lock sees to that.
    """
    if not directory.is_dir():
        return
    for entry in list(directory.iterdir()):
        if entry.name.startswith(TEMPORARY):
            _remove(entry)
    for step in steps_in(directory, ASIDE):
        path, aside = directory / folder_name(step), directory / (ASIDE + folder_name(step))
        if not path.exists():
            os.rename(aside, path)
        elif _is_sound(path):
            _discard(aside)


class Committer:
    """One rank's side of the commit. Nothing here starts a thread or keeps state between checkpoints,
    apart from which of the older ones were found whole."""

    def __init__(
        self,
        directory: Path,
        rank: int,
        workers: int,
        attempt: str,
        ballot: Ballot,
        retention: tuple[int, int | None],
    ) -> None:
        """``attempt`` is common to the ranks and new at every start; ``retention`` is (keep_last,
        keep_every_steps)."""
        self.directory = directory
        self.rank = rank
        self.workers = workers
        self._attempt = attempt
        self._ballot = ballot
        self._retention = retention
        self._sound: dict[int, bool] = {}

    def commit(self, draft: Draft) -> Outcome:
        """Take part in one checkpoint from first byte to outcome; called by all ranks, in one order."""
        self.write_and_vote(draft)
        return self.decide(draft) if self.rank == 0 else self.hear(draft)

    def write_and_vote(self, draft: Draft) -> None:
        """Write this rank's files and say how it went."""
        vote: Message
        try:
            vote = {"ok": True, "files": self._write(draft)}
        except Exception as error:
            vote = {"ok": False, "error": describe(error)}
        failpoint("before vote")
        self._ballot.cast(draft.turn, vote)
        failpoint("after vote")

    def decide(self, draft: Draft) -> Outcome:
        """Commit if all ranks voted for it, and tell them; rank 0's part."""
        try:
            manifest = self._elect(draft, self._ballot.collect(draft.turn))
            self._publish(draft, manifest)
        except Exception as error:
            outcome = Outcome(draft.step, reason=self._abandon(draft, describe(error)))
            self._ballot.announce(draft.turn, {"committed": False, "reason": outcome.reason})
            return outcome
        failpoint("renamed")
        self._sound[draft.step] = True
        outcome = Outcome(draft.step, self._target(draft), size=manifest.size)
        return self._follow_up(draft, outcome)

    def hear(self, draft: Draft) -> Outcome:
        """Wait for rank 0's decision."""
        heard = self._ballot.hear(draft.turn)
        if heard["committed"]:
            return Outcome(draft.step, self._target(draft), size=heard["size"])
        return Outcome(draft.step, reason=heard["reason"])

    def _target(self, draft: Draft) -> Path:
        return self.directory / folder_name(draft.step)

    def _draft_folder(self, draft: Draft) -> Path:
        return self.directory / f"{TEMPORARY}{folder_name(draft.step)}-{self._attempt}"

    def _write(self, draft: Draft) -> dict[str, tuple[int, str]]:
        if draft.failure is not None:
            raise NotCommitted(draft.failure)
        for part in draft.parts.values():
            if bad := non_finite({name: part.tensors[name] for name in sorted(part.finite)}):
                raise NotCommitted(f"non-finite values in {', '.join(bad[:3])}")
        folder = self._draft_folder(draft)
        folder.mkdir(parents=True, exist_ok=True)
        _require_space(folder, sum(t.nbytes for part in draft.parts.values() for t in part.tensors.values()))
        failpoint("draft folder made")
        files: dict[str, FileRecord] = {}
        for name, part in draft.parts.items():
            files[f"{name}.safetensors"] = write_tensors(folder / f"{name}.safetensors", part.tensors)
            text = json.dumps(part.values, indent=1).encode()
            files[f"{name}.json"] = write_durably(folder / f"{name}.json", [text])
        sync_folder(folder)
        return {name: (record.size, record.sha256) for name, record in files.items()}

    def _elect(self, draft: Draft, votes: Iterable[Message]) -> Manifest:
        """Return the manifest of what all ranks have written; NotCommitted when one of them has not."""
        failpoint("votes collected")
        voted = list(enumerate(votes))
        if against := [f"rank {rank}: {vote['error']}" for rank, vote in voted if not vote["ok"]]:
            raise NotCommitted("; ".join(against))
        files: dict[str, FileRecord] = {}
        for rank, vote in voted:
            for name, (size, sha256) in vote["files"].items():
                if name in files:
                    raise NotCommitted(f"rank {rank} wrote {name}, which another rank wrote too")
                _require_visible(self._draft_folder(draft) / name, rank, size)
                files[name] = FileRecord(size, sha256)
        # A parameter server saves for all of its workers at once.
        workers = sum(name.startswith(OWN) and name.endswith(".json") for name in files)
        return Manifest(draft.step, workers or self.workers, self._attempt, draft.facts, files)

    def _publish(self, draft: Draft, manifest: Manifest) -> None:
        folder, target = self._draft_folder(draft), self._target(draft)
        write_durably(folder / MANIFEST, [manifest.encode()])
        sync_folder(folder)
        failpoint("manifest durable")
        aside = target.with_name(ASIDE + target.name)
        if target.exists():
            # An older one that is still aside is whole and stays; it would have been cleared otherwise.
            _discard(target) if aside.exists() else os.rename(target, aside)
            failpoint("predecessor aside")
        os.rename(folder, target)

    def _abandon(self, draft: Draft, reason: str) -> str:
        """Put everything back as it was; return the reason, and what went wrong meanwhile."""
        target = self._target(draft)
        aside = target.with_name(ASIDE + target.name)
        try:
            if aside.exists() and not target.exists():
                os.rename(aside, target)
            _remove(self._draft_folder(draft))
        except OSError as error:
            return f"{reason}; {describe(error)}"
        failpoint("abandoned")
        return reason

    def _follow_up(self, draft: Draft, outcome: Outcome) -> Outcome:
        """Do what follows the commit; a failure is noted and keeps nothing from being done."""
        target = self._target(draft)
        pruned: list[int] = []
        announcement = {"committed": True, "size": outcome.size}
        steps: list[Callable[[], None]] = [
            lambda: sync_folder(self.directory),
            lambda: _discard(target.with_name(ASIDE + target.name)),
            lambda: self._point_latest_at(target),
            lambda: self._ballot.announce(draft.turn, announcement),
            lambda: self._prune(draft.step, pruned),
        ]
        problems = []
        for step in steps:
            try:
                step()
            except Exception as error:
                problems.append(describe(error))
            failpoint("follow-up")
        return replace(outcome, pruned=tuple(pruned), problems=tuple(problems))

    def _point_latest_at(self, target: Path) -> None:
        pointer = self.directory / f"{TEMPORARY}latest"
        write_durably(pointer, [f"{target.name}\n".encode()])
        os.rename(pointer, self.directory / "latest")
        failpoint("latest renamed")
        sync_folder(self.directory)

    def _prune(self, newest: int, pruned: list[int]) -> None:
        """Remove what retention gives up, counting only checkpoints that verify and are not later."""
        sound = [step for step in steps_in(self.directory) if step <= newest and self._knows_sound(step)]
        for step in to_prune(sound, *self._retention):
            if step != newest:
                _discard(self.directory / folder_name(step))
                pruned.append(step)

    def _knows_sound(self, step: int) -> bool:
        if step not in self._sound:
            self._sound[step] = _is_sound(self.directory / folder_name(step))
        return self._sound[step]


def describe(error: Exception) -> str:
    """Return an error in one line, with the file where the system named one."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _require_space(folder: Path, needed: int) -> None:
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if free < needed:
        raise NotCommitted(f"{folder.parent}: {needed / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free")


def _require_visible(file: Path, rank: int, size: int) -> None:
    try:
        found = file.stat().st_size
    except FileNotFoundError:
        raise NotCommitted(
            f"rank {rank}'s file {file.name} is not visible from rank 0: "
            "is the run directory on a shared file system?"
        ) from None
    if found != size:
        raise NotCommitted(f"rank {rank}'s file {file.name} has {found} bytes instead of {size} on rank 0")


def _is_sound(path: Path) -> bool:
    try:
        verify(path)
    except DamagedCheckpoint:
        return False
    return True


def _discard(path: Path) -> None:
    """Remove a checkpoint folder so that no half of it ever looks like a checkpoint."""
    if not path.exists():
        return
    doomed = path.with_name(f"{TEMPORARY}discarded-{path.name}")
    _remove(doomed)
    os.rename(path, doomed)
    failpoint("doomed")
    _remove(doomed)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    failpoint("removed")
