"""Which bytes of which local files make a text corpus, and which of them are held out."""

from __future__ import annotations

import errno
import fnmatch
import os
import sysconfig
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

SEPARATOR = b"\0"


@dataclass(frozen=True)
class Piece:
    """``size`` bytes of a file from ``start`` on; ``name`` is its path below the folder it was found in."""

    name: str
    path: Path
    start: int
    size: int

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size)


def standard_library() -> Path:
    """The folder of this Python's own source files."""
    return Path(sysconfig.get_path("stdlib"))


def find(paths: Sequence[Path] | None, pattern: str) -> list[Piece]:
    """List the files given and those in the folders given whose name matches ``pattern``, ordered by name.

    ``None`` stands for the Python standard library. Empty files and installed packages are left out.
    Raises FileNotFoundError for a path that is neither a file nor a folder.
    """
    found: dict[str, Piece] = {}
    for path in [standard_library()] if paths is None else paths:
        for name, file in _files(path, pattern):
            found.setdefault(os.path.abspath(file), Piece(name, file, 0, file.stat().st_size))
    return sorted((piece for piece in found.values() if piece.size), key=lambda p: (p.name, p.path))


def _files(path: Path, pattern: str) -> Iterator[tuple[str, Path]]:
    if path.is_file():
        yield path.name, path
        return
    if not path.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such file or folder", str(path))
    for folder, below, names in os.walk(path):
        below[:] = [name for name in below if name != "site-packages"]
        for name in fnmatch.filter(names, pattern):
            file = Path(folder, name)
            if file.is_file():
                yield file.relative_to(path).as_posix(), file


def cut(pieces: Sequence[Piece], at: int) -> tuple[list[Piece], list[Piece]]:
    """Divide ``pieces`` after ``at`` bytes, within a file where it falls there."""
    before: list[Piece] = []
    after: list[Piece] = []
    for piece in pieces:
        left = min(max(at, 0), piece.size)
        if left:
            before.append(replace(piece, size=left))
        if left < piece.size:
            after.append(replace(piece, start=piece.start + left, size=piece.size - left))
        at -= piece.size
    return before, after


def split(pieces: Sequence[Piece], share: float) -> tuple[list[Piece], list[Piece]]:
    """Divide ``pieces`` into training and validation text, about ``share`` of the bytes in the latter.

    Whole files are held out, chosen by a hash of their names, so that a file stays on its side when
    others come or go. Where few files make that share come out at less than half or more than twice
    what was asked for, the end of the text is held out instead.
    """
    training = [piece for piece in pieces if not _held_out(piece.name, share)]
    validation = [piece for piece in pieces if _held_out(piece.name, share)]
    total = sum(piece.size for piece in pieces)
    if share / 2 <= sum(piece.size for piece in validation) / max(total, 1) <= min(2 * share, 1 - share / 2):
        return training, validation
    return cut(pieces, total - round(total * share))


def _held_out(name: str, share: float) -> bool:
    return zlib.crc32(os.fsencode(name)) < share * 2**32


def length(pieces: Sequence[Piece]) -> int:
    """How many bytes ``join`` returns."""
    return sum(piece.size for piece in pieces) + max(len(pieces) - 1, 0) * len(SEPARATOR)


def join(pieces: Sequence[Piece]) -> bytes:
    """Read the pieces, separated by a zero byte."""
    return SEPARATOR.join(piece.read() for piece in pieces)
