"""The records of a run as blocks of objects: what is damaged is counted and left out, never an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic_core import from_json

Record = dict[str, Any]

BLOCK = 4096


@dataclass
class Reader:
    """Reads one file of JSON lines; ``damaged`` counts the whole lines that were no JSON object.

    A last line without its end is still being written, or was torn by a crash: it is no damage.
    """

    path: Path
    damaged: int = 0

    def blocks(self) -> Iterator[list[Record]]:
        """Yield the objects of all lines, some thousand at a time; none where there is no file."""
        records = self.each()
        while block := list(islice(records, BLOCK)):
            yield block

    def each(self, wanted: Callable[[bytes], bool] = lambda line: True) -> Iterator[Record]:
        """Yield the objects of those lines that are ``wanted``, each asked about when it is its turn."""
        try:
            file = self.path.open("rb")
        except OSError:
            return
        with file:
            for line in file:
                if not wanted(line):
                    continue
                # Three times as fast as the standard library's reader.
                try:
                    record = from_json(line, cache_strings="keys")
                except ValueError:
                    record = None
                if isinstance(record, dict):
                    yield record
                elif line.endswith(b"\n"):
                    self.damaged += 1
