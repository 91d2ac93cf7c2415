"""A parameter server's run without its messages: what it begins from, writes down, and leaves."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import runs
import server_runs
import torch
from safetensors.torch import load_file
from torch.distributed import HashStore
from worker_group import Seat

from dist_train.config.schema import Config
from dist_train.errors import INTERRUPTED, Mismatch, TrainingError
from dist_train.rules.decisions import Action, Answer, Step
from dist_train.rules.durations import UNDECIDED
from dist_train.rules.ledger import Ledger
from dist_train.rules.messages import Push
from dist_train.runtime import server_run
from dist_train.runtime.letters import Hello, Order
from dist_train.runtime.remote import Process
from dist_train.runtime.server_run import ServerRun
from dist_train.watch.records import JsonLines

SAMPLES = 16


ASYNC = {"mode": "async", "workers": 2}


def config_of(parallel: dict[str, Any], steps: int = 8) -> Config:
    return server_runs.config_of(
        parallel=parallel,
        task_options={"size": SAMPLES, "norm": "batch"},
        train={"steps": steps, "batch_size": 4},
        validation={"every_steps": 100},
    )


@dataclass
class World:
    """A run of two members in ``run_dir``, up to the first greeting."""

    run_dir: Path
    parallel: dict[str, Any] = field(default_factory=ASYNC.copy)
    steps: int = 8

    def __post_init__(self) -> None:
        config = config_of(self.parallel, self.steps)
        self.run = ServerRun(Order(config, self.run_dir, "auto", 0, 2, "launcher", "cpu"))
        self.run.prepare()
        self.area, self.kept = self.run.begin()
        self._sequence = 0

    async def meet(self, member: int = 0, **changes: Any) -> None:
        process = Process(1, 1, f"host-{member}", "node")
        greeting = {"train_size": SAMPLES, "validation_size": 8, "parameters": "2 layers"} | changes
        await self.run.meet(
            Hello(member=member, incarnation=0, process=process, memory=None, threads=1, **greeting)
        )

    def update(self) -> Step:
        """Have member 0 hand in its next gradient."""
        referee = self.run.referee
        if not self._sequence:
            joined = referee.join(0, 0, 1) + referee.open()
            self._lease = self._answered(joined)
        self._sequence += 1
        version = referee.admission.version
        push = Push(0, 0, self._sequence, self._lease, version, 4, 2.0, reads=(version,))
        self.run.pushed(push)
        actions = referee.push(push)
        (step,) = (each for each in actions if isinstance(each, Step))
        self.run.records.decided(step)
        self._lease = self._answered(actions + referee.taken(push) + referee.applied(step.version))
        return step

    def _answered(self, actions: list[Any]) -> int:
        """Give the answer to member 0; return the lease that came with it."""
        (answer,) = (each for each in actions if isinstance(each, Answer))
        self.run.records.answered(answer)
        (work,) = answer.reply.work
        return work.lease.number

    def events(self, *names: str) -> list[dict[str, Any]]:
        lines = (self.run_dir / "events.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if not names or event["event"] in names]

    def finish(self, status: Any) -> dict[str, Any]:
        """Save the state as it is, and end; return the summary."""
        self.run.holdings.keep(self.area, self.run.mark_now())
        self.run.finish(self.area, status)
        found: dict[str, Any] = json.loads((self.run_dir / "summary.json").read_text())
        return found


Story = Callable[[World], Coroutine[Any, Any, None]]


def play(run_dir: Path, story: Story, **settings: Any) -> World:
    async def whole() -> World:
        async with asyncio.timeout(20):
            world = World(run_dir, **settings)
            try:
                await story(world)
            finally:
                world.run.close()
            return world

    return asyncio.run(whole())


@pytest.mark.parametrize(
    ("changes", "hazards"),
    [({}, (1,)), ({"near": (0, 1)}, (0, 1)), ({"near": ()}, ()), ({"device": "GPU"}, ())],
)
def test_shards_have_room_for_the_members_that_compute_on_their_memory(
    tmp_path: Path, changes: dict[str, Any], hazards: tuple[int, ...]
) -> None:
    order = Order(config_of(ASYNC), tmp_path, "auto", 0, 2, "launcher", "CPU", near=(1,))
    run = ServerRun(replace(order, **changes))
    (blueprint,) = run.prepare()
    assert run.hazards == hazards
    assert blueprint.hazards == len(hazards)


class TestTheFirstGreeting:
    def test_tells_how_long_the_run_is(self, tmp_path: Path) -> None:
        async def story(world: World) -> None:
            assert world.run.length_if_new() is None
            await world.meet()
            assert world.run.length_if_new() is not None
            assert world.run.length_if_new() is None

        play(tmp_path, story)

    def test_has_the_start_written_down_once(self, tmp_path: Path) -> None:
        async def story(world: World) -> None:
            await asyncio.gather(world.meet(0), world.meet(1))

        (start,) = play(tmp_path, story).events("server_start")
        found = {name: start[name] for name in ("step", "origin", "workers", "members", "quorum", "seed")}
        assert found == {"step": 0, "origin": None, "workers": 2, "members": 2, "quorum": 1, "seed": 5}
        assert start["train_size"] == SAMPLES

    def test_lets_through_what_happened_before_it(self, tmp_path: Path) -> None:
        async def story(world: World) -> None:
            world.run.event({"event": "failure", "rank": 1})
            await world.meet()
            world.run.event({"event": "hung"})

        names = [event["event"] for event in play(tmp_path, story).events()]
        assert names[-3:] == ["server_start", "failure", "hung"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_size": 15}, r"worker 1 \(host-1\): 15 training samples; worker 0 \(host-0\): 16"),
        ({"validation_size": 9}, "9 validation samples"),
        ({"parameters": "3 layers"}, "3 layers parameters"),
    ],
)
def test_a_member_that_sees_something_else_is_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    async def story(world: World) -> None:
        await world.meet(0)
        with pytest.raises(Mismatch, match=said):
            await world.meet(1, **changes)

    play(tmp_path, story)


def test_a_member_is_welcomed_with_buffers_of_its_own(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.meet()
        welcome = world.run.welcome(1)
        assert welcome.seed == 5
        welcome.statistics.fill_(9.0)
        assert not world.run.welcome(1).statistics.eq(9.0).any()

    play(tmp_path, story)


class TestAnUpdate:
    def test_is_written_down_when_it_is_decided_and_its_checksums_when_it_is_applied(
        self, tmp_path: Path
    ) -> None:
        async def story(world: World) -> None:
            await world.meet()
            world.run.applied(world.update(), (7, 8))
            world.run.applied(world.update(), (None,))

        world = play(tmp_path, story)
        assert [(each["event"], each["step"]) for each in world.events("update", "check")] == [
            ("update", 1),
            ("check", 1),
            ("update", 2),
        ]
        assert world.events("check")[0]["crc32"] == [7, 8]

    def test_that_is_lost_with_a_shard_is_counted_as_lost(self, tmp_path: Path) -> None:
        async def story(world: World) -> None:
            await world.meet()
            for _ in range(3):
                world.update()
            world.run.rolled_back(0, world.kept, era=1)
            assert world.run.records.ledger.summary() == []

        (lost,) = play(tmp_path, story).events("rolled_back")
        assert (lost["from_step"], lost["step"], lost["era"], lost["lost_updates"]) == (3, 0, 1, 3)


def test_a_disk_that_stands_still_holds_up_the_checkpoint_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, write = threading.Event(), JsonLines.write

    def write_when_it_moves(lines: JsonLines, record: Mapping[str, Any]) -> None:
        assert disk.wait(20)
        write(lines, record)

    async def story(world: World) -> None:
        await world.meet()
        world.run.wait_for_records()
        monkeypatch.setattr(JsonLines, "write", write_when_it_moves)
        # As the event loop does, which answers everybody.
        world.update()
        written: list[int] = []
        monkeypatch.setattr(
            world.run.holdings, "save", lambda *save: written.append(len(world.events("update")))
        )
        await world.run.start_saving(world.area)
        assert world.events("update") == written == []
        disk.set()
        await world.run.saved()
        assert written == [1], "the checkpoint came before the log of how it came about"

    play(tmp_path, story)


def test_a_full_disk_is_told_once_from_wherever_it_is_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(lines: JsonLines, record: Mapping[str, Any]) -> None:
        raise TrainingError("events.jsonl: cannot be written (No space left on device); free its disk")

    async def story(world: World) -> None:
        await world.meet()
        world.run.wait_for_records()
        world.run.shown()
        monkeypatch.setattr(JsonLines, "write", full)
        world.update()
        world.update()
        world.run.wait_for_records()
        ((verb, (text,)),) = world.run.shown()
        assert (verb, text.partition(" (")[0]) == ("warning", "events.jsonl: cannot be written")

    play(tmp_path, story)


class TestTheEnd:
    def test_delivers_the_weights_when_training_is_over(self, tmp_path: Path) -> None:
        async def story(world: World) -> None:
            await world.meet()
            summary = world.finish("done")
            assert summary["status"] == "done"

        world = play(tmp_path, story)
        weights = load_file(tmp_path / "model.safetensors")
        for name, own in world.run.holdings.server.state.model.state_dict().items():
            assert torch.equal(weights[name], own)

    def test_of_an_interrupted_run_is_where_the_next_goes_on(self, tmp_path: Path) -> None:
        async def first(world: World) -> None:
            await world.meet()
            for _ in range(3):
                world.update()
            assert world.finish("interrupted")["samples"] == 12

        async def second(world: World) -> None:
            assert world.kept.start.updates == 3
            assert world.run.holdings.counted.samples == 12
            await world.meet()

        play(tmp_path, first)
        assert not (tmp_path / "model.safetensors").exists()
        _, again = play(tmp_path, second).events("server_start")
        assert again["step"] == 3
        assert Path(again["origin"]).name == "step_00000003"

    def test_says_how_often_each_sample_was_trained(self, tmp_path: Path) -> None:
        async def story(world: World) -> None:
            await world.meet()
            for _ in range(4):
                world.update()
            assert world.finish("done")["ledger"] == [{"epochs": [0, 0], "samples": {"1": SAMPLES}}]

        play(tmp_path, story)


class TestBackupsLeftToBeChosen:
    """Of two members the second takes nine seconds and the first one; between two updates lies another."""

    AUTO: ClassVar = {"mode": "backup", "workers": 2, "backups": "auto"}

    @pytest.fixture
    def now(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """The clock that a test sets."""
        clock = [0.0]
        monkeypatch.setattr(server_run, "time", SimpleNamespace(monotonic=lambda: clock[0]))
        return clock

    @staticmethod
    def updates(world: World, now: list[float], count: int) -> None:
        """Have both members hand in a gradient of every version."""
        run, referee = world.run, world.run.referee
        leases: dict[int, int] = {}

        def obey(actions: list[Action]) -> None:
            for action in actions:
                if isinstance(action, Answer):
                    run.answered(action)
                    for work in action.reply.work:
                        leases[action.member] = work.lease.number
                elif isinstance(action, Step):
                    run.records.decided(action)

        obey([*referee.join(0, 0), *referee.join(1, 0), *referee.open()])
        for number in range(1, count + 1):
            version = referee.admission.version
            for member, seconds in enumerate((1.0, 8.0)):
                now[0] += seconds
                push = Push(member, 0, number, leases[member], version, 4, 2.0, reads=(version,))
                run.pushed(push)
                obey([*referee.push(push), *referee.taken(push)])
            now[0] += 1.0
            obey(referee.applied(referee.admission.version))
            obey(run.reconsider_backups())

    def test_are_chosen_by_how_long_gradients_took_and_written_down(
        self, tmp_path: Path, now: list[float]
    ) -> None:
        async def story(world: World) -> None:
            await world.meet()
            self.updates(world, now, 30)
            assert world.run.referee.terms.rule.quorum == 1
            assert world.finish("interrupted")["backups"]["chosen"] == 1

        (chosen,) = play(tmp_path, story, parallel=self.AUTO, steps=99).events("backups_chosen")
        # After the first of all, in which processes are new, and three to warm up on.
        assert chosen["step"] == 1 + 3 + 20
        assert [each["step_s"] for each in chosen["table"]] == [10.0, 2.0]
        assert chosen["note"] == chosen["why"]

    def test_are_none_while_too_little_was_measured(self, tmp_path: Path, now: list[float]) -> None:
        async def story(world: World) -> None:
            await world.meet()
            self.updates(world, now, 23)
            assert world.finish("interrupted")["backups"] == {"chosen": 0, "why": UNDECIDED, "table": []}

        assert play(tmp_path, story, parallel=self.AUTO, steps=99).events("backups_chosen") == []


def test_what_a_snapshot_holds_counts_what_was_trained_by_then(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.meet()
        world.update()
        kept = world.run.mark_now()
        world.update()
        assert (kept.start.updates, kept.start.samples) == (1, 4)
        assert Ledger.from_state(kept.counts["ledger"]).summary() == [
            {"epochs": [0, 0], "samples": {"0": SAMPLES - 4, "1": 4}}
        ]

    play(tmp_path, story)


class TestAfterASynchronousPhase:
    @staticmethod
    def sync(run_dir: Path, until: int) -> None:
        one = config_of({"mode": "sync", "workers": 1})
        assert runs.run(Seat(0, 1, HashStore()), one, run_dir, until) == INTERRUPTED

    @staticmethod
    def one_update(run_dir: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}

        async def story(world: World) -> None:
            await world.meet()
            world.update()
            found.update(world.finish("interrupted"))

        play(run_dir, story)
        return found

    def test_the_ledger_holds_what_was_trained_in_it(self, tmp_path: Path) -> None:
        self.sync(tmp_path, until=2)
        summary = self.one_update(tmp_path)
        assert summary["ledger"] == [{"epochs": [0, 0], "samples": {"0": 4, "1": 12}}]
        assert "ledger_since" not in summary

    def test_nothing_is_lost_of_what_was_counted_before_it(self, tmp_path: Path) -> None:
        self.one_update(tmp_path)
        self.sync(tmp_path, until=6)
        summary = self.one_update(tmp_path)
        assert summary["gradients"]["applied"] == 2
        assert summary["ledger"] == [
            {"epochs": [0, 0], "samples": {"1": SAMPLES}},
            {"epochs": [1, 1], "samples": {"0": 4, "1": 12}},
        ]
