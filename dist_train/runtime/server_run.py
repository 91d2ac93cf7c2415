"""One run of a parameter server: plan, referee, records and checkpoints; all but the messages."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Literal

from dist_train.core.commit import Committer, clean
from dist_train.core.keeper import Keeper, done_before, find_origin, open_keeper, plan_from
from dist_train.errors import Mismatch
from dist_train.exchange.ballot import StoreBallot
from dist_train.exchange.server import Welcome
from dist_train.layout import CHECKPOINTS, CONFIG, WEIGHTS, is_anothers
from dist_train.plan import Plan, group_count, groups, make_plan, samples_per_update
from dist_train.rules.backups import Choice
from dist_train.rules.decisions import Action, Answer, Milestone, Step, Validated
from dist_train.rules.durations import UNDECIDED, Durations
from dist_train.rules.ledger import Ledger, ledger_at
from dist_train.rules.messages import Push
from dist_train.rules.referee import Referee, Start
from dist_train.rules.sampling import Cursor
from dist_train.rules.schedule import learning_rate
from dist_train.rules.teaching import replica_seed
from dist_train.runtime.holdings import Holdings, Kept
from dist_train.runtime.letters import Hello, Order
from dist_train.runtime.server_terms import terms_of
from dist_train.runtime.shard_process import Blueprint
from dist_train.watch.course import Course, End, Standing
from dist_train.watch.figures import Length
from dist_train.watch.forwarded import ForwardedDisplay
from dist_train.watch.logbook import with_warning
from dist_train.watch.opening import Scene, announce, earlier, length_of, open_logbook
from dist_train.watch.scribe import Scribe
from dist_train.watch.server_records import ServerRecords
from dist_train.watch.server_reporter import ServerReporter, called
from dist_train.watch.tally import Tally


class ServerRun:
    def __init__(self, order: Order) -> None:
        self.order = order
        self.config = order.config
        self.members = group_count(order.config.parallel, order.workers)
        self._saving: asyncio.Future[None] | None = None
        self.referee_or_none: Referee | None = None
        self._display = ForwardedDisplay()
        self._length: Length | None = None
        self._first: Hello | None = None
        self._opening: asyncio.Future[None] | None = None
        # The number of backups, where it is left to be chosen, and before that what it is chosen by.
        self._choice: Choice | None = None
        self._durations = Durations(self.members) if self.config.parallel.backups == "auto" else None
        # An executor of its own: nothing else waits while a checkpoint is being written.
        self._savers = ThreadPoolExecutor(1, "saving")
        self._held_at, self._held_samples = time.monotonic(), 0
        self._early: list[Mapping[str, Any]] = []
        # Members' processes that took the place of one that was lost.
        self._successors: set[tuple[int, int]] = set()

    # -- the beginning ---------------------------------------------------------------------------------

    def prepare(self) -> list[Blueprint]:
        """Find where the run begins, restore it, and lay out the shards' memory."""
        order, parallel = self.order, self.config.parallel
        clean(order.run_dir / CHECKPOINTS)
        self._origin = find_origin(order.run_dir, order.resume)
        self.holdings = Holdings(self.config, order.workers, self._origin.path, order.replica)
        if self._origin.path is not None and is_anothers(self._origin.path, order.replica):
            self.holdings.counted.seed = None
        # On a GPU and on other nodes members have copies there.
        self.hazards = order.near if parallel.reads_in_place and order.device == "CPU" else ()
        blueprints = self.holdings.blueprints(parallel.server.shards, threads=1, hazards=len(self.hazards))
        self.parts = tuple(each.part for each in blueprints)
        return blueprints

    def begin(self) -> tuple[int, Kept]:
        """Fill the memory that the shards begin from."""
        counted = self.holdings.counted
        start = Start(
            counted.updates, counted.samples, counted.position, counted.unfinished, counted.owes_validation
        )
        return self.holdings.begin(start)

    async def meet(self, hello: Hello) -> None:
        """Know the data's size from the first member; refuse one that sees other data or another model."""
        if hello.incarnation:
            self._successors.add((hello.member, hello.incarnation))
        if self._first is None or self._opening is None:
            self._first, self._opening = hello, asyncio.ensure_future(self._open(hello))
        await asyncio.shield(self._opening)
        ranks = groups(self.config.parallel, self.order.workers)
        for what, own, first in (
            ("training samples", hello.train_size, self._first.train_size),
            ("validation samples", hello.validation_size, self._first.validation_size),
            ("parameters", hello.parameters, self._first.parameters),
        ):
            if own != first:
                raise Mismatch(
                    f"{called(ranks[hello.member])} ({hello.process.host}): {own} {what}; "
                    f"{called(ranks[self._first.member])} ({self._first.process.host}): {first}; give all "
                    "the same data and code"
                )

    async def _open(self, hello: Hello) -> None:
        order, config, state = self.order, self.config, self.holdings.server.state
        counted = state.counted
        self._choice = self._earlier_choice()
        backups = None if self._choice is None else self._choice.backups
        plan, rescaled = plan_from(config, state, order.workers, hello.train_size, backups)
        own_seed = replica_seed(config.seed, order.replica)
        counted.seed = own_seed if counted.seed is None else counted.seed
        counted.train_size = hello.train_size
        self.plan = plan
        # Imports TensorBoard, and reads the lines that are there.
        self._book = Scribe(
            await asyncio.to_thread(
                open_logbook, config, plan, order.run_dir, 0, order.attempt, counted, self._display
            )
        )
        self._length = length_of(plan, counted)
        parameters = sum(parameter.numel() for parameter in state.model.parameters())
        scene = Scene(order.device, parameters, order.started_by, order.attempt)
        announce(self._book, config, plan, scene, order.run_dir, counted, self._origin, rescaled)
        saved = self.holdings.server.counts
        ledger = ledger_of(saved, self._kept_start(), hello.train_size)
        tally = Tally.from_state(saved["tally"]) if saved.get("tally") else Tally()
        before = await asyncio.to_thread(earlier, order.run_dir, counted.updates)
        course = Course(self._book, config, order.workers, order.attempt, before, replica=order.replica)
        self.records = ServerRecords(
            ServerReporter(course, config, tally, counted.updates), self._book.event, ledger
        )
        self._keeper = self._open_keeper()
        self.referee_or_none = Referee(terms_of(config, plan, self.members), self.members, self._kept_start())
        self._write_start(hello, plan)
        for event in self._early:
            self.event(event)

    def _earlier_choice(self) -> Choice | None:
        """Return the choice of backups that a checkpoint holds, if it is to be made and was among as many."""
        saved = self.holdings.server.counts.get("backups")
        if self._durations is None or saved is None or saved["groups"] != self.members:
            return None
        return Choice.from_record({name: saved[name] for name in ("chosen", "why", "table")})

    def _kept_start(self) -> Start:
        newest = self.holdings.newest()
        assert newest is not None
        return newest[1].start

    def _write_start(self, hello: Hello, plan: Plan) -> None:
        origin = self._origin.path
        self.event(
            {
                "event": "server_start",
                "step": self.holdings.counted.updates,
                "origin": None if origin is None else str(origin),
                "attempt": self.order.attempt,
                "workers": self.order.workers,
                "members": self.members,
                "quorum": plan.quorum,
                "shards": self.config.parallel.server.shards,
                "threads": hello.threads,
                "seed": self.holdings.counted.seed,
                "replica": self.order.replica,
                "train_size": hello.train_size,
            }
        )

    def _open_keeper(self) -> Keeper:
        from torch.distributed import HashStore

        order, config = self.order, self.config
        folder = order.run_dir / CHECKPOINTS
        attempt = uuid.uuid4().hex[:12]
        retention = (config.checkpoint.keep_last, config.checkpoint.keep_every_steps)
        committer = Committer(folder, 0, 1, attempt, StoreBallot(HashStore(), "ballot", 0, 1), retention)
        loop = asyncio.get_running_loop()

        def saved(event: dict[str, Any]) -> None:
            loop.call_soon_threadsafe(self.event, with_warning(event))

        return open_keeper(config, committer, self._origin, self.holdings.counted.updates, True, saved)

    def welcome(self, member: int) -> Welcome:
        seed = self.holdings.counted.seed
        assert seed is not None
        return Welcome(seed, self.holdings.server.statistics[member].clone())

    # -- the terms -------------------------------------------------------------------------------------

    @property
    def referee(self) -> Referee:
        assert self.referee_or_none is not None
        return self.referee_or_none

    def reconsider_backups(self) -> list[Action]:
        """Choose the number of backups once enough gradients are measured, if it was left to be chosen."""
        if self._durations is None or self._choice is not None:
            return []
        version = self.referee.published
        self._durations.released(version, time.monotonic())
        self._choice = choice = self._durations.choice()
        if choice is None:
            return []
        self.event({"event": "backups_chosen", "step": version.number, "note": choice.why, **choice.record()})
        if choice.backups == 0:
            return []
        self.plan = self._plan_with(choice.backups)
        return self.referee.change(terms_of(self.config, self.plan, self.members))

    def _plan_with(self, backups: int) -> Plan:
        """Return the plan for another number of backups, from here on."""
        config, workers, size = self.config, self.order.workers, self.plan.train_size
        updates, samples = self.referee.admission.version.number, self.referee.samples
        position, unfinished = self.referee.dealer.position, self.referee.dealer.unfinished
        now = replace(
            self.holdings.counted, updates=updates, samples=samples, position=position, unfinished=unfinished
        )
        done = done_before(config, now, samples_per_update(config.parallel, config.train, workers, backups))
        rewarms = self.holdings.server.state.chosen.rewarms
        return make_plan(config, workers, size, rewarms, done, backups)

    # -- what happens ----------------------------------------------------------------------------------

    def pushed(self, push: Push) -> None:
        self.records.pushed(push)
        if self._durations is not None and self._choice is None:
            self._durations.pushed(push, time.monotonic())

    def answered(self, answer: Answer) -> None:
        """Take note that a member goes on."""
        if self._durations is not None and self._choice is None:
            self._durations.answered(answer, time.monotonic())
        self.records.answered(answer)

    def applied(self, step: Step, checksums: Sequence[int | None]) -> None:
        """Take note that the shards have published an update."""
        self.records.applied(step.version)
        if checksums[0] is not None:
            self.event({"event": "check", "step": step.version.number, "crc32": list(checksums)})

    def log(self, milestone: Milestone) -> None:
        self.records.reporter.logged(self._standing(milestone.version.number, milestone.samples))

    def validated(self, validated: Validated) -> None:
        number, samples = validated.step, self._held_samples
        self.records.reporter.validated(
            self._standing(number, samples), validated.metrics, time.monotonic() - self._held_at
        )

    def hold(self, milestone: Milestone) -> None:
        """Put the statistics beside the parameters that are held for a validation."""
        self.holdings.hold_statistics()
        self._held_at, self._held_samples = time.monotonic(), milestone.samples

    def _standing(self, step: int, samples: int) -> Standing:
        return Standing(step, samples, samples / self.plan.lengths.epoch)

    def event(self, event: Mapping[str, Any]) -> None:
        """Write an event down; one before the book is open waits for it."""
        if self.referee_or_none is None:
            self._early.append(event)
        else:
            self._book.event(event)

    def length_if_new(self) -> Length | None:
        """Return how long the run is, once, when that is known."""
        length, self._length = self._length, None
        return length

    def shown(self) -> list[tuple[str, tuple[Any, ...]]]:
        return self._display.taken()

    # -- what is kept ----------------------------------------------------------------------------------

    def mark(self, milestone: Milestone) -> Kept:
        """Return the counts that belong to the state after a milestone; its scalars are not known yet."""
        owes = milestone.owes_validation
        where = milestone.samples, milestone.position, milestone.unfinished
        return self._counts(Start(milestone.version.number, *where, owes))

    def mark_now(self) -> Kept:
        """Return the counts that belong to the very last state."""
        referee = self.referee
        where = referee.samples, referee.dealer.position, referee.dealer.unfinished
        return self._counts(Start(referee.admission.version.number, *where, referee.owes_validation))

    def _counts(self, start: Start) -> Kept:
        counts: dict[str, Any] = {
            "ledger": self.records.ledger.to_state(),
            "tally": self.records.reporter.tally.to_state(),
        }
        if self._choice is not None:
            counts["backups"] = {"groups": self.members, **self._choice.record()}
        rate = learning_rate(self.plan.schedule, start.samples)
        batch = self.plan.scaling_batch
        return Kept(start, {}, counts, self.holdings.statistics(), rate=rate, batch=batch)

    async def start_saving(self, area: int) -> None:
        """Start a checkpoint of an area; training goes on, unless the one before is still under way."""
        await self.saved()
        self.holdings.saving = area
        loop = asyncio.get_running_loop()
        self._saving = loop.run_in_executor(self._savers, self._save, area)

    async def saved(self) -> None:
        """Wait until no area is being read for a checkpoint."""
        if self._saving is not None:
            await self._saving

    def _save(self, area: int) -> None:
        try:
            # Whoever goes on from it, or makes the run again, finds in the log how it came about.
            self._book.settle()
            self.holdings.save(self._keeper, area, lambda: None)
        finally:
            self.holdings.saving = None

    def rolled_back(self, shard: int, kept: Kept, era: int) -> None:
        """Write down what a lost shard cost."""
        step = self.referee.admission.version.number
        lost = step - kept.start.updates
        ledger = ledger_of(kept.counts, kept.start, self.plan.train_size)
        event = {
            "event": "rolled_back",
            "shard": shard,
            "step": kept.start.updates,
            "from_step": step,
            "era": era,
            "lost_updates": lost,
            "warning": f"shard {shard} was lost: back from update {step} to the snapshot of update "
            f"{kept.start.updates}; {lost} updates are lost, their samples are drawn again",
        }
        self.records.rolled_back(lost, ledger, event)

    def finish(self, area: int, status: Literal["interrupted", "done"]) -> None:
        """Deliver the weights if training is over, and write the last checkpoint."""
        run_dir, weights = self.order.run_dir, None
        self._book.settle()
        self.holdings.take(area)
        if status == "done":
            weights = run_dir / WEIGHTS
            self.holdings.write_weights(weights)
        self.holdings.finish(self._keeper, lambda: None)
        ledger = self.records.ledger
        extras: dict[str, Any] = {"ledger": ledger.summary(), "replaced": len(self._successors)}
        if ledger.since:
            extras["ledger_since"] = ledger.since
        if self._choice is not None:
            extras["backups"] = self._choice.record()
        elif self._durations is not None:
            extras["backups"] = {"chosen": 0, "why": UNDECIDED, "table": []}
        resume = f"dist-train run {run_dir / CONFIG} --run-dir {run_dir}" if status == "interrupted" else None
        counted = self.holdings.counted
        self.records.finish(
            self._standing(counted.updates, counted.samples), End(status, run_dir, weights, resume, extras)
        )

    def wait_for_records(self) -> None:
        """Return when all that happened so far is written down, or cannot be."""
        if self.referee_or_none is not None:
            self._book.wait()

    def close(self) -> None:
        """Close the book: what comes later is not written."""
        self._book.close()


def ledger_of(counts: Mapping[str, Any], start: Start, train_size: int) -> Ledger:
    """Return the ledger of a state that has these counts."""
    return ledger_at(counts, Cursor(start.position, start.unfinished), start.samples, train_size)
