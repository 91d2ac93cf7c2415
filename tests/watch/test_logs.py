"""Tests of the workers' logs."""

from __future__ import annotations

import io
import logging
import re
import sys
import warnings

import pytest

from dist_train.watch.logs import worker_logs

LOG = logging.getLogger("dist_train.test")


def without_time(text: str) -> list[str]:
    return [re.sub(r"^[\d-]+ [\d:,]+ ", "", line) for line in text.splitlines()]


def test_each_line_names_rank_host_and_level(capsys: pytest.CaptureFixture[str]) -> None:
    with worker_logs(3, "node-b"):
        LOG.warning("%d samples are corrupt", 2)
        LOG.info("ready")
        LOG.debug("not this")
        logging.getLogger("somebody").info("nor this")
    assert without_time(capsys.readouterr().err) == [
        "[rank 3 node-b] WARNING 2 samples are corrupt",
        "[rank 3 node-b] INFO ready",
    ]


def test_the_display_gets_warnings_and_errors_of_everybody(capsys: pytest.CaptureFixture[str]) -> None:
    shown: list[str] = []
    with worker_logs(0, "node-a", shown.append):
        LOG.info("only for the log")
        logging.getLogger("somebody").warning("slow disk")
        try:
            raise OSError("no route")
        except OSError:
            LOG.exception("lost a peer")
    assert shown == ["slow disk", "lost a peer: OSError('no route')"]
    assert "Traceback" in capsys.readouterr().err


def test_pythons_warnings_go_to_the_log_alone(capsys: pytest.CaptureFixture[str]) -> None:
    shown: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with worker_logs(0, "node-a", shown.append):
            warnings.warn("deprecated", stacklevel=1)
    assert shown == []
    logged = capsys.readouterr().err
    assert "[rank 0 node-a] WARNING" in logged
    assert "UserWarning: deprecated" in logged


def test_a_terminal_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    shown: list[str] = []
    with worker_logs(0, "node-a", shown.append):
        LOG.warning("slow")
    assert (shown, terminal.getvalue()) == (["slow"], "")


def test_the_set_up_before_is_restored(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "dist_train")
    root, own = logging.getLogger(), logging.getLogger("dist_train")
    before = (list(root.handlers), own.level, warnings.showwarning)
    with pytest.raises(RuntimeError), worker_logs(1, "node-b", print):
        raise RuntimeError
    assert (root.handlers, own.level, warnings.showwarning) == before
