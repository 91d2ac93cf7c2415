"""Tests of the reaper: whatever the end of a run, nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from dist_train.runtime import reaper
from dist_train.runtime.reaper import MARK, Reaper, marked

HERE = Path(__file__).parent
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]

# Says its mark and its folder, starts a process that starts another, and waits for its own end.
CONDUCTOR = """
import os, subprocess, sys, time
from dist_train.runtime.reaper import Reaper

with Reaper.start() as reaper:
    nested = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]])"
    sleep = "import time; time.sleep(600)"
    environment = {**os.environ, **reaper.variables}
    subprocess.Popen([sys.executable, "-c", nested, sleep], env=environment, start_new_session=True).wait()
    subprocess.Popen([sys.executable, "-c", sleep], env=environment)
    print(reaper.mark, reaper.home, flush=True)
    time.sleep(float(sys.argv[1]))
"""
# The same with a Ray of its own and two actors, one of them stopped.
CONDUCTOR_OF_ACTORS = f"""
import os, signal, sys, time
sys.path.append({str(HERE)!r})
from plain_actors import Adder
from dist_train.rules.resources import Bundle
from dist_train.runtime import ray_cluster
from dist_train.runtime.place import set_variables
from dist_train.runtime.reaper import Reaper

with Reaper.start() as reaper:
    set_variables(reaper.variables)
    cluster = ray_cluster.start_local(reaper.home)
    reservation = cluster.reserve([Bundle("a worker", {{"CPU": 1}})], 10, print)
    actors = [cluster.start(Adder, (n,), reservation, 0, f"adder {{n}}", {{}}) for n in range(2)]
    places = [actor.ask("place") for actor in actors]
    os.kill(places[0].pid, signal.SIGSTOP)
    print(reaper.mark, reaper.home, flush=True)
    time.sleep(600)
"""


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


class Conductor:
    """A process with a reaper, once it has said that everything stands."""

    def __init__(self, program: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.mark, home = self.process.stdout.readline().split()
        self.home = Path(home)

    def nothing_left(self) -> bool:
        return not list(marked(self.mark, self.home)) and not self.home.exists()


@pytest.fixture
def start() -> Iterator[Callable[..., Conductor]]:
    started: list[Conductor] = []

    def run(*words: str) -> Conductor:
        started.append(Conductor(*words))
        return started[-1]

    yield run
    for conductor in started:
        conductor.process.kill()
        conductor.process.communicate()
        for pid in marked(conductor.mark):
            os.kill(pid, signal.SIGKILL)


def names_of(processes: Iterable[int]) -> set[str]:
    """Return the processes' names; an actor's is followed by the method that it is in."""
    found = set()
    for pid in processes:
        with suppress(psutil.NoSuchProcess):
            found.add(psutil.Process(pid).name().partition(".")[0])
    return found


@pytest.mark.processes
class TestTheEndOfARun:
    def test_that_was_orderly_leaves_nothing(self, start: Callable[..., Conductor]) -> None:
        conductor = start(CONDUCTOR, "0")
        assert conductor.process.wait(timeout=30) == 0
        # The conductor waits for its reaper: everything is gone when it is.
        assert conductor.nothing_left()

    def test_by_a_kill_leaves_nothing(self, start: Callable[..., Conductor]) -> None:
        conductor = start(CONDUCTOR, "600")
        assert len(list(marked(conductor.mark))) == 2
        conductor.process.kill()
        assert eventually(conductor.nothing_left)

    @pytest.mark.timeout(120)
    def test_by_a_kill_leaves_nothing_of_a_local_ray_and_its_stopped_actors(
        self, start: Callable[..., Conductor]
    ) -> None:
        conductor = start(CONDUCTOR_OF_ACTORS)
        agents = {"gcs_server", "raylet", "ray::DashboardAgent", "ray::adder_0"}
        assert eventually(lambda: agents <= names_of(marked(conductor.mark, conductor.home)))
        states = [psutil.Process(pid).status() for pid in marked(conductor.mark, conductor.home)]
        assert psutil.STATUS_STOPPED in states
        conductor.process.kill()
        assert eventually(conductor.nothing_left)


@pytest.mark.processes
class TestAReaper:
    def test_spares_its_own_process_and_those_of_others(self) -> None:
        with Reaper.start() as mine:
            other = subprocess.Popen(SLEEP, env={**os.environ, MARK: "another run"})
            own = subprocess.Popen(SLEEP, env={**os.environ, **mine.variables})
        assert own.wait() == -signal.SIGKILL
        assert other.poll() is None
        other.kill()
        other.wait()

    def test_is_not_stopped_by_requests_to_stop(self) -> None:
        with Reaper.start() as mine:
            process = mine._process
            with subprocess.Popen(SLEEP, env={**os.environ, **mine.variables}) as own:
                # It has read its program when it does not die of these.
                status = Path(f"/proc/{process.pid}/status")
                assert eventually(lambda: "SigIgn:\t0000000000000000" not in status.read_text())
                assert eventually(lambda: int(_ignored(status), 16) & (1 << (signal.SIGUSR2 - 1)) != 0)
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
                    process.send_signal(number)
                mine.close()
                assert own.wait() == -signal.SIGKILL
        assert process.returncode == 0

    def test_makes_a_folder_for_its_user_alone_with_a_short_path(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        long = tmp_path / "a folder with a path much too long for the sockets"
        long.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(long))
        with Reaper.start() as mine:
            assert mine.home.stat().st_mode & 0o777 == 0o700
            assert len(str(mine.home)) <= reaper._LONGEST_FOLDER
        assert list(long.iterdir()) == []
        assert not mine.home.exists()


def _ignored(status: Path) -> str:
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("SigIgn")]
    return line.split()[1]
