"""The runs that a report is about: their directories, what of them can be read, and short names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dist_train.errors import ConfigError
from dist_train.layout import CONFIG, EVENTS, METRICS, SUMMARY, replica_folders
from dist_train.watch.summary import read_summary

# Any one of these makes a directory that of a run.
OF_A_RUN = (CONFIG, METRICS, EVENTS, SUMMARY)


@dataclass(frozen=True)
class Subject:
    """A run: ``configuration`` as text, ``settings`` by key path, ``summary`` empty where it has none yet.

    ``replicas`` are the directories of several replicas by number; empty for a run of one.
    """

    directory: Path
    label: str
    configuration: str
    settings: Mapping[str, Any]
    summary: Mapping[str, Any]
    replicas: Mapping[int, Path]

    @property
    def parts(self) -> list[tuple[str, Path]]:
        """Return what has records of its own: a name for a legend, and its directory."""
        if not self.replicas:
            return [(self.label, self.directory)]
        return [(f"{self.label}, replica {number}", path) for number, path in self.replicas.items()]


def find(directories: Sequence[Path]) -> list[Subject]:
    """Read what the runs are; a directory that is given twice counts once.

    Raises ConfigError that names every directory that is none of a run.
    """
    given = list({os.path.realpath(path): path for path in directories}.values())
    problems = [problem for path in given if (problem := _problem(path)) is not None]
    if problems:
        raise ConfigError(problems)
    return [_subject(path, label) for path, label in zip(given, labels(given), strict=True)]


def labels(directories: Sequence[Path]) -> list[str]:
    """Name runs as shortly as tells them apart: by their last folders, as many as it takes."""
    parts = [Path(os.path.realpath(path)).parts for path in directories]
    for length in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in directories]


def flat(settings: Any, path: str = "") -> dict[str, Any]:
    """Return every setting of a configuration under its key path; lists stay whole."""
    if not isinstance(settings, dict) or not settings:
        return {path: settings} if path else {}
    return {
        name: value
        for key, child in settings.items()
        for name, value in flat(child, f"{path}.{key}" if path else str(key)).items()
    }


def _problem(path: Path) -> str | None:
    if not path.exists():
        return f"{path}: no such directory; give the directory of a run"
    if not path.is_dir():
        return f"{path}: a file; give the directory of a run"
    if not any((path / name).is_file() for name in OF_A_RUN):
        return f"{path}: no run directory, as {CONFIG} is missing; give the directory of a run"
    return None


def _subject(directory: Path, label: str) -> Subject:
    text = _text(directory / CONFIG)
    summary = read_summary(directory / SUMMARY)
    return Subject(
        directory=directory,
        label=label,
        configuration=text,
        settings=flat(_loaded(text)),
        summary=summary if isinstance(summary, dict) else {},
        replicas=replica_folders(directory),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _loaded(text: str) -> Any:
    # A file that was cut short is still shown as text.
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None
