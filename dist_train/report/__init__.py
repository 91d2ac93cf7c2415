"""One run, or several side by side, as a page, with its charts as files and a timeline of the workers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from dist_train.errors import ConfigError
from dist_train.layout import EVENTS, SUMMARY
from dist_train.report import subjects
from dist_train.report.measured import Measured, measure
from dist_train.report.reading import Reader, Record
from dist_train.report.subjects import Subject
from dist_train.report.tables import Reported
from dist_train.report.trace import trace
from dist_train.watch.atomic import replacing
from dist_train.watch.summary import read_summary

__all__ = ["report"]

PAGE, TRACE, FOLDER = "report.html", "trace.json", "report"
# Stretches of all curves of one chart together; a curve has at most this many, however few there are.
MOST_POINTS, POINTS_OF_ONE, LEAST_POINTS = 800, 200, 25
NEEDS = 'dist-train report needs matplotlib and jinja2: pip install "dist-train[plots]"'


@dataclass(frozen=True)
class Written:
    """What a report has written: the page, the trace, and the charts as PNG."""

    page: Path
    trace: Path
    images: tuple[Path, ...]


def report(directories: Sequence[Path], output: Path | None = None) -> Written:
    """Report on runs, whatever there is of them, in files under ``output``.

    ``output`` is a directory or the name of the page (``.html``), beside which the other files get a folder;
    by default ``report`` in the run's directory, and with several runs ``report`` here. Raises ConfigError
    where a directory is that of no run, and where what draws charts is not installed.
    """
    found = subjects.find(directories)
    page, folder = _places(found, output)
    try:
        from dist_train.report.contents import contents
    except ModuleNotFoundError as error:
        raise ConfigError(f"{NEEDS} ({error})") from error
    runs = _measured(found)
    folder.mkdir(parents=True, exist_ok=True)
    beside = "" if folder == page.parent else f"{quote(folder.name)}/"
    content = contents(runs, found, beside, TRACE)
    for drawn in content.images:
        _write(folder / f"{drawn.name}.png", drawn.png or b"")
    _write(folder / TRACE, json.dumps(trace([run.measured for run in runs]), allow_nan=False).encode())
    _write(page, content.html.encode())
    return Written(page, folder / TRACE, tuple(folder / f"{drawn.name}.png" for drawn in content.images))


def _places(found: Sequence[Subject], output: Path | None) -> tuple[Path, Path]:
    """Return the page's file and the folder of the files beside it."""
    if output is None:
        output = (found[0].directory if len(found) == 1 else Path()) / FOLDER
    if output.suffix in (".html", ".htm"):
        return output, output.with_name(f"{output.stem}_files")
    if output.is_file():
        raise ConfigError(f"{output}: a file; give a directory, or the name of a page that ends in .html")
    return output / PAGE, output


def _measured(found: Sequence[Subject]) -> list[Reported]:
    parts = sum(len(subject.parts) for subject in found)
    points = max(LEAST_POINTS, min(POINTS_OF_ONE, MOST_POINTS // parts))
    return [
        Reported(subject, measured, read_summary(path / SUMMARY), measured.spent())
        for subject in found
        for measured, (_, path) in zip(_parts(subject, points), subject.parts, strict=True)
    ]


def _parts(subject: Subject, points: int) -> list[Measured]:
    """Read the records of a run; what it says of one of its replicas belongs to that replica's."""
    told: dict[Path, list[Record]] = {path: [] for path in subject.replicas.values()}
    for event in Reader(subject.directory / EVENTS).each() if told else ():
        number = event.get("replica")
        if isinstance(number, int) and number in subject.replicas:
            told[subject.replicas[number]].append(event)
    parts = [measure(label, path, points, told.get(path, ())) for label, path in subject.parts]
    origin = min((part.origin for part in parts if part.origin), default=0.0)
    for part in parts:
        part.origin = origin
    return parts


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(content)
