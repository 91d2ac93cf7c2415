"""The referee of a parameter server: who may go on, what counts, what is due. One decision for all shards.

It puts together the admission of gradients, the dealing of samples and of validations, and the timetable.
Every verb takes one message and returns what is to be done, in order; the same referee serves a real run, the
in-process twin and a replay. It has no clock and holds no tensor.
"""

from __future__ import annotations

from dist_train.rules.admission import Admission
from dist_train.rules.dealing import Dealer
from dist_train.rules.decisions import Action, Answer, Milestone, Returned, Step, Validated
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
from dist_train.rules.refusals import Refusals
from dist_train.rules.sampling import Position, Run
from dist_train.rules.seats import Seat, Seats
from dist_train.rules.terms import Start, Terms
from dist_train.rules.timetable import Due
from dist_train.rules.validating import ValidationJob

__all__ = ["Referee", "Start", "Terms"]

_FROM_THE_BEGINNING = Start()


class Referee:
    """Every verb may come at any time, and twice; what members and shards do with its answers is in order."""

    def __init__(self, terms: Terms, members: int, start: Start = _FROM_THE_BEGINNING) -> None:
        self.terms = terms
        self.admission = Admission(terms.rule, members, Version(0, start.updates))
        self.dealer = Dealer(terms.deck, self._goes_on, start.position, start.unfinished, start.samples)
        self.samples = start.samples
        self.published = self.admission.version
        self.validation: ValidationJob | None = None
        self.finished = self.terms.ends_at(start.updates) or self.dealer.exhausted
        self.stopped = False
        self._members = members
        self._jobs = 0
        self._seats = Seats()
        self._ahead = [1] * members
        self._open = False
        self._refusals = Refusals(members)
        self._forget: set[int] = set()
        # The version that the shards are to hold for a validation, until they do.
        self._awaited = start.updates if start.owes_validation or self.finished else None

    # -- who is there ----------------------------------------------------------------------------------

    def join(self, member: int, incarnation: int, ahead: int = 1) -> list[Action]:
        """Let a process take a member's place; ``ahead`` leases keep it busy. The first answer follows."""
        actions: list[Action] = []
        if self.admission.is_live(member):
            if incarnation == self.admission.incarnation(member):
                return []
            if incarnation > self.admission.incarnation(member):
                actions += self._vacate(member)
        if not self.admission.join(member, incarnation):
            return [self._ended(member, incarnation, 0)]
        self._ahead[member] = ahead
        self._refusals.forgive(member)
        needs = self.admission.version
        if self.admission.rule.read_own and any(push.member == member for push in self.admission.pushes):
            # Its predecessor's gradient is in: no update takes two of one member.
            needs = Version(needs.era, needs.number + 1)
        self._seats.take(member, Seat(incarnation, 0, "welcome", needs))
        return [*actions, *self._go_on()]

    def open(self) -> list[Action]:
        """Begin to deal; called once all members are there, or once the others should wait no longer."""
        if self._open:
            return []
        self._open = True
        held = [self._milestone(hold=True)] if self._awaited is not None else []
        return [*held, *self._go_on()]

    def leave(self, member: int, incarnation: int) -> list[Action]:
        """Take note that a process is gone: what it had in hand is dealt again."""
        if incarnation != self.admission.incarnation(member) or not self.admission.is_live(member):
            return []
        actions = self._vacate(member)
        self.admission.leave(member, incarnation)
        return [*actions, *self._go_on()]

    def _vacate(self, member: int) -> list[Action]:
        self._seats.vacate(member)
        if self.validation is not None:
            self.validation.lost(member)
        incarnation, version = self.admission.incarnation(member), self.admission.version
        return [
            Returned(member, incarnation, "ended", version, None, _run(lease))
            for lease in self.dealer.take_back_from(member, but=self._inside)
        ]

    # -- gradients -------------------------------------------------------------------------------------

    def push(self, push: Push) -> list[Action]:
        """Judge a gradient."""
        over = self.stopped or self.finished
        held = self.dealer.holds(push.member, push.lease) and push.lease not in self._inside
        verdict = self.admission.offer(push, rightful=held and not over)
        if verdict == "repeated":
            return []
        if verdict == "ended":
            return [self._ended(push.member, push.incarnation, push.sequence)]
        self._seats.take(push.member, self._seat(push, verdict))
        actions = self._counted(push) if verdict == "counted" else self._turned_away(push, verdict)
        return [*actions, *self._go_on()]

    def _seat(self, push: Push, outcome: Outcome) -> Seat:
        seat = Seat(push.incarnation, push.sequence, outcome, self.published)
        if outcome == "dropped":
            # One that found the update full is late for it, though it is not decided on yet.
            full = push.version == self.admission.version
            seat.needs = Version(push.version.era, self.admission.version.number + full)
        elif outcome == "counted":
            seat.gradient, seat.update = push, self.admission.update_of(push)
            seat.untaken = True
            if self.admission.rule.read_own:
                seat.needs = seat.update
        return seat

    def _counted(self, push: Push) -> list[Action]:
        self._refusals.counted(push)
        gathered = self.admission.gathered[-1]
        return [self.terms.take(gathered, self.admission.rule)] if gathered.push is push else []

    def _turned_away(self, push: Push, outcome: Outcome) -> list[Action]:
        if outcome == "void":
            return []
        # Whether the samples or the member are at fault, others show.
        version, lease = self.admission.version, self.dealer.take_back(push.lease, in_vain=True)
        returned = Returned(push.member, push.incarnation, outcome, version, push.version, _run(lease))
        if outcome == "dropped":
            return [returned]
        return [returned, *self._refusals.refused(push, lease, len(self.admission.live), version.number)]

    # -- what shards and members report ----------------------------------------------------------------

    def taken(self, push: Push) -> list[Action]:
        """Take note that every shard has added a gradient: its memory may be used again."""
        self._seats.taken(push)
        return self._go_on()

    def applied(self, version: Version) -> list[Action]:
        """Take note that every shard has published ``version``."""
        self.published = max(self.published, version)
        self.admission.applied(self.published)
        return self._go_on()

    def held(self, step: int) -> list[Action]:
        """Take note that the version of ``step`` is held for a validation: its parts can be dealt."""
        if step == self._awaited:
            self._begin_validation(step)
        return self._go_on()

    def _begin_validation(self, step: int) -> None:
        self._jobs += 1
        self._awaited = None
        self.validation = ValidationJob(self._jobs, step, self._members)

    def measured(self, measured: Measured) -> list[Action]:
        """Take a member's part of a validation; it then waits for an answer as after a push."""
        member, incarnation, sequence = measured.member, measured.incarnation, measured.sequence
        heard = self.admission.hear(member, incarnation, sequence)
        if heard == "repeated":
            return []
        if heard == "ended":
            return [self._ended(member, incarnation, sequence)]
        self._seats.come_back(member, incarnation, sequence, self.published)
        self.admission.catch_up(member, self._able)
        actions: list[Action] = []
        job = self.validation
        # What was broken off is made up for as a whole.
        if job is not None and job.job == measured.job and not self.stopped:
            job.measured(member, measured.part, measured.sums, measured.samples)
            if job.done:
                actions.append(Validated(job.step, job.means()))
                self.validation = None
        return [*actions, *self._go_on()]

    # -- what changes the course -----------------------------------------------------------------------

    @property
    def owes_validation(self) -> bool:
        """Whether a validation was due and has not come to its end."""
        return self._awaited is not None or self.validation is not None

    def stop(self) -> list[Action]:
        """Let nobody begin anything new: training is to be interrupted here, and a validation with it."""
        self.stopped = True
        self._abandon()
        return self._go_on()

    def change(self, terms: Terms) -> list[Action]:
        """Go on under other terms, such as another number of backup workers.

        The update in the making, if it has a gradient, is still completed by the rule it was begun under.
        """
        self.terms, self.dealer.deck = terms, terms.deck
        self.admission.change(terms.rule)
        return self._go_on()

    def roll_back(self, to: Start, era: int | None = None) -> list[Action]:
        """Go back to the state of an earlier update, whose later ones are lost with a shard.

        ``era`` is the one that the shards have begun, if not the next: they may have had to begin twice.
        Call it once the shards hold that state, and pass on no report of what they did before. The version
        held for a validation is not lost; one that all were not yet known to hold is held again.
        """
        self._abandon()
        self.admission.roll_back(to.updates, era)
        self.published = self.admission.version
        self._seats.roll_back(self.published)
        self.samples = to.samples
        self.dealer.restart(to.position, to.unfinished, to.samples)
        self.finished = self.terms.ends_at(to.updates) or self.dealer.exhausted
        self._forget = set(self.admission.live)
        return [*self._validation_after_loss(to.updates), *self._go_on()]

    def _validation_after_loss(self, updates: int) -> list[Action]:
        if self.validation is not None and self.validation.step > updates:
            self.validation = None
        if self._awaited is None:
            return []
        if self._awaited < updates:
            # The state gone back to was saved after that version was held.
            self._begin_validation(self._awaited)
        elif self._awaited > updates:
            self._awaited = None
        return [self._milestone(hold=True)] if self._awaited is not None and self._open else []

    def _abandon(self) -> None:
        """Let go of the gradients that will be in no update."""
        self._seats.lose(self.admission.abandon(), self.admission.version)

    # -- going on --------------------------------------------------------------------------------------

    def _go_on(self) -> list[Action]:
        """Decide the updates that are due, then answer everybody who need wait no longer."""
        if not self._open and not self.stopped:
            return []
        actions: list[Action] = []
        while not self._paused and self.admission.complete(self._able):
            actions += self._decide()
        return [*actions, *self._answers()]

    @property
    def _paused(self) -> bool:
        """Only one version is held at a time: a due validation waits for the one before, if that can be."""
        # Nobody can measure where the shards still read the memory of all.
        stuck = self.terms.compensates and self._seats.all_read(self.admission.live, self.published)
        waits = self.owes_validation and not stuck and self._coming().validation
        return self.stopped or self.finished or waits

    def _decide(self) -> list[Action]:
        due = self._coming()
        taken = self.admission.decide()
        version = self.admission.version
        made = self.terms.made_with(self.samples, taken)
        count = sum(self.dealer.finish(each.push.lease).count for each in taken)
        self.samples += count
        actions: list[Action] = [Step(version, made, taken, count)]
        self.finished = self.terms.ends_at(version.number) or self.dealer.exhausted
        if self.finished:
            self._abandon()
        if hold := due.validation and (self.finished or not self.owes_validation):
            self._awaited, self.validation = version.number, None
        every = self.terms.snapshot_every
        snapshot = bool(every) and version.number % every == 0
        if due.log or hold or due.checkpoint or snapshot:
            actions.append(self._milestone(due.log, hold, due.checkpoint, snapshot))
        gathered, rule = self.admission.gathered, self.admission.rule
        return [*actions, *(self.terms.take(each, rule) for each in gathered)]

    def _coming(self) -> Due:
        """Say what is due after the update in the making."""
        number = self.admission.version.number + 1
        leases = [each.push.lease for each in self.admission.gathered]
        after = self.samples + sum(self.dealer.count_of(lease) for lease in leases)
        ends = self.terms.ends_at(number) or self.dealer.exhausted_after(leases)
        return self.terms.due(number, self.samples, after, ends)

    def _milestone(
        self, log: bool = False, hold: bool = False, save: bool = False, snapshot: bool = False
    ) -> Milestone:
        where = self.dealer.position, self.dealer.unfinished
        owes = self.owes_validation
        return Milestone(self.admission.version, self.samples, *where, log, hold, save, snapshot, owes)

    def _goes_on(self, position: Position, samples: int) -> bool:
        return not self.terms.finished(self.admission.version.number, samples, position)

    @property
    def _inside(self) -> set[int]:
        """The leases whose gradients count, and are in no update yet."""
        return {push.lease for push in self.admission.pushes}

    @property
    def _able(self) -> set[int]:
        """The members that may still bring a gradient."""
        inside = self._inside
        able = {holder for number, holder in self.dealer.holders() if number not in inside}
        if self.dealer.can_deal:
            able.update(self._seats.members)
            able |= self.validation.members if self.validation is not None else set()
        return {member for member in able if self.admission.is_live(member)}

    # -- answers ---------------------------------------------------------------------------------------

    def _answers(self) -> list[Action]:
        """Answer whoever need wait no longer; leases are dealt round by round, so all get a share."""
        answers: list[Action] = []
        ready: list[int] = []
        over, held_up = self.finished and not self.owes_validation, self._held_up
        for member in self._seats.members:
            goes_on = self._may_go_on(self._seats[member])
            if self.stopped or (over and goes_on):
                answers.append(self._reply(member, stop=True))
            elif (goes_on or (held_up and self._may_measure(member))) and (part := self._part(member)):
                answers.append(self._reply(member, validation=part))
            elif goes_on and not self.finished and self._may_read(member):
                ready.append(member)
        work = self._dealt(ready)
        return [*answers, *(self._reply(member, work=work[member]) for member in ready if member in work)]

    def _may_go_on(self, seat: Seat) -> bool:
        needs, newest = seat.needs, self.admission.version
        if self.admission.rule.reads_newest:
            needs = max(needs, newest)
        if self.published >= needs and not seat.is_read(self.published):
            return True
        seat.waits_for("server" if newest >= needs else "quorum")
        return False

    @property
    def _held_up(self) -> bool:
        """Whether updates wait for a validation, so that those who wait for updates must measure it."""
        return self.validation is not None and self._paused and self.admission.complete(self._able)

    def _may_measure(self, member: int) -> bool:
        """Say whether nobody needs the parameters that a member who waits computed its gradient from."""
        return not (self.terms.compensates and self._seats[member].is_read(self.published))

    def _part(self, member: int) -> ValidationPart | None:
        return self.validation.deal(member) if self.validation is not None else None

    def _may_read(self, member: int) -> bool:
        if not self.admission.may_read(member, self._able):
            self._seats[member].waits_for("bound")
        elif not self.admission.sees_enough(member):
            self._seats[member].waits_for("server")
        else:
            return True
        return False

    def _dealt(self, ready: list[int]) -> dict[int, tuple[Work, ...]]:
        """Deal to those who are ready; a member with nothing in hand and nothing dealt is left out."""
        inside = self._inside
        in_hand = {
            member: sum(1 for lease in self.dealer.held_by(member) if lease.number not in inside)
            for member in ready
        }
        dealt: dict[int, list[Work]] = {member: [] for member in ready}
        for turn in range(max((self._ahead[member] for member in ready), default=0)):
            for member in ready:
                if not in_hand[member] <= turn < self._ahead[member]:
                    continue
                if lease := self.dealer.deal(member, self.admission.live):
                    dealt[member].append(self.terms.work(lease, self.samples))
        return {member: tuple(work) for member, work in dealt.items() if work or in_hand[member]}

    def _reply(
        self,
        member: int,
        work: tuple[Work, ...] = (),
        validation: ValidationPart | None = None,
        stop: bool = False,
    ) -> Answer:
        seat = self._seats.leave(member, to_measure=validation is not None)
        forget = member in self._forget
        self._forget.discard(member)
        reply = Reply(seat.outcome, self.published, work, validation, stop, forget)
        return Answer(member, seat.incarnation, seat.sequence, reply, seat.waited_for)

    def _ended(self, member: int, incarnation: int, sequence: int) -> Answer:
        return Answer(member, incarnation, sequence, Reply("ended", self.published, stop=True), "work")


def _run(lease: Lease) -> Run:
    return Run(lease.epoch, lease.offset, lease.count)
