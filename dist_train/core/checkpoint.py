"""Checkpoints on disk: what a checkpoint folder holds, whether it is whole, and which one to resume from.

A checkpoint is a folder ``step_00000200`` of safetensors and JSON files, nothing else is ever opened::

    manifest.json                               what the checkpoint is, and size and SHA-256 of each file
    state.safetensors       state.json          the shared part: learnt, counted and chosen state
    rank_00003.safetensors  rank_00003.json     one worker's own part: random states, its own buffers
    server.safetensors      server.json         what only a parameter server has
    teachers.safetensors    teachers.json       other replicas, as this one knew them (codistillation)

How it gets there is in ``commit.py``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from dist_train.core.tensor_files import FileRecord, read_tensors
from dist_train.errors import TrainingError

FORMAT = 1
MANIFEST = "manifest.json"
SHARED = "state"
# The part that only a parameter server has: its outer optimizer, mean squares, its counts.
SERVER = "server"
# Other replicas, as this one knew them.
TEACHERS = "teachers"
# What the name of a worker's own part begins with.
OWN = "rank_"
# An earlier checkpoint of the same step, kept until its successor is in place.
ASIDE = ".old-"
# Never a checkpoint: being written, or being removed.
TEMPORARY = ".tmp-"


class DamagedCheckpoint(TrainingError):
    """A checkpoint that cannot be used; ``file`` is what is wrong in it, ``why`` what is wrong with it."""

    def __init__(self, path: Path, file: str, why: str) -> None:
        self.path, self.file, self.why = path, file, why
        super().__init__(f"checkpoint {path}: {file}: {why}")

    def __reduce__(self) -> tuple[type[DamagedCheckpoint], tuple[Path, str, str]]:
        return (DamagedCheckpoint, (self.path, self.file, self.why))


@dataclass(frozen=True)
class Part:
    """One contribution to a checkpoint: tensors, values that JSON can hold, and the names of the tensors
    that must be finite for the checkpoint to be worth keeping."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    finite: frozenset[str] = frozenset()


def rank_part(rank: int) -> str:
    """Return the name of a worker's own part."""
    return f"{OWN}{rank:05d}"


@dataclass(frozen=True)
class Facts:
    """What a checkpoint says of the run that wrote it, apart from the state itself."""

    samples: int
    config_hash: str
    torch: str = torch.__version__


@dataclass(frozen=True)
class Manifest:
    """The contents of ``manifest.json``. ``attempt`` tells which start of the run wrote the checkpoint."""

    step: int
    workers: int
    attempt: str
    facts: Facts
    files: Mapping[str, FileRecord]

    @property
    def size(self) -> int:
        return sum(record.size for record in self.files.values())

    def encode(self) -> bytes:
        return json.dumps({"format": FORMAT} | asdict(self), indent=1).encode()

    @staticmethod
    def decode(text: bytes) -> Manifest:
        """Raises ValueError saying what is wrong with the text."""
        try:
            raw = json.loads(text)
            if raw["format"] != FORMAT:
                raise ValueError(f"format {raw['format']} is not the one this version reads ({FORMAT})")
            files = {str(name): FileRecord(**record) for name, record in raw["files"].items()}
            strays = [name for name in files if Path(name).name != name]
            if strays:
                raise ValueError(f"names a file outside the checkpoint: {strays[0]}")
            facts = Facts(**raw["facts"])
            return Manifest(int(raw["step"]), int(raw["workers"]), str(raw["attempt"]), facts, files)
        except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
            raise ValueError(f"is not a manifest ({type(error).__name__}: {error})") from None


@dataclass(frozen=True)
class Found:
    path: Path
    manifest: Manifest


@dataclass(frozen=True)
class Rejected:
    path: Path
    reason: str


@dataclass(frozen=True)
class Summary:
    """One line about a checkpoint; ``problem`` is None when it verifies, ``samples`` when it cannot say."""

    path: Path
    step: int
    samples: int | None
    size: int
    problem: str | None


