"""A parameter server in miniature: members, shards and a network that may do anything a real one may.

Everything that happens is noted here a second time, sample by sample, and checked against what the referee
says and does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from dist_train.rules.admission import Contribution, Rule
from dist_train.rules.dealing import Deck
from dist_train.rules.decisions import Action, Answer, Fail, Milestone, Replace, Step, Take, Validated
from dist_train.rules.messages import FIRST, Lease, Measured, Push, Reply, ValidationPart, Version
from dist_train.rules.referee import Referee, Start, Terms
from dist_train.rules.sampling import LastBatch, Position, Run
from dist_train.rules.timetable import Timetable

Place = tuple[int, int]
Name = tuple[int, int, int]


@dataclass(frozen=True)
class Setup:
    """A run; ``setting`` is the backups, the bound or the aggregate. ``updates`` ends it, or ``epochs``."""

    mode: str
    members: int = 2
    setting: int = 0
    size: int = 20
    share: int = 4
    epochs: int = 2
    updates: int | None = None
    ahead: int = 1
    last_batch: LastBatch = "keep"
    validate_steps: int | None = None
    validate_epochs: int = 1

    def quorum(self, setting: int) -> int:
        of_mode = {"bulk": self.members, "backup": self.members - setting, "softsync": setting}
        return of_mode.get(self.mode, 1)

    def terms(self, setting: int) -> Terms:
        quorum = self.quorum(setting)
        bound = setting if self.mode == "bounded" else None
        rule = Rule(quorum, self.mode == "backup", bound, read_own=self.mode != "softsync")
        in_step = self.mode == "bulk" or (self.mode == "backup" and setting == 0)
        deck = Deck(self.size, self.share * quorum, quorum, self.last_batch, in_step)
        timetable = Timetable(3, self.validate_epochs, self.validate_steps, 5)
        return Terms(
            rule, deck, timetable, self.epoch, lambda _: (0.1, None), self.finished, snapshot_every=2
        )

    def finished(self, updates: int, samples: int, at: Position) -> bool:
        return at.epoch >= self.epochs if self.updates is None else updates >= self.updates

    @property
    def epoch(self) -> int:
        batch = self.share * self.quorum(self.setting)
        return self.size // batch * batch if self.last_batch == "drop" else self.size

    def drawn(self, start: Start, until: Position) -> set[Place]:
        """The places that are to be trained from ``start`` on until ``until``."""
        later = {
            (epoch, place)
            for epoch in range(start.position.epoch, until.epoch + 1)
            for place in range(self.epoch)
            if (start.position.epoch, start.position.offset) <= (epoch, place) < (until.epoch, until.offset)
        }
        return later | set(places(start.unfinished))


@dataclass
class Process:
    """One incarnation of a member, seen from inside. ``outbox`` and ``inbox`` are under way."""

    member: int
    incarnation: int
    sequence: int = 0
    hand: deque[Lease] = field(default_factory=deque)
    read: Version = FIRST
    part: ValidationPart | None = None
    stopped: bool = False
    outbox: Push | Measured | None = None
    inbox: Reply | None = None
    sent: list[Push | Measured] = field(default_factory=list)
    # What the next answer must say, and the last gradient that was counted.
    awaits: str | None = None
    counted: Push | None = None


FROM_THE_BEGINNING = Start()


class World:
    def __init__(self, setup: Setup, start: Start = FROM_THE_BEGINNING) -> None:
        self.setup, self.start, self.setting = setup, start, setup.setting
        self.referee = Referee(setup.terms(setup.setting), setup.members, start)
        self.processes: dict[int, Process] = {}
        self.incarnations = [-1] * setup.members
        self.clocks = [0] * setup.members
        self.ghosts: list[Push | Measured] = []
        self.stopping = self.told_to_stop = False
        # The shards: what they are yet to do, what they have.
        self.commands: deque[Take | Step | Milestone] = deque()
        self.snapshots = [start]
        self.published = Version(0, start.updates)
        self.held: int | None = None
        # The surviving timeline, and the update in the making.
        self.decided = Version(0, start.updates)
        self.steps: list[tuple[Step, list[Place]]] = []
        self.due: list[int] = [start.updates] if start.owes_validation or self.is_over else []
        self.validated: list[int] = []
        self.making: list[Push] = []
        self.limit = 0
        # Leases: in a member's hands, or counted and in no update yet.
        self.out: dict[int, tuple[int, Lease]] = {}
        self.inside: dict[Name, Lease] = {}
        self.update_of: dict[Name, Version] = {}
        self.taken: set[Name] = set()
        # The clocks at which gradients that count were given, and the leases that each member was late with.
        self.stamps: dict[Name, int] = {}
        self.late: dict[int, list[int]] = {}
        self.verdicts: list[Replace | Fail] = []

    # -- members ---------------------------------------------------------------------------------------

    def join(self, member: int) -> None:
        if member not in self.processes:
            self.clocks[member] = min((self.clocks[each] for each in self.processes), default=0)
        self._forget(member)
        self.incarnations[member] += 1
        process = self.processes[member] = Process(member, self.incarnations[member], awaits="welcome")
        self.obey(self.referee.join(member, process.incarnation, self.setup.ahead))
        self.repeats(lambda: self.referee.join(member, process.incarnation, self.setup.ahead))

    def crash(self, member: int) -> None:
        incarnation = self.processes[member].incarnation
        self._forget(member)
        self.obey(self.referee.leave(member, incarnation))
        self.repeats(lambda: self.referee.leave(member, incarnation))

    def _forget(self, member: int) -> None:
        process = self.processes.pop(member, None)
        if process is not None:
            self.ghosts += process.sent
            self.out = {number: held for number, held in self.out.items() if held[0] != member}

    def advance(self, process: Process, finite: bool = True) -> bool:
        """Let a member do its next thing; False when it must wait."""
        if process.outbox is not None:
            self._deliver(process)
        elif process.inbox is not None:
            self._arrive(process)
        elif process.stopped or process.awaits is not None:
            return False
        else:
            process.sequence += 1
            process.outbox = self._measure(process) if process.part else self._compute(process, finite)
        return True

    def _arrive(self, process: Process) -> None:
        reply, process.inbox = process.inbox, None
        if reply.forget:
            process.hand.clear()
        process.hand.extend(work.lease for work in reply.work)
        process.part, process.stopped = reply.validation, reply.stop
        process.read = self.published
        assert process.read >= reply.version

    def _compute(self, process: Process, finite: bool) -> Push:
        lease = process.hand.popleft()
        key = process.member, process.incarnation, process.sequence
        return Push(*key, lease.number, process.read, lease.count, 1.0, finite)

    def _measure(self, process: Process) -> Measured:
        part, process.part = process.part, None
        samples = part.part + 1.0
        key = process.member, process.incarnation, process.sequence
        return Measured(*key, part.job, part.part, {"step": (self.held or 0) * samples}, samples)

    def _deliver(self, process: Process) -> None:
        message, process.outbox = process.outbox, None
        process.sent.append(message)
        if isinstance(message, Measured):
            process.awaits = "counted"
            self._catch_up(process.member)
        else:
            process.awaits = self._judge(message)
            if process.awaits == "counted":
                process.counted = message
        self.obey(self._send(message))
        self.repeats(lambda: self._send(message))

    def _send(self, message: Push | Measured) -> list[Action]:
        return self.referee.push(message) if isinstance(message, Push) else self.referee.measured(message)

    def _judge(self, push: Push) -> str:
        """What must become of a gradient: the rules once more, in other words."""
        held = self.out.get(push.lease)
        if push.version.era != self.decided.era or held is None or self.is_over or self.stopping:
            return "void"
        del self.out[push.lease]
        if not push.finite:
            return "refused"
        late = push.version.number < self.decided.number or (self.making and len(self.making) >= self.limit)
        if self.setup.mode == "backup" and late:
            self.late.setdefault(push.lease, []).append(push.member)
            return "dropped"
        self.stamps[name(push)] = self.clocks[push.member]
        self.clocks[push.member] += 1
        self.inside[name(push)] = held[1]
        return "counted"

    def repeats(self, send: Callable[[], list[Action]]) -> None:
        """A message that comes again changes nothing: whoever asked first gets the answer for both."""
        before = self.fingerprint()
        assert send() == []
        assert self.fingerprint() == before

    def come_late(self, message: Push | Measured) -> None:
        """A message comes that newer ones, of its process or of another in its place, have overtaken."""
        before = self.fingerprint()
        (answer,) = self._send(message)
        assert isinstance(answer, Answer)
        assert (answer.member, answer.incarnation, answer.sequence) == name(message)
        assert answer.reply.outcome == "ended"
        assert answer.reply.stop
        assert self.fingerprint() == before

    def fingerprint(self) -> tuple[object, ...]:
        referee, dealer, admission = self.referee, self.referee.dealer, self.referee.admission
        data = (dealer.position, dealer.unfinished, referee.samples)
        flags = (referee.finished, referee.stopped, referee.owes_validation)
        return (admission.version, referee.published, *data, *flags, *admission.pushes)

    # -- shards, and what happens to the run -----------------------------------------------------------

    def obey_one(self) -> None:
        """The shards carry out their next command, and say so."""
        command = self.commands.popleft()
        if isinstance(command, Take):
            self.taken.add(name(command.push))
            self.obey(self.referee.taken(command.push))
        elif isinstance(command, Step):
            assert command.version == Version(self.published.era, self.published.number + 1)
            self.published = command.version
            self.obey(self.referee.applied(command.version))
        else:
            self._keep(command)

    def _keep(self, milestone: Milestone) -> None:
        version = milestone.version
        assert version == self.published
        if milestone.snapshot:
            start = Start(version.number, milestone.samples, milestone.position, milestone.unfinished)
            self.snapshots.append(start)
        if milestone.hold:
            assert not any(process.part for process in self.processes.values())
            self.held = version.number
            self.obey(self.referee.held(self.held))

    def roll_back(self, to: Start) -> None:
        """The shards lose the updates after ``to``."""
        for process in self.processes.values():
            update = None if process.counted is None else self.update_of.get(name(process.counted))
            counts = process.counted is not None and process.sent[-1] is process.counted
            if process.awaits == "counted" and counts and (update is None or update.number > to.updates):
                process.awaits = "void"
            process.counted = None
        self.commands.clear()
        self.making.clear()
        self.inside.clear()
        self.out.clear()
        self.stamps.clear()
        self.snapshots = [each for each in self.snapshots if each.updates <= to.updates]
        self.steps = [each for each in self.steps if each[0].version.number <= to.updates]
        self.due = [number for number in self.due if number <= to.updates]
        self.validated = [number for number in self.validated if number <= to.updates]
        lost, self.published = self.decided, Version(self.published.era + 1, to.updates)
        self.decided = self.published
        self.obey(self.referee.roll_back(to))
        self.repeats(lambda: self.referee.applied(lost))
        self.repeats(lambda: self.referee.held(lost.number + 1))

    def stop(self) -> None:
        self._lose_what_is_inside()
        self.stopping = True
        self.obey(self.referee.stop())
        assert not any(process.awaits for process in self.processes.values())

    def _lose_what_is_inside(self) -> None:
        for process in self.processes.values():
            if process.awaits == "counted" and process.sent and name(process.sent[-1]) in self.inside:
                process.awaits = "void"

    def change(self, setting: int) -> None:
        self.setting = setting
        self.obey(self.referee.change(self.setup.terms(setting)))

    def finish(self) -> None:
        """Let all go well from here on: somebody can always go on, until everybody has stopped."""
        for _ in range(3000):
            if not self.processes and not self.told_to_stop:
                self.join(0)
            moved = [self.advance(process) for process in list(self.processes.values())]
            if self.commands:
                self.obey_one()
            elif all(process.stopped for process in self.processes.values()):
                return
            else:
                assert any(moved), f"nobody can go on: {self.fingerprint()}"
        raise AssertionError("training does not come to an end")

    # -- what the referee says -------------------------------------------------------------------------

    def obey(self, actions: Iterable[Action]) -> None:
        began = []
        for action in actions:
            match action:
                case Take():
                    self._take(action)
                case Step():
                    self._decide(action)
                case Milestone():
                    self._check_milestone(action)
                case Validated():
                    assert action.step in self.due
                    assert action.step not in self.validated
                    assert action.metrics == {"step": action.step}
                    self.validated.append(action.step)
                case Answer():
                    self._answer(action)
                    began.append(action)
                case Replace() | Fail():
                    self.verdicts.append(action)
            if isinstance(action, Take | Step | Milestone):
                self.commands.append(action)
        self._check_places()
        for answer in began:
            if self.setup.mode == "bounded" and not (answer.reply.stop or answer.reply.validation):
                assert self.clocks[answer.member] - self._slowest_at_work(answer.member) <= self.setup.setting
                self._check_read(answer.member, answer.reply.version)

    def _take(self, take: Take) -> None:
        if not self.making:
            self.limit = self.setup.quorum(self.setting)
        self.making.append(take.push)
        assert len(self.making) <= self.limit
        assert take.alone == (self.limit == 1)

    def _decide(self, step: Step) -> None:
        assert step.version == Version(self.decided.era, self.decided.number + 1)
        assert [each.push for each in step.contributions] == self.making
        assert self.making, "an update of nothing"
        leases = [self._land(each, step.version) for each in step.contributions]
        self.making = []
        trained = list(places(Run(each.epoch, each.offset, each.count) for each in leases))
        assert step.samples == len(trained)
        assert len({*trained, *self.trained}) == len(trained) + len(self.trained), "trained twice"
        epochs = self.samples // self.setup.epoch
        self.steps.append((step, trained))
        self.decided = step.version
        assert self.referee.samples >= self.samples
        if self.is_over:
            self._lose_what_is_inside()
        if self.is_over or self._validates(step.version.number, epochs):
            self.due.append(step.version.number)

    def _land(self, each: Contribution, version: Version) -> Lease:
        assert each.staleness == version.number - 1 - each.push.version.number >= 0
        if self.setup.mode in ("bulk", "backup"):
            assert each.staleness == 0
            assert sum(push.member == each.push.member for push in self.making) == 1
        self.update_of[name(each.push)] = version
        return self.inside.pop(name(each.push))

    def _validates(self, number: int, epochs: int) -> bool:
        if self.setup.validate_steps is not None:
            return number % self.setup.validate_steps == 0
        ended = range(epochs + 1, self.samples // self.setup.epoch + 1)
        return any(epoch % self.setup.validate_epochs == 0 for epoch in ended)

    def _check_milestone(self, milestone: Milestone) -> None:
        assert milestone.version == self.decided
        assert milestone.samples == self.samples
        assert not milestone.hold or milestone.version.number in self.due
        left = list(places(milestone.unfinished))
        drawn = self.setup.drawn(self.start, milestone.position)
        assert sorted([*left, *self.trained]) == sorted(drawn)

    def _check_places(self) -> None:
        """Every sample that was drawn is trained, or in exactly one lease: somebody's, or in the queue."""
        dealer = self.referee.dealer
        left = list(places(dealer.unfinished))
        assert sorted([*left, *self.trained]) == sorted(self.setup.drawn(self.start, dealer.position))
        mine = [lease for _, lease in self.out.values()] + list(self.inside.values())
        held = list(places(Run(each.epoch, each.offset, each.count) for each in mine))
        assert len(held) == len({*held} & {*left})

    def _answer(self, answer: Answer) -> None:
        process, reply = self.processes[answer.member], answer.reply
        assert (answer.incarnation, answer.sequence) == (process.incarnation, process.sequence)
        assert reply.outcome == process.awaits, "the wrong answer, or the second one"
        process.awaits, process.inbox = None, reply
        assert reply.version == self.published
        for work in reply.work:
            self.out[work.lease.number] = (answer.member, work.lease)
        if reply.stop:
            self.told_to_stop = True
        elif reply.validation is not None:
            assert reply.validation.step == self.held
        else:
            assert any(holder == answer.member for holder, _ in self.out.values()), "nothing to do"
            self._check_reads_own(process, reply.version)

    def _check_read(self, member: int, version: Version) -> None:
        """Who begins at clock c reads every gradient given at clock c - s - 1 or before (Ho et al. 2013)."""
        for gradient, stamp in self.stamps.items():
            if stamp < self.clocks[member] - self.setup.setting:
                assert gradient in self.update_of, f"{gradient} of clock {stamp} is in no update"
                assert self.update_of[gradient] <= version, f"{gradient} of clock {stamp} is not read"

    def _check_reads_own(self, process: Process, version: Version) -> None:
        if process.counted is None:
            return
        if self.setup.mode == "softsync":
            assert name(process.counted) in self.taken
        else:
            assert version >= self.update_of[name(process.counted)]

    # -- what must be so -------------------------------------------------------------------------------

    @property
    def trained(self) -> list[Place]:
        return [place for _, trained in self.steps for place in trained]

    @property
    def samples(self) -> int:
        return self.start.samples + len(self.trained)

    @property
    def is_over(self) -> bool:
        if self.setup.updates is not None:
            return self.decided.number >= self.setup.updates
        return set(self.trained) == self.setup.drawn(self.start, Position(self.setup.epochs, 0))

    def _slowest_at_work(self, but: int) -> int:
        others = {holder for holder, _ in self.out.values()} - {but}
        return min((self.clocks[other] for other in others), default=self.clocks[but])

    def _catch_up(self, member: int) -> None:
        """Who measured meanwhile is not waited for."""
        able = {holder for holder, _ in self.out.values()}
        undealt = len(self.setup.drawn(self.start, Position(self.setup.epochs, 0))) - len(self.trained)
        undealt -= sum(lease.count for _, lease in self.out.values())
        undealt -= sum(lease.count for lease in self.inside.values())
        if self.setup.updates is not None or undealt:
            able |= {each.member for each in self.processes.values() if self._is_free(each)}
        clocks = [self.clocks[other] for other in able - {member}]
        self.clocks[member] = max(self.clocks[member], min(clocks, default=0))

    def _is_free(self, process: Process) -> bool:
        """It waits for an answer, or measures."""
        measures = process.part is not None or isinstance(process.outbox, Measured)
        coming = process.inbox is not None and process.inbox.validation is not None
        return process.awaits is not None or measures or coming


def places(runs: Iterable[Run]) -> Iterator[Place]:
    return ((run.epoch, place) for run in runs for place in range(run.offset, run.offset + run.count))


def name(message: Push | Measured) -> Name:
    return message.member, message.incarnation, message.sequence
