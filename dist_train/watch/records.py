"""The records of a run: files of one JSON object a line, and the lines of metrics.jsonl."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

from dist_train.errors import TrainingError
from dist_train.rules.straggler import StepTimes as StepTimes
from dist_train.watch.atomic import replacing

Record = Mapping[str, Any]

BLOCK = 1 << 16


@dataclass(frozen=True, kw_only=True)
class WorkerFigures:
    """One worker of a parameter server, or one group of workers, since the line before.

    ``name`` is the worker's number, or the first and the last of the group's ("6-7"). ``samples_per_s``
    counts the samples of every gradient that it computed, ``staleness`` is the mean of those that were
    applied, ``dropped`` the number that came late in the whole run so far, and ``waiting`` the share
    (0 to 1) of its time spent waiting, whatever for.
    """

    name: str
    samples_per_s: float
    staleness: float
    dropped: int
    waiting: float


@dataclass(frozen=True, kw_only=True)
class TrainLine:
    """What training looked like over the steps since the line before.

    ``samples`` are those of the whole run so far, ``epoch`` the same as a number of passes over the
    data, ``wall_s`` its seconds so far, restarts included; ``data_wait`` is the share (0 to 1) of the time
    spent waiting for samples; ``memory_mb`` is the peak of any worker; ``extras`` are the figures that a
    mode adds, such as staleness; ``workers`` are there where workers share a parameter server.
    """

    step: int
    samples: int
    epoch: float
    wall_s: float
    loss: float
    lr: float
    samples_per_s: float
    samples_per_s_per_worker: float
    data_wait: float
    times: StepTimes
    memory_mb: float
    slowest_rank: int | None = None
    # Where each worker's time went, in the order of ranks.
    worker_times: tuple[StepTimes, ...] | None = None
    grad_norm: float | None = None
    replica: int = 0
    extras: Mapping[str, float] = field(default_factory=dict)
    workers: tuple[WorkerFigures, ...] | None = None

    def record(self) -> dict[str, Any]:
        """Make the line's object for metrics.jsonl; what was not measured is left out."""
        own = {"kind": "train", **asdict(self)}
        del own["extras"]
        return with_names(self.extras, {key: value for key, value in own.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class ValLine:
    """One validation: the means over the whole validation set, and the ``seconds`` it took."""

    step: int
    samples: int
    epoch: float
    wall_s: float
    loss: float
    metrics: Mapping[str, float]
    seconds: float
    replica: int = 0
    extras: Mapping[str, float] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Make the line's object for metrics.jsonl, with the task's metrics beside the loss."""
        own = {"kind": "val", **asdict(self)}
        del own["metrics"], own["extras"]
        return with_names(self.extras, with_names(self.metrics, own))


def with_names(figures: Mapping[str, float], own: dict[str, Any]) -> dict[str, Any]:
    """Add ``figures`` to a line's ``own`` keys; one whose name is taken gets the prefix ``task_``."""
    return own | {f"task_{name}" if name in own else name: value for name, value in figures.items()}


def to_json(value: Any, indent: int | None = None) -> str:
    """Write ``value`` as standard JSON, which has no NaN: those are the strings that ``float`` reads.

    Raises TypeError for anything but mappings, sequences, text, numbers, booleans and None.
    """
    try:
        return json.dumps(value, allow_nan=False, indent=indent)
    except ValueError:
        return json.dumps(named_floats(value), allow_nan=False, indent=indent)


def named_floats(value: Any) -> Any:
    """Copy ``value`` with each NaN and infinity as "NaN", "Infinity" or "-Infinity"."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: named_floats(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [named_floats(item) for item in value]
    return value


class JsonLines:
    """Appends one JSON object a line; every line is in the file, whole, when ``write`` returns.

    Opening an existing file cuts away a last line that was torn by a crash. Threads may share one.
    NaN and infinities are written as strings (see ``to_json``), so that any JSON reader reads the file.
    """

    def __init__(self, path: Path) -> None:
        """Open ``path`` to append, or make it; raises OSError where that is not possible."""
        self.path = path
        cut_torn_line(path)
        self._file: BinaryIO = path.open("ab")

    def write(self, record: Record) -> None:
        """Append one line.

        Raises TrainingError when the file cannot be written, and TypeError for what JSON cannot hold.
        """
        line = to_json(record).encode() + b"\n"
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise TrainingError(
                f"{self.path}: cannot be written ({error.strerror}); free its disk"
            ) from error

    def close(self) -> None:
        # Every line that was not written has been told of: nothing else is left.
        with suppress(OSError):
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of JSON lines, without a last line that is torn.

    Raises ValueError for a line that is not a JSON object, and OSError as ``open`` does.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            record = parse(line)
            if record is None:
                raise ValueError(f"{path}, line {number}: not a JSON object; remove the line")
            yield record


def trim(path: Path, keep: Callable[[dict[str, Any]], bool], aside: Path) -> int:
    """Move the lines of ``path`` that ``keep`` refuses to the end of ``aside``; return how many.

    Nobody may have ``path`` open to write. Holds one line in memory at a time. ``path`` is replaced
    whole, after the moved lines are safe: a crash in between can leave them in both files, never in
    neither. Lines that are not JSON objects are moved too; a torn last line is cut away.
    """
    cut_torn_line(path)
    cut_torn_line(aside)
    if not path.exists() or all(map(wanted_by(keep), lines_of(path))):
        return 0
    wanted, moved = wanted_by(keep), 0
    with replacing(path) as kept, aside.open("ab") as removed:
        for line in lines_of(path):
            if wanted(line):
                kept.write(line)
            else:
                removed.write(line)
                moved += 1
        removed.flush()
        os.fsync(removed.fileno())
    return moved


def wanted_by(keep: Callable[[dict[str, Any]], bool]) -> Callable[[bytes], bool]:
    """Make of a rule about objects the same rule about lines."""

    def wanted(line: bytes) -> bool:
        record = parse(line)
        return record is not None and keep(record)

    return wanted


def lines_of(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from file


def parse(line: bytes) -> dict[str, Any] | None:
    """Read one line; None when it is not a JSON object."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def cut_torn_line(path: Path) -> None:
    """Shorten the file to its last line end; a file that ends in one, or is missing, stays as it is."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        whole = last_line_end(file, end)
        if whole < end:
            file.truncate(whole)


def last_line_end(file: BinaryIO, end: int) -> int:
    """Find the position after the last line end before ``end``; 0 where there is none."""
    while end > 0:
        start = max(0, end - BLOCK)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