def folder_name(step: int) -> str:
    """Return the name of a step's checkpoint folder."""
    return f"step_{step:08d}"


def steps_in(directory: Path, prefix: str = "") -> list[int]:
    """Return the steps with a checkpoint folder in ``directory``, whole or not, in rising order."""
    names = (entry.name for entry in directory.iterdir()) if directory.is_dir() else iter(())
    matches = (re.fullmatch(rf"{re.escape(prefix)}step_(\d{{8,}})", name) for name in names)
    return sorted(int(match[1]) for match in matches if match)


def read_manifest(path: Path) -> Manifest:
    """Read a checkpoint's manifest and look whether each file is there and as long as it should be.

    Raises DamagedCheckpoint naming the first file that is not.
    """
    try:
        manifest = Manifest.decode((path / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise DamagedCheckpoint(path, MANIFEST, "is missing: the checkpoint was never committed") from None
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(path, MANIFEST, str(error)) from None
    for name, record in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise DamagedCheckpoint(path, name, "is missing")
        if (size := file.stat().st_size) != record.size:
            raise DamagedCheckpoint(path, name, f"has {size} bytes instead of {record.size}")
    return manifest


def verify(path: Path) -> Manifest:
    """Read every byte of a checkpoint and compare it with the manifest.

    Raises DamagedCheckpoint naming the first file that differs.
    """
    manifest = read_manifest(path)
    for name, record in manifest.files.items():
        try:
            with open(path / name, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DamagedCheckpoint(path, name, str(error)) from None
        if found != record.sha256:
            raise DamagedCheckpoint(path, name, "its content has changed since it was written")
    return manifest


def newest(directory: Path) -> tuple[Found | None, list[Rejected]]:
    """Return the checkpoint of the highest step that verifies, and the later ones that do not, with why.

    The pointer ``latest`` is for people and scripts; what counts is what verifies.
    """
    rejected: list[Rejected] = []
    candidates = [(step, 1, folder_name(step)) for step in steps_in(directory)]
    candidates += [(step, 0, ASIDE + folder_name(step)) for step in steps_in(directory, ASIDE)]
    for _, _, name in sorted(candidates, reverse=True):
        try:
            return Found(directory / name, verify(directory / name)), rejected
        except DamagedCheckpoint as error:
            rejected.append(Rejected(error.path, f"{error.file}: {error.why}"))
    return None, rejected


def summaries(directory: Path) -> list[Summary]:
    """Verify every checkpoint in ``directory`` and describe each, in rising order of steps."""
    lines = []
    for step in steps_in(directory):
        path, samples, problem = directory / folder_name(step), None, None
        try:
            samples = verify(path).facts.samples
        except DamagedCheckpoint as error:
            problem = f"{error.file}: {error.why}"
        size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
        lines.append(Summary(path, step, samples, size, problem))
    return lines


def server_counts(path: Path) -> dict[str, Any]:
    """Return what a parameter server had counted by a verified checkpoint; nothing where there was none."""
    file = f"{SERVER}.json"
    if file not in read_manifest(path).files:
        return {}
    counts: dict[str, Any] = json.loads((path / file).read_bytes())["counts"]
    return counts


def load_part(path: Path, name: str, device: torch.device | str = "cpu") -> Part:
    """Load the part ``name`` of a checkpoint that has been verified.

    Raises DamagedCheckpoint when the checkpoint has no such part or its files do not read.
    """
    manifest = read_manifest(path)
    file = f"{name}.json"
    try:
        if file not in manifest.files:
            raise DamagedCheckpoint(path, file, f"is not part of it (written by {manifest.workers} workers)")
        values = json.loads((path / file).read_bytes())
        file = f"{name}.safetensors"
        return Part(read_tensors(path / file, device), values)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise DamagedCheckpoint(path, file, str(error)) from None
