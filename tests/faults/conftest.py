"""Runs of the real program with the tiny task, and a census of the processes they leave."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

TASK = Path(__file__).with_name("tiny_task.py")
SETTINGS: dict[str, Any] = {
    "name": "tiny",
    "task": f"{TASK}:Tiny",
    "parallel": {"workers": 2, "timeout_s": 30},
    "train": {"steps": 24, "batch_size": 8, "deterministic": True},
    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
    "schedule": {"decay": "cosine"},
    "checkpoint": {"every_steps": 4},
    "validation": {"every_steps": 6},
    "logging": {"every_steps": 1, "tensorboard": False},
    "recovery": {"backoff_s": 0.05, "frozen_after_s": 2.0, "hung_after_s": 3.0, "grace_s": 20.0},
}


class Program:
    """The program in a folder of its own; every process that it starts inherits a mark to be found by."""

    # What a run to the end may take, on a busy machine.
    patience_s = 90.0

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run_dir = folder / "run"
        self._started: list[subprocess.Popen[str]] = []
        self._config = folder / "tiny.yaml"
        self._config.write_text(yaml.safe_dump(SETTINGS))
        self._mark = f"DIST_TRAIN_TEST={folder}"
        # Without the place that an outer torchrun might give.
        kept = {name: text for name, text in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
        name, value = self._mark.split("=", 1)
        self.environment = {**kept, name: value, "OMP_NUM_THREADS": "1"}

    def start(
        self, *arguments: str, run_dir: Path | None = None, before: Sequence[str] = (), **variables: str
    ) -> subprocess.Popen[str]:
        """Start the program; ``before`` is a command that starts it with the arguments that follow."""
        given = ["--run-dir", str(run_dir or self.run_dir)]
        marks = f"task_options.marks={self.folder}"
        program = (sys.executable, "-m", "dist_train", "run", str(self._config))
        process = subprocess.Popen(
            [*before, *program, marks, *arguments, *given],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            env={**self.environment, **variables},
        )
        self._started.append(process)
        return process

    def close(self) -> list[psutil.Process]:
        """Kill what is left of the runs, and return it: nothing of a failed test reaches the next one."""
        eventually(lambda: not self.processes(), seconds=10)
        left = self.processes()
        for process in left:
            process.kill()
        for started in self._started:
            started.wait()
            assert started.stdout is not None
            started.stdout.close()
        return left

    def last_words(self) -> str:
        """End the run that was started last; return which processes it had and the end of what it printed."""
        names = []
        for process in self.processes():
            # One may end as another is killed.
            with suppress(psutil.Error):
                names.append(" ".join(process.cmdline())[-120:])
                process.kill()
        output, _ = self._started[-1].communicate(timeout=10)
        return "\n".join([*names, output[-3000:]])

    def run(self, *arguments: str, run_dir: Path | None = None, **variables: str) -> tuple[int, str]:
        """Run to the end; return the exit status and what a person sees."""
        process = self.start(*arguments, run_dir=run_dir, **variables)
        output, _ = process.communicate(timeout=self.patience_s)
        return process.returncode, output

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("DIST_TRAIN_TEST") == str(self.folder):
                    found.append(process)
            except psutil.Error:
                continue
        return [process for process in found if process.is_running() and not is_zombie(process)]


def is_zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return True


def eventually(condition: Callable[[], object], seconds: float = 60.0) -> bool:
    """Poll until ``condition`` holds; say whether it came true in time, on a busy machine."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    """The program; whatever it leaves running fails the test."""
    made = Program(tmp_path)
    yield made
    left = made.close()
    assert not left, f"left running: {left}"
