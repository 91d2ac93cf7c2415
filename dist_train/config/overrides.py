"""``key.sub=value`` words that replace parts of a configuration."""

from __future__ import annotations

from typing import Any

from dist_train.config import shape
from dist_train.config.checking import expand, show
from dist_train.config.problems import ROOT, Document, KeyPath, Place, dotted
from dist_train.config.schema import UNITS, Config
from dist_train.config.yaml_source import NOTHING, parse
from dist_train.errors import ConfigError

# Keys of one section that say the same thing in different units: giving one drops the others.
ALTERNATIVES: tuple[tuple[str, ...], ...] = (
    UNITS,
    ("every_epochs", "every_steps"),
    ("cycles", "first_epochs"),
)
# The same, across sections.
ALTERNATIVE_PATHS: tuple[tuple[KeyPath, ...], ...] = (
    (("train", "batch_size"), ("parallel", "global_batch")),
)
EXAMPLE = "write key.sub=value, for example train.epochs=5"


def apply_override(document: Document, text: str, order: int = 0) -> KeyPath | None:
    """Set one value in the document's tree and return its path; None after noting why it cannot be set.

    ``order`` is the word's place among the overrides, in which their problems are listed.
    """
    place = Place(f'override "{text}"', column=order)
    name, sign, written = text.partition("=")
    path: KeyPath = tuple(part.strip() for part in name.split("."))
    if not sign or not all(path):
        document.problems.add(place, ROOT, EXAMPLE)
        return None
    try:
        read = parse(written, str(place), path=path, numbered=False)
        read.problems.raise_any()
        if read.tree is NOTHING:
            raise ConfigError(
                f"{dotted(path)}: the value is empty; write null for none, or '' for empty text"
            )
        _put(document, path, read.tree, place)
    except ConfigError as error:
        for problem in error.problems:
            document.problems.add(place, ROOT, problem.removeprefix(f"{place}: "))
        return None
    document.tree = expand(document.tree)
    return path


def drop_alternatives(document: Document, overridden: list[KeyPath]) -> None:
    """Drop what the file says in one unit where an override says it in another.

    Two overrides that contradict each other both stay, to be refused.
    """
    for path in overridden:
        value = _at(document.tree, path)
        inside = [(*path, key) for key in value] if isinstance(value, dict) else []
        for given in (path, *inside):
            for other in _alternatives(document.tree, given):
                if not document.origins.overridden(other):
                    _at(document.tree, other[:-1]).pop(other[-1])


def _alternatives(tree: Any, given: KeyPath) -> list[KeyPath]:
    """The paths present in the tree that ``given`` replaces; none if it is null."""
    if _at(tree, given) is None:
        return []
    section = _section_at(tree, given[:-1])
    known = shape.keys(section) if section else {}
    beside = [group for group in ALTERNATIVES if given[-1] in group and known.keys() >= set(group)]
    paths = [(*given[:-1], key) for group in beside for key in group]
    paths += [path for group in ALTERNATIVE_PATHS if given in group for path in group]
    return [path for path in paths if path != given and _at(tree, path) is not None]


def _put(document: Document, path: KeyPath, value: Any, place: Place) -> None:
    section = document.tree
    for depth, part in enumerate(path[:-1], start=1):
        if section.get(part) is None:
            section[part] = {}
            document.origins.override(path[:depth], place)
        elif not isinstance(section[part], dict):
            here, found = dotted(path[:depth]), show(section[part])
            raise ConfigError(f"{here} is {found}, which has no keys; override {here} as a whole")
        section = section[part]
    section[path[-1]] = value
    document.origins.override(path, place)


def _section_at(tree: Any, path: KeyPath) -> shape.Model | None:
    section: shape.Model | None = Config
    for depth, part in enumerate(path, start=1):
        if section is None or part not in shape.keys(section):
            return None
        section = shape.section_of(shape.keys(section)[part], _at(tree, path[:depth]))
    return section


def _at(tree: Any, path: KeyPath) -> Any:
    """The value at ``path``; None where there is none."""
    for part in path:
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree
