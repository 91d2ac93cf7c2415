"""The board as a folder on a file system that all replicas share (Anil et al. 2018, section 2.1).

A post is two files: the tensors, under a name of their own, and ``replica_0/000000000050.json``, which names
them and the size and the SHA-256 that they must have. The second, linked into place once the first is whole,
is what makes it a post. The first post of a version stays: others may have learnt from it, and two groups of
a replica, whose batch-norm statistics differ, may post one version.

A replica that loses updates with a shard of its parameter server does not begin anew here: what it posted of
the lost updates stays up, and of these versions it posts nothing else. Until it is past them the others learn
from its lost life, which is a model like any other; no replay could read a post that was taken down after
they had taken it up.
"""

from __future__ import annotations

import errno
import hashlib
import json
import secrets
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError
from torch import Tensor

from dist_train.core.tensor_files import FileRecord, read_tensors, write_tensors
from dist_train.errors import TrainingError
from dist_train.exchange.board import KEPT, PostGone
from dist_train.layout import replica_folder

# What file systems without hard links answer; there, of two posts at one moment the last one stays.
WITHOUT_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)


class FolderBoard:
    """``keep`` posts of each replica stay, or ``"all"``. TrainingError where there is no such folder."""

    def __init__(self, folder: Path, keep: int | Literal["all"] = KEPT) -> None:
        if not folder.is_dir():
            raise TrainingError(
                f"{folder}: no such folder on {socket.gethostname()}; give --run-dir a place on a file "
                "system that all machines share"
            )
        self._folder = folder
        self._keep = keep

    def begin(self, replica: int, updates: int) -> None:
        """Take down later posts, unless all are kept, and what a killed process has left of one."""
        kept = [each for each in self._versions(replica) if each <= updates or self._keep == "all"]
        named = {self._file(replica, version) for version in kept}
        notes = {self._note(replica, version) for version in kept}
        for found in self._place(replica).glob("*"):
            if found not in named | notes:
                found.unlink(missing_ok=True)

    def post(self, replica: int, version: int, tensors: Mapping[str, Tensor]) -> None:
        place = self._place(replica)
        place.mkdir(exist_ok=True)
        # Two groups of a replica may post at once.
        name = f".{version}.{secrets.token_hex(4)}"
        draft, note = place / f"{name}.draft", place / f"{name}.note"
        try:
            record = write_tensors(draft, tensors)
            content = place / f"{version:012d}{name}.safetensors"
            draft.rename(content)
            note.write_text(json.dumps({**asdict(record), "file": content.name}))
            try:
                # Unlike a rename it fails where there is one already.
                self._note(replica, version).hardlink_to(note)
            except FileExistsError:
                content.unlink()
            except OSError as error:
                if error.errno not in WITHOUT_LINKS:
                    raise
                note.rename(self._note(replica, version))
        finally:
            draft.unlink(missing_ok=True)
            note.unlink(missing_ok=True)
        if self._keep != "all":
            for old in self._versions(replica)[: -self._keep]:
                content = self._file(replica, old)
                self._note(replica, old).unlink(missing_ok=True)
                content.unlink(missing_ok=True)

    def newest(self, replica: int) -> int | None:
        return max(self._versions(replica), default=None)

    def read(self, replica: int, version: int) -> dict[str, Tensor]:
        file = self._place(replica) / f"{version:012d}.safetensors"
        try:
            # One look at the note: it may be taken down at any time.
            noted = json.loads(self._note(replica, version).read_text())
            file = file.with_name(noted.pop("file"))
            record = FileRecord(**noted)
            with file.open("rb") as content:
                found = hashlib.file_digest(content, "sha256").hexdigest()
            if found != record.sha256:
                raise TrainingError(f"{file}: not the snapshot that replica {replica} posted; left out")
            return read_tensors(file)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError, TrainingError) as error:
            if not self._note(replica, version).exists():
                # The note is the first that goes.
                raise PostGone(f"{file}: cannot be read, as it is not there any more") from error
            if isinstance(error, TrainingError):
                raise
            raise TrainingError(f"{file}: cannot be read ({type(error).__name__}: {error})") from error

    def _versions(self, replica: int) -> list[int]:
        return sorted(int(note.stem) for note in self._place(replica).glob("[0-9]*.json"))

    def _place(self, replica: int) -> Path:
        return self._folder / replica_folder(replica)

    def _file(self, replica: int, version: int) -> Path:
        """Return what the post's note names; without a note, a place where there is nothing."""
        name = f"{version:012d}.safetensors"
        with suppress(OSError, ValueError, KeyError):
            name = json.loads(self._note(replica, version).read_text())["file"]
        return self._place(replica) / name

    def _note(self, replica: int, version: int) -> Path:
        return self._place(replica) / f"{version:012d}.json"
