"""Each worker's log: the standard library's logging on standard error, with the rank before each line."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Python's own warnings: for the log, too many for the display.
WARNINGS_MODULE = "py.warnings"


class ToDisplay(logging.Handler):
    """Hands warnings and errors to the display, each as one line."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._warn = warn
        self.addFilter(lambda record: record.name != WARNINGS_MODULE)

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self._warn(record.getMessage() + (f": {error!r}" if error else ""))


@contextmanager
def worker_logs(rank: int, host: str, warn: Callable[[str], None] | None = None) -> Iterator[None]:
    """Log to standard error inside the block: warnings of everybody, and what dist_train reports.

    ``warn`` (the display's, on rank 0) gets the warnings too, and gets them alone where standard error is
    a terminal, which would show them twice. The logging set-up before is restored at the end.
    """
    to_log = logging.StreamHandler(sys.stderr)
    to_log.setFormatter(logging.Formatter(f"%(asctime)s [rank {rank} {host}] %(levelname)s %(message)s"))
    handlers: list[logging.Handler] = [] if warn and sys.stderr.isatty() else [to_log]
    if warn:
        handlers.append(ToDisplay(warn))
    root, own = logging.getLogger(), logging.getLogger("dist_train")
    level = own.level
    own.setLevel(logging.INFO)
    for handler in handlers:
        root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for handler in handlers:
            root.removeHandler(handler)
        own.setLevel(level)
