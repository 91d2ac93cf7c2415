"""What all processes of a run know of actors, whatever runs them: how calls are answered, and what may fail.

An actor is an object of a plain class in a process of its own. Only ray_cluster.py knows that Ray starts it.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_train.errors import ConfigError, TrainingError
from dist_train.runtime import children

_PROC = Path("/proc")
# Of the fields after the name in /proc/PID/stat: the state, and the start in ticks since the boot.
_STATE, _START_TIME = 0, 19


class ActorGone(TrainingError):
    """The actor's process has ended: it will never answer."""


class Unreachable(TrainingError):
    """The call was not answered; whether it happened is unknown, so repeat it with the same identity."""


class ActorFailed(TrainingError):
    """A method raised an error of its own; ``trace`` is where, in the actor."""

    def __init__(self, message: str, trace: str = "") -> None:
        self.trace = trace
        super().__init__(message)

    def __reduce__(self) -> tuple[type[ActorFailed], tuple[str, str]]:
        return (ActorFailed, (str(self), self.trace))


@dataclass(frozen=True)
class Process:
    """A process, told apart from a later one of the same number by when it started."""

    pid: int
    started: int
    host: str
    node: str


def process_of(pid: int, node: str) -> Process:
    """Describe a process of this machine; ProcessLookupError if there is none."""
    return Process(pid, _started(pid), socket.gethostname(), node)


def signal_process(process: Process, number: int) -> bool:
    """Send a signal to a process of this machine; False if it has ended."""
    with suppress(ProcessLookupError):
        if _started(process.pid) == process.started:
            os.kill(process.pid, number)
            return True
    return False


def _started(pid: int) -> int:
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except FileNotFoundError:
        raise ProcessLookupError(pid) from None
    # The name, in parentheses, may itself contain both spaces and parentheses.
    fields = stat.rpartition(")")[2].split()
    if fields[_STATE] in "ZX":
        # It has ended; what is left waits for its parent to take note.
        raise ProcessLookupError(pid)
    return int(fields[_START_TIME])


@dataclass(frozen=True)
class Origin:
    """Where the starting process looks for files and for modules, so that an actor looks there too."""

    directory: str
    search: tuple[str, ...]

    @classmethod
    def of_this_process(cls) -> Origin:
        return cls(str(Path.cwd()), tuple(sys.path))

    def adopt(self) -> None:
        # Another machine need not have the directory.
        with suppress(OSError):
            os.chdir(self.directory)
        sys.path.extend(path for path in self.search if path not in sys.path)


Answer = tuple[bool, Any]


class Host:
    """Holds the object in the actor's process, and answers with what a method returned or raised.

    The class travels by name: what cannot be imported there is reported like any other failure. An
    object's plain methods run one at a time in the event loop; its async ones overlap.
    """

    def __init__(self, origin: Origin, cls: str, arguments: Sequence[Any]) -> None:
        # Stopped by a signal, a process cannot end itself: the kernel does, when its parent ends.
        children.die_with_launcher(os.getppid())
        self._refusal: Answer | None = None
        try:
            origin.adopt()
            self._object = _find(cls)(*arguments)
        except Exception as error:
            self._refusal = failure(error)

    async def call(self, method: str, *arguments: Any) -> Answer:
        if self._refusal is not None:
            return self._refusal
        try:
            result = getattr(self._object, method)(*arguments)
            if inspect.isawaitable(result):
                result = await result
        except (Exception, asyncio.CancelledError) as error:
            return failure(error)
        return True, result


def name_of(cls: type | str) -> str:
    """Name a class so that another process finds it; a name, ``module:class``, stands for itself."""
    if isinstance(cls, str):
        return cls
    return f"{cls.__module__}:{cls.__qualname__}"


def _find(name: str) -> Callable[..., Any]:
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]


def failure(error: BaseException) -> Answer:
    """Make an answer of an exception: as itself if it is for the user, else what it said and where."""
    if isinstance(error, ConfigError | TrainingError):
        return False, error
    trace = "".join(traceback.format_exception(error))
    return False, ActorFailed(f"{type(error).__name__}: {error}", trace)


def unwrap(answer: Answer) -> Any:
    """Return what the method returned, or raise what it raised."""
    returned, value = answer
    if not returned:
        raise value
    return value
