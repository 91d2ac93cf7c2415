"""Runs of a real parameter server with the counting task: finding its processes, and reading its records."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from tests.faults.conftest import Program, eventually

TASK = Path(__file__).with_name("counting_task.py")
FROZEN_AFTER_S = 5.0
SETTINGS: dict[str, Any] = {
    "name": "counting",
    "task": f"{TASK}:Counting",
    "parallel": {"mode": "async", "workers": 2, "timeout_s": 60},
    "train": {"epochs": 3, "batch_size": 4, "deterministic": True},
    "optimizer": {"name": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0},
    "schedule": {"scaling": "none", "decay": "constant"},
    "checkpoint": {"every_steps": 20},
    "logging": {"every_steps": 10, "tensorboard": False},
    "recovery": {"backoff_s": 0.05, "frozen_after_s": FROZEN_AFTER_S, "grace_s": 30.0},
}


class ServerProgram(Program):
    """The program, with its processes found by the logs that they write."""

    patience_s = 150.0

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._config.write_text(yaml.safe_dump(SETTINGS))

    @property
    def events(self) -> list[dict[str, Any]]:
        """What was written down so far; a line that is being written is left out."""
        file = self.run_dir / "events.jsonl"
        lines = file.read_text().split("\n")[:-1] if file.exists() else []
        return [json.loads(line) for line in lines]

    def named(self, *names: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] in names]

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run_dir / "summary.json").read_text())
        return found

    @property
    def counts(self) -> Counter[float]:
        """How many samples were trained how often, by the weights alone."""
        (weights,) = load_file(self.run_dir / "model.safetensors").values()
        return Counter((-weights.flatten().to(torch.float64)).tolist())

    def find(self, name: str) -> list[int]:
        """Return the processes whose output is the log ``name``."""
        log = str(self.run_dir / "logs" / f"{name}.log")
        return [
            process.pid
            for process in self.processes()
            if os.path.realpath(f"/proc/{process.pid}/fd/1") == log and _is_leader(process.pid, log)
        ]

    def hurry(self) -> None:
        """Let a run that was slowed by ``task_options.pace_s`` come to its end."""
        (self.folder / "hurry").touch()

    def strike(self, name: str, number: signal.Signals) -> int:
        """Send a signal to one of the processes called ``name``, the first started; return its id."""
        pid = min(self.find(name))
        os.kill(pid, number)
        return pid

    def trains_on(self, updates: int = 10) -> bool:
        """Wait for that many updates from now on."""
        first = len(self.named("update"))
        return eventually(lambda: len(self.named("update")) >= first + updates, 60)

    def sees(self, happened: Callable[[], object], seconds: float = 60) -> None:
        """Wait for something to happen; what a person saw until then is said where it did not."""
        assert eventually(happened, seconds), f"{self.events[-5:]}\n{self.last_words()}"


def output_of(process: subprocess.Popen[str], seconds: float = 90) -> str:
    """Wait for the end of the program; return what a person saw."""
    output, _ = process.communicate(timeout=seconds)
    return output


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _is_leader(pid: int, log: str) -> bool:
    # Data loaders share the log of their worker.
    return os.path.realpath(f"/proc/{parent(pid)}/fd/1") != log
