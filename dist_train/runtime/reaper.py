"""The reaper: a small process that outlives its run by a moment, to end what the run left.

It learns that the run has ended, however it ended, by the end of a pipe. It then kills every process that has
the run's mark in its environment or a file open in its folder, and removes that folder. Needs nothing but the
standard library: as a program it is this file alone.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

MARK = "DIST_TRAIN_RUN"
_PROC = Path("/proc")
# Unix sockets below the folder have paths of some 70 characters more, and may have 107.
_LONGEST_FOLDER = 36
# Seconds: between two looks for processes, and after which those that cannot be killed are given up.
_LOOK_S, _GIVE_UP_S = 0.05, 30.0


class Reaper:
    """Holds the mark and the private folder of a run; both end with this process, or with the ``with`` block.

    ``variables`` is the mark: whoever is started with it in the environment ends with the run.
    """

    def __init__(self, mark: str, home: Path, process: subprocess.Popen[bytes]) -> None:
        self.mark = mark
        self.home = home
        self._process = process

    @classmethod
    def start(cls) -> Self:
        """Start the process; call this before any process that shall have the mark."""
        mark = uuid.uuid4().hex
        home = _make_folder()
        command = [sys.executable, "-I", "-S", __file__, mark, str(os.getpid()), str(home)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, cwd="/")
        return cls(mark, home, process)

    @property
    def variables(self) -> dict[str, str]:
        return {MARK: self.mark}

    def close(self) -> None:
        """End all that has the mark, this process apart, and wait until it is gone."""
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _make_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="dist-train-"))
    if len(str(folder)) <= _LONGEST_FOLDER:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="dist-train-", dir="/tmp"))


def marked(mark: str, home: Path | None = None) -> Iterator[int]:
    """Find the processes of a run: those that inherited its mark, and those with a file open in its folder.

    A process that gives itself a title, as Ray's do, may write it over the mark.
    """
    entry = f"{MARK}={mark}".encode()
    for folder in _PROC.iterdir():
        # A process may end while it is looked at, and those of others are not to be read.
        with suppress(OSError):
            if not folder.name.isdigit():
                continue
            if entry in (folder / "environ").read_bytes().split(b"\0") or _has_open(folder, home):
                yield int(folder.name)


def _has_open(process: Path, home: Path | None) -> bool:
    if home is None:
        return False
    for descriptor in (process / "fd").iterdir():
        with suppress(OSError):
            if os.readlink(descriptor).startswith(f"{home}/"):
                return True
    return False


def end(mark: str, home: Path, spared: set[int]) -> bool:
    """Kill the processes of a run until there are none; False if some cannot be killed."""
    deadline = time.monotonic() + _GIVE_UP_S
    quiet = 0
    # Twice none: between two entries of one look, a process may have started another and ended.
    while quiet < 2:
        found = set(marked(mark, home)) - spared
        quiet = 0 if found else quiet + 1
        for pid in found:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_S)
    return True


def _main(mark: str, conductor: int, home: str) -> None:
    # A request to stop is for the run; this process stops when the run has.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    while os.read(sys.stdin.fileno(), 4096):
        pass
    spared = {os.getpid()}
    if os.getppid() == conductor:
        spared.add(conductor)
    end(mark, Path(home), spared)
    shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
