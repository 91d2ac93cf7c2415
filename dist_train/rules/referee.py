"""The referee of a parameter server: who may go on, what counts, what is due. One decision for all shards.

It puts together the admission of gradients, the dealing of samples and of validations, and the timetable.
Every verb takes one message and returns what is to be done, in order; the same referee serves a real run, the
in-process twin and a replay. It has no clock and holds no tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dist_train.rules.admission import Admission, Contribution, Rule
from dist_train.rules.dealing import Dealer, Deck
from dist_train.rules.decisions import (
    Action,
    Answer,
    Fail,
    Milestone,
    Replace,
    Returned,
    Step,
    Take,
    Validated,
    Waiting,
)
from dist_train.rules.messages import (
    Lease,
    Measured,
    Outcome,
    Push,
    Reply,
    ValidationPart,
    Version,
    Work,
)
from dist_train.rules.sampling import Position, Run
from dist_train.rules.timetable import Due, Timetable
from dist_train.rules.validating import ValidationJob

# Refused gradients in a row, from one member or for each member, before giving up on it or on the run.
REFUSALS = 3


@dataclass(frozen=True)
class Terms:
    """What a run agrees on at its start.

    ``rate_at(samples)`` is the learning rate (and momentum, if it moves) once ``samples`` are trained;
    ``finished(updates, samples, position)`` ends training; ``own_steps`` are the steps that a member makes by
    itself for one push, each at ``own_rate`` times the rate; ``outer_rate`` replaces the rate of the server's
    optimizer; ``inverse``: a gradient counts by one over its staleness (Zhang et al. 2015).
    """

    rule: Rule
    deck: Deck
    timetable: Timetable
    epoch_samples: int
    rate_at: Callable[[int], tuple[float, float | None]]
    finished: Callable[[int, int, Position], bool]
    own_steps: int = 0
    own_rate: float = 1.0
    outer_rate: float | None = None
    inverse: bool = False
    snapshot_every: int = 0


@dataclass
class _Seat:
    """A member that waits for an answer."""

    incarnation: int
    sequence: int
    outcome: Outcome
    needs: Version
    # Whether its buffer may be used again.
    taken: bool = True
    waited_for: Waiting = "work"


@dataclass(frozen=True)
class Start:
    """Where a run begins or goes on from."""

    updates: int = 0
    samples: int = 0
    position: Position = Position(0, 0)
    unfinished: tuple[Run, ...] = ()
    owes_validation: bool = False


class Referee:
    def __init__(self, terms: Terms, members: int, start: Start = Start()) -> None:
        self.terms = terms
        self.admission = Admission(terms.rule, members, Version(0, start.updates))
        self.dealer = Dealer(terms.deck, self._goes_on, start.position, start.unfinished, start.samples)
        self.samples = start.samples
        self.published = self.admission.version
        self.validation: ValidationJob | None = None
        self.finished = False
        self.stopped = False
        self._members = members
        self._jobs = 0
        self._seats: dict[int, _Seat] = {}
        self._ahead = [1] * members
        self._open = False
        self._refusals = [0] * members
        self._refused_in_a_row = 0
        self._forget: set[int] = set()
        self._holding = start.owes_validation
        self._notice_the_end()

    # -- who is there ----------------------------------------------------------------------------------

    def join(self, member: int, incarnation: int, ahead: int = 1) -> list[Action]:
        """Let a process take a member's place; ``ahead`` leases keep it busy. The first answer follows."""
        actions: list[Action] = []
        if self.admission.is_live(member) and incarnation > self.admission.incarnation(member):
            actions += self._vacate(member)
        if not self.admission.join(member, incarnation):
            return [*actions, self._ended(member, incarnation, 0)]
        self._ahead[member] = ahead
        self._seats[member] = _Seat(incarnation, 0, "welcome", self.published)
        return [*actions, *self._go_on()]

    def open(self) -> list[Action]:
        """Begin to deal; called once all members are there, or once the others should wait no longer."""
        self._open = True
        actions: list[Action] = []
        if self._holding or self.finished:
            self._holding = True
            actions.append(self._milestone(hold=True))
        return [*actions, *self._go_on()]

    def leave(self, member: int, incarnation: int) -> list[Action]:
        """Take note that a process is gone: what it had in hand is dealt again."""
        if incarnation != self.admission.incarnation(member) or not self.admission.is_live(member):
            return []
        actions = self._vacate(member)
        self.admission.leave(member, incarnation)
        return [*actions, *self._go_on()]

    def _vacate(self, member: int) -> list[Action]:
        self._seats.pop(member, None)
        if self.validation is not None:
            self.validation.lost(member)
        incarnation = self.admission.incarnation(member)
        inside = [each.push.lease for each in self.admission.gathered if each.push.member == member]
        return [
            Returned(member, incarnation, "ended", self.admission.version, None, _run(lease))
            for lease in self.dealer.take_back_from(member, but=inside)
        ]

    # -- gradients -------------------------------------------------------------------------------------

    def push(self, push: Push) -> list[Action]:
        """Judge a gradient."""
        verdict = self.admission.offer(push)
        if verdict == "repeated":
            return []
        if verdict == "ended":
            return [self._ended(push.member, push.incarnation, push.sequence)]
        if verdict == "counted" and (
            self.stopped or self.finished or not self.dealer.holds(push.member, push.lease)
        ):
            self.admission.gathered.pop()
            verdict = "void"
        self._seats[push.member] = self._seat(push, verdict)
        actions = [self._take(push)] if verdict == "counted" else self._turn_away(push, verdict)
        return [*actions, *self._go_on()]

    def _seat(self, push: Push, outcome: Outcome) -> _Seat:
        era, number = self.admission.version
        needs, taken = self.published, True
        if outcome == "dropped":
            needs = self.admission.version
        elif outcome == "counted" and self.terms.rule.read_own:
            needs = Version(era, number + 1)
        elif outcome == "counted":
            taken = False
        return _Seat(push.incarnation, push.sequence, outcome, needs, taken)

    def _take(self, push: Push) -> Action:
        self._refusals[push.member] = self._refused_in_a_row = 0
        staleness = self.admission.gathered[-1].staleness
        weight = push.samples / max(1, staleness) if self.terms.inverse else float(push.samples)
        alone = self.terms.rule.quorum == 1
        return Take(push, weight, alone)

    def _turn_away(self, push: Push, outcome: Outcome) -> list[Action]:
        actions: list[Action] = []
        lease = self.dealer.lease(push.lease)
        if lease is not None and outcome != "void":
            self.dealer.take_back(push.lease)
            actions.append(
                Returned(
                    push.member, push.incarnation, outcome, self.admission.version, push.version, _run(lease)
                )
            )
        if outcome == "refused":
            actions += self._strike(push)
        return actions

    def _strike(self, push: Push) -> list[Action]:
        self._refusals[push.member] += 1
        self._refused_in_a_row += 1
        if self._refused_in_a_row >= REFUSALS * max(1, len(self.admission.live)):
            return [
                Fail(
                    f"{self._refused_in_a_row} gradients in a row hold NaN or infinity, by step "
                    f"{self.admission.version.number}; lower optimizer.lr, lengthen schedule.warmup or set "
                    "train.clip_norm. The last checkpoint is kept"
                )
            ]
        if self._refusals[push.member] >= REFUSALS and len(self.admission.live) > 1:
            self._refusals[push.member] = 0
            why = f"{REFUSALS} gradients in a row hold NaN or infinity while the others' do not"
            return [Replace(push.member, push.incarnation, why)]
        return []

    # -- what shards and members report ----------------------------------------------------------------

    def taken(self, push: Push) -> list[Action]:
        """Take note that every shard has added a gradient: its memory may be used again."""
        seat = self._seats.get(push.member)
        if seat is not None and (seat.incarnation, seat.sequence) == (push.incarnation, push.sequence):
            seat.taken = True
        return self._go_on()

    def applied(self, version: Version) -> list[Action]:
        """Take note that every shard has published ``version``."""
        if version.era == self.admission.version.era:
            self.published = version
        return self._go_on()

    def held(self, step: int) -> list[Action]:
        """Take note that the version of ``step`` is held for a validation: its parts can be dealt."""
        self._jobs += 1
        self._holding = False
        self.validation = ValidationJob(self._jobs, step, self._members)
        return self._go_on()

    def measured(self, measured: Measured) -> list[Action]:
        """Take a member's part of a validation; it then waits for an answer as after a push."""
        member, incarnation, sequence = measured.member, measured.incarnation, measured.sequence
        heard = self.admission.hear(member, incarnation, sequence)
        if heard == "repeated":
            return []
        if heard == "ended":
            return [self._ended(member, incarnation, sequence)]
        self._seats[member] = _Seat(incarnation, sequence, "counted", self.published)
        self.admission.catch_up(member, self._able)
        actions: list[Action] = []
        job = self.validation
        if job is not None and job.job == measured.job:
            job.measured(member, measured.part, measured.sums, measured.samples)
            if job.done:
                actions.append(Validated(job.step, job.means()))
                self.validation = None
        return [*actions, *self._go_on()]

    @property
    def owes_validation(self) -> bool:
        """Whether a validation was due and has not come to its end."""
        return self._holding or self.validation is not None

    def stop(self) -> list[Action]:
        """Let nobody begin anything new: training is to be interrupted here."""
        self.stopped = True
        self.admission.gathered = []
        return self._go_on()

    def change(self, terms: Terms) -> list[Action]:
        """Go on under other terms, such as another number of backup workers."""
        self.terms = terms
        self.admission.rule, self.dealer.deck = terms.rule, terms.deck
        return self._go_on()

    def roll_back(self, to: Start) -> list[Action]:
        """Go back to the state of an earlier update, whose later ones are lost with a shard."""
        self.admission.roll_back(to.updates)
        self.published = self.admission.version
        self.samples, self.finished = to.samples, False
        self.dealer.restart(to.position, to.unfinished, to.samples)
        self._forget = set(self.admission.live)
        for seat in self._seats.values():
            seat.needs = self.published
        if self.validation is not None and self.validation.step > to.updates:
            self.validation = None
        return self._go_on()

    # -- going on --------------------------------------------------------------------------------------

    def _go_on(self) -> list[Action]:
        """Decide the updates that are due, then answer everybody who need wait no longer."""
        if not self._open:
            return []
        actions: list[Action] = []
        while not self._paused and self.admission.complete(self._able):
            actions += self._decide()
        return [*actions, *self._answers()]

    @property
    def _paused(self) -> bool:
        """Only one version is held at a time: the next due validation waits for the one before."""
        if self.stopped or self.finished:
            return True
        count = sum(each.push.samples for each in self.admission.gathered)
        return self.owes_validation and self._due(1, count).validation

    def _decide(self) -> list[Action]:
        taken = self.admission.decide()
        before = self.samples
        rate, momentum = self._rate(taken)
        self.samples += sum(self.dealer.finish(each.push.lease).count for each in taken)
        self._notice_the_end()
        count = self.samples - before
        step = Step(self.admission.version, rate, momentum, taken, count)
        self.samples = before
        due = self._due(0, count)
        self.samples += count
        self._holding = self._holding or due.validation
        every = self.terms.snapshot_every
        snapshot = bool(every) and self.admission.version.number % every == 0
        if not (due.log or due.validation or due.checkpoint or snapshot):
            return [step]
        return [step, self._milestone(due.log, due.validation, due.checkpoint, snapshot)]

    def _rate(self, taken: tuple[Contribution, ...]) -> tuple[float, float | None]:
        if self.terms.outer_rate is not None:
            return self.terms.outer_rate, None
        rate, momentum = self.terms.rate_at(self.samples)
        if self.terms.inverse:
            whole = sum(each.push.samples for each in taken)
            rate *= sum(each.push.samples / max(1, each.staleness) for each in taken) / whole
        return rate, momentum

    def _due(self, updates: int, count: int) -> Due:
        """Say what is due some updates and samples from here; an epoch ends when its samples add up."""
        epoch, after = self.terms.epoch_samples, self.samples + count
        crossed = after // epoch > self.samples // epoch
        number = self.admission.version.number + updates
        return self.terms.timetable.after(
            number, Position(after // epoch, 0 if crossed else 1), self.finished
        )

    def _milestone(
        self, log: bool = False, hold: bool = False, save: bool = False, snapshot: bool = False
    ) -> Milestone:
        where = self.dealer.position, self.dealer.unfinished
        return Milestone(self.admission.version, self.samples, *where, log, hold, save, snapshot)

    def _goes_on(self, position: Position, samples: int) -> bool:
        return not self.terms.finished(self.admission.version.number, samples, position)

    def _notice_the_end(self) -> None:
        # A length in updates ends training at once; what is still out is then left over.
        enough = self.terms.finished(self.admission.version.number, 0, Position(0, 0))
        self.finished = enough or (self.dealer.exhausted and not self.admission.gathered)

    @property
    def _able(self) -> set[int]:
        """The members that may still bring a gradient."""
        inside = {each.push.lease for each in self.admission.gathered}
        able = {holder for number, holder in self.dealer.holders() if number not in inside}
        if self.dealer.can_deal:
            able |= set(self._seats)
            able |= self.validation.members if self.validation is not None else set()
        return {member for member in able if self.admission.is_live(member)}

    def _answers(self) -> list[Action]:
        """Answer whoever need wait no longer; leases are dealt round by round, so all get a share."""
        answers: list[Action] = []
        ready: list[int] = []
        for member, seat in sorted(self._seats.items()):
            if self.stopped or (self._may_go_on(member, seat) and self.finished and not self.owes_validation):
                answers.append(self._reply(member, stop=True))
            elif self._may_go_on(member, seat):
                part = self.validation.deal(member) if self.validation is not None else None
                if part is not None:
                    answers.append(self._reply(member, validation=part))
                elif not self.finished and self._may_read(member, seat):
                    ready.append(member)
        work = self._dealt(ready)
        return [*answers, *(self._reply(member, work=work[member]) for member in ready if member in work)]

    def _may_go_on(self, member: int, seat: _Seat) -> bool:
        if self.published >= seat.needs and seat.taken:
            return True
        seat.waited_for = "server" if self.admission.version >= seat.needs else "quorum"
        return False

    def _may_read(self, member: int, seat: _Seat) -> bool:
        if self.admission.may_read(member, self._able):
            return True
        seat.waited_for = "bound"
        return False

    def _dealt(self, ready: list[int]) -> dict[int, tuple[Work, ...]]:
        """Deal to those who are ready; a member with nothing in hand and nothing dealt is left out."""
        inside = {each.push.lease for each in self.admission.gathered}
        in_hand = {
            member: sum(1 for lease in self.dealer.held_by(member) if lease.number not in inside)
            for member in ready
        }
        dealt: dict[int, list[Work]] = {member: [] for member in ready}
        for turn in range(max((self._ahead[member] for member in ready), default=0)):
            for member in ready:
                if in_hand[member] <= turn < self._ahead[member] and (lease := self.dealer.deal(member)):
                    dealt[member].append(self._work(lease))
        return {member: tuple(work) for member, work in dealt.items() if work or in_hand[member]}

    def _work(self, lease: Lease) -> Work:
        steps, terms = self.terms.own_steps, self.terms
        rates = (
            terms.rate_at(self.samples + lease.count * terms.rule.quorum * step // steps)[0]
            for step in range(steps)
        )
        return Work(lease, tuple(rate * terms.own_rate for rate in rates))

    def _reply(
        self,
        member: int,
        work: tuple[Work, ...] = (),
        validation: ValidationPart | None = None,
        stop: bool = False,
    ) -> Answer:
        seat = self._seats.pop(member)
        forget = member in self._forget
        self._forget.discard(member)
        reply = Reply(seat.outcome, self.published, work, validation, stop, forget)
        return Answer(member, seat.incarnation, seat.sequence, reply, seat.waited_for)

    def _ended(self, member: int, incarnation: int, sequence: int) -> Answer:
        return Answer(member, incarnation, sequence, Reply("ended", self.published, stop=True), "work")


def _run(lease: Lease) -> Run:
    return Run(lease.epoch, lease.offset, lease.count)
