"""A display at a distance: what one process has to show, kept until another fetches it to show it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any

from dist_train.watch.display import Display
from dist_train.watch.records import TrainLine, ValLine

# One call of a display's verb: its name and its arguments.
Item = tuple[str, tuple[Any, ...]]

VERBS = frozenset({"start", "train", "validation", "note", "warning", "finish", "close"})


class ForwardedDisplay:
    """Keeps what is said to it, in order, until ``taken``. Threads may share one.

    Of training lines in a row only the newest is kept, so that nothing piles up where nobody fetches.
    """

    def __init__(self) -> None:
        self._items: list[Item] = []
        self._lock = threading.Lock()

    def start(self, facts: Mapping[str, str]) -> None:
        self._keep("start", dict(facts))

    def train(self, line: TrainLine) -> None:
        self._keep("train", line)

    def validation(self, line: ValLine) -> None:
        self._keep("validation", line)

    def note(self, text: str) -> None:
        self._keep("note", text)

    def warning(self, text: str) -> None:
        self._keep("warning", text)

    def finish(self, summary: Mapping[str, Any], resume: str | None = None) -> None:
        self._keep("finish", dict(summary), resume)

    def close(self) -> None:
        self._keep("close")

    def taken(self) -> list[Item]:
        """Return what has been said since the last time."""
        with self._lock:
            items, self._items = self._items, []
        return items

    def _keep(self, verb: str, *arguments: Any) -> None:
        with self._lock:
            if verb == "train" and self._items and self._items[-1][0] == verb:
                self._items.pop()
            self._items.append((verb, arguments))


def replay_onto(display: Display, items: Iterable[Item]) -> None:
    """Say on ``display`` what was said on a forwarded one; raises ValueError for any other verb."""
    for verb, arguments in items:
        if verb not in VERBS:
            raise ValueError(f"{verb!r} is nothing that a display does; it does {', '.join(sorted(VERBS))}")
        getattr(display, verb)(*arguments)
