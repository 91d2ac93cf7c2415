"""Where every value of a configuration was written, and the list of what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dist_train.errors import ConfigError

KeyPath = tuple[Any, ...]
ROOT: KeyPath = ()

# Deeper or larger trees are mistakes or attacks; refusing them keeps every later walk safe.
MAX_DEPTH = 50
MAX_VALUES = 100_000
MAX_DIGITS = 1000
TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels; check the brackets, and for an alias that contains itself"
TOO_MANY = f"more than {MAX_VALUES} values; check for aliases (*name) that multiply each other"
TOO_LONG = f"a whole number of more than {MAX_DIGITS} digits; write a smaller one"


@dataclass(frozen=True)
class Place:
    """A position in a file (line and column count from 1), or a source without lines (line 0).

    Without a line, the column only orders the sources.
    """

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


def dotted(path: KeyPath) -> str:
    """Write a key path as the user would: ``schedule.decay.milestones[1]``."""
    text = ""
    for part in path:
        if text and type(part) is int:
            text += f"[{part}]"
        else:
            text += f".{show_key(part)}" if text else show_key(part)
    return text


def show_key(key: object) -> str:
    return {None: "null", True: "true", False: "false"}.get(key, str(key))  # type: ignore[call-overload, no-any-return]


class Problems:
    """What is wrong, one line each, in the order of the file; what has no line comes last."""

    def __init__(self) -> None:
        self._found: list[tuple[Place, str]] = []
        self._settled: set[KeyPath] = set()

    def add(self, place: Place, path: KeyPath, text: str) -> None:
        """Note that the value at ``path``, written at ``place``, is wrong in the way ``text`` says."""
        words = (str(place), dotted(path), text)
        self._found.append((place, ": ".join(word for word in words if word)))
        self._settled.add(path)

    def settle(self, path: KeyPath) -> None:
        """Say no more about ``path``: a problem already noted explains it."""
        self._settled.add(path)

    def settled(self, path: KeyPath) -> bool:
        return path in self._settled

    def raise_any(self) -> None:
        """Raise ConfigError with all lines, if there are any."""
        if self._found:
            ordered = sorted(
                self._found, key=lambda found: (found[0].line == 0, found[0].line, found[0].column)
            )
            raise ConfigError(list(dict.fromkeys(one_line(line) for _, line in ordered)))


def one_line(text: str) -> str:
    """Escape what would break a message into several lines or upset a terminal."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text
    )


class Origins:
    """Where each key and its value were written; without a record of its own, where its parent was."""

    def __init__(self, root: Place) -> None:
        self._records: dict[KeyPath, tuple[Place, Place]] = {ROOT: (root, root)}
        self._overridden: set[KeyPath] = set()

    def record(self, path: KeyPath, key: Place, value: Place) -> None:
        self._records[path] = (key, value)

    def key(self, path: KeyPath) -> Place:
        return self._nearest(path)[0]

    def value(self, path: KeyPath) -> Place:
        return self._nearest(path)[1]

    def override(self, path: KeyPath, place: Place) -> None:
        """``path`` and all below it now come from the override at ``place``."""
        for stale in [known for known in self._records if known[: len(path)] == path]:
            del self._records[stale]
        self._records[path] = (place, place)
        self._overridden.add(path)

    def overridden(self, path: KeyPath) -> bool:
        return any(path[:length] in self._overridden for length in range(len(path) + 1))

    def rename(self, old: KeyPath, new: KeyPath) -> None:
        """Give what was written under ``old`` the place in the tree that was meant."""
        for known in [known for known in self._records if known[: len(old)] == old]:
            self._records[new + known[len(old) :]] = self._records.pop(known)

    def _nearest(self, path: KeyPath) -> tuple[Place, Place]:
        while path not in self._records:
            path = path[:-1]
        return self._records[path]


@dataclass
class Document:
    """A configuration as it was written: plain dicts, lists and scalars, and where each came from."""

    tree: Any
    origins: Origins
    problems: Problems = field(default_factory=Problems)
