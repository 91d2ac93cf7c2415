"""Tests of an actor's inside, in this process: how it is made and what a call brings back."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dist_train.errors import ConfigError, TrainingError
from dist_train.runtime import children
from dist_train.runtime.remote import (
    ActorFailed,
    Host,
    Origin,
    Process,
    name_of,
    process_of,
    signal_process,
    unwrap,
)

HERE = Path(__file__).parent
sys.path.append(str(HERE))

from plain_actors import Adder, Unmakeable  # noqa: E402


@pytest.fixture(autouse=True)
def bindings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """This process is nobody's actor and must not die with its parent."""
    parents: list[int] = []
    monkeypatch.setattr(children, "die_with_launcher", parents.append)
    return parents


def call(host: Host, method: str, *arguments: Any) -> Any:
    return unwrap(asyncio.run(host.call(method, *arguments)))


def host_of(cls: type, *arguments: Any) -> Host:
    return Host(Origin.of_this_process(), name_of(cls), arguments)


class TestAHost:
    def test_answers_with_what_plain_and_async_methods_return(self) -> None:
        host = host_of(Adder, 3)
        assert call(host, "add", 4) == 7
        assert call(host, "add_later", 5) == 8
        assert call(host, "seen") == [4, 5]

    def test_dies_with_its_parent(self, bindings: list[int]) -> None:
        host_of(Adder, 3)
        assert bindings == [os.getppid()]

    @pytest.mark.parametrize("kind", [ConfigError, TrainingError])
    def test_passes_on_what_is_for_the_user_as_it_is(self, kind: type[Exception]) -> None:
        with pytest.raises(kind) as raised:
            call(host_of(Adder, 3), "refuse", kind("no more adding"))
        assert type(raised.value) is kind
        assert str(raised.value) == "no more adding"

    def test_reports_any_other_error_by_its_name_and_place(self) -> None:
        with pytest.raises(ActorFailed, match=r"^ValueError: bad$") as raised:
            call(host_of(Adder, 3), "refuse", ValueError("bad"))
        assert "in refuse" in raised.value.trace

    def test_that_cannot_be_made_says_why_at_every_call(self) -> None:
        host = host_of(Unmakeable)
        for _ in range(2):
            with pytest.raises(ConfigError, match="cannot be made"):
                call(host, "anything")

    def test_whose_class_is_not_there_says_so(self) -> None:
        host = Host(Origin.of_this_process(), "dist_train.nowhere:Nobody", ())
        with pytest.raises(ActorFailed, match=r"ModuleNotFoundError.*nowhere"):
            call(host, "anything")


def test_a_failure_travels_with_its_trace() -> None:
    sent = pickle.loads(pickle.dumps(ActorFailed("ValueError: bad", "in refuse")))
    assert (str(sent), sent.trace) == ("ValueError: bad", "in refuse")


def test_an_actor_looks_for_files_and_modules_where_its_starter_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(HERE)
    monkeypatch.setattr(sys, "path", ["/first"])
    Origin(str(tmp_path), ("/first", "/second")).adopt()
    assert Path.cwd() == tmp_path
    assert sys.path == ["/first", "/second"]


def test_a_directory_that_is_not_on_this_machine_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(HERE)
    Origin("/not/there", ()).adopt()
    assert Path.cwd() == HERE


@pytest.mark.processes
class TestSignals:
    def test_reach_the_process_that_is_meant(self) -> None:
        with subprocess.Popen(["sleep", "60"]) as process:
            assert signal_process(process_of(process.pid, "here"), signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL

    def test_spare_a_later_process_of_the_same_number(self) -> None:
        with subprocess.Popen(["sleep", "60"]) as process:
            now = process_of(process.pid, "here")
            earlier = Process(now.pid, now.started - 1, now.host, now.node)
            assert not signal_process(earlier, signal.SIGKILL)
            assert process.poll() is None
            process.kill()

    def test_to_a_process_that_has_ended_are_lost(self) -> None:
        with subprocess.Popen(["sleep", "60"]) as process:
            known = process_of(process.pid, "here")
            process.kill()
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            # Its parent has not taken note of the end.
            assert not signal_process(known, signal.SIGKILL)
            process.wait()
        assert not signal_process(known, signal.SIGKILL)
        with pytest.raises(ProcessLookupError):
            process_of(known.pid, "here")
