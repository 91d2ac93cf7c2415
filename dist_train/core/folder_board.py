"""The board as a folder on a file system that all replicas share (Anil et al. 2018, section 2.1).

A post is two files, ``replica_0/000000000050.safetensors`` and beside it the size and the SHA-256 that it
must have. The second, renamed into place once the first is whole, is what makes it a post.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import socket
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError
from torch import Tensor

from dist_train.core.tensor_files import FileRecord, read_tensors, write_tensors
from dist_train.errors import TrainingError
from dist_train.exchange.board import KEPT


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

    def post(self, replica: int, version: int, tensors: Mapping[str, Tensor]) -> None:
        place = self._place(replica)
        place.mkdir(exist_ok=True)
        # Two groups of a replica may post at once.
        name = f".{version}.{secrets.token_hex(4)}"
        draft, note = place / f"{name}.draft", place / f"{name}.note"
        try:
            record = write_tensors(draft, tensors)
            draft.rename(self._file(replica, version))
            note.write_text(json.dumps(asdict(record)))
            note.rename(self._note(replica, version))
        finally:
            draft.unlink(missing_ok=True)
            note.unlink(missing_ok=True)
        if self._keep != "all":
            for old in self._versions(replica)[: -self._keep]:
                self._note(replica, old).unlink(missing_ok=True)
                self._file(replica, old).unlink(missing_ok=True)

    def newest(self, replica: int) -> int | None:
        return max(self._versions(replica), default=None)

    def read(self, replica: int, version: int) -> dict[str, Tensor]:
        file = self._file(replica, version)
        try:
            record = FileRecord(**json.loads(self._note(replica, version).read_text()))
            with file.open("rb") as content:
                found = hashlib.file_digest(content, "sha256").hexdigest()
            if found != record.sha256:
                raise TrainingError(f"{file}: not the snapshot that replica {replica} posted; left out")
            return read_tensors(file)
        except (OSError, ValueError, TypeError, SafetensorError) as error:
            raise TrainingError(f"{file}: cannot be read ({type(error).__name__}: {error})") from error

    def _versions(self, replica: int) -> list[int]:
        return sorted(int(note.stem) for note in self._place(replica).glob("[0-9]*.json"))

    def _place(self, replica: int) -> Path:
        return self._folder / f"replica_{replica}"

    def _file(self, replica: int, version: int) -> Path:
        return self._place(replica) / f"{version:012d}.safetensors"

    def _note(self, replica: int, version: int) -> Path:
        return self._place(replica) / f"{version:012d}.json"
