"""Run directories of runs that were made in one process, logged as a coordinator logs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import server_runs
import torch

from dist_train.config import dump_config
from dist_train.core.weights import write_weights
from dist_train.exchange.areas import checksum
from dist_train.exchange.baton import seeded
from dist_train.rules.decisions import Action, Answer, Returned, Step
from dist_train.rules.ledger import Ledger
from dist_train.rules.messages import Push, Version
from dist_train.rules.referee import Referee
from dist_train.watch.server_records import ServerRecords

Event = dict[str, Any]


class Listening:
    """A referee that has all that it hears and decides written down."""

    def __init__(self, referee: Referee, book: Book) -> None:
        self._referee = referee
        self._book = book

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._referee, name)
        if name not in (
            "join",
            "open",
            "leave",
            "push",
            "taken",
            "applied",
            "held",
            "measured",
            "stop",
            "roll_back",
        ):
            return found

        def heard(*arguments: Any) -> list[Action]:
            self._book.hear(name, arguments)
            actions: list[Action] = found(*arguments)
            for action in actions:
                self._book.decided(action)
            return actions

        return heard


class Book:
    """The log of a run; ``run_dir`` gets what a replay reads."""

    def __init__(self, run: server_runs.Run, run_dir: Path) -> None:
        self.run, self.run_dir = run, run_dir
        self.events: list[Event] = []
        self._last: Push | None = None
        size = run.server.state.counted.train_size
        self.records = ServerRecords(Mock(), self._event, Ledger(size))
        self.events.append(
            {
                "event": "server_start",
                "step": run.start.updates,
                "origin": None if run.origin is None else str(run.origin),
                "attempt": 0,
                "workers": run.workers,
                "shards": run.config.parallel.server.shards,
                "threads": torch.get_num_threads(),
                "seed": run.server.state.counted.seed,
                "train_size": size,
                "replica": run.replica,
            }
        )
        run.twin.referee = Listening(run.twin.referee, self)

    def hear(self, name: str, arguments: tuple[Any, ...]) -> None:
        match name, arguments:
            case "push", (Push() as push,):
                self._last = push
                self.records.pushed(push)
            case "applied", (Version() as version,) if self.run.config.train.deterministic:
                crc32 = [checksum([shard.state().parameters]) for shard in self.run.shards]
                self._event({"event": "check", "step": version.number, "crc32": crc32})

    def decided(self, action: Action) -> None:
        match action:
            case Step():
                self.records.decided(action)
            case Returned():
                judged = action.outcome in ("dropped", "refused")
                self.records.returned(action, self._last if judged else None)
            case Answer():
                self.records.answered(action)

    def _event(self, event: Event) -> None:
        self.events.append(json.loads(json.dumps(event)))

    def rolled_back(self, to: int) -> None:
        """Have all go back to a snapshot, as when a shard was lost."""
        start, state = next(each for each in self.run.snapshots if each[0].updates == to)
        era = self.run.twin.version.era + 1
        self.run.load(start, state)
        self.run.twin.deposits.go_back(self.run.left[to])
        event = {"event": "rolled_back", "step": to, "era": era}
        self.records.rolled_back(0, self.records.ledger, event)
        self.run.twin.roll_back(start)

    def close(self, status: str = "done") -> Path:
        """Write the run directory."""
        folder = self.run_dir
        folder.mkdir(exist_ok=True)
        self.run.take()
        write_weights(self.run.server.state.model, folder / "model.safetensors")
        (folder / "summary.json").write_text(json.dumps({"status": status}))
        (folder / "config.yaml").write_text(dump_config(self.run.config))
        self.write()
        return folder

    def write(self) -> None:
        lines = [json.dumps(event) + "\n" for event in self.events]
        with (self.run_dir / "events.jsonl").open("a") as file:
            file.writelines(lines)


Make = Callable[..., server_runs.Run]


def record(make: Make, run_dir: Path, parallel: dict[str, Any], steps: int = 12, **sections: Any) -> Book:
    """Make a run with members that move in an order drawn at random, and write it down."""
    deterministic = {"deterministic": True}
    train = deterministic | sections.pop("train", {})
    given = {"task_options": {"norm": "batch", "dropout": 0.2, "size": 72}} | sections
    run = make({"workers": 3, "device": "cpu"} | parallel, steps=steps, train=train, **given)
    return Book(run, run_dir)


def finished(book: Book, seed: int = 1) -> Path:
    """Let the run come to its end; return its directory."""
    book.run.go(seeded(seed))
    return book.close()
